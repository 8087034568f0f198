"""Raw epilogue: accumulators of every sign and width in 64-bit and 32-bit results."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pymtl3 import Component, InPort, OutPort

from accel import CoreConfig, load_preset
from accel.writer.ResultWriterRTL import RawEpilogueRTL

TINY = load_preset("tiny")
WIDE_ACTS = TINY.replace(act_bits=16, columns=3, group_max=8, act_words=64)


class EpilogueBench(Component):
    """An epilogue whose accumulators lie side by side in one port."""

    def construct(s, config: CoreConfig) -> None:
        bits = config.acc_bits
        s.wide = InPort()
        s.acc = InPort(config.result_lanes * bits)
        s.word = OutPort(64 * config.result_lanes)
        s.unit = RawEpilogueRTL(config)
        s.unit.wide //= s.wide
        s.unit.word //= s.word
        for lane in range(config.result_lanes):
            s.unit.acc[lane] //= s.acc[lane * bits : (lane + 1) * bits]


CORES = {
    26: TINY.replace(columns=3, result_lanes=3),
    32: WIDE_ACTS.replace(k_max=34, result_lanes=2),
    33: WIDE_ACTS.replace(k_max=35, result_lanes=3),
    34: WIDE_ACTS.replace(k_max=128, result_lanes=1),
}


@pytest.mark.parametrize(("bits", "level"), [*((bits, "python") for bits in CORES), (26, "verilog")])
def test_accumulators_come_out_as_they_are(bits: int, level: str, open_pins: Callable) -> None:
    config = CORES[bits]
    assert config.acc_bits == bits
    lanes = config.result_lanes
    pins = open_pins(EpilogueBench(config), f"EpilogueBench_{bits}", level)
    rng = random.Random(bits)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    for _ in range(200):
        accs = [rng.choice([low, high, -1, 0, 1, rng.randint(low, high)]) for _ in range(lanes)]
        pins.drive(acc=sum(acc % (1 << bits) << lane * bits for lane, acc in enumerate(accs)), wide=1)
        word = pins.read("word").to_bytes(8 * lanes, "little")
        assert [int.from_bytes(word[8 * i : 8 * i + 8], "little", signed=True) for i in range(lanes)] == accs
        pins.drive(wide=0)
        word = pins.read("word").to_bytes(8 * lanes, "little")
        narrow = [int.from_bytes(word[4 * i : 4 * i + 4], "little", signed=True) for i in range(lanes)]
        # Commands ask for 32 bits only where results fit them; beyond, the low half comes out.
        assert narrow == [(acc + (1 << 31)) % (1 << 32) - (1 << 31) for acc in accs]
        assert not any(word[4 * lanes :]), "the upper half of a narrow word must be zero"
