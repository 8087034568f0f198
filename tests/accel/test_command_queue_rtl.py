"""The command queue, against PyMTL3's queue of two: the same handshakes and messages in every cycle."""

from __future__ import annotations

import random

from pymtl3 import Bits8, DefaultPassGroup

from accel.core.CommandQueueRTL import CommandQueueRTL
from accel.interfaces import NormalQueueRTL


def test_the_same_as_the_normal_queue_of_two() -> None:
    queues = [CommandQueueRTL(Bits8), NormalQueueRTL(Bits8, 2)]
    for queue in queues:
        queue.elaborate()
        queue.apply(DefaultPassGroup())
    rng = random.Random(1)
    seen = set()
    for cycle in range(3000):
        offered, wanted, message = rng.random() < 0.6, rng.random() < 0.5, rng.getrandbits(8)
        resetting = cycle < 2 or rng.random() < 0.01
        for queue in queues:
            queue.reset @= resetting
            queue.recv.msg @= message
            queue.send.rdy @= wanted
            # Who offers looks at ready first, as the core does.
            queue.recv.val @= 0
            queue.sim_eval_combinational()
            queue.recv.val @= offered & queue.recv.rdy
            queue.sim_eval_combinational()
        ours, theirs = queues
        assert ours.recv.rdy == theirs.recv.rdy
        assert ours.send.val == theirs.send.val
        if ours.send.val:
            assert ours.send.msg == theirs.send.msg
        seen.add((bool(ours.recv.rdy), bool(ours.send.val), offered, wanted))
        for queue in queues:
            queue.sim_tick()
    assert len(seen) == 12  # empty, with one, and full, each with all four of what may happen
