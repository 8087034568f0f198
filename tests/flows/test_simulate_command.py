"""`nimble simulate`: a model's layer at any level, held against PyTorch's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from accel.config import load_preset
from flows.simulate import LayerGemm
from quant import NMPattern

TINY = ("--preset", "tiny", "--layer", "up_proj", "--tokens", 5, "--group", 16)


def test_keys_and_values(nimble_json: Any, tiny_model: Path) -> None:
    document = nimble_json("simulate", *TINY, "--model", tiny_model, "--level", "verilog")
    assert document["core"] == "tiny"
    assert document["model"] == "tiny"
    assert document["layer"] == "model.layers.0.mlp.up_proj"
    assert document["shape"] == {"tokens": 5, "in_features": 32, "out_features": 48}
    assert document["weights"] == "random"
    assert document["match"] is True
    assert document["results"] == 5 * 48
    assert document["differences"] == 0
    assert document["complaint"] is None
    # 24 output tiles, two groups of 8 slots, three token subtiles, two lanes.
    assert document["ideal_cycles"] == 24 * 2 * 8 * 3 // 2
    assert document["cycles"] == sum(document["counters"].values())
    assert document["utilisation"] == document["ideal_cycles"] / document["cycles"] <= 1
    assert document["mac_utilisation"] == 5 * 48 * 16 / (8 * document["cycles"])
    assert document["mac_utilisation"] < document["utilisation"]
    assert document["cycles_per_second"] == document["cycles"] / document["seconds"]
    # A scale, two bytes of codes and four of values, per group and row.
    assert document["stream_bytes"] == 48 * 2 * (1 + 2 + 4)
    assert document["bits_per_weight"] == 8 * 48 * 2 * 7 / (48 * 32)
    assert document["ratio_to_fp16"] == 16 / document["bits_per_weight"]
    assert document["code"] == "rank"


def test_every_timed_level_takes_the_same_cycles(nimble_json: Any, tiny_model: Path) -> None:
    runs = {
        level: nimble_json("simulate", *TINY, "--model", tiny_model, "--level", level, "--asymmetric")
        for level in ("fl", "rtl", "verilog")
    }
    assert all(run["match"] for run in runs.values())
    assert runs["rtl"]["counters"] == runs["verilog"]["counters"]
    assert runs["rtl"]["cycles"] == runs["verilog"]["cycles"]
    for key in ("cycles", "utilisation", "mac_utilisation", "cycles_per_second"):
        assert runs["fl"][key] is None


def test_tables_say_that_weights_are_random(nimble: Any, tiny_model: Path) -> None:
    result = nimble("simulate", *TINY, "--model", tiny_model, "--outputs", 3, "--pattern", "dense")
    assert result.exit_code == 0
    assert "random (seed 0), dense, INT4 symmetric, group 16" in result.stdout
    assert "T = 5, K = 32, O = 3 of 48" in result.stdout
    assert "all 15 equal PyTorch's" in result.stdout
    assert "cycles do not depend on their values" in " ".join(result.stdout.split())


def test_cycles_do_not_depend_on_values(nimble_json: Any, tiny_model: Path) -> None:
    first, second = (
        nimble_json("simulate", *TINY, "--model", tiny_model, "--level", "rtl", "--outputs", 4, "--seed", seed)
        for seed in (0, 1)
    )
    assert first["seed"] != second["seed"]
    assert first["counters"] == second["counters"]


def test_fewer_outputs_are_the_first_of_more() -> None:
    config, pattern = load_preset("tiny"), NMPattern(2, 4)
    whole = LayerGemm(config, 3, 32, 8, pattern, 16).prepare()
    part = LayerGemm(config, 3, 32, 5, pattern, 16).prepare()
    assert (whole.x == part.x).all()
    assert (whole.weight.values[:5] == part.weight.values).all()


@pytest.mark.usefixtures("broken_functional_level")
def test_a_wrong_result_is_a_mismatch(nimble: Any, nimble_json: Any, tiny_model: Path) -> None:
    arguments = ("simulate", *TINY, "--model", tiny_model, "--level", "fl")
    result = nimble(*arguments)
    assert result.exit_code == 1
    assert "DIFFER: fl disagrees with PyTorch in 1 of 240 results" in " ".join(result.stdout.split())
    document = nimble_json(*arguments, exit_code=1)
    assert document["match"] is False
    assert document["differences"] == 1
    assert document["complaint"].startswith(
        "fl disagrees with PyTorch in 1 of 240 results; the first is token 0, output 0: "
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--level", "golden"),
            "Level 'golden' is what the others are compared with; the levels are fl, cl, rtl, verilog.",
        ),
        (("--level", "gate"), "Level 'gate' does not exist; the levels are fl, cl, rtl, verilog."),
        (
            ("--layer", "qkv_proj"),
            "tiny runs no linear layer 'qkv_proj'; give one of the kinds q_proj, k_proj, v_proj, o_proj, "
            "gate_proj, up_proj, down_proj, lm_head, or a full name such as model.layers.0.self_attn.q_proj.",
        ),
        (
            ("--outputs", 49),
            "49 outputs were asked for, but layer model.layers.0.mlp.up_proj has 48; from 1 to 48 can be taken.",
        ),
        (
            ("--outputs", 0),
            "0 outputs were asked for, but layer model.layers.0.mlp.up_proj has 48; from 1 to 48 can be taken.",
        ),
        (("--tokens", 0), "A GEMM needs at least one token, but 0 were given."),
        (
            ("--pattern", "4:2"),
            "Pattern 4:2 has n = 4; n counts the kept weights and must be 1 to m = 2.",
        ),
        (
            ("--pattern", "sparse"),
            "Pattern 'sparse' is not understood; write n:m with n kept of every m weights, such as \"2:4\", "
            'or "dense".',
        ),
        (
            ("--pattern", "2:9", "--group", 18),
            "Pattern 2:9 has blocks of 9 weights, but this core's window holds 8; patterns with m up to 8 are allowed.",
        ),
        (
            ("--group", 6),
            "Group size 6 is not a multiple of m = 4 of pattern 2:4; allowed are multiples of 4 or -1 for "
            "one group per row.",
        ),
        (
            ("--code", "huffman"),
            "Block code 'huffman' is not available for pattern 2:4 on this core; available: rank, index, bitmask.",
        ),
        (("--seed", -1), "The seed is -1; a seed is an integer from 0 on."),
    ],
)
def test_bad_input(arguments: tuple[object, ...], sentence: str, tiny_model: Path, refusal: Any) -> None:
    assert refusal("simulate", *TINY, "--model", tiny_model, *arguments) == sentence


def test_a_layer_beyond_the_core(refusal: Any) -> None:
    assert refusal("simulate", "--preset", "tiny", "--model", "llama-7b", "--layer", "q_proj") == (
        "The weights have 4096 input features (4096 after padding to whole groups), but this core's "
        "accumulators are sized for k_max = 128."
    )
