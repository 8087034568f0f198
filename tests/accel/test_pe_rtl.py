"""Processing element with the scale unit at its chain's end: signed extremes, groups, drain chain, registers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import combinations, product

import pytest
from pymtl3 import Component, InPort, OutPort

from accel import CoreConfig, load_preset
from accel.core.CoreMsg import index_bits
from accel.pe.PERTL import PERTL, MultiplierRTL
from accel.scale_unit.ScaleUnitRTL import ScaleUnitRTL

TINY = load_preset("tiny")


class ChainBench(Component):
    """A PE and its scale unit behind single ports."""

    def construct(s, config: CoreConfig) -> None:
        index_nbits, weight_bits = index_bits(config), config.weight_bits
        s.window_in = InPort(config.act_port_bits)
        s.window_out = OutPort(config.act_port_bits)
        s.val = InPort()
        s.last = InPort()
        s.index = InPort(config.lanes * index_nbits)
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
        s.pe.last //= s.last
        s.pe.chain_in //= s.chain_in
        s.pe.chain_out //= s.chain_out
        s.unit.partial //= s.pe.chain_out
        s.unit.scale //= s.scale
        s.unit.scaled //= s.scaled
        for lane in range(config.lanes):
            s.pe.index[lane] //= s.index[lane * index_nbits : (lane + 1) * index_nbits]
            s.pe.weight[lane] //= s.weight[lane * weight_bits : (lane + 1) * weight_bits]


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def packed(values: list[int], bits: int) -> int:
    return sum((value & ((1 << bits) - 1)) << (i * bits) for i, value in enumerate(values))


class Model:
    """The same in Python integers, one cycle behind its inputs like the registers.

    What a step adds reaches the accumulator as many cycles later as a lane has registers.
    """

    def __init__(self, config: CoreConfig) -> None:
        registers = [place in config.registers for place in ("multiplexer", "parts", "multiplier", "adders")]
        self.reach = config.lane_reach
        self.window = [0] * config.window
        self.acc = self.drain = 0
        self.on_the_way: deque[tuple[bool, int] | None] = deque([None] * sum(registers))
        self.scaled = deque([0] * (1 + ("scale" in config.registers)))

    def clock(
        self, window: list[int], step: tuple[bool, list[int], list[int]] | None, chain_in: int, scale: int
    ) -> None:
        self.scaled.popleft()
        self.scaled.append(self.drain * scale)
        self.drain = chain_in
        added = None
        if step is not None:
            last, index, weight = step
            acts = [self.window[low + i] for (low, _), i in zip(self.reach, index, strict=True)]
            added = last, sum(act * w for act, w in zip(acts, weight, strict=True))
        self.on_the_way.append(added)
        added = self.on_the_way.popleft()
        if added is not None:
            last, total = added
            self.acc += total
            if last:
                self.drain, self.acc = self.acc, 0
        self.window = window


REGISTERS = ("multiplexer", "multiplier", "adders", "scale")
ALL = {"registers": (*REGISTERS, "parts")}
WIDE = TINY.replace(lanes=4, slice_bytes=4)
CONFIGS = {
    "tiny": TINY,
    "smallest": TINY.replace(
        act_bits=4, asymmetric=False, window=1, lanes=1, group_max=3, k_max=3, scale_bits=2, slice_bytes=1
    ),
    "odd16": TINY.replace(act_bits=16, window=5, lanes=3, slice_bytes=4, codes=("index",)),
    "odd16_registers": TINY.replace(act_bits=16, window=5, lanes=3, slice_bytes=4, codes=("index",), **ALL),
    "smallest_registers": TINY.replace(
        act_bits=4, asymmetric=False, window=1, lanes=1, group_max=3, k_max=3, scale_bits=2, slice_bytes=1, **ALL
    ),
    "one_of_eight": WIDE.replace(patterns=("1:8",)),
    "two_of_four": WIDE.replace(patterns=("2:4",), lanes=3, registers=("multiplexer",)),
    "dense": WIDE.replace(patterns=("1:1",), codes=(), registers=("multiplier", "adders")),
    "five_reached": WIDE.replace(patterns=("1:1", "2:4", "4:8"), **ALL),
    "parts": TINY.replace(registers=("parts",)),
    "symmetric_parts": TINY.replace(asymmetric=False, registers=("multiplexer", "parts")),
    "parts_and_multiplier": TINY.replace(act_bits=16, registers=("parts", "multiplier")),
}
for count in range(len(REGISTERS) + 1):
    for places in combinations(REGISTERS, count):
        CONFIGS["_".join(["at", *places])] = TINY.replace(registers=places, patterns=("1:1", "3:7"))


@pytest.mark.parametrize(
    ("name", "level"),
    [*product(CONFIGS, ["python"]), ("odd16", "verilog"), ("five_reached", "verilog")],
)
def test_groups_of_random_and_extreme_steps(name: str, level: str, open_pins: Callable) -> None:
    """Weights, and what belongs to sums, come as many cycles after the index as a lane has registers before them."""
    config = CONFIGS[name]
    rng = random.Random(name)
    pins = open_pins(ChainBench(config), f"ChainBench_{name}", level)
    model = Model(config)
    acts, weights = config.act_range, config.weight_range
    scales = config.scale_range
    partial = config.partial_range(config.group_max)
    index_nbits = index_bits(config)

    def value(low_high: tuple[int, int]) -> int:
        return rng.choice([*low_high, rng.randint(*low_high)])

    def noise() -> list[int]:
        return [rng.getrandbits(config.weight_bits) for _ in range(config.lanes)]

    to_product, to_sum = "multiplexer" in config.registers, len(model.on_the_way)
    weights_on_the_way = deque([noise() for _ in range(to_product)])
    # Without val, last is not looked at.
    steps_on_the_way = deque([(0, rng.randrange(2)) for _ in range(to_sum)])
    left = 0
    for _ in range(150 if level == "python" else 400):
        window = [value(acts) for _ in range(config.window)]
        chain_in, scale = value(partial), value(scales)
        step = None
        if rng.random() < 0.8:
            left = left or rng.randint(1, config.group_max // config.lanes)
            left -= 1
            index = [rng.choice([0, high - low, rng.randint(0, high - low)]) for low, high in config.lane_reach]
            step = (left == 0, index, [value(weights) for _ in range(config.lanes)])
        weights_on_the_way.append(step[2] if step else noise())
        steps_on_the_way.append((1, int(step[0])) if step else (0, rng.randrange(2)))
        val, last = steps_on_the_way.popleft()
        pins.drive(
            window_in=packed(window, config.act_bits),
            val=val,
            last=last,
            index=packed(step[1], index_nbits) if step else 0,
            weight=packed(weights_on_the_way.popleft(), config.weight_bits),
            chain_in=chain_in & ((1 << config.partial_bits) - 1),
            scale=scale & ((1 << config.scale_bits) - 1),
        )
        pins.tick()
        model.clock(window, step, chain_in, scale)
        assert signed(pins.read("chain_out"), config.partial_bits) == model.drain
        assert signed(pins.read("scaled"), config.scaled_bits) == model.scaled[0]
        assert pins.read("window_out") == packed(model.window, config.act_bits)


@pytest.mark.parametrize("registers", [(), ("parts",)], ids=["one", "parts"])
@pytest.mark.parametrize(("act_bits", "asymmetric"), [(4, False), (4, True), (8, True), (16, False), (16, True)])
def test_every_product(act_bits: int, asymmetric: bool, registers: tuple[str, ...], open_pins: Callable) -> None:
    """With a register between its parts, a multiplier gives the product one cycle later."""
    config = TINY.replace(act_bits=act_bits, asymmetric=asymmetric, registers=registers)
    pins = open_pins(MultiplierRTL(config), f"Multiplier_{act_bits}_{asymmetric}_{len(registers)}", "python")
    low, high = config.act_range
    acts = {*range(low, high + 1, max(1, 1 << act_bits >> 6)), low + 1, -1, 1, high}
    pairs = list(product(sorted(acts), range(-15, 16) if asymmetric else range(-8, 8)))
    random.Random(act_bits).shuffle(pairs)
    for act, weight in pairs:
        pins.drive(act=act % (1 << act_bits), weight=weight % (1 << config.weight_bits))
        if registers:
            pins.tick()
            pins.drive(act=~act % (1 << act_bits), weight=~weight % (1 << config.weight_bits))
        assert signed(pins.read("product"), config.product_bits) == act * weight


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
                last=step == 15,
                index=0,
                weight=packed([weight] * 2, config.weight_bits),
            )
            pins.tick()
        total = sum(act * weight for _ in range(32))
        assert signed(pins.read("chain_out"), config.partial_bits) == total
        for scale in scales:
            pins.drive(val=0, last=1, chain_in=total & ((1 << config.partial_bits) - 1), scale=scale & 255)
            pins.tick()
            pins.tick()
            assert signed(pins.read("scaled"), config.scaled_bits) == total * scale
