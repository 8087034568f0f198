"""The figures that the edge core is made for, measured on the verilated core."""

from __future__ import annotations

import numpy as np
import pytest

from accel import load_preset
from accel.timing import gemm_timing
from quant import NMPattern, prune_magnitude, quantize_rtn
from verify.gemm import execute, prepare

EDGE = load_preset("edge")


def job_for(pattern, in_features, out_features, tokens=16, group_size=128, code=None):
    rng = np.random.default_rng(7)
    n_m = NMPattern.parse(pattern)
    matrix = rng.standard_normal((out_features, in_features), dtype=np.float32)
    weight = quantize_rtn(prune_magnitude(matrix, n_m), n_m, group_size=group_size)
    return prepare(EDGE, rng.integers(-128, 128, (tokens, in_features)), weight, code=code)


def checked_run(job):
    """Verilated run, equal to PyTorch in results and to the timing model in cycles."""
    run = execute(job, "verilog")
    assert np.array_equal(run.y, execute(job, "golden").y)
    timing = gemm_timing(EDGE, job.stream.layout, job.tokens)
    assert (run.cycles, run.counters) == (timing.cycles, timing.counters)
    return run


def test_two_to_four_halves_the_cycles_of_a_full_size_layer():
    dense, sparse = (checked_run(job_for(pattern, 4096, 4096)) for pattern in ("dense", "2:4"))
    assert dense.cycles / sparse.cycles >= 1.95


@pytest.mark.parametrize("pattern", ["dense", "2:4", "4:8", "3:4", "5:8", "2:8", "1:4"])
def test_lanes_are_busy_in_steady_state(pattern):
    """Between a run and one of twice the output tiles lies steady state: no filling, no draining."""
    short, long = job_for(pattern, 1024, 256), job_for(pattern, 1024, 512)
    cycles = checked_run(long).cycles - checked_run(short).cycles
    work = long.ideal_cycles - short.ideal_cycles
    assert work / cycles >= 0.95


def test_block_codes_cost_no_cycles():
    """Positions decoded from ranks or masks instead of taken from plain indices: the same cycles."""
    cycles = {code: checked_run(job_for("2:4", 1024, 64, code=code)).cycles for code in EDGE.codes}
    assert len(set(cycles.values())) == 1


def test_window_multiplexing_costs_no_cycles():
    """A sparse step selects from the window, a dense one does not: a step is a cycle for both."""
    dense, sparse = (checked_run(job_for(pattern, 1024, 64)) for pattern in ("dense", "1:4"))
    assert dense.counters["busy"] == 4 * sparse.counters["busy"]
    assert sparse.counters["wait_weights"] == sparse.counters["wait_drain"] == sparse.counters["wait_write"] == 0


def test_small_groups_keep_the_lanes_busy():
    short, long = (job_for("2:4", 1024, outputs, group_size=32) for outputs in (256, 512))
    cycles = checked_run(long).cycles - checked_run(short).cycles
    assert (long.ideal_cycles - short.ideal_cycles) / cycles >= 0.95


@pytest.mark.parametrize("pattern", ["dense", "2:4", "3:20"])
def test_the_wide_core_decodes(pattern):
    """One token, zero points: wide is made for it, and no other test builds it."""
    wide = load_preset("wide")
    rng = np.random.default_rng(3)
    n_m = NMPattern.parse(pattern)
    matrix = rng.standard_normal((40, 1020), dtype=np.float32)
    weight = quantize_rtn(prune_magnitude(matrix, n_m), n_m, group_size=60, symmetric=False)
    job = prepare(wide, rng.integers(-128, 128, (1, 1020)), weight)
    run = execute(job, "verilog")
    assert np.array_equal(run.y, execute(job, "golden").y)
    timing = gemm_timing(wide, job.stream.layout, job.tokens)
    assert (run.cycles, run.counters) == (timing.cycles, timing.counters)
