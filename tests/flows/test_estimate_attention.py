"""Attention on the core: 8-bit keys and values are exact, and an estimate's cycles are the verilated core's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import CoreConfig, load_preset
from accel.stream import StreamLayout
from flows.attention import product_layouts
from flows.estimate import estimate_model
from flows.memories import choose_memory
from flows.workload import Workload
from quant import NMPattern, NMWeight, prune_magnitude, quantize_rtn
from verify.gemm import GemmJob, execute, prepare

TINY = load_preset("tiny")


def random_job(config: CoreConfig, layout: StreamLayout, tokens: int, seed: int) -> GemmJob:
    """A GEMM of random operands whose weights have the given layout."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((layout.out_features, layout.in_features), np.float32)
    weight = quantize_rtn(
        prune_magnitude(weights, layout.pattern), layout.pattern, layout.group_size, symmetric=not layout.asymmetric
    )
    x = rng.integers(*config.act_range, (tokens, layout.in_features), endpoint=True)
    job = prepare(config, x, weight)
    assert job.stream.layout == layout
    return job


@pytest.mark.parametrize("attention", ["core-int8", "core-int4"])
@pytest.mark.parametrize("figures", [(1.0, 40.0), (8.0, 300.0)])
def test_cycles_are_those_of_the_verilated_core(attention: str, figures: tuple[float, float], tiny_model: Path) -> None:
    memory = choose_memory(None, *figures)
    workload = Workload(
        TINY, str(tiny_model), prefill=5, decode=2, batch=2, group_size=16, attention=attention, memory=memory
    )
    layers = estimate_model("tiny", workload, [NMPattern(2, 4)]).estimates[0].layers
    assert {layer.work.role for layer in layers} == {"linear", "head", "attention"}
    for layer in layers:
        cycles = moved = 0
        counters = dict.fromkeys(layer.counters, 0)
        for number, ((layout, tokens), calls) in enumerate(layer.work.gemms.items()):
            job = random_job(TINY, layout, tokens, number)
            run = execute(job, "verilog", memory=memory.at_clock(500.0))
            assert run.cycles is not None
            assert run.written is not None
            cycles += calls * run.written
            for cause, count in run.counters.items():
                counters[cause] += calls * count
            counters["write_back"] += calls * (run.written - run.cycles)
            blocks = len(job.commands)
            results = job.result_words * TINY.result_lanes * (8 if job.commands[0].wide else 4)
            moved += calls * (blocks * len(job.stream.payload) + len(job.acts) + results)
        assert (layer.cycles, layer.counters, layer.bytes) == (cycles, counters, moved), layer.work.name


@given(data=st.data())
def test_two_nibbles_are_an_8_bit_key_or_value(data: st.DataObject) -> None:
    tokens, out_features = data.draw(st.integers(1, 3), "tokens"), data.draw(st.integers(1, 5), "out_features")
    in_features = data.draw(st.integers(1, 48), "in_features")
    group_size = data.draw(st.sampled_from([-1, 4, 16, 48]), "group_size")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    x = rng.integers(-128, 127, (tokens, in_features), endpoint=True)
    cached = rng.integers(-128, 127, (out_features, in_features), endpoint=True)

    layouts = product_layouts(TINY, "core-int8", in_features, out_features, group_size)
    ((layout, count),) = layouts.items()
    assert count == 1
    half, group = layout.in_features // 2, layout.group
    assert (half % group, half - in_features < group) == (0, True)

    def padded(matrix: np.ndarray) -> np.ndarray:
        return np.pad(matrix, ((0, 0), (0, half - in_features)))

    high, low = padded(cached >> 4), padded(cached & 15)
    rows, groups = out_features, half // group
    weight = NMWeight(
        values=np.hstack([high + 8, low]),
        mask=np.ones((rows, 2 * half), bool),
        group_scale=np.repeat([[16] * groups + [1] * groups], rows, axis=0),
        channel_scale=np.ones(rows, np.float32),
        pattern=NMPattern(1, 1),
        group_size=group,
        zero_point=np.repeat([[8] * groups + [0] * groups], rows, axis=0),
    )
    job = prepare(TINY, np.hstack([padded(x), padded(x)]), weight)
    assert job.stream.layout == layout
    np.testing.assert_array_equal(execute(job, "fl").y, x @ cached.T)


