"""What a cycle of the core goes to; every level and the timing model count by these."""

#: In the order of the sequencer's ``cause`` output and of the core's counters.
CAUSES = ("idle", "busy", "wait_acts", "wait_weights", "wait_write", "wait_drain")
