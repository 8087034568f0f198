"""`nimble convert`: what another tool packed becomes our streams, and back, with every weight what it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from accel import load_preset
from accel.packed_checkpoint import PackedCheckpoint, write_packed
from flows import convert as module
from flows.stored_model import dense_weight
from quant import NMPattern, QuantizedLinear, magnitude_mask, quantize_rtn

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
BLOCK = "model.layers.0"
SHAPES = {
    **{f"{BLOCK}.self_attn.{name}_proj": (32, 32) for name in "qkvo"},
    f"{BLOCK}.mlp.gate_proj": (48, 32),
    f"{BLOCK}.mlp.up_proj": (48, 32),
    f"{BLOCK}.mlp.down_proj": (32, 48),
}
NORMS = ("model.norm", f"{BLOCK}.input_layernorm", f"{BLOCK}.post_attention_layernorm")
OTHERS = {
    "model.embed_tokens.weight": torch.linspace(-1, 1, 512).reshape(16, 32),
    "lm_head.weight": torch.linspace(1, -2, 512).reshape(16, 32),
    **{f"{name}.weight": torch.ones(32) for name in NORMS},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own folder: 2:4 and dense layers, some of which keep zeros, and a tokenizer's file."""
    rng = np.random.default_rng(1)
    layers = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        pattern = NMPattern(2, 4) if number % 2 else NMPattern(1, 1)
        weight = rng.standard_normal(shape).astype(np.float32)
        weight[:, 5] = 0
        layers[name] = QuantizedLinear(quantize_rtn(weight, pattern, 16, mask=magnitude_mask(weight, pattern)))
    path = tmp_path_factory.mktemp("convert") / "packed"
    write_packed(path, layers, OTHERS, CONFIG, load_preset("tiny"), {"tokenizer_config.json": b"{}"})
    return path