@given(
    # On the second one 8-bit values of one tile would already be more than the accumulators are for.
    config=st.sampled_from([TINY, TINY.replace(k_max=32)]),
    attention=st.sampled_from(["core-int8", "core-int4"]),
    in_features=st.integers(1, 600),
    out_features=st.integers(1, 20),
    group_size=st.sampled_from([-1, 1, 5, 16, 32, 1000]),
)
def test_parts_hold_all_of_k_and_fit_the_core(
    config: CoreConfig, attention: str, in_features: int, out_features: int, group_size: int
) -> None:
    layouts = product_layouts(config, attention, in_features, out_features, group_size)
    planes = 2 if attention == "core-int8" else 1
    held = 0
    for layout, count in layouts.items():
        assert layout.k_padded <= config.k_max
        assert layout.out_features == out_features
        assert layout.asymmetric == (planes == 2)
        assert group_size == -1 or layout.group <= group_size
        held += count * layout.k_padded // planes
    assert held >= in_features
    # No more parts than padding to groups makes necessary, and padded by less than a group a part.
    group = max(layout.group for layout in layouts)
    parts = sum(layouts.values())
    assert parts == -(-in_features // (config.k_max // planes // group * group))
    assert held - in_features < group * parts


def test_a_context_beyond_the_accumulators_is_cut(tiny_model: Path, nimble_json: Any) -> None:
    fields = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    (tiny_model / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": 512}), encoding="utf-8")
    workload = Workload(TINY, str(tiny_model), prefill=0, decode=1, group_size=16)
    traced = estimate_model("tiny", workload, [NMPattern(2, 4)])
    assert traced.estimates[0].layers[-1].work.name == "attention pv"
    workload = Workload(TINY, str(tiny_model), prefill=149, decode=1, group_size=16)
    pv = estimate_model("tiny", workload, [NMPattern(2, 4)]).estimates[0].layers[-1].work
    # Two nibbles of 150 values on accumulators for 128: parts of 64, 64 and 22, padded to 32.
    assert {(layout.in_features, calls) for (layout, _), calls in pv.gemms.items()} == {(128, 16), (64, 8)}
    assert (pv.calls, pv.in_features, pv.out_features) == (8, 150, 8)
    assert (pv.macs, pv.lane_macs) == (8 * 150 * 8, 2 * 8 * 150 * 8)


def test_grouped_heads_are_rows(tiny_model: Path, nimble_json: Any) -> None:
    fields = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    (tiny_model / "config.json").write_text(json.dumps({**fields, "num_key_value_heads": 2}), encoding="utf-8")
    options = ("estimate", "--model", tiny_model, "--preset", "tiny", "--group", 16, "--prefill", 5, "--decode", 3)
    layers = nimble_json(*options)["patterns"][0]["layers"]
    attention = [layer for layer in layers if layer["role"] == "attention"]
    assert [(layer["phase"], layer["tokens"], layer["calls"]) for layer in attention] == [
        ("prefill", 10, 4),
        ("prefill", 10, 4),
        ("decode", 2, 12),
        ("decode", 2, 12),
    ]


def test_attention_in_growing_contexts_is_the_sum_of_its_passes(tiny_model: Path) -> None:
    def decode(prefill: int, passes: int) -> dict[str, tuple[int, int, int]]:
        workload = Workload(TINY, str(tiny_model), prefill=prefill, decode=passes, group_size=16)
        layers = estimate_model("tiny", workload, [NMPattern(2, 4)]).estimates[0].layers
        chosen = [layer for layer in layers if layer.work.phase == "decode"]
        return {layer.work.name: (layer.cycles, layer.bytes, layer.work.macs) for layer in chosen}

    steps = [decode(context, 1) for context in range(4, 9)]
    together = decode(4, 5)
    assert together == {name: tuple(map(sum, zip(*(step[name] for step in steps), strict=True))) for name in together}


def test_8_bit_attention_needs_zero_points(tmp_path: Path, tiny_model: Path, refusal: Any, nimble_json: Any) -> None:
    core = tmp_path / "symmetric.toml"
    lines = (f"{name} = {json.dumps(value)}" for name, value in TINY.replace(asymmetric=False).as_dict().items())
    core.write_text("\n".join(lines), encoding="utf-8")
    options = ("estimate", "--model", tiny_model, "--config", core, "--group", 16, "--prefill", 5, "--decode", 3)
    assert refusal(*options) == (
        "Attention of tiny does not run on this core: 8-bit keys and values are two nibbles with zero points, but this "
        "core is generated without them (asymmetric = false); choose core-int4, host or skip for attention, or a core "
        "with asymmetric = true."
    )
    assert nimble_json(*options, "--attention", "core-int4")["attention"] == "core-int4"
