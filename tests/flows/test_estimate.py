"""`nimble estimate`: its cycles are the core's, its times follow from them, and it says what it assumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.estimate import SOURCES

SMALL = ("--preset", "tiny", "--group", 16, "--prefill", 5, "--decode", 3)


def test_keys_and_sums(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json("estimate", *SMALL, "--model", tiny_model)
    assert document["model"] == "tiny"
    assert document["core"] == "tiny"
    assert document["pattern"] == "2:4"
    layers = document["layers"]
    assert [(layer["phase"], layer["tokens"], layer["calls"]) for layer in layers] == [
        ("prefill", 5, 8),  # four projections in two blocks
        ("prefill", 5, 4),
        ("prefill", 5, 2),
        ("prefill", 1, 1),  # lm_head for the last token only
        ("decode", 1, 24),
        ("decode", 1, 12),
        ("decode", 1, 6),
        ("decode", 1, 3),
    ]
    for phase, tokens in (("prefill", 5), ("decode", 3), ("total", 8)):
        chosen = [layer for layer in layers if phase in ("total", layer["phase"])]
        cycles = sum(layer["calls"] * layer["cycles"] for layer in chosen)
        ideal = sum(layer["calls"] * layer["ideal_cycles"] for layer in chosen)
        seconds = sum(layer["calls"] * max(layer["compute_seconds"], layer["memory_seconds"]) for layer in chosen)
        assert document["cycles"][phase] == cycles
        assert document["utilisation"][phase] == ideal / cycles <= 1
        assert document["seconds"][phase] == pytest.approx(seconds)
        assert document["tokens_per_second"][phase] == pytest.approx(tokens / seconds)
        assert 0 < document["mac_utilisation"][phase] < document["utilisation"][phase]
        assert document["bound"][phase] in ("compute", "memory")
    for layer in layers:
        assert layer["cycles"] == sum(layer["counters"].values())
        assert layer["compute_seconds"] == layer["cycles"] / 500e6
        moved = layer["weight_bytes"] + layer["act_bytes"] + layer["result_bytes"]
        assert layer["memory_seconds"] == moved / 25.6e9


def test_every_number_has_a_source(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json("estimate", *SMALL, "--model", tiny_model)
    assert document["sources"] == SOURCES
    settings = {"tokens", "in_features", "out_features", "calls"}
    for layer in document["layers"]:
        numbers = {name for name, value in layer.items() if isinstance(value, (int, float))}
        assert numbers - settings <= set(SOURCES)
    by_phase = {name for name, value in document.items() if isinstance(value, dict)} - {"sources"}
    assert by_phase <= set(SOURCES)
    assert SOURCES["cycles"] == "exact model"
    assert SOURCES["tokens_per_second"] == "estimated"


@pytest.mark.parametrize("pattern", ["dense", "2:4", "3:4", "1:4"])
def test_cycles_are_those_of_the_simulated_core(pattern: str, nimble_json: Any, tiny_model: Path) -> None:
    sizes = ("--model", tiny_model, "--preset", "tiny", "--group", 16, "--pattern", pattern)
    layers = nimble_json("estimate", *sizes, "--prefill", 5, "--decode", 1)["layers"]
    for layer in layers:
        if layer["pattern"] != pattern:
            continue  # lm_head is dense
        simulated = nimble_json(
            "simulate",
            *sizes,
            "--layer",
            layer["kinds"][0],
            "--tokens",
            layer["tokens"],
            "--level",
            "verilog",
        )
        assert simulated["match"]
        assert simulated["cycles"] == layer["cycles"]
        assert simulated["counters"] == layer["counters"]
        assert simulated["ideal_cycles"] == layer["ideal_cycles"]
        assert simulated["stream_bytes"] * (2 if layer["tokens"] == 5 else 1) == layer["weight_bytes"]


def test_the_bound_follows_from_clock_and_bandwidth(nimble_json: Any, tiny_model: Path) -> None:
    def run(clock: float, bandwidth: float) -> Any:
        return nimble_json("estimate", *SMALL, "--model", tiny_model, "--clock", clock, "--bandwidth", bandwidth)

    slow_core, slow_memory = run(1, 1000), run(1e6, 0.001)
    assert set(slow_core["bound"].values()) == {"compute"}
    assert set(slow_memory["bound"].values()) == {"memory"}
    assert slow_core["cycles"] == slow_memory["cycles"]
    assert run(2, 1000)["seconds"]["total"] == pytest.approx(slow_core["seconds"]["total"] / 2)
    assert run(1e6, 0.002)["seconds"]["total"] == pytest.approx(slow_memory["seconds"]["total"] / 2)
    assert slow_memory["seconds"]["total"] == pytest.approx(slow_memory["bytes"]["total"] / 1e6)


def test_several_patterns_are_compared(nimble: Any, nimble_json: Any, tiny_model: Path) -> None:
    arguments = ("estimate", *SMALL, "--model", tiny_model, "--pattern", "dense,2:4,1:4")
    document = nimble_json(*arguments)
    assert document["pattern"] == "dense"
    rows = document["comparison"]
    assert [row["pattern"] for row in rows] == ["dense", "2:4", "1:4"]
    assert {key: document[key] for key in rows[0]} == rows[0]
    totals = [row["cycles"]["total"] for row in rows]
    assert totals == sorted(totals, reverse=True)
    text = nimble(*arguments).stdout
    for words in ("dense", "2:4", "1:4", "Mcycles and lane use: exact model.", "Assumptions"):
        assert words in text


def test_what_is_done_with_the_head(nimble_json: Any, tiny_model: Path) -> None:
    documents = {
        how: nimble_json("estimate", *SMALL, "--model", tiny_model, "--lm-head", how)
        for how in ("int4", "pruned", "skip")
    }
    cycles = {how: document["cycles"]["total"] for how, document in documents.items()}
    assert cycles["int4"] > cycles["pruned"] > cycles["skip"]
    heads = {
        how: [layer["pattern"] for layer in document["layers"] if layer["kinds"] == ["lm_head"]]
        for how, document in documents.items()
    }
    assert heads == {"int4": ["dense", "dense"], "pruned": ["2:4", "2:4"], "skip": []}
    assert any("(lm_head) are left out." in sentence for sentence in documents["skip"]["assumptions"])


@pytest.mark.parametrize(("prefill", "decode", "phases"), [(4, 0, ["prefill"]), (0, 4, ["decode"])])
def test_a_phase_without_tokens(
    prefill: int, decode: int, phases: list[str], nimble: Any, nimble_json: Any, tiny_model: Path
) -> None:
    arguments = ("estimate", *SMALL, "--model", tiny_model, "--prefill", prefill, "--decode", decode)
    document = nimble_json(*arguments)
    assert list(document["cycles"]) == [*phases, "total"]
    assert {layer["phase"] for layer in document["layers"]} == set(phases)
    assert nimble(*arguments).exit_code == 0


def test_assumptions_are_sentences_that_name_the_settings(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json(
        "estimate", *SMALL, "--model", tiny_model, "--clock", 700, "--bandwidth", 12.8, "--asymmetric"
    )
    assumptions = document["assumptions"]
    assert all(sentence.endswith(".") for sentence in assumptions)
    text = " ".join(assumptions)
    for words in ("700 MHz", "12.8 GB/s", "1 GB = 10^9 bytes", "zero points", "scale for 16 weights"):
        assert words in text
    assert "Not included: attention's own batched products" in text


def test_llama_7b_at_the_promised_command(nimble_json: Any) -> None:
    document = nimble_json(
        *("estimate", "--model", "llama-7b", "--preset", "edge", "--pattern", "dense,2:4"),
        *("--prefill", 128, "--decode", 32),
    )
    dense, sparse = document["comparison"]
    assert dense["cycles"]["prefill"] / sparse["cycles"]["prefill"] > 1.95
    assert sparse["utilisation"]["prefill"] > 0.95
    # 6.5 G multiplications a token on 16 × 4 multipliers, as one of 16 rows works.
    assert dense["cycles"]["decode"] / 32 == pytest.approx((6_476_005_376 + 131_072_000) / 64, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prefill", -1), "prefill is -1; it is a number of tokens from 0 on."),
        (
            ("--prefill", 0, "--decode", 0),
            "Both prefill and decode are 0; at least one of them has a token.",
        ),
        (("--clock", 0), "The clock is 0.0 MHz; it must be positive and finite."),
        (("--bandwidth", "inf"), "The bandwidth is inf GB/s; it must be positive and finite."),
        (("--lm-head", "fp16"), "lm_head is 'fp16'; it must be one of int4, pruned, skip."),
        (("--pattern", "2:4,2:4"), "The patterns '2:4,2:4' were given; each is named once."),
        (
            ("--prefill", 62, "--decode", 3),
            "prefill and decode are 65 tokens together; tiny is made for at most 64 (its max_position_embeddings).",
        ),
        (
            ("--pattern", "3:5"),
            "q_proj of tiny does not run on this core: Group size 16 is not a multiple of m = 5 of pattern 3:5.",
        ),
    ],
)
def test_bad_input(arguments: tuple[object, ...], sentence: str, tiny_model: Path, refusal: Any) -> None:
    assert refusal("estimate", *SMALL, "--model", tiny_model, *arguments) == sentence


def test_a_layer_beyond_the_core(tmp_path: Path, tiny_model: Path, refusal: Any) -> None:
    fields = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    (tiny_model / "config.json").write_text(json.dumps({**fields, "intermediate_size": 256}), encoding="utf-8")
    assert refusal("estimate", *SMALL, "--model", tiny_model) == (
        "down_proj of tiny does not run on this core: The weights have 256 input features (256 after padding "
        "to whole groups), but this core's accumulators are sized for k_max = 128."
    )
