"""The count of repeats against plain counting: all totals and gaps between ends, of every width."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from pymtl3 import DefaultPassGroup

from accel.countdown.CountdownRTL import CountdownRTL


@pytest.mark.parametrize("nbits", [1, 2, 3, 4, 13])
def test_the_last_repeat_is_known_in_its_first_cycle(nbits: int) -> None:
    counter = CountdownRTL(nbits)
    counter.elaborate()
    counter.apply(DefaultPassGroup())
    rng = random.Random(nbits)
    seen: Counter[tuple[int, bool]] = Counter()
    most = min((1 << nbits) - 1, 9)
    for run in range(16 * most):
        total = 1 + run % most
        chance = rng.choice([0.2, 0.7, 1.0])
        counter.load @= 1
        counter.step @= 0
        # What is given before the command comes may be anything, and so may the total until it is held.
        for given in [rng.getrandbits(nbits) for _ in range(rng.randint(0, 2))] + [total]:
            counter.given @= given
            counter.total @= rng.getrandbits(nbits)
            counter.sim_tick()
        counter.load @= 0
        counter.given @= rng.getrandbits(nbits)
        counter.total @= total
        left, stepped = total, False
        for _ in range(rng.randint(1, 40)):
            assert (int(counter.last), int(counter.next_last)) == (left == 1, left == 2), (total, left)
            step = rng.random() < chance
            seen[left, stepped and step] += 1
            counter.step @= step
            counter.sim_tick()
            stepped = step
            if step:
                left = left - 1 or total
    assert all(seen[left, in_a_row] for left in range(1, most + 1) for in_a_row in (False, True))
