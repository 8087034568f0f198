"""Pattern schedule: which nonzeros of a group a PE multiplies in each step.

The nonzeros of an output row are numbered j = 0.. within a group, n to a block of m weights. A step takes
consecutive nonzeros, one a lane, as long as their blocks fit the activation window that starts at the
first of these blocks. Taking as many as fit is optimal among windows of whole blocks: the furthest reachable
nonzero never moves back when a step starts later, so no such schedule has fewer steps. It gives the
constant lane count of n:m patterns that fit the window, and ends a step at a block's end where the window
does (5:8 in a window of 8).

The sequencer (`SequencerRTL`) computes the same steps one a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant import NMPattern


@dataclass(frozen=True)
class Step:
    """One cycle of useful work of a PE."""

    #: First nonzero of the group that the step takes.
    first: int
    #: Nonzeros taken, at most one a lane.
    count: int
    #: Position in the group of the window's first activation: that of the first block.
    base: int
    #: Offset in the window of each lane's block, one entry a nonzero taken.
    offsets: tuple[int, ...]


def nonzeros(pattern: NMPattern, group: int) -> int:
    """Slots for kept weights in one output row of a group of ``group`` weights (a multiple of m)."""
    if group <= 0 or group % pattern.m:
        raise ValueError(f"A group of {group} weights is not a positive multiple of m = {pattern.m} of {pattern}.")
    return group // pattern.m * pattern.n


def schedule(pattern: NMPattern, group: int, lanes: int, window: int) -> list[Step]:
    """Steps of one group.

    Parameters
    ----------
    pattern, group
        n:m with m ≤ ``window``, and the group's length, a multiple of m.
    lanes, window
        Multipliers of a PE, and activations that it sees in a step.

    Raises
    ------
    ValueError
        When a block does not fit the window, or m does not divide the group.
    """
    _require_fit(pattern, window)
    total = nonzeros(pattern, group)
    steps = []
    first = 0
    while first < total:
        block, within = divmod(first, pattern.n)
        room = pattern.n * (window // pattern.m) - within
        count = min(lanes, room, total - first)
        offsets = tuple((within + lane) // pattern.n * pattern.m for lane in range(count))
        steps.append(Step(first, count, block * pattern.m, offsets))
        first += count
    return steps


def steps_per_group(pattern: NMPattern, group: int, lanes: int, window: int) -> int:
    """Number of steps of one group."""
    return len(schedule(pattern, group, lanes, window))


def lane_use(pattern: NMPattern, lanes: int, window: int) -> float:
    """Share of lanes at work over a long group: 1.0 unless the window limits the pattern."""
    _require_fit(pattern, window)
    room = pattern.n * (window // pattern.m)
    # Steps repeat as soon as one starts at a block's start again.
    steps = taken = 0
    while steps == 0 or taken % pattern.n:
        taken += min(lanes, room - taken % pattern.n)
        steps += 1
    return taken / (lanes * steps)


def lane_reach(pattern: NMPattern, group_max: int, lanes: int, window: int) -> list[tuple[int, int]]:
    """Lowest and highest window position of each lane that works, over all steps of a group of up to ``group_max``.

    The ``place``-th kept weight of a block lies at positions ``place`` to m − n + ``place``.
    """
    reach: list[tuple[int, int]] = []
    for step in schedule(pattern, _longest(pattern, group_max), lanes, window):
        for lane, offset in enumerate(step.offsets):
            low = offset + (step.first + lane) % pattern.n
            high = low + pattern.m - pattern.n
            if lane == len(reach):
                reach.append((low, high))
            reach[lane] = min(reach[lane][0], low), max(reach[lane][1], high)
    return reach


def step_shapes(pattern: NMPattern, group_max: int, lanes: int, window: int) -> list[tuple[int, int]]:
    """For each step of a group of up to ``group_max``: its first nonzero's place in its block, and how many it takes.

    Steps of shorter groups are the same but for their last one.
    """
    steps = schedule(pattern, _longest(pattern, group_max), lanes, window)
    return [(step.first % pattern.n, step.count) for step in steps]


def blocks_in_step(pattern: NMPattern, lanes: int, window: int) -> int:
    """Most blocks that one step touches, over all positions in a block at which it may start."""
    _require_fit(pattern, window)
    blocks = window // pattern.m
    return max((within + min(lanes, pattern.n * blocks - within) - 1) // pattern.n + 1 for within in range(pattern.n))


def _longest(pattern: NMPattern, group_max: int) -> int:
    return group_max // pattern.m * pattern.m


def _require_fit(pattern: NMPattern, window: int) -> None:
    if pattern.m > window:
        raise ValueError(
            f"Pattern {pattern} has blocks of {pattern.m} weights, but the activation window holds {window}; "
            f"patterns with m up to {window} run on this core."
        )
