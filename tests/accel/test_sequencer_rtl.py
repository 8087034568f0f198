"""Schedule block of the sequencer: the steps of the pattern schedule, one at a time, for every pattern."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accel import CoreConfig, load_preset
from accel.config import count_bits
from accel.core.CoreMsg import position_bits
from accel.schedule import schedule
from accel.sequencer.SequencerRTL import ScheduleRTL
from quant import NMPattern

TINY = load_preset("tiny")
CODE_NUMBERS = {"none": 0, "index": 1, "bitmask": 2, "rank": 3}


def code_field(code: str, pattern: NMPattern) -> int:
    """Bits of one field, by listing the code words."""
    if code == "rank":
        words = len([mask for mask in range(1 << pattern.m) if bin(mask).count("1") == pattern.n])
        return max(1, (words - 1).bit_length())
    return {"none": 0, "index": len(f"{pattern.m - 1:b}"), "bitmask": pattern.m}[code]


def check_steps(config: CoreConfig, pins: object) -> None:
    position_nbits, shift_nbits = position_bits(config), count_bits(config.code_window_bits - 1)

    def lanes_of(name: str, bits: int, count: int) -> list[int]:
        word = pins.read(name)
        return [word >> lane * bits & ((1 << bits) - 1) for lane in range(count)]

    for pattern in config.patterns():
        n, m = pattern.n, pattern.m
        group = config.group_max // m * m
        steps = schedule(pattern, group, config.lanes, config.window)
        for code in config.codes_of(pattern):
            field = code_field(code, pattern)
            left = group // m * n
            place = 0
            for step in steps:
                pins.drive(n=n, m=m, code=CODE_NUMBERS[code], code_bits=field, place=place, left=left)
                count = step.count
                numbers = range(step.first, step.first + count)
                assert pins.read("count") == count
                assert pins.read("lane_val") == (1 << count) - 1
                assert lanes_of("offsets", position_nbits, count) == list(step.offsets)
                assert lanes_of("places", position_nbits, count) == [j % n for j in numbers]
                first_block = step.first // n
                if code == "index":
                    shifts, passed = [field * lane for lane in range(count)], field * count
                else:
                    shifts = [field * (j // n - first_block) for j in numbers]
                    passed = field * ((step.first + count) // n - first_block)
                assert lanes_of("shifts", shift_nbits, count) == shifts
                assert pins.read("code_advance") == passed
                assert pins.read("advance") == ((step.first + count) // n - first_block) * m
                left -= count
                place = (place + count) % n
                assert pins.read("next_place") == place
            assert left == place == 0


CORES = {
    "tiny": TINY,
    "one_lane": TINY.replace(lanes=1),
    "window1": TINY.replace(window=1, lanes=1, act_words=128),
    "odd": TINY.replace(window=7, lanes=3, group_max=30, slice_bytes=4),
    "full": TINY.replace(window=5, lanes=5, group_max=5, slice_bytes=4),
    "edge": load_preset("edge").replace(group_max=48),
}


@pytest.mark.parametrize("name", CORES)
def test_steps_are_those_of_the_schedule(name: str, open_pins: Callable) -> None:
    check_steps(CORES[name], open_pins(ScheduleRTL(CORES[name]), f"Schedule_{name}", "python"))


def test_steps_in_the_translation(open_pins: Callable) -> None:
    config = CORES["edge"]
    check_steps(config, open_pins(ScheduleRTL(config), "Schedule_edge", "verilog"))
