"""Accumulator RAM: sums by address, back to back on one address, in two halves of which one is read."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pymtl3 import Component, InPort, OutPort

from accel import CoreConfig, load_preset
from accel.accumulator.AccumulatorRTL import AccumulatorRTL
from accel.config import count_bits

TINY = load_preset("tiny")


class AccumulatorBench(Component):
    """An accumulator whose message and results have a port each."""

    def construct(s, config: CoreConfig) -> None:
        addr_bits = count_bits(config.acc_words - 1)
        s.drain_val = InPort()
        s.half = InPort()
        s.addr = InPort(addr_bits)
        s.first = InPort()
        s.last = InPort()
        s.scaled = InPort(config.scaled_bits)
        s.done = OutPort()
        s.read_half = InPort()
        s.read_addr = InPort(addr_bits)
        s.result0 = OutPort(config.acc_bits)
        s.result1 = OutPort(config.acc_bits)
        s.unit = AccumulatorRTL(config)
        s.unit.drain_val //= s.drain_val
        s.unit.drain.half //= s.half
        s.unit.drain.addr //= s.addr
        s.unit.drain.first //= s.first
        s.unit.drain.done //= s.last
        s.unit.scaled //= s.scaled
        s.unit.done //= s.done
        s.unit.read_half //= s.read_half
        s.unit.read_addr //= s.read_addr
        s.unit.result[0] //= s.result0
        s.unit.result[1] //= s.result1


CORES = {
    "one_word": TINY.replace(rows=1, subtiles=1),
    "two_words": TINY.replace(rows=2, subtiles=1),
    "odd": TINY.replace(rows=3, subtiles=5, act_bits=16),
    "equal_widths": TINY.replace(k_max=32, group_max=32, rows=3, subtiles=1),
}


@pytest.mark.parametrize(("name", "level"), [*((name, "python") for name in CORES), ("equal_widths", "verilog")])
def test_sums_of_random_addresses(name: str, level: str, open_pins: Callable) -> None:
    config = CORES[name]
    rng = random.Random(name)
    pins = open_pins(AccumulatorBench(config), f"AccumulatorBench_{name}", level)
    words = config.acc_words
    low, high = -(1 << config.scaled_bits - 1), (1 << config.scaled_bits - 1) - 1
    span = 1 << config.acc_bits
    sums: list[dict[int, int]] = [{}, {}]
    in_ram: list[dict[int, int]] = [{}, {}]
    half = 0
    previous = None  # the partial of the cycle before: its scaled value comes now
    addr = 0
    previous_sum = 0
    same_address_in_a_row = 0
    for cycle in range(600):
        if cycle % 40 == 39:
            # The other half is read from now on; the next partial may come at once, and to the same address.
            half ^= 1
        now = None
        if rng.random() < 0.85:
            addr = addr if rng.random() < 0.4 else rng.randrange(words)
            scaled = rng.choice([low, high, rng.randint(low, high)])
            # Within the range of the width: start anew where the sum would leave it.
            total = sums[half].get(addr, 0) + scaled
            first = addr not in sums[half] or not -span <= 2 * total < span or rng.random() < 0.1
            sums[half][addr] = scaled if first else total
            now = (half, addr, first, rng.randrange(2), scaled)
            same_address_in_a_row += previous is not None and previous[:2] == now[:2] and not first
        read_addr = rng.randrange(words)
        pins.drive(
            drain_val=now is not None,
            half=now[0] if now else rng.randrange(2),
            addr=now[1] if now else rng.randrange(words),
            first=now[2] if now else rng.randrange(2),
            last=now[3] if now else rng.randrange(2),
            scaled=(previous[4] if previous else rng.randint(low, high)) % (1 << config.scaled_bits),
            read_half=half ^ 1,
            read_addr=read_addr,
        )
        assert pins.read("done") == bool(previous and previous[3])
        expected = in_ram[half ^ 1].get(read_addr)
        pins.tick()
        if previous:
            in_ram[previous[0]][previous[1]] = previous_sum
        if expected is not None:
            assert pins.read(f"result{half ^ 1}") == expected % span
        previous_sum = sums[now[0]][now[1]] if now else 0
        previous = now
    assert same_address_in_a_row > 50, "forwarding was not exercised"
