"""Delays: values so many cycles later, and registers that are there several times."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymtl3 import mk_bits

from accel.delay.DelayRTL import DelayRTL, FanoutRTL, HoldRTL, PulseRTL

BYTES = st.lists(st.integers(0, 255), min_size=6, max_size=20)


@pytest.mark.parametrize("cycles", range(4))
@given(values=BYTES)
@settings(max_examples=5)
def test_values_come_so_many_cycles_later(cycles: int, values: list[int], simulated: Callable) -> None:
    hold = simulated(HoldRTL(8, 2, cycles))
    for cycle, value in enumerate(values):
        hold.in_[0] @= value
        hold.in_[1] @= 255 - value
        hold.sim_eval_combinational()
        if cycle >= cycles:
            assert (hold.out[0], hold.out[1]) == (values[cycle - cycles], 255 - values[cycle - cycles])
        hold.sim_tick()


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("cycles", range(4))
@given(values=BYTES)
@settings(max_examples=5)
def test_every_copy_comes_so_many_cycles_later(
    cycles: int, copies: int, values: list[int], simulated: Callable
) -> None:
    fanout = simulated(FanoutRTL(8, cycles, copies))
    assert len(fanout.out) == copies
    for cycle, value in enumerate(values):
        fanout.in_ @= value
        fanout.sim_eval_combinational()
        if cycle >= cycles:
            assert [int(out) for out in fanout.out] == [values[cycle - cycles]] * copies
        fanout.sim_tick()


@pytest.mark.parametrize(("cycles", "copies"), [(1, 1), (1, 3), (2, 3)])
def test_only_the_last_register_is_there_several_times(cycles: int, copies: int, simulated: Callable) -> None:
    fanout = simulated(FanoutRTL(8, cycles, copies))
    registers = [wire for wire in fanout.get_all_object_filter(lambda thing: repr(thing).endswith(".copied"))]
    assert len(registers) == copies
    assert len(getattr(fanout.earlier, "held", [])) == cycles - 1


@pytest.mark.parametrize("cycles", range(4))
@given(values=st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.sampled_from((0, 0, 0, 1))), max_size=20))
@settings(max_examples=10)
def test_messages_on_their_way_are_lost_at_a_reset(cycles: int, values: list, simulated: Callable) -> None:
    delay = simulated(DelayRTL(mk_bits(8), cycles))
    # The messages on their way, the one that comes out next first.
    on_the_way: list[tuple[bool, int]] = [(False, 0)] * cycles
    for val, msg, reset in values:
        delay.val @= val
        delay.msg @= msg
        delay.reset @= reset
        delay.sim_eval_combinational()
        on_the_way.append((val, msg))
        out_val, out_msg = on_the_way.pop(0)
        assert delay.val_out == out_val
        if out_val:
            assert delay.msg_out == out_msg
        if reset:
            on_the_way = [(False, 0)] * cycles
        delay.sim_tick()


@pytest.mark.parametrize("cycles", range(1, 4))
@given(values=st.lists(st.tuples(st.booleans(), st.sampled_from((0, 0, 0, 1))), max_size=20))
@settings(max_examples=10)
def test_pulses_on_their_way_are_lost_at_a_reset(cycles: int, values: list, simulated: Callable) -> None:
    pulse = simulated(PulseRTL(cycles))
    on_the_way = [False] * cycles
    for val, reset in values:
        pulse.in_ @= val
        pulse.reset @= reset
        assert pulse.out == on_the_way.pop(0)
        on_the_way.append(val)
        if reset:
            on_the_way = [False] * cycles
        pulse.sim_tick()
