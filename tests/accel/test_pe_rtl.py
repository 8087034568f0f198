"""Processing element with the scale unit at its chain's end: signed extremes, groups, drain chain."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest
from pymtl3 import Component, InPort, OutPort

from accel import CoreConfig, load_preset
from accel.core.CoreMsg import position_bits
from accel.pe.PERTL import PERTL
from accel.scale_unit.ScaleUnitRTL import ScaleUnitRTL

TINY = load_preset("tiny")


class ChainBench(Component):
    """A PE and its scale unit behind single ports."""

    def construct(s, config: CoreConfig) -> None:
        index_bits, weight_bits = position_bits(config), config.weight_bits
        s.window_in = InPort(config.act_port_bits)
        s.window_out = OutPort(config.act_port_bits)
        s.val = InPort()
        s.first = InPort()
        s.last = InPort()
        s.index = InPort(config.lanes * index_bits)
        s.weight = InPort(config.lanes * weight_bits)
        s.chain_in = InPort(config.partial_bits)
        s.chain_out = OutPort(config.partial_bits)
        s.scale = InPort(config.scale_bits)
        s.scaled = OutPort(config.scaled_bits)
        s.pe = PERTL(config)
        s.unit = ScaleUnitRTL(config)
        s.pe.window_in //= s.window_in
        s.pe.window_out //= s.window_out
        s.pe.val //= s.val
        s.pe.first //= s.first
        s.pe.last //= s.last
        s.pe.chain_in //= s.chain_in
        s.pe.chain_out //= s.chain_out
        s.unit.partial //= s.pe.chain_out
        s.unit.scale //= s.scale
        s.unit.scaled //= s.scaled
        for lane in range(config.lanes):
            s.pe.index[lane] //= s.index[lane * index_bits : (lane + 1) * index_bits]
            s.pe.weight[lane] //= s.weight[lane * weight_bits : (lane + 1) * weight_bits]


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def packed(values: list[int], bits: int) -> int:
    return sum((value & ((1 << bits) - 1)) << (i * bits) for i, value in enumerate(values))


class Model:
    """The same in Python integers, one cycle behind its inputs like the registers."""

    def __init__(self, config: CoreConfig) -> None:
        self.window = [0] * config.window
        self.acc = self.drain = self.scaled = 0

    def clock(
        self,
        window: list[int],
        step: tuple[bool, bool, list[int], list[int]] | None,
        chain_in: int,
        scale: int,
    ) -> None:
        self.scaled = self.drain * scale
        self.drain = chain_in
        if step is not None:
            first, last, index, weight = step
            total = sum(self.window[i] * w for i, w in zip(index, weight, strict=True))
            self.acc = total if first else self.acc + total
            if last:
                self.drain = self.acc
        self.window = window


CONFIGS = {
    "tiny": TINY,
    "smallest": TINY.replace(
        act_bits=4, asymmetric=False, window=1, lanes=1, group_max=3, k_max=3, scale_bits=2, slice_bytes=1
    ),
    "odd16": TINY.replace(act_bits=16, window=5, lanes=3, slice_bytes=4, codes=("index",)),
}


@pytest.mark.parametrize(("name", "level"), [*product(CONFIGS, ["python"]), ("odd16", "verilog")])
def test_groups_of_random_and_extreme_steps(name: str, level: str, open_pins: Callable) -> None:
    config = CONFIGS[name]
    rng = random.Random(name)
    pins = open_pins(ChainBench(config), f"ChainBench_{name}", level)
    model = Model(config)
    acts, weights = config.act_range, config.weight_range
    scales = config.scale_range
    partial = config.partial_range(config.group_max)

    def value(low_high: tuple[int, int]) -> int:
        return rng.choice([*low_high, rng.randint(*low_high)])

    left = 0
    for _ in range(150 if level == "python" else 400):
        window = [value(acts) for _ in range(config.window)]
        chain_in, scale = value(partial), value(scales)
        step = None
        if rng.random() < 0.8:
            first = left == 0
            left = left or rng.randint(1, config.group_max // config.lanes)
            left -= 1
            index = [rng.randrange(config.window) for _ in range(config.lanes)]
            step = (first, left == 0, index, [value(weights) for _ in range(config.lanes)])
        pins.drive(
            window_in=packed(window, config.act_bits),
            val=step is not None,
            # Without val, first and last are not looked at.
            first=step[0] if step else rng.randrange(2),
            last=step[1] if step else rng.randrange(2),
            index=packed(step[2], position_bits(config)) if step else 0,
            weight=packed(step[3], config.weight_bits) if step else 0,
            chain_in=chain_in & ((1 << config.partial_bits) - 1),
            scale=scale & ((1 << config.scale_bits) - 1),
        )
        pins.tick()
        model.clock(window, step, chain_in, scale)
        assert signed(pins.read("chain_out"), config.partial_bits) == model.drain
        assert signed(pins.read("scaled"), config.scaled_bits) == model.scaled
        assert pins.read("window_out") == packed(model.window, config.act_bits)


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_longest_group_of_the_worst_products_fits(act_bits: int, asymmetric: bool, open_pins: Callable) -> None:
    config = TINY.replace(act_bits=act_bits, asymmetric=asymmetric)
    pins = open_pins(ChainBench(config), "ChainBench", "python")
    scales = (-128, 127)
    for act, weight in product(config.act_range, config.weight_range):
        pins.drive(window_in=packed([act] * config.window, act_bits), val=0)
        pins.tick()
        for step in range(16):  # 16 steps of two lanes: group_max = 32 products
            pins.drive(
                val=1,
                first=step == 0,
                last=step == 15,
                index=0,
                weight=packed([weight] * 2, config.weight_bits),
            )
            pins.tick()
        total = sum(act * weight for _ in range(32))
        assert signed(pins.read("chain_out"), config.partial_bits) == total
        for scale in scales:
            pins.drive(val=1, first=1, last=1, weight=0, chain_in=0, scale=scale & 255)
            pins.drive(val=0, chain_in=total & ((1 << config.partial_bits) - 1))
            pins.tick()
            pins.tick()
            assert signed(pins.read("scaled"), config.scaled_bits) == total * scale
