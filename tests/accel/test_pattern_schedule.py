"""Pattern schedule: complete, within the window, and with as few steps as there can be."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.schedule import Step, blocks_in_step, lane_use, nonzeros, schedule, steps_per_group
from quant import NMPattern

SIZES = [(1, 1), (1, 4), (2, 3), (2, 8), (3, 7), (4, 8), (4, 16), (5, 11), (7, 7), (8, 13), (16, 32)]


def place(pattern: NMPattern, j: int) -> tuple[int, int]:
    """Block and number in the block of nonzero j, by counting."""
    block = 0
    while j >= pattern.n:
        j -= pattern.n
        block += 1
    return block, j


def fits_in_one_step(pattern: NMPattern, first: int, last: int, lanes: int, window: int) -> bool:
    """Whether nonzeros first..last may be taken together, wherever they lie in their blocks."""
    begin = place(pattern, first)[0] * pattern.m
    end = (place(pattern, last)[0] + 1) * pattern.m
    return last - first < lanes and end - begin <= window


def fewest_steps(pattern: NMPattern, total: int, lanes: int, window: int) -> int:
    """Optimum over every way of cutting 0..total−1 into runs, by dynamic programming."""

    @cache
    def fewest(done: int) -> int:
        if done == 0:
            return 0
        return 1 + min(
            fewest(first)
            for first in range(max(0, done - lanes), done)
            if fits_in_one_step(pattern, first, done - 1, lanes, window)
        )

    for done in range(total):  # from small to large: no deep recursion
        fewest(done)
    return fewest(total)


def steps_at_best_constant_rate(pattern: NMPattern, total: int, lanes: int, window: int) -> int:
    """Steps with the largest lane count that always fits, as section 4 of the design defines L_eff."""
    for rate in range(lanes, 0, -1):
        firsts = range(0, total, rate)
        if all(fits_in_one_step(pattern, first, min(first + rate, total) - 1, lanes, window) for first in firsts):
            return len(firsts)
    raise AssertionError("one nonzero a step always fits")


def check_lane_by_lane(steps: list[Step], pattern: NMPattern, group: int, lanes: int, window: int) -> None:
    """Simulate the lanes one by one, each with every position that its weight may have in its block."""
    expected = iter((block * pattern.m, number) for block in range(group // pattern.m) for number in range(pattern.n))
    number_in_order = 0
    for step in steps:
        assert step.first == number_in_order
        assert 1 <= step.count <= lanes
        assert len(step.offsets) == step.count
        for lane in range(step.count):
            block_start, number = next(expected)
            # The weight that is the number-th of its block lies at number .. m − n + number of it.
            for position in range(number, pattern.m - pattern.n + number + 1):
                window_index = step.offsets[lane] + position
                assert 0 <= window_index < window
                assert step.base + window_index == block_start + position
            number_in_order += 1
    assert next(expected, None) is None, "a nonzero is left over"


@pytest.mark.parametrize(("lanes", "window"), SIZES)
def test_every_nonzero_once_in_order_within_the_window(lanes: int, window: int) -> None:
    for m in range(1, window + 1):
        for n in range(1, m + 1):
            pattern = NMPattern(n, m)
            for blocks in (1, 2, lanes + 1):
                steps = schedule(pattern, blocks * m, lanes, window)
                check_lane_by_lane(steps, pattern, blocks * m, lanes, window)


@pytest.mark.parametrize(("lanes", "window"), SIZES)
def test_no_cut_has_fewer_steps(lanes: int, window: int) -> None:
    for m in range(1, min(window, 9) + 1):
        for n in range(1, m + 1):
            pattern = NMPattern(n, m)
            for blocks in {1, 3, -(-20 // n)}:
                got = steps_per_group(pattern, blocks * m, lanes, window)
                assert got == fewest_steps(pattern, blocks * n, lanes, window), f"{blocks} blocks of {pattern}"
                assert got <= steps_at_best_constant_rate(pattern, blocks * n, lanes, window)


@st.composite
def situations(draw: st.DrawFn) -> tuple[NMPattern, int, int, int]:
    m = draw(st.integers(1, 32))
    window = draw(st.integers(m, 32))
    lanes = draw(st.integers(1, min(window, 16)))
    return NMPattern(draw(st.integers(1, m)), m), draw(st.integers(1, 12)), lanes, window


@given(situations())
def test_any_pattern_on_any_core(situation: tuple[NMPattern, int, int, int]) -> None:
    pattern, blocks, lanes, window = situation
    group = blocks * pattern.m
    steps = schedule(pattern, group, lanes, window)
    check_lane_by_lane(steps, pattern, group, lanes, window)
    assert steps_per_group(pattern, group, lanes, window) == len(steps)
    assert nonzeros(pattern, group) == sum(step.count for step in steps)
    total = blocks * pattern.n
    assert len(steps) == fewest_steps(pattern, total, lanes, window)
    assert len(steps) <= steps_at_best_constant_rate(pattern, total, lanes, window)


@given(situations())
def test_blocks_in_step_is_the_most_that_any_start_touches(
    situation: tuple[NMPattern, int, int, int],
) -> None:
    pattern, _, lanes, window = situation
    most = 0
    for first in range(pattern.n):
        for last in range(first, first + lanes):
            if fits_in_one_step(pattern, first, last, lanes, window):
                most = max(most, place(pattern, last)[0] - place(pattern, first)[0] + 1)
    assert blocks_in_step(pattern, lanes, window) == most


def test_four_lanes_with_a_window_of_sixteen_work_at_full_rate() -> None:
    """The claim of the design, counted on the steps: every n:m with m up to 8, four of them excepted."""
    limited = {(1, 5): Fraction(3, 4), (1, 6): Fraction(1, 2), (1, 7): Fraction(1, 2), (1, 8): Fraction(1, 2)}
    for m in range(1, 9):
        for n in range(1, m + 1):
            pattern = NMPattern(n, m)
            steps = schedule(pattern, 12 * m, 4, 16)
            use = Fraction(sum(step.count for step in steps), 4 * len(steps))
            assert use == limited.get((n, m), 1), f"{pattern}"
            assert lane_use(pattern, 4, 16) == use


@given(situations())
def test_lane_use_is_what_a_long_group_tends_to(situation: tuple[NMPattern, int, int, int]) -> None:
    pattern, _, lanes, window = situation
    steps = schedule(pattern, 400 * lanes * pattern.m, lanes, window)
    use = nonzeros(pattern, 400 * lanes * pattern.m) / (lanes * len(steps))
    assert 0 <= lane_use(pattern, lanes, window) - use < 0.01


def test_a_step_ends_with_the_block_where_the_window_does() -> None:
    """5:8 in a window of 8 alternates steps of 4 and 1; the only constant rate that always fits is 1."""
    pattern = NMPattern(5, 8)
    assert [step.count for step in schedule(pattern, 24, 4, 8)] == [4, 1, 4, 1, 4, 1]
    assert steps_at_best_constant_rate(pattern, 15, 4, 8) == 15
    assert lane_use(pattern, 4, 8) == 5 / 8


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared in full
        schedule(NMPattern(2, 9), 18, 2, 8)
    assert str(error.value) == (
        "Pattern 2:9 has blocks of 9 weights, but the activation window holds 8; "
        "patterns with m up to 8 run on this core."
    )
    with pytest.raises(ValueError, match="activation window holds 8"):
        blocks_in_step(NMPattern(2, 9), 2, 8)
    for group in (10, 0, -4):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            schedule(NMPattern(2, 4), group, 2, 8)
        assert str(error.value) == f"A group of {group} weights is not a positive multiple of m = 4 of 2:4."
