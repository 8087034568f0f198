"""`nimble estimate`: sums, limits and shapes against formulas written out here, and what it says it assumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import load_preset
from flows import estimate
from flows.attention import ATTENTIONS
from flows.estimate import COUNTERS, SOURCES, LayerEstimate, estimate_model
from flows.memories import Clock, choose_memory
from flows.trace import trace_model
from flows.workload import LM_HEADS, Workload
from quant import NMPattern

SMALL = ("--preset", "tiny", "--group", 16, "--prefill", 5, "--decode", 3)
BOUNDS = {"lanes", "memory", "activations", "drain", "results"}

#: Grouped heads, sizes that are no multiple of anything, and a fused projection of queries, keys and values.
MODELS = {
    "grouped": {"num_key_value_heads": 2},
    "odd": {"hidden_size": 30, "num_attention_heads": 3, "intermediate_size": 20, "vocab_size": 33},
    "fused": {"model_type": "gpt_neox"},
}


def layers_of(document: Any, index: int = 0) -> Any:
    return document["patterns"][index]["layers"]


def test_shapes_and_calls(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json("estimate", *SMALL, "--model", tiny_model, "--batch", 2)
    assert {name: document[name] for name in ("schema", "version", "model", "core", "multipliers")} == {
        "schema": "nimble.estimate",
        "version": 1,
        "model": "tiny",
        "core": "tiny",
        "multipliers": 8,
    }
    keys = ("phase", "name", "role", "where", "tokens", "in_features", "out_features", "pattern", "calls")
    # Two blocks, four heads of 8, two sequences; decode sees 6, 7 and 8 keys, 7 on average.
    assert [tuple(layer[key] for key in keys) for layer in layers_of(document)] == [
        ("prefill", "q_proj, k_proj, v_proj, o_proj", "linear", "core", 10, 32, 32, "2:4", 8),
        ("prefill", "gate_proj, up_proj", "linear", "core", 10, 32, 48, "2:4", 4),
        ("prefill", "down_proj", "linear", "core", 10, 48, 32, "2:4", 2),
        ("prefill", "lm_head", "head", "core", 2, 32, 96, "dense", 1),
        ("prefill", "attention qk", "attention", "core", 5, 8, 5, "dense", 16),
        ("prefill", "attention pv", "attention", "core", 5, 5, 8, "dense", 16),
        ("decode", "q_proj, k_proj, v_proj, o_proj", "linear", "core", 2, 32, 32, "2:4", 24),
        ("decode", "gate_proj, up_proj", "linear", "core", 2, 32, 48, "2:4", 12),
        ("decode", "down_proj", "linear", "core", 2, 48, 32, "2:4", 6),
        ("decode", "lm_head", "head", "core", 2, 32, 96, "dense", 3),
        ("decode", "attention qk", "attention", "core", 1, 8, 7, "dense", 48),
        ("decode", "attention pv", "attention", "core", 1, 7, 8, "dense", 48),
    ]
    for layer in layers_of(document):
        density = 1 if layer["pattern"] == "dense" else 0.5
        macs = layer["calls"] * layer["tokens"] * layer["in_features"] * layer["out_features"]
        assert (layer["macs"], layer["dense_macs"]) == (density * macs, macs)


def check_sums(document: Any) -> None:
    """Every total of every pattern follows from its layers, and every time from cycles, bytes and settings."""
    clock = document["clock_mhz"] * 1e6
    bandwidth = document["memory"]["bandwidth_gb_s"] * 1e9
    batch, prefill, decode = (document[name] for name in ("batch", "prefill", "decode"))
    for column in document["patterns"]:
        assert set(column["phases"]) == {name for name in ("prefill", "decode") if document[name]} | {"total"}
        for layer in column["layers"]:
            assert sum(layer["counters"].values()) == pytest.approx(layer["calls"] * layer["cycles"])
            assert tuple(layer["counters"]) == COUNTERS
            assert layer["bound"] in BOUNDS
            if layer["where"] == "host":
                assert (layer["cycles"], layer["lane_use"], layer["bound"]) == (0, None, "memory")
                assert layer["seconds"] == pytest.approx(layer["calls"] * layer["bytes"] / bandwidth)
            else:
                assert layer["seconds"] == pytest.approx(layer["calls"] * layer["cycles"] / clock)
                assert 0 < layer["lane_use"] <= 1
        for phase, total in column["phases"].items():
            layers = [layer for layer in column["layers"] if phase in ("total", layer["phase"])]

            def of(name: str, layers: Any = layers) -> float:
                """Sum over calls of a number that a layer has for one call."""
                return sum(layer["calls"] * layer[name] for layer in layers)

            def seconds(key: str, *values: str, layers: Any = layers) -> Any:
                return pytest.approx(sum(layer["seconds"] for layer in layers if layer[key] in values))

            assert total["cycles"] == pytest.approx(of("cycles"))
            assert total["bytes"] == pytest.approx(of("bytes"))
            assert total["linear_seconds"] == seconds("role", "linear", "head")
            assert total["attention_seconds"] == seconds("role", "attention")
            assert total["host_seconds"] == seconds("where", "host")
            assert total["seconds"] == pytest.approx(total["linear_seconds"] + total["attention_seconds"])
            assert total["seconds"] == pytest.approx(total["cycles"] / clock + total["host_seconds"])
            assert sum(total["counters"].values()) == total["cycles"]
            assert total["tokens"] == batch * {"prefill": prefill, "decode": decode, "total": prefill + decode}[phase]
            assert total["passes"] == {"prefill": 1, "decode": decode, "total": decode + (prefill > 0)}[phase]
            assert total["tokens_per_second"] == pytest.approx(total["tokens"] / total["seconds"])
            assert total["bytes_limit_seconds"] == pytest.approx(total["bytes"] / bandwidth)
            limits = total["lane_limit_seconds"], total["bytes_limit_seconds"]
            assert total["over_limit"] == pytest.approx(total["seconds"] / max(limits))
            assert total["over_limit"] > 1 - 1e-9
            assert total["bound"] in {layer["bound"] for layer in layers}
            if total["cycles"]:
                assert total["lane_use"] == pytest.approx(clock * total["lane_limit_seconds"] / total["cycles"])
                possible = document["multipliers"] * total["cycles"]
                dense = sum(layer["dense_macs"] for layer in layers if layer["where"] == "core")
                assert total["dense_equivalent"] == pytest.approx(dense / possible)
                assert 0 < total["array_use"] <= total["lane_use"] <= 1
        phases = column["phases"]
        assert column["ttft_seconds"] == (phases["prefill"]["seconds"] if prefill else None)
        if decode:
            assert column["tpot_seconds"] == pytest.approx(phases["decode"]["seconds"] / decode)
            assert column["tokens_per_second"] == pytest.approx(batch / column["tpot_seconds"])
        else:
            assert (column["tpot_seconds"], column["tokens_per_second"]) == (None, None)
        assert column["prefill_tokens_per_second"] == (phases["prefill"]["tokens_per_second"] if prefill else None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Directories of `MODELS`, each pass of which is traced once."""
    base = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    directories = {}
    for name, fields in MODELS.items():
        directories[name] = tmp_path_factory.mktemp(name)
        (directories[name] / "config.json").write_text(json.dumps({**base, **fields}), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "trace_model", lru_cache(maxsize=None)(trace_model))
        yield directories


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a `Workload` on the tiny core, but for model and memory."""
    prefill, decode = draw(st.integers(0, 8)), draw(st.integers(0, 4))
    return {
        "config": load_preset("tiny"),
        "prefill": prefill,
        "decode": decode or int(prefill == 0),
        "batch": draw(st.integers(1, 3)),
        "group_size": draw(st.sampled_from([-1, 8, 16, 64])),
        "asymmetric": draw(st.booleans()),
        "attention": draw(st.sampled_from(ATTENTIONS)),
        "lm_head": draw(st.sampled_from(LM_HEADS)),
        "clock": Clock(draw(st.sampled_from([100.0, 333.0, 500.0, 1000.0]))),
    }


FIGURES = {"bandwidth_gb_s": st.floats(0.05, 30), "latency_ns": st.floats(0, 500)}
PATTERNS = st.lists(st.sampled_from([NMPattern(1, 1), NMPattern(2, 4), NMPattern(1, 4), NMPattern(5, 8)]), min_size=1)


@given(data=st.data(), model=st.sampled_from(sorted(MODELS)), work=workloads(), patterns=PATTERNS)
def test_sums_for_any_workload(
    data: st.DataObject, models: dict[str, Path], model: str, work: dict[str, Any], patterns: list[NMPattern]
) -> None:
    memory = choose_memory(**{name: data.draw(figure, name) for name, figure in FIGURES.items()})
    estimates = estimate_model("tiny", Workload(model=str(models[model]), memory=memory, **work), patterns)
    check_sums(json.loads(json.dumps(estimates.document())))


@given(
    model=st.sampled_from(sorted(MODELS)),
    work=workloads(),
    bandwidth=st.floats(0.05, 30),
    factor=st.floats(1, 8),
    latency=st.floats(0, 500),
    sooner=st.floats(0, 1),
)
def test_a_better_memory_is_never_slower(
    models: dict[str, Path], model: str, work: dict[str, Any], bandwidth: float, factor: float, latency: float,
    sooner: float,
) -> None:  # fmt: skip
    def seconds(bandwidth: float, latency: float) -> list[float]:
        memory = choose_memory(bandwidth_gb_s=bandwidth, latency_ns=latency)
        estimates = estimate_model("tiny", Workload(model=str(models[model]), memory=memory, **work), [NMPattern(2, 4)])
        return [layer.seconds for layer in estimates.estimates[0].layers]

    worse, better = seconds(bandwidth, latency), seconds(bandwidth * factor, latency * sooner)
    # A port that writes first may do a word later what a slower memory does sooner, so not to the cycle.
    assert all(after <= 1.01 * before for before, after in zip(worse, better, strict=True))


@given(model=st.sampled_from(sorted(MODELS)), work=workloads(), batch=st.integers(2, 4))
def test_a_batch_multiplies_attention_and_rows(
    models: dict[str, Path], model: str, work: dict[str, Any], batch: int
) -> None:
    def layers(batch: int) -> tuple[LayerEstimate, ...]:
        given = {**work, "batch": batch, "model": str(models[model])}
        return estimate_model("tiny", Workload(**given), [NMPattern(2, 4)]).estimates[0].layers

    for one, many in zip(layers(1), layers(batch), strict=True):
        assert one.work.name == many.work.name
        assert many.work.macs == batch * one.work.macs
        if one.work.role == "attention":
            assert (many.cycles, many.bytes, many.work.calls) == tuple(
                batch * number for number in (one.cycles, one.bytes, one.work.calls)
            )
        else:
            assert (many.work.tokens, many.work.calls) == (batch * one.work.tokens, one.work.calls)
            assert one.seconds <= many.seconds <= batch * one.seconds


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--batch", 3, "--attention", "core-int4", "--lm-head", "pruned", "--memory", "ddr3-1600"),
        ("--attention", "host", "--lm-head", "fp16-host", "--bandwidth", 0.5, "--latency", 1000),
        ("--prefill", 0, "--attention", "skip", "--lm-head", "skip", "--asymmetric", "--clock", 1000),
        ("--decode", 0, "--memory", "hbm2-u280", "--group", -1),
    ],
)
def test_totals_are_the_sums_of_their_layers(options: tuple[object, ...], nimble_json: Any, tiny_model: Path) -> None:
    check_sums(nimble_json("estimate", *SMALL, "--model", tiny_model, "--pattern", "dense,2:4", *options))


def test_every_number_has_a_source(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json("estimate", *SMALL, "--model", tiny_model)
    assert document["sources"] == SOURCES
    assert set(SOURCES.values()) == {"exact model", "estimated"}
    settings = {"tokens", "passes", "in_features", "out_features", "calls"}
    column = document["patterns"][0]
    for container in (column, *column["phases"].values(), *column["layers"]):
        numbers = {name for name, value in container.items() if isinstance(value, (int, float))}
        assert numbers - settings <= set(SOURCES)
    assert SOURCES["cycles"] == SOURCES["counters"] == "exact model"
    assert SOURCES["tokens_per_second"] == "estimated"


def test_host_times_are_bytes_over_bandwidth(nimble_json: Any, tiny_model: Path) -> None:
    fields = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    (tiny_model / "config.json").write_text(json.dumps({**fields, "num_key_value_heads": 2}), encoding="utf-8")
    document = nimble_json(
        *("estimate", *SMALL, "--model", tiny_model, "--batch", 2, "--attention", "host", "--lm-head", "fp16-host"),
        *("--memory", "ddr3-1600"),
    )
    seconds = {
        (layer["phase"], layer["name"]): layer["seconds"] for layer in layers_of(document) if layer["where"] == "host"
    }
    # 2 blocks × 2 sequences × 2 heads × 8 values of 16 bits for each of 5 keys, then of 6 + 7 + 8.
    key = 2 * 2 * 2 * 8 * 2 / 12.8e9
    head = 32 * 96 * 2 / 12.8e9
    assert seconds == {
        ("prefill", "lm_head"): pytest.approx(head),
        ("prefill", "attention qk"): pytest.approx(5 * key),
        ("prefill", "attention pv"): pytest.approx(5 * key),
        ("decode", "lm_head"): pytest.approx(3 * head),
        ("decode", "attention qk"): pytest.approx(21 * key),
        ("decode", "attention pv"): pytest.approx(21 * key),
    }


def stream_bytes(pattern: str, out_features: int, in_features: int, group: int, word: tuple[int, int]) -> int:
    """Bytes of a packed matrix of whole groups and tiles, from the format's description alone."""
    columns, slice_bytes = word
    n, m = (1, 1) if pattern == "dense" else map(int, pattern.split(":"))
    blocks = group // m
    codes = math.ceil(blocks * math.ceil(math.log2(math.comb(m, n))) / 8)
    tile = 1 + codes + math.ceil(blocks * n / 2)
    words = math.ceil(out_features // columns * (in_features // group) * tile / slice_bytes)
    return words * columns * slice_bytes


@pytest.mark.parametrize("pattern", ["dense", "2:4", "4:8", "3:4", "1:4"])
def test_bytes_of_llama_7b(pattern: str, nimble_json: Any) -> None:
    options = ("--model", "llama-7b", "--preset", "wide", "--attention", "skip", "--pattern", pattern)
    document = nimble_json("estimate", *options, "--prefill", 16, "--decode", 2)
    column = document["patterns"][0]
    shapes = {(4096, 4096): 128, (4096, 11008): 64, (11008, 4096): 32}
    weights = sum(count * stream_bytes(pattern, o, k, 128, (16, 8)) for (k, o), count in shapes.items())
    weights += stream_bytes("dense", 32000, 4096, 128, (16, 8))
    assert column["weight_gbytes"] == pytest.approx(weights / 1e9)
    # A decode pass reads the weights once, its activations in words for four rows, and writes results of 32 bits, or
    # of 64 where a sum of kept weights of 5 bits, activations and scales of 8 may be beyond.
    density = 1 if pattern == "dense" else int(pattern[0]) / int(pattern[2])
    acts = results = 0
    for (k, o), count in {**shapes, (4096, 32000): 1}.items():
        acts += count * 4 * k
        results += count * o * (8 if k * density * 15 * 128 * 128 >= 2**31 else 4)
    assert column["phases"]["decode"]["bytes"] == 2 * (weights + acts + results)


def test_what_is_done_with_the_head(nimble_json: Any, tiny_model: Path) -> None:
    documents = {
        how: nimble_json("estimate", *SMALL, "--model", tiny_model, "--lm-head", how)
        for how in ("int4", "pruned", "fp16-host", "skip")
    }
    heads = {
        how: [(layer["pattern"], layer["where"]) for layer in layers_of(document) if layer["role"] == "head"]
        for how, document in documents.items()
    }
    assert heads == {
        "int4": [("dense", "core")] * 2,
        "pruned": [("2:4", "core")] * 2,
        "fp16-host": [("fp16", "host")] * 2,
        "skip": [],
    }
    cycles = {how: document["patterns"][0]["phases"]["total"]["cycles"] for how, document in documents.items()}
    assert cycles["int4"] > cycles["pruned"] > cycles["fp16-host"] == cycles["skip"]
    stored = {how: document["patterns"][0]["weight_gbytes"] * 1e9 for how, document in documents.items()}
    assert stored["fp16-host"] == pytest.approx(stored["skip"] + 2 * 32 * 96)
    assert any("(lm_head) are left out." in sentence for sentence in documents["skip"]["assumptions"])


def test_several_patterns_are_compared(nimble: Any, nimble_json: Any, tiny_model: Path) -> None:
    arguments = ("estimate", *SMALL, "--model", tiny_model, "--pattern", "dense,2:4,1:4")
    columns = nimble_json(*arguments)["patterns"]
    assert [column["pattern"] for column in columns] == ["dense", "2:4", "1:4"]
    totals = [column["phases"]["total"]["cycles"] for column in columns]
    assert totals == sorted(totals, reverse=True)
    attention = [column["phases"]["total"]["attention_seconds"] for column in columns]
    assert attention == attention[:1] * 3
    text = nimble(*arguments).stdout
    for words in ("dense", "2:4", "1:4", "All else: exact model", "TTFT", "TPOT", "Assumptions", "Model time: "):
        assert words in text


LONG = ("--model", "llama-2-7b", "--preset", "wide", "--prefill", 2048, "--decode", 128)


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        (*SMALL, "--attention", "host", "--lm-head", "fp16-host", "--pattern", "dense,2:4"),
        LONG,
        (*LONG, "--batch", 16, "--pattern", "dense,2:4,4:8,3:4,1:4", "--bandwidth", 0.5),
    ],
)
def test_tables_fit_80_columns(
    options: tuple[object, ...], nimble: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    model = () if "--model" in options else ("--model", tiny_model)
    lines = nimble("estimate", *options, *model).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(("prefill", "decode", "phases"), [(4, 0, ["prefill"]), (0, 4, ["decode"])])
def test_a_phase_without_tokens(
    prefill: int, decode: int, phases: list[str], nimble: Any, nimble_json: Any, tiny_model: Path
) -> None:
    arguments = ("estimate", *SMALL, "--model", tiny_model, "--prefill", prefill, "--decode", decode)
    document = nimble_json(*arguments)
    assert {layer["phase"] for layer in layers_of(document)} == set(phases)
    assert nimble(*arguments).exit_code == 0


def test_assumptions_are_sentences_that_name_the_settings(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json(
        *("estimate", *SMALL, "--model", tiny_model, "--clock", 700, "--bandwidth", 12.5, "--latency", 33),
        "--asymmetric",
    )
    assumptions = document["assumptions"]
    assert all(sentence.endswith(".") for sentence in assumptions)
    text = " ".join(assumptions)
    for words in ("700 MHz", "12.5 GB/s", "1 GB = 10^9 bytes", "33 ns", "is a peak", "zero points", "two nibbles",
                  "scale for 16 weights", "strictly one after the other", "future tokens included"):  # fmt: skip
        assert words in text
    assert (document["clock_mhz"], document["clock_source"]) == (700, "assumed")
    assert document["memory"] == {"name": "custom", "bandwidth_gb_s": 12.5, "latency_ns": 33}


def test_a_clock_from_a_synthesis_report(nimble_json: Any, tiny_model: Path, tmp_path: Path) -> None:
    report = tmp_path / "synth.json"
    report.write_text(json.dumps({"tool": "any", "fmax_mhz": 312.5}), encoding="utf-8")
    document = nimble_json("estimate", *SMALL, "--model", tiny_model, "--clock-from", report)
    assert (document["clock_mhz"], document["clock_source"]) == (312.5, str(report))
    assert any(f"312.5 MHz, the fmax_mhz of {report}." in sentence for sentence in document["assumptions"])
    check_sums(document)


def test_memories_and_clocks_bound_what_they_should(nimble_json: Any, tiny_model: Path) -> None:
    def bounds(*options: object) -> set[str]:
        document = nimble_json("estimate", *SMALL, "--model", tiny_model, "--attention", "skip", *options)
        return {layer["bound"] for layer in layers_of(document)}

    assert bounds("--clock", 1, "--memory", "hbm2-u280", "--prefill", 40, "--decode", 0) == {"lanes"}
    assert bounds("--bandwidth", 0.01, "--latency", 0) == {"memory"}
    # One small matrix: nothing can be multiplied before the first activations have come, nor written sooner.
    assert bounds("--bandwidth", 1000, "--latency", 100_000) <= {"activations", "memory", "results"}
