"""The sequencer's walk: the steps of the pattern schedule, one at a time, for every pattern."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from pymtl3 import Component, InPort, OutPort, Wire

from accel import CoreConfig, load_preset
from accel.command import commands_for
from accel.config import count_bits
from accel.core.CoreMsg import mk_command_msg, position_bits
from accel.schedule import schedule
from accel.sequencer.StepWalkRTL import StepWalkRTL
from accel.stream import layout_for
from quant import NMPattern

TINY = load_preset("tiny")
CODE_NUMBERS = {"none": 0, "index": 1, "bitmask": 2, "rank": 3}


def code_field(code: str, pattern: NMPattern) -> int:
    """Bits of one field, by listing the code words."""
    if code == "rank":
        words = len([mask for mask in range(1 << pattern.m) if bin(mask).count("1") == pattern.n])
        return max(1, (words - 1).bit_length())
    return {"none": 0, "index": len(f"{pattern.m - 1:b}"), "bitmask": pattern.m}[code]


class WalkBench(Component):
    """The walk, with the command's fields as ports of their own."""

    def construct(s, config: CoreConfig) -> None:
        Command = mk_command_msg(config)
        s.start = InPort()
        s.issue = InPort()
        s.command = InPort(Command.nbits)
        s.last = OutPort()
        s.last_after = OutPort()
        s.lane_val = OutPort(config.lanes)
        s.offsets = OutPort(config.lanes * position_bits(config))
        s.places = OutPort(config.lanes * position_bits(config))
        s.shifts = OutPort(config.lanes * count_bits(config.code_window_bits - 1))
        s.nonzeros = OutPort(count_bits(config.lanes))
        s.advance = OutPort(count_bits(config.window))
        s.code_advance = OutPort(count_bits(config.code_window_bits - 1) + 1)
        s.cmd = Wire(Command)
        s.walk = StepWalkRTL(config)
        s.walk.start //= s.start
        s.walk.issue //= s.issue
        s.walk.cmd //= s.cmd
        s.walk.given //= s.cmd
        for name in (
            "last",
            "last_after",
            "lane_val",
            "offsets",
            "places",
            "shifts",
            "nonzeros",
            "advance",
            "code_advance",
        ):
            getattr(s.walk, name).__ifloordiv__(getattr(s, name))
        low = 0
        # The first field is the highest.
        for name, kind in reversed(Command.__bitstruct_fields__.items()):
            getattr(s.cmd, name).__ifloordiv__(s.command[low : low + kind.nbits])
            low += kind.nbits


def check_steps(config: CoreConfig, pins: object) -> None:
    position_nbits, shift_nbits = position_bits(config), count_bits(config.code_window_bits - 1)
    chance = Random(3)

    def lanes_of(name: str, bits: int, count: int) -> list[int]:
        word = pins.read(name)
        return [word >> lane * bits & ((1 << bits) - 1) for lane in range(count)]

    def tick() -> None:
        after = pins.read("last_after")
        pins.tick()
        assert pins.read("last") == after, "a cycle before, it must be known"

    for pattern in config.all_patterns:
        if pattern.is_dense and pattern.m > 1:
            continue  # runs as 1:1
        n, m = pattern.n, pattern.m
        blocks = config.group_max // m
        for group in {m, blocks * m, chance.randint(1, blocks) * m}:
            steps = schedule(pattern, group, config.lanes, config.window)
            for code in config.codes_of(pattern):
                field = code_field(code, pattern)
                layout = layout_for(config, pattern, 1, group, group, code=code)
                message = mk_command_msg(config)(**commands_for(config, layout, 1)[0].fields())
                pins.drive(start=1, issue=0, command=int(message.to_bits()))
                tick()
                pins.drive(start=0)
                for number, step in enumerate([*steps, *steps]):
                    # A step stays as it is until it is taken.
                    while chance.random() < 0.3:
                        pins.drive(issue=0)
                        tick()
                    pins.drive(issue=1)
                    count = step.count
                    numbers = range(step.first, step.first + count)
                    last = number % len(steps) == len(steps) - 1
                    assert pins.read("last") == last
                    assert pins.read("lane_val") == (1 << count) - 1
                    lowest = [low for low, _ in config.lane_reach]
                    offsets = [offset - low for offset, low in zip(step.offsets, lowest, strict=False)]
                    assert lanes_of("offsets", position_nbits, count) == [o % (1 << position_nbits) for o in offsets]
                    assert lanes_of("places", position_nbits, count) == [j % n for j in numbers]
                    first_block = step.first // n
                    if code == "index":
                        shifts, passed = [field * lane for lane in range(count)], field * count
                    else:
                        shifts = [field * (j // n - first_block) for j in numbers]
                        passed = field * ((step.first + count) // n - first_block)
                    assert lanes_of("shifts", shift_nbits, count) == shifts
                    assert pins.read("advance") == ((step.first + count) // n - first_block) * m
                    if not last:
                        assert pins.read("nonzeros") == count
                        assert pins.read("code_advance") == passed
                    tick()


CORES = {
    "tiny": TINY,
    "one_lane": TINY.replace(lanes=1),
    "window1": TINY.replace(window=1, lanes=1, act_words=128),
    "odd": TINY.replace(window=7, lanes=3, group_max=30, slice_bytes=4),
    "full": TINY.replace(window=5, lanes=5, group_max=5, slice_bytes=4),
    "edge": load_preset("edge").replace(group_max=48),
    "some": TINY.replace(lanes=4, patterns=("1:1", "2:4", "4:8", "3:7"), slice_bytes=4),
}


@pytest.mark.parametrize("name", CORES)
def test_steps_are_those_of_the_schedule(name: str, open_pins: Callable) -> None:
    check_steps(CORES[name], open_pins(WalkBench(CORES[name]), f"Walk_{name}", "python"))


def test_steps_in_the_translation(open_pins: Callable) -> None:
    config = CORES["edge"]
    check_steps(config, open_pins(WalkBench(config), "Walk_edge", "verilog"))
