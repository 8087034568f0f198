"""Row feeder: every window that a pair of words holds, for windows that are and are not powers of two."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from accel import CoreConfig, load_preset
from accel.row_feeder.RowFeederRTL import RowFeederRTL


def core(window: int, act_bits: int) -> CoreConfig:
    return load_preset("tiny").replace(
        window=window, lanes=1, act_bits=act_bits, act_words=128, codes=("index",), slice_bytes=4
    )


def check_windows(config: CoreConfig, pins: object, words: int) -> None:
    rng = random.Random(config.window)
    window, act_bits = config.window, config.act_bits
    for _ in range(words):
        acts = [rng.getrandbits(act_bits) for _ in range(2 * window)]
        first, second = (
            sum(act << i * act_bits for i, act in enumerate(half)) for half in (acts[:window], acts[window:])
        )
        for swapped in (0, 1):
            even, odd = (second, first) if swapped else (first, second)
            for shift in range(window):
                pins.drive(even=even, odd=odd, swapped=swapped, shift=shift, enable=1)
                expected = acts[shift : shift + window]
                assert pins.read("window") == sum(act << i * act_bits for i, act in enumerate(expected))
            pins.drive(enable=0)
            assert pins.read("window") == 0, "a row without a token must see zeros"


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 7, 9, 16, 31])
def test_every_shift_of_every_window(window: int, act_bits: int, open_pins: Callable) -> None:
    config = core(window, act_bits)
    check_windows(config, open_pins(RowFeederRTL(config), f"RowFeeder_{window}_{act_bits}", "python"), 3)


def test_every_shift_in_the_translation(open_pins: Callable) -> None:
    config = core(7, 8)
    check_windows(config, open_pins(RowFeederRTL(config), "RowFeeder_7", "verilog"), 10)
