"""Row feeder: every window that a pair of words holds, for windows that are and are not powers of two."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from accel import CoreConfig, load_preset
from accel.row_feeder.RowFeederRTL import RowFeederRTL


def core(window: int, act_bits: int, registers: tuple[str, ...] = ()) -> CoreConfig:
    return load_preset("tiny").replace(
        window=window,
        lanes=1,
        act_bits=act_bits,
        act_words=128,
        codes=("index",),
        slice_bytes=4,
        registers=registers,
    )


def check_windows(config: CoreConfig, pins: object, words: int) -> None:
    """Another question in every cycle; each input comes with those of its stage, and the window after the last."""
    rng = random.Random(config.window)
    window, act_bits = config.window, config.act_bits
    questions = []
    for _ in range(words):
        acts = [rng.getrandbits(act_bits) for _ in range(2 * window)]
        first, second = (
            sum(act << i * act_bits for i, act in enumerate(half)) for half in (acts[:window], acts[window:])
        )
        for swapped in (0, 1):
            pair = {"even": second, "odd": first} if swapped else {"even": first, "odd": second}
            for shift in range(window):
                expected = sum(act << i * act_bits for i, act in enumerate(acts[shift : shift + window]))
                # Positions from the window's start on are in the first word, the others in the second.
                from_odd = sum((swapped if i >= shift else 1 - swapped) << i for i in range(window))
                questions.append((pair, {"from_odd": from_odd, "enable": 1}, shift, expected))
            # A row without a token must see zeros.
            questions.append((pair, {"from_odd": rng.getrandbits(window), "enable": 0}, rng.randrange(window), 0))
    if config.registers:
        # Neighbours differ in all inputs.
        rng.shuffle(questions)
    to_order = "read" in config.registers
    to_shift = to_order + ("window" in config.registers)
    for cycle in range(len(questions) + to_shift):
        inputs: dict[str, int] = {}
        if cycle < len(questions):
            inputs |= questions[cycle][0]
        if to_order <= cycle < len(questions) + to_order:
            inputs |= questions[cycle - to_order][1]
        if to_shift <= cycle:
            inputs["shift"] = questions[cycle - to_shift][2]
        pins.drive(**inputs)
        if to_shift <= cycle:
            assert pins.read("window") == questions[cycle - to_shift][3]
        if config.registers:
            pins.tick()


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 7, 9, 16, 31])
def test_every_shift_of_every_window(window: int, act_bits: int, open_pins: Callable) -> None:
    config = core(window, act_bits)
    check_windows(config, open_pins(RowFeederRTL(config), f"RowFeeder_{window}_{act_bits}", "python"), 3)


@pytest.mark.parametrize("registers", [("read",), ("window",), ("read", "window")], ids="_".join)
@pytest.mark.parametrize("window", [1, 5, 8])
def test_every_shift_with_registers(window: int, registers: tuple[str, ...], open_pins: Callable) -> None:
    config = core(window, 8, registers)
    name = f"RowFeeder_{window}_{'_'.join(registers)}"
    check_windows(config, open_pins(RowFeederRTL(config), name, "python"), 6)


@pytest.mark.parametrize("registers", [(), ("read", "window")], ids=["none", "all"])
def test_every_shift_in_the_translation(registers: tuple[str, ...], open_pins: Callable) -> None:
    config = core(7, 8, registers)
    check_windows(config, open_pins(RowFeederRTL(config), f"RowFeeder_7_{len(registers)}", "verilog"), 10)
