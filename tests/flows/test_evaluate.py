"""`nimble evaluate`: its perplexities are those of whole models that transformers runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from accel import load_preset
from accel.packed_checkpoint import PackedCheckpoint, write_packed
from golden import integer_gemm
from quant import NMPattern, NMWeight, QuantizedLinear, magnitude_mask, quantize_rtn
from quant.formats.compressed_tensors_folder import write_compressed_tensors

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTH, SAMPLES = 24, 3
OPTIONS = ("--samples", SAMPLES, "--length", LENGTH)

TEXT = "".join(f"Sentence {number} says that {number * 37 % 101} is not {number}.\n" for number in range(60))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "text"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "LlamaForCausalLM"))


BOTH = pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPTNeoXForCausalLM"], indirect=True)


@pytest.fixture(scope="module")
def float_model(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(vocab_size=256, max_position_embeddings=64, **SIZES)
    config.architectures = [architecture]
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:  # as drawn, a model of this size likes every byte alike
            torch.nn.init.normal_(parameter, std=0.2)
    path = tmp_path_factory.mktemp("evaluate") / architecture
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def layers(float_model: Path) -> dict[str, QuantizedLinear]:
    """Layers of all kinds: patterns, zero points, biases, and one with its columns in another order."""
    tensors = load_file(float_model / "model.safetensors")
    found: dict[str, QuantizedLinear] = {}
    for name, tensor in tensors.items():
        linear = name.removesuffix(".weight")
        if tensor.ndim != 2 or ".layers." not in name:
            continue
        number = len(found)
        pattern = NMPattern.parse(("2:4", "dense", "3:8")[number % 3])
        weight = tensor.numpy()
        quantised = quantize_rtn(weight, pattern, 16, symmetric=number % 2 == 0, mask=magnitude_mask(weight, pattern))
        bias = tensors.get(f"{linear}.bias")
        found[linear] = QuantizedLinear(quantised, None if bias is None else bias.numpy())
    return found


@pytest.fixture(scope="module")
def others(float_model: Path, layers: dict[str, QuantizedLinear]) -> dict[str, torch.Tensor]:
    # On disk, GPT-NeoX's head is named embed_out.
    tensors = load_file(float_model / "model.safetensors")
    return {
        name.replace("embed_out", "lm_head"): tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[0] not in layers
    }


@pytest.fixture(scope="module")
def packed(float_model: Path, layers: Any, others: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "packed"
    write_packed(path, layers, others, json.loads((float_model / "config.json").read_text()), load_preset("edge"))
    return path


def samples() -> torch.Tensor:
    """Windows of the last fifth of the text, those that seed 0 draws."""
    data = TEXT.encode()
    held_out = torch.tensor(list(data[int(0.8 * len(data)) :]))
    windows = held_out[: len(held_out) // LENGTH * LENGTH].reshape(-1, LENGTH)
    drawn = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return windows[drawn.sort().values]


def perplexity(model: Any) -> float:
    """Of a whole model of transformers, sample by sample."""
    losses = []
    with torch.no_grad():
        for sample in samples():
            logits = model(sample[None]).logits[0, :-1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, sample[1:], reduction="none"))
    return math.exp(float(torch.cat(losses).mean()))


def whole_model(path: Path, layers: dict[str, QuantizedLinear] | None = None) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for name, linear in (layers or {}).items():
        model.get_submodule(name).weight.data = torch.from_numpy(linear.weight.to_dense())
    return model


class OnTheAccelerator(torch.nn.Module):
    """A layer by integer GEMM and epilogue in NumPy."""

    def __init__(self, linear: QuantizedLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).numpy()
        scale = np.abs(rows).max(axis=1) / np.float32(127)
        acc = integer_gemm(np.rint(rows / scale[:, None]).astype(np.int64), self.linear.weight).numpy()
        y = acc.astype(np.float32) * self.linear.weight.channel_scale * scale[:, None]
        if self.linear.bias is not None:
            y = y + self.linear.bias
        return torch.from_numpy(y).reshape(*x.shape[:-1], -1)


@BOTH
def test_three_perplexities_are_those_of_whole_models(
    nimble_json: Any, float_model: Path, packed: Path, layers: dict[str, QuantizedLinear], text: Path
) -> None:
    document = nimble_json("evaluate", packed, "--model", float_model, "--text", text, *OPTIONS)
    exact = whole_model(float_model)
    for name, linear in layers.items():
        owner, _, attribute = name.rpartition(".")
        setattr(exact.get_submodule(owner), attribute, OnTheAccelerator(linear))
    assert document["perplexity"] == pytest.approx(
        {
            "float": perplexity(whole_model(float_model)),
            "dequantised": perplexity(whole_model(float_model, layers)),
            "accelerator": perplexity(exact),
        },
        rel=1e-5,
    )
    three = list(document["perplexity"].values())
    assert len({round(value, 2) for value in three}) == 3, "the models are too alike for this test to mean anything"
    assert sorted(document["activation_errors"]) == sorted(layers)
    assert all(1e-7 < error < 1e-2 for error in document["activation_errors"].values())
    assert {key: document[key] for key in ("format", "samples", "length", "seed", "predicted_tokens", "act_bits")} == {
        **{"format": "packed", "samples": SAMPLES, "length": LENGTH, "seed": 0, "act_bits": 8},
        "predicted_tokens": SAMPLES * (LENGTH - 1),
    }


def test_a_float_model_alone(nimble_json: Any, float_model: Path, text: Path) -> None:
    document = nimble_json("evaluate", float_model, "--text", text, *OPTIONS)
    found = document["perplexity"]
    assert found == {
        "float": pytest.approx(perplexity(whole_model(float_model))),
        "dequantised": None,
        "accelerator": None,
    }
    assert document["activation_errors"] == {}


def test_another_format_of_the_same_layers(
    nimble_json: Any, float_model: Path, packed: Path, layers: Any, others: Any, text: Path, tmp_path: Path
) -> None:
    config = json.loads((float_model / "config.json").read_text())
    write_compressed_tensors(tmp_path / "ct", layers, others, config)
    documents = [nimble_json("evaluate", path, "--text", text, *OPTIONS) for path in (tmp_path / "ct", packed)]
    assert documents[0]["format"] == "pack-quantized"
    assert documents[0]["perplexity"] == documents[1]["perplexity"]
    assert documents[0]["activation_errors"] == pytest.approx(documents[1]["activation_errors"])


def test_the_view(nimble: Any, float_model: Path, packed: Path, text: Path) -> None:
    result = nimble("evaluate", packed, "--text", text, *OPTIONS, "--layers")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "dequantised weights, float activations" in words
    assert "accelerator, INT8 activations" in words
    assert "Give the float model by --model to see its perplexity beside these." in words
    assert f"{SAMPLES} samples of {LENGTH} tokens, seed 0, from the last fifth of {text}" in words
    assert result.stdout.count("model.layers.1.mlp.down_proj") >= 1
    with_float = nimble("evaluate", packed, "--model", float_model, "--text", text, *OPTIONS)
    assert "%" in with_float.stdout
    assert "What integer activations cost" not in with_float.stdout


def test_columns_in_another_order_change_nothing(
    nimble_json: Any, float_model: Path, layers: dict[str, QuantizedLinear], others: Any, text: Path, tmp_path: Path
) -> None:
    """A dense layer with one group a row, its columns shuffled, is the same layer."""
    rng = np.random.default_rng(5)
    shuffled, straight = {}, {}
    for name, linear in layers.items():
        values = rng.integers(-8, 8, linear.weight.values.shape)
        order = rng.permutation(values.shape[1])
        rest = (np.ones((len(values), 1), int), np.full(len(values), 0.01), NMPattern(1, 1), -1)
        straight[name] = QuantizedLinear(NMWeight(values, np.ones(values.shape, bool), *rest))
        shuffled[name] = QuantizedLinear(NMWeight(values[:, order], np.ones(values.shape, bool), *rest), None, order)
    config = json.loads((float_model / "config.json").read_text())
    found = []
    for name, choice in (("straight", straight), ("shuffled", shuffled)):
        write_packed(tmp_path / name, choice, others, config, load_preset("edge"))
        found.append(nimble_json("evaluate", tmp_path / name, "--text", text, *OPTIONS)["perplexity"])
    assert found[0] == found[1]


def test_activations_have_the_bits_of_the_core(
    nimble_json: Any, float_model: Path, packed: Path, layers: Any, others: Any, text: Path, tmp_path: Path
) -> None:
    config = json.loads((float_model / "config.json").read_text())
    write_packed(tmp_path / "wide", layers, others, config, load_preset("edge").replace(act_bits=16))
    wide, narrow = (nimble_json("evaluate", path, "--text", text, *OPTIONS) for path in (tmp_path / "wide", packed))
    assert (wide["act_bits"], narrow["act_bits"]) == (16, 8)
    errors = wide["activation_errors"]
    assert all(error < narrow["activation_errors"][name] / 1000 for name, error in errors.items())


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts["others"].pop(name)


def with_layer(parts: dict[str, Any]) -> None:
    parts["layers"]["model.layers.7.mlp.up_proj"] = next(iter(parts["layers"].values()))


def changed(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts["model_config"].update({key: value})


def filled(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts["others"].update({name: torch.full_like(parts["others"][name], value)})


def loud(parts: dict[str, Any]) -> None:
    parts["others"]["lm_head.weight"] = 1e5 * parts["others"]["lm_head.weight"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without("model.norm.weight"), "{} holds no model.norm.weight, which a LlamaForCausalLM needs."),
        (with_layer, "{} holds the layer model.layers.7.mlp.up_proj, which a LlamaForCausalLM does not have."),
        (changed("num_hidden_layers", 3), "{} holds no model.layers.2.input_layernorm.weight, which a"),
        (changed("num_hidden_layers", 10**9), "{}/config.json has num_hidden_layers = 1000000000, more than there are"),
        (
            changed("vocab_size", 300),
            "model.embed_tokens.weight in {} has shape [256, 32], but config.json says [300, 32].",
        ),
        (changed("intermediate_size", 96), "model.layers.0.mlp.gate_proj.weight in {} has shape [48, 32], but config"),
        (changed("architectures", ["BertModel"]), "{}/config.json describes a BertModel, which is not supported;"),
        (changed("max_position_embeddings", "x"), "{} has max_position_embeddings 'x'; it must be an integer."),
        (filled("model.norm.weight", math.nan), "model.norm.weight of {} holds nan in position 0, but every number"),
        (
            filled("model.norm.weight", 3e38),
            "The perplexity of {} (dequantised) is nan; the model gives no likelihoods.",
        ),
        (loud, "The perplexity of {} is too large for a number."),
        (
            filled("model.layers.1.input_layernorm.weight", 3e38),
            "Layer model.layers.1.self_attn.q_proj: The activation of token 0, ",
        ),
    ],
)
def test_packed_folders_of_no_model(
    refusal: Any,
    float_model: Path,
    layers: Any,
    others: Any,
    text: Path,
    tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
    sentence: str,
) -> None:
    config = json.loads((float_model / "config.json").read_text())
    parts = {"layers": dict(layers), "others": dict(others), "model_config": config, "core": load_preset("edge")}
    spoil(parts)
    write_packed(tmp_path / "model", **parts)
    assert sentence.format(tmp_path / "model") in refusal("evaluate", tmp_path / "model", "--text", text, *OPTIONS)


def test_transformers_does_not_take_packed_weights_for_a_model(packed: Path) -> None:
    """It fills up at random what it does not find, with a warning: our files are not named as its own are."""
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(packed)


def test_refusals(refusal: Any, float_model: Path, packed: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(float_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    tensors = load_file(other / "model.safetensors")
    for name, tensor in tensors.items():
        if "gate_proj" in name or "up_proj" in name:
            tensors[name] = tensor[:24].clone()
        elif "down_proj" in name:
            tensors[name] = tensor[:, :24].clone()
    save_file(tensors, other / "model.safetensors")
    told = ("--text", text)
    assert refusal("evaluate", packed, "--model", other, *told) == (
        f"{packed} was not quantised from {other}: their sizes differ."
    )
    assert refusal("evaluate", packed, "--model", packed, *told) == (
        f"{packed} is quantised (packed); --model takes the folder of the float model."
    )
    assert refusal("evaluate", float_model, "--model", float_model, *told) == (
        f"{float_model} is a float model already; --model is for the one that a model was quantised from."
    )
    assert refusal("evaluate", packed, *told, "--length", 65) == (
        f"--length is 65, but {packed} is made for at most 64 tokens."
    )
    assert "samples of 64 need" in refusal("evaluate", packed, *told, "--samples", 100)
    assert "is not a folder" in refusal("evaluate", tmp_path / "nothing")
    damaged = Path(shutil.copytree(packed, tmp_path / "damaged"))
    shard = damaged / "nimble-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="altered"):
        PackedCheckpoint.open(damaged).check()
    assert "is altered: its checksum does not match." in refusal("evaluate", damaged, *told, *OPTIONS)
