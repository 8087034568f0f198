"""`nimble demo` on a small model and core: its steps, and that a mismatch anywhere ends it with 1."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from flows import demo


@pytest.fixture(autouse=True)
def small_demo(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL", str(tiny_model))
    monkeypatch.setattr(demo, "CORE", "tiny")
    monkeypatch.setattr(demo, "PREFILL", 8)
    monkeypatch.setattr(demo, "DECODE", 4)


def test_steps_for_people(nimble: Any) -> None:
    result = nimble("demo")
    assert result.exit_code == 0, result.stdout
    text = " ".join(result.stdout.split())
    for words in (
        "1. What tiny computes.",
        "2. One whole matrix",
        "3. The same matrix",
        "4. What that gives",
    ):
        assert words in text
    assert text.count("all 512 equal PyTorch's") == 4
    assert text.count("cycles, the same") == 2
    assert re.search(r"Dense takes 1\.\d+× as many cycles as 2:4\.", text)
    assert "MISMATCH" not in text


def test_keys(nimble_json: Any) -> None:
    document = nimble_json("demo")
    assert document["match"] is True
    assert document["linear_layers"] == 15
    assert document["shape"] == {"tokens": 16, "in_features": 32, "out_features": 32}
    sparse, dense = document["runs"]
    assert (sparse["pattern"], dense["pattern"]) == ("2:4", "dense")
    assert document["cycle_ratio"] == dense["cycles"] / sparse["cycles"]
    assert [row["pattern"] for row in document["estimate"]["patterns"]] == [
        "dense",
        "2:4",
        "4:8",
        "3:4",
        "1:4",
    ]
    assert document["seconds"] > 0


@pytest.mark.usefixtures("broken_functional_level")
def test_a_wrong_result_is_a_mismatch(nimble: Any) -> None:
    result = nimble("demo")
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "DIFFER: fl disagrees with PyTorch in 1 of 512 results" in text
    assert "MISMATCH: the parts of the chain do not agree; see above." in text


def test_a_wrong_cycle_model_is_a_mismatch(nimble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = demo.gemm_timing
    monkeypatch.setattr(demo, "gemm_timing", lambda *arguments: dataclasses.replace(correct(*arguments), cycles=7))
    result = nimble("demo")
    assert result.exit_code == 1
    assert "7 cycles: DIFFERENT" in result.stdout
