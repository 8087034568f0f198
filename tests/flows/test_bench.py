"""`nimble bench`: every part runs and is held against PyTorch; no time is asserted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timing model is timed on so many layers that it takes seconds; not here."""
    monkeypatch.setattr("flows.bench.SHAPES", 100)


SMALL = ("--preset", "tiny", "--inputs", 64, "--outputs", 12, "--tokens", 3)


def test_keys_and_what_is_compared(nimble_json: Any) -> None:
    document = nimble_json("bench", *SMALL)
    assert document["match"] is True
    assert document["ratio"] == document["cycles_per_second"] / document["import_cycles_per_second"]
    runs = {run["part"]: run for run in document["runs"]}
    assert list(runs) == [
        "our verilated core",
        "PyMTL3's import",
        "cycle level in Python",
        "RTL in Python",
        "functional level",
        "golden (PyTorch)",
        "pack",
    ]
    assert runs["our verilated core"]["out_features"] == 12
    assert runs["PyMTL3's import"]["out_features"] == 8  # a shortened run
    assert [run["match"] for run in runs.values()] == [True, True, True, True, True, None, None]
    assert runs["our verilated core"]["cycles"] > runs["PyMTL3's import"]["cycles"] > runs["RTL in Python"]["cycles"]
    assert runs["cycle level in Python"]["cycles"] == runs["PyMTL3's import"]["cycles"]
    assert runs["RTL in Python"]["out_features"] == 2  # one output tile
    speeds = [runs[part]["cycles_per_second"] for part in ("cycle level in Python", "RTL in Python")]
    assert document["cycle_level_ratio"] == speeds[0] / speeds[1]
    assert document["timing_shapes_per_second"] > 0
    assert document["timing_shapes_per_second_with_memory"] > 0
    assert list(document["packed_bytes_per_second"]) == ["dense", "2:4", "4:8"]
    assert all(rate > 0 for rate in document["packed_bytes_per_second"].values())
    assert all(run["seconds"] > 0 for run in runs.values())
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("broken_functional_level")
def test_a_wrong_result_is_a_mismatch(nimble: Any) -> None:
    result = nimble("bench", *SMALL)
    assert result.exit_code == 1
    assert re.search("functional level .* NO", result.stdout)
    assert "as many cycles per second as PyMTL3's Verilator import" in " ".join(result.stdout.split())


def test_a_gemm_beyond_the_core(refusal: Any) -> None:
    assert refusal("bench", "--preset", "tiny", "--inputs", 4096) == (
        "The weights have 4096 input features (4096 after padding to whole groups), but this core's "
        "accumulators are sized for k_max = 128."
    )