def words_of(nibbles: np.ndarray) -> torch.Tensor:
    """Eight nibbles of the first axis a word, the lowest first."""
    shifted = nibbles.reshape(-1, 8, nibbles.shape[1]).astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))[:, None]
    return torch.from_numpy(np.bitwise_or.reduce(shifted, axis=1).astype(np.uint32).view(np.int32).copy())


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A GPTQ folder in activation order with fp16 scales, and its weights in float32."""
    rng = np.random.default_rng(2)
    tensors, dense = dict(OTHERS), {}
    for name, (rows, columns) in SHAPES.items():
        codes = rng.integers(0, 16, (rows, columns))
        group = rng.permutation(np.repeat(np.arange(columns // 16), 16))
        scale = (rng.uniform(0.01, 0.02, (rows, columns // 16))).astype(np.float16)
        dense[name] = scale.astype(np.float32)[:, group] * (codes - 8)
        tensors |= {
            f"{name}.qweight": words_of(codes.T),
            f"{name}.qzeros": words_of(np.full((rows, columns // 16), 8)).T.contiguous(),
            f"{name}.scales": torch.from_numpy(scale.T.copy()),
            f"{name}.g_idx": torch.from_numpy(group.astype(np.int32)),
        }
    path = tmp_path_factory.mktemp("convert") / "gptq"
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    settings = {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 4, "group_size": 16, "sym": True}
    config = {**CONFIG, "quantization_config": {**settings, "desc_act": True}}
    (path / "config.json").write_text(json.dumps(config))
    return path, dense


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_there_and_back(nimble_json: Any, packed: Path, tmp_path: Path) -> None:
    there = nimble_json("convert", packed, "-o", tmp_path / "ct", "--format", "compressed-tensors")
    assert (there["source_format"], there["format"], there["core"]) == ("packed", "compressed-tensors", None)
    assert (there["scale_error"], there["file_scale_error"]) == (0, 0)
    back = nimble_json("convert", tmp_path / "ct", "-o", tmp_path / "back", "--preset", "tiny")
    assert (back["source_format"], back["format"], back["core"]) == ("pack-quantized", "packed", "tiny")
    before, after = PackedCheckpoint.open(packed), PackedCheckpoint.open(tmp_path / "back")
    for name, linear in before.layers.items():
        # The product of both levels of a scale is what comes back: the levels may share it out otherwise.
        weight = after.layers[name].weight
        assert np.array_equal(weight.to_dense(), linear.weight.to_dense())
        assert np.array_equal(weight.mask, linear.weight.mask)
        assert (weight.pattern, weight.group_size) == (linear.weight.pattern, linear.weight.group_size)
    assert after.config == before.config
    assert all(torch.equal(after.others[name], tensor) for name, tensor in OTHERS.items())
    assert after.extra_files["tokenizer_config.json"].read_bytes() == b"{}"
    first = back["layers"][1]
    assert first == {
        **{"name": f"{BLOCK}.self_attn.k_proj", "out_features": 32, "in_features": 32, "pattern": "2:4"},
        **{"group_size": 16, "symmetric": True, "scale_bits": 8, "scale_error": 0},
        "stream_bytes": len(PackedCheckpoint.open(packed).stream(f"{BLOCK}.self_attn.k_proj").payload),
    }


def test_packed_for_another_core(nimble_json: Any, packed: Path, tmp_path: Path) -> None:
    kept = nimble_json("convert", packed, "-o", tmp_path / "kept")
    assert kept["core"] == "the source's"
    assert contents(tmp_path / "kept") == contents(packed)
    document = nimble_json("convert", packed, "-o", tmp_path / "edge", "--preset", "edge", "--scale-bits", 16)
    assert document["core"] == "edge with 16-bit scales"
    moved, before = PackedCheckpoint.open(tmp_path / "edge"), PackedCheckpoint.open(packed)
    assert moved.core == load_preset("edge").replace(scale_bits=16)
    for name, linear in before.layers.items():
        assert np.array_equal(moved.layers[name].weight.to_dense(), linear.weight.to_dense())
        assert moved.layers[name].weight.group_size == linear.weight.group_size
    assert document["layers"][0]["stream_bytes"] == len(moved.stream(document["layers"][0]["name"]).payload)


def test_files_of_another_tool_keep_every_weight(
    nimble_json: Any, refusal: Any, gptq: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source, dense = gptq
    assert "Group scales run from" in refusal("convert", source, "-o", tmp_path / "out")
    document = nimble_json("convert", source, "-o", tmp_path / "out", "--scale-bits", 16)
    assert document["source_format"] == "gptq_v2"
    assert document["scale_error"] == 0
    assert {layer["scale_bits"] for layer in document["layers"]} == {16}
    packed = PackedCheckpoint.open(tmp_path / "out")
    for name, weight in dense.items():
        assert np.array_equal(dense_weight(packed.layers[name]), weight)
        assert packed.layers[name].column_order is not None
    assert set(packed.others) == set(OTHERS)
    # A file that says no order cannot hold them; nothing is left of the attempt.
    for path in (source, tmp_path / "out"):
        sentence = refusal("convert", path, "-o", tmp_path / "ct", "--format", "compressed-tensors")
        assert "takes its input features in an order of its own" in sentence
    assert os.listdir(tmp_path) == ["out"]


def test_the_view(nimble: Any, packed: Path, tmp_path: Path) -> None:
    result = nimble("convert", packed, "-o", "wide", "--preset", "wide")
    assert result.exit_code == 0
    size = sum(len(PackedCheckpoint.open("wide").stream(name).payload) for name in SHAPES)
    words = " ".join(result.stdout.split())
    assert "(packed) → packed for core wide" in words
    assert f"Wrote wide: 7 layers, {size:,} bytes of streams, {8 * size / 8704:.4f} bits a weight." in words
    exported = nimble("convert", packed, "-o", "ct", "--format", "compressed-tensors")
    assert "Wrote ct: 7 layers. Every pattern was checked." in exported.stdout


def test_an_existing_folder_is_replaced_only_when_asked(
    nimble: Any, refusal: Any, packed: Path, gptq: tuple[Path, Any], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    assert nimble("convert", packed, "-o", target).exit_code == 0
    assert refusal("convert", packed, "-o", target) == f"{target} exists already; give the name of a new folder."
    assert nimble("convert", target, "-o", target, "--preset", "edge", "--overwrite").exit_code == 0
    assert PackedCheckpoint.open(target).core == load_preset("edge")
    before = contents(gptq[0])
    sentence = refusal("convert", packed, "-o", gptq[0], "--overwrite")
    assert sentence.startswith(f"Cannot replace {gptq[0]}: it is not a folder of packed weights")
    assert contents(gptq[0]) == before
    assert refusal("convert", packed, "-o", target, "--overwrite", "--format", "compressed-tensors") == (
        "--overwrite replaces packed weights by packed weights only; give the name of a new folder."
    )


def test_refusals(refusal: Any, packed: Path, gptq: tuple[Path, Any], tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    assert refusal("convert", packed, *out, "--format", "gguf") == (
        "The format is 'gguf'; it must be one of packed, compressed-tensors."
    )
    assert refusal("convert", packed, *out, "--format", "compressed-tensors", "--preset", "edge") == (
        "--preset, --config and --scale-bits belong to --format packed."
    )
    assert (
        refusal("convert", packed, *out, "--scale-bits", 17) == "scale_bits must be between 2 and 16, but 17 was given."
    )
    assert refusal("convert", packed, *out, "--pattern", "2:4").startswith(
        f"After stage reload, {BLOCK}.self_attn.q_proj breaks its pattern: row 0, block 0 (columns 0 to 3) keeps 4"
    )
    assert refusal("convert", gptq[0], *out, "--pattern", "2:4").startswith(
        f"After stage read, {BLOCK}.self_attn.q_proj breaks its pattern: row 0, block 0 (columns 0 to 3) has "
    )
    floats = tmp_path / "floats"
    floats.mkdir()
    weights = {f"{name}.weight": torch.ones(shape) for name, shape in SHAPES.items()}
    save_file({**OTHERS, **weights}, floats / "model.safetensors")
    (floats / "config.json").write_text(json.dumps(CONFIG))
    assert refusal("convert", floats, *out) == (
        f"{floats} holds plain float weights; nimble quantize makes quantised ones of them."
    )
    assert sorted(os.listdir(tmp_path)) == ["floats"]


@pytest.mark.parametrize("format_name", ["packed", "compressed-tensors"])
def test_nothing_is_left_after_ctrl_c(
    nimble: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    seen: list[str] = []
    facts = module._facts

    def stopped(name: str, linear: QuantizedLinear) -> Any:
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return facts(name, linear)

    monkeypatch.setattr(module, "_facts", stopped)
    result = nimble("convert", packed, "-o", tmp_path / "out", "--format", format_name)
    assert result.exit_code == 130
    assert "Interrupted: nimble convert stopped before it was done." in result.stderr
    assert len(seen) == 4
    assert os.listdir(tmp_path) == []


def test_damage_of_the_source_is_found(refusal: Any, packed: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name, data in contents(packed).items():
        (damaged / name).write_bytes(data)
    tensors = load_file(damaged / "nimble-00001.safetensors")
    tensors[f"{BLOCK}.mlp.up_proj.channel_scale"][0] *= 2
    save_file(tensors, damaged / "nimble-00001.safetensors")
    sentence = refusal("convert", damaged, "-o", tmp_path / "out")
    assert sentence.endswith(f"tensor {BLOCK}.mlp.up_proj.channel_scale is altered: its checksum does not match.")
    assert os.listdir(tmp_path) == ["damaged"]
