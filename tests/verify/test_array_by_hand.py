"""The generated array of PEs beside one written by hand in plain SystemVerilog: same results, cells and clock."""

from __future__ import annotations

import os
import random
import statistics
from pathlib import Path

import pytest
from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, update_ff

from accel import CoreConfig, load_preset
from accel.delay.DelayRTL import DelayRTL, HoldRTL
from accel.pe.PERTL import PERTL
from verify.signal_level import open_block, translate_and_open, translate_block
from verify.synthesis.hierarchy import Design
from verify.synthesis.mapping import Mapped, Multipliers, map_flat
from verify.synthesis.routing import Device, route
from verify.synthesis.targets import ECP5
from verify.synthesis.tools import Deadline, find_nextpnr, find_yosys

BY_HAND = Path(__file__).with_name("array_by_hand.sv").read_text(encoding="utf-8")
LANES, REACH, WEIGHT_BITS = 4, 5, 5
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def core(rows: int, columns: int) -> CoreConfig:
    config = load_preset("edge").replace(
        rows=rows,
        columns=columns,
        lanes=LANES,
        window=8,
        patterns=("1:1", "2:4", "4:8"),
        drain_chains=1,
        act_ports=1,
        result_lanes=1,
        registers=("multiplexer", "multiplier", "adders"),
    )
    assert config.lane_reach == tuple((lane, lane + REACH - 1) for lane in range(LANES))
    assert (config.weight_bits, config.partial_bits) == (WEIGHT_BITS, 19)
    return config


class ArrayRTL(Component):
    """The generated PEs with the ports of the array by hand, and around them what a column has."""

    def construct(s, config: CoreConfig) -> None:
        rows, columns, lanes = config.rows, config.columns, config.lanes
        bits = config.partial_bits
        s.windows = InPort(64 * rows)
        s.indices = InPort(12 * columns)
        s.weights = InPort(20 * columns)
        s.val = InPort(columns)
        s.last = InPort(columns)
        s.partials = OutPort(bits * columns)
        s.index = [[Wire(3) for _ in range(lanes)] for _ in range(columns)]
        s.weight = [[Wire(5) for _ in range(lanes)] for _ in range(columns)]
        s.index_in = [[Wire(3) for _ in range(lanes)] for _ in range(columns)]
        s.weight_in = [[Wire(5) for _ in range(lanes)] for _ in range(columns)]
        s.val_at = [Wire() for _ in range(columns)]
        s.last_at = [Wire() for _ in range(columns)]
        s.at_product = [HoldRTL(5, lanes, 1) for _ in range(columns)]
        s.at_sum = [DelayRTL(mk_bits(1), config.lane_registers) for _ in range(columns)]
        s.pe = [[PERTL(config) for _ in range(rows)] for _ in range(columns)]
        for c in range(columns):
            s.at_sum[c].val //= s.val_at[c]
            s.at_sum[c].msg //= s.last_at[c]
            s.partials[bits * c : bits * (c + 1)] //= s.pe[c][0].chain_out
            for lane in range(lanes):
                s.index_in[c][lane] //= s.indices[12 * c + 3 * lane : 12 * c + 3 * lane + 3]
                s.weight_in[c][lane] //= s.weights[20 * c + 5 * lane : 20 * c + 5 * lane + 5]
                s.at_product[c].in_[lane] //= s.weight[c][lane]
            for r in range(rows):
                pe = s.pe[c][r]
                pe.window_in //= s.windows[64 * r : 64 * r + 64] if c == 0 else s.pe[c - 1][r].window_out
                pe.val //= s.at_sum[c].val_out
                pe.last //= s.at_sum[c].msg_out
                pe.chain_in //= 0 if r == rows - 1 else s.pe[c][r + 1].chain_out
                for lane in range(lanes):
                    pe.index[lane] //= s.index[c][lane]
                    pe.weight[lane] //= s.at_product[c].out[lane]

        @update_ff
        def ff_pairs():
            for c in range(columns):
                s.last_at[c] <<= s.last[c]
                s.val_at[c] <<= s.val[c] & ~s.reset
                for lane in range(lanes):
                    s.index[c][lane] <<= s.index_in[c][lane]
                    s.weight[c][lane] <<= s.weight_in[c][lane]


