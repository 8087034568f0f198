"""Drain sequencer: the cycles in which the partial sums of a group leave the drain chains."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, update_ff

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import mk_drain_msg, mk_group_msg


class DrainSequencerRTL(Component):
    """Counts the cycles of a group's draining: one accumulator address a cycle for all chains of a column."""

    def construct(s, config: CoreConfig):
        # Constants
        Group, Drain = mk_group_msg(config), mk_drain_msg(config)
        length_bits = count_bits(config.chain_rows)

        # Interface: the end of a group in the cycle of its last step in the PEs of column 0
        s.group_val = InPort()
        s.group = InPort(Group)
        s.drain_val = OutPort()
        s.drain = OutPort(Drain)

        # State
        s.left = Wire(length_bits)
        s.addr = Wire(count_bits(config.acc_words - 1))
        s.half = Wire()
        s.first = Wire()
        s.done = Wire()

        @update
        def up_drain():
            s.drain_val @= s.left != 0
            s.drain.half @= s.half
            s.drain.addr @= s.addr
            s.drain.first @= s.first
            s.drain.done @= s.done & (s.left == 1)

        @update_ff
        def ff_drain():
            if s.group_val:
                s.addr <<= s.group.addr
                s.half <<= s.group.half
                s.first <<= s.group.first
                s.done <<= s.group.done
            elif s.left > 1:
                s.addr <<= s.addr + 1
            if s.reset:
                s.left <<= 0
            elif s.group_val:
                s.left <<= s.group.length
            elif s.left != 0:
                s.left <<= s.left - 1
