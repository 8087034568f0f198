"""Differential tests: random cases through golden, FL, CL, RTL and Verilog, results and cycles.

The number of cases is that of the Hypothesis profile (``HYPOTHESIS_PROFILE=long`` for a long run), and the
random stimulus has to prove that it reached each extreme.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymtl3 import DefaultPassGroup, InPort, OutPort, sext, update_ff, zext

import verify.memory
from accel import CoreConfig, load_preset
from accel.column.ColumnRTL import ColumnRTL
from accel.config import REGISTERS
from accel.core.CoreRTL import CoreRTL
from accel.memory import Memory
from accel.scale_unit.ScaleUnitRTL import ScaleUnitRTL
from quant import NMPattern
from verify import rtl
from verify.cases import Case
from verify.gemm import prepare
from verify.harness import EXTREMES, SCALES_OF_16_BITS, WAITING, MismatchError, compare, run_campaign
from verify.stimulus import NO_STALLS, Stalls
from verify.strategies import SMALLEST, cases, core_configs
from verify.verilated import run_verilated

TINY = load_preset("tiny")
PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
EXAMPLES = PROFILE.max_examples
SEED = 20260 if PROFILE.derandomize else random.SystemRandom().randrange(1 << 32)


def agree(configs, levels, examples, seed=SEED):
    campaign = run_campaign(configs, levels, examples, seed)
    assert campaign.failure is None, f"seed {seed}: {campaign.complaint}\n{campaign.failure}"
    return campaign


def agree_and_reach(extremes, configs, levels, least):
    """At least so many cases, and rounds of them until every extreme was met: a round may miss a rare one."""
    reached, patterns, cases_run = Counter(), Counter(), 0
    for seed in range(SEED, SEED + 10):
        campaign = agree(configs, levels, EXAMPLES, seed)
        reached += campaign.reached
        patterns += campaign.patterns
        cases_run += campaign.cases
        if cases_run >= least and set(reached) == extremes:
            break
    assert set(reached) == extremes, f"never reached: {extremes - set(reached)}"
    return patterns


# Every value that a parameter of the core may take on its own: one of them changed, the others as in tiny.
SWEEP = [
    {"rows": 1},
    {"rows": 3},
    {"rows": 5, "drain_chains": 2},
    {"columns": 1},
    {"columns": 3},
    {"columns": 5, "result_lanes": 2},
    {"lanes": 1},
    {"lanes": 3, "slice_bytes": 4},
    {"lanes": 4, "slice_bytes": 4},
    {"window": 2, "act_words": 64},
    {"window": 5},
    {"window": 12, "slice_bytes": 4},
    {"patterns": ("2:4",)},
    {"patterns": ("1:1", "3:7", "4:8")},
    {"patterns": ("1:1",), "codes": ()},
    {"lanes": 4, "window": 4, "patterns": ("1:1",), "codes": (), "act_words": 64},
    {"act_bits": 4},
    {"act_bits": 16},
    {"asymmetric": False},
    {"codes": ("rank",)},
    {"codes": ("index",)},
    {"codes": ("bitmask",)},
    {"codes": ("bitmask", "rank")},
    {"scale_bits": 2},
    {"scale_bits": 9},
    {"scale_bits": 16},
    {"k_max": 64},
    {"k_max": 100},
    {"group_max": 8},
    {"group_max": 13},
    {"subtiles": 1},
    {"subtiles": 3},
    {"drain_chains": 2},
    {"slice_bytes": 1},
    {"slice_bytes": 4},
    {"slice_bytes": 8},
    {"weight_tiles": 3},
    {"weight_tiles": 5},
    {"act_words": 16},
    {"act_words": 34},
    {"act_ports": 2},
    {"rows": 5, "act_ports": 3},
    {"result_lanes": 2},
    {"registers": ("read",)},
    {"registers": ("multiplexer",)},
    {"registers": ("multiplier",)},
    {"registers": ("adders",)},
    {"registers": ("scale",)},
    {"registers": ("scale",), "act_bits": 4, "asymmetric": False},
    {"registers": ("weights",)},
    {"registers": ("weights",), "columns": 5, "slice_bytes": 1},
    {"registers": ("acts",)},
    {"registers": ("window",)},
    {"registers": ("window", "read"), "rows": 5, "act_ports": 2},
    {"registers": ("results",)},
    {"registers": ("results",), "columns": 3, "result_lanes": 2},
    {"registers": REGISTERS, "rows": 5, "columns": 3, "fanout_rows": 2},
    {"fanout_rows": 1},
    {"decode_registers": 1},
    {"decode_registers": 4},
    {"decode_registers": 8, "registers": REGISTERS},
    {"rows": 1, "columns": 1, "lanes": 1, "window": 8},
]


def test_the_sweep_changes_every_parameter():
    changed = {name for change in SWEEP for name in change}
    assert changed == set(TINY.as_dict())


@pytest.mark.parametrize("change", SWEEP, ids=lambda change: ",".join(f"{k}={v}" for k, v in change.items()))
def test_every_parameter_on_its_own(change):
    agree(st.just(TINY.replace(**change)), ("golden", "fl", "cl", "rtl"), 5)


def test_random_cores():
    patterns = agree_and_reach(set(EXTREMES), core_configs(), ("golden", "fl", "cl", "rtl"), 3 * EXAMPLES)
    assert len(patterns) >= 20


def test_the_smallest_core():
    agree(st.just(SMALLEST), ("golden", "fl", "cl", "rtl"), 8)


def test_tiny_at_all_levels():
    extremes = set(EXTREMES) - set(SCALES_OF_16_BITS)
    agree_and_reach(extremes, st.just(TINY), ("golden", "fl", "cl", "rtl", "verilog"), 2 * EXAMPLES)


# Cores for Verilator, which takes seconds to build each: unlike in every parameter, sizes mostly odd.
VERILATED = [
    SMALLEST,
    TINY.replace(scale_bits=16),
    TINY.replace(rows=3, columns=5, lanes=3, window=12, slice_bytes=4, act_bits=4, drain_chains=2, act_ports=2),
    TINY.replace(rows=5, columns=3, act_bits=16, asymmetric=False, codes=("bitmask",), result_lanes=2, subtiles=3),
    TINY.replace(
        lanes=4,
        slice_bytes=4,
        patterns=("1:1", "2:4", "4:8"),
        registers=REGISTERS,
        fanout_rows=1,
        decode_registers=3,
    ),
    TINY.replace(rows=1, columns=7, lanes=4, window=5, slice_bytes=8, scale_bits=3, group_max=15, codes=("index",)),
]


@pytest.mark.parametrize("config", VERILATED, ids=lambda config: f"{config.rows}x{config.columns}x{config.lanes}")
def test_odd_cores_in_verilog(config):
    agree(st.just(config), ("golden", "verilog", "cl", "rtl"), 10)


@settings(max_examples=EXAMPLES)
@given(case=cases(st.just(TINY)), reset_seed=st.integers(1, 1 << 30))
def test_reset_reaches_every_register_that_matters(case, reset_seed):
    """From a random state before reset: the same results, cycles and counters as from zero."""
    x, weight = case.build()
    job = prepare(TINY, x, weight, code=case.code)
    arguments = (TINY, job.commands, job.stream.payload, job.acts, job.result_words, case.stalls)
    assert run_verilated(*arguments, reset_seed=reset_seed) == run_verilated(*arguments)


# The largest preset whose CL and Verilog are compared; RTL in Python would take minutes.
EDGE = load_preset("edge")
EDGE_CASES = [
    # pattern, K, O, group, tokens, memory, stalls
    ("2:4", 512, 40, 128, 5, Memory(Fraction(128, 5), 40), NO_STALLS),
    ("dense", 260, 33, 128, 37, Memory(Fraction(77, 3), 17, 0), Stalls.random(3, results=0.6)),
    ("3:8", 512, 48, 64, 70, Memory(200, 25), Stalls.random(5, weights=0.3, acts=0.2)),
]


@pytest.mark.parametrize(("pattern", "k", "o", "group", "tokens", "memory", "stalls"), EDGE_CASES)
def test_the_edge_core_in_cl_and_verilog(pattern, k, o, group, tokens, memory, stalls):
    case = Case(EDGE, NMPattern.parse(pattern), tokens, k, o, group, symmetric=False, weights="uniform",
                acts="uniform", seed=1, stalls=stalls, memory=memory)  # fmt: skip
    compare(case, ("golden", "cl", "verilog"))


# -- the harness itself: broken designs and environments must be found -------------------------------


# Each rule of the memory is broken once, where `verify/memory.py` states it; the testbench in C++ keeps them.
BROKEN_MEMORIES = [
    ("self._free if follows else self._whole(self._free)", "self._free"),
    ("self._free if follows else self._whole(self._free)", "self._whole(self._free)"),
    ("start = max(self._whole(self._free), issued * self._ticks.cycle)", "start = issued * self._ticks.cycle"),
    ("        if self._writes:\n", "        if self._writes and not self._waiting:\n"),
    ("return acts_rdy and not self._acts", "return not self._acts"),
    ("waits_for = len(ends) - 1 - depth", "waits_for = len(ends) - 2 - depth"),
    ("for k in range(1, read.words + 1)", "for k in range(read.words)"),
    ("// self._ticks.cycle + self._latency", "// self._ticks.cycle"),
]


def slow_memory_cases():
    """Drawn by a generator of their own: what Hypothesis draws depends on the modules that are loaded."""
    rng = random.Random(1)
    for seed in range(60):
        rate = Fraction(rng.randint(1, 40), rng.choice((1, 3, 7)))
        memory = Memory(rate, rng.randint(0, 30), rng.choice((0, 32, 16384)))
        stalls = rng.choice((NO_STALLS, Stalls.random(seed, weights=0.3, acts=0.2, results=0.3)))
        pattern = NMPattern.parse(rng.choice(("dense", "2:4", "1:8")))
        yield Case(TINY, pattern, rng.randint(1, 12), 16 * rng.randint(1, 9), rng.randint(1, 9), 16, symmetric=False,
                   weights="uniform", acts="uniform", seed=seed, stalls=stalls, memory=memory)  # fmt: skip


@pytest.mark.parametrize(("before", "after"), BROKEN_MEMORIES, ids=range(len(BROKEN_MEMORIES)))
def test_a_broken_memory_is_found(before, after, monkeypatch):
    source = Path(verify.memory.__file__).read_text(encoding="utf-8")
    assert before in source, "the broken place has gone: rewrite it"
    broken = ModuleType("broken_memory")
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    exec(source.replace(before, after), broken.__dict__)
    monkeypatch.setattr(rtl, "StreamMemory", broken.StreamMemory)

    def all_cases():
        for case in slow_memory_cases():
            compare(case, ("verilog", "cl"))

    with pytest.raises(MismatchError):
        all_cases()


class WideScaleRTL(ScaleUnitRTL):
    """Broken on purpose: the scale is zero-extended, so negative scales go wrong."""

    def construct(s, config: CoreConfig):
        bits = config.scaled_bits
        s.partial = InPort(config.partial_bits)
        s.scale = InPort(config.scale_bits)
        s.scaled = OutPort(bits)

        @update_ff
        def ff_scale():
            s.scaled <<= sext(s.partial, bits) * zext(s.scale, bits)


def broken_core(column_type):
    def simulator(config, level):
        core = CoreRTL(config, ColumnType=column_type)
        core.elaborate()
        core.apply(DefaultPassGroup())
        return core

    return simulator


class WrongScaleColumn(ColumnRTL):
    def construct(s, config):
        super().construct(config, ScaleType=WideScaleRTL)


def test_a_broken_scale_unit_is_found_and_the_case_shrinks(monkeypatch, tmp_path):
    monkeypatch.setattr(rtl, "_simulator", broken_core(WrongScaleColumn))
    campaign = run_campaign(st.just(TINY), ("golden", "rtl"), 30, 5)
    assert campaign.failure is not None
    assert "rtl disagrees with golden" in campaign.complaint
    small = campaign.failure
    assert small.tokens == 1
    assert small.out_features == 1
    assert small.in_features == 1
    # The stored case fails again while the design is broken, and passes on the real one.
    stored = Case.from_json(small.save(tmp_path).read_text())
    assert stored == small
    with pytest.raises(AssertionError, match="disagrees"):
        compare(stored, ("golden", "rtl"))
    monkeypatch.undo()
    compare(stored, ("golden", "rtl"))


def test_extremes_are_counted_not_assumed():
    campaign = run_campaign(st.just(TINY), ("golden", "fl"), 3, 1)
    assert campaign.missed  # three cases cannot reach them all
    reachable = set(EXTREMES) - set(WAITING) - set(SCALES_OF_16_BITS)
    assert set(campaign.missed) | {name for name in EXTREMES if campaign.reached[name]} == reachable
    campaign = run_campaign(st.just(TINY.replace(scale_bits=16)), ("golden", "fl"), 1, 1)
    assert set(campaign.missed) >= {name for name in SCALES_OF_16_BITS if not campaign.reached[name]}