def by_hand(rows: int, columns: int) -> str:
    text = BY_HAND.replace("ROWS = 4", f"ROWS = {rows}").replace("COLUMNS = 4", f"COLUMNS = {columns}")
    assert (rows, columns) == (4, 4) or text != BY_HAND
    return text


def generated(rows: int, columns: int, folder: Path) -> str:
    return translate_block(ArrayRTL(core(rows, columns)), "array_generated", folder).read_text(encoding="utf-8")


def test_both_give_the_same_partials(tmp_path: Path) -> None:
    rows, columns = 3, 2
    (tmp_path / "array_by_hand.sv").write_text(by_hand(rows, columns), encoding="utf-8")
    hand = open_block(tmp_path / "array_by_hand.sv", tmp_path / "hand")
    ours = translate_and_open(ArrayRTL(core(rows, columns)), "array_generated", tmp_path / "generated")
    chance = random.Random(1)
    for array in (hand, ours):
        array.io.reset = 1
        array.clock.tick()
        array.io.reset = 0
    different = set()
    for _ in range(400):
        index = [chance.randrange(REACH) for _ in range(LANES * columns)]
        weight = [chance.choice([-15, 15, chance.randint(-15, 15)]) for _ in range(LANES * columns)]
        values = {
            "windows": chance.choice([chance.getrandbits(64 * rows), int("80" * 8 * rows, 16)]),
            "indices": sum(i << 3 * lane for lane, i in enumerate(index)),
            "weights": sum(value % 32 << WEIGHT_BITS * lane for lane, value in enumerate(weight)),
            "val": chance.getrandbits(columns),
            "last": chance.getrandbits(columns) & chance.getrandbits(columns),
        }
        for array in (hand, ours):
            for name, value in values.items():
                setattr(array.io, name, value)
            array.clock.tick()
        assert int(hand.io.partials) == int(ours.io.partials)
        different.add(int(ours.io.partials))
    assert len(different) > 100


def mapped(text: str, top: str) -> tuple[Design, Mapped]:
    design = Design(text, top)
    return design, map_flat(design, ECP5, Multipliers("none", 8, 0), find_yosys(), Deadline())


def test_as_many_cells_as_by_hand(tmp_path: Path) -> None:
    rows, columns = (4, 4) if LONG else (1, 2)
    counts = []
    for text, top in (
        (by_hand(rows, columns), "array_by_hand"),
        (generated(rows, columns, tmp_path), "array_generated"),
    ):
        design, netlist = mapped(text, top)
        total = netlist.statistics.whole(design.top, ECP5)
        counts.append((total.lut, total.ff))
    (hand_luts, hand_ffs), (luts, ffs) = counts
    assert luts <= 1.05 * hand_luts, counts
    assert ffs <= 1.05 * hand_ffs, counts


@pytest.mark.skipif(not LONG, reason="takes minutes: runs with HYPOTHESIS_PROFILE=long")
def test_as_fast_as_by_hand(tmp_path: Path) -> None:
    device = Device(ECP5, "85k", 6, 120.0)
    nextpnr = find_nextpnr()
    clocks = []
    for text, top in ((by_hand(4, 4), "array_by_hand"), (generated(4, 4, tmp_path), "array_generated")):
        design, netlist = mapped(text, top)
        runs = [route(design, netlist, device, seed, nextpnr, Deadline()).fmax_mhz for seed in (1, 2, 3)]
        clocks.append(statistics.median(runs))
    hand, ours = clocks
    assert ours >= 0.95 * hand, clocks
