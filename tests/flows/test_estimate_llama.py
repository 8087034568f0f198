"""LLaMA-7B's figures that Nimble promises, and the estimate's cycles beside the verilated core's."""

from __future__ import annotations

from typing import Any

import pytest

from accel.config import load_preset
from flows.estimate import Estimates, estimate_model
from flows.memories import MEMORIES
from flows.workload import Workload
from quant import NMPattern

PATTERNS = [NMPattern.parse(text) for text in ("dense", "2:4", "4:8", "3:4", "1:4")]


def llama(core: str, **options: Any) -> Estimates:
    return estimate_model(core, Workload(load_preset(core), "llama-7b", **options), PATTERNS)


@pytest.fixture(scope="module")
def decoded() -> Estimates:
    """Batch-1 decode on a memory-bound core, all linear layers quantised."""
    return llama("wide", prefill=0, decode=8, attention="skip", memory=MEMORIES["ddr4-3200"])


def test_sparse_decode_is_faster_by_nearly_the_ratio_of_bytes(decoded: Estimates) -> None:
    dense, sparse = (estimate.totals["decode"] for estimate in decoded.estimates[:2])
    assert dense.bound == sparse.bound == "memory"
    assert sparse.tokens_per_second / dense.tokens_per_second >= 1.40
    # 4.0625 bits a weight against 2.8125, with a dense head of 131 M weights in both.
    blocks, head = 6_476_005_376, 131_072_000
    most = (blocks + head) * 4.0625 / (blocks * 2.8125 + head * 4.0625)
    assert sparse.tokens_per_second / dense.tokens_per_second < 1.01 * most


@pytest.mark.parametrize("attention", ["skip", "core-int8"])
def test_decode_is_near_the_larger_limit(attention: str) -> None:
    for core in ("wide", "edge"):
        estimates = llama(core, prefill=512, decode=8, attention=attention)
        for estimate in estimates.estimates:
            assert 1 <= estimate.totals["decode"].over_limit <= 1.03


def test_decode_of_all_patterns_beside_limits_written_out(decoded: Estimates) -> None:
    """Bytes and lanes of a decode pass from the sizes alone, the memory and the core's lanes of one row."""
    bits_of = {"dense": 4.0625, "2:4": 2.8125, "4:8": 2.9375, "3:4": 3.5625, "1:4": 1.5625}
    kept_of = {"dense": 1, "2:4": 1 / 2, "4:8": 1 / 2, "3:4": 3 / 4, "1:4": 1 / 4}
    blocks, head = 6_476_005_376, 131_072_000
    for estimate in decoded.estimates:
        by_bytes = (blocks * bits_of[estimate.recipe.name] + head * 4.0625) / 8 / 25.6e9
        by_lanes = (blocks * kept_of[estimate.recipe.name] + head) / (16 * 8) / 500e6
        assert estimate.tpot_seconds is not None
        assert max(by_bytes, by_lanes) < estimate.tpot_seconds < 1.03 * max(by_bytes, by_lanes)


def test_prefill_keeps_the_lanes_at_work() -> None:
    for estimate in llama("edge", prefill=128, decode=0).estimates:
        prefill = estimate.totals["prefill"]
        linear = [layer for layer in prefill.layers if layer.work.role == "linear"]
        assert sum(layer.ideal_cycles for layer in linear) / sum(layer.cycles for layer in linear) >= 0.95
        assert prefill.lane_use is not None
        assert prefill.lane_use >= 0.95, estimate.recipe.name
        assert prefill.bound == "lanes"
