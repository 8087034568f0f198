"""Folders of quantised models: written ones load in transformers, and all formats are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from quant import NMPattern, QuantizedLinear, magnitude_mask, quantize_rtn
from quant.formats.compressed_tensors import (
    compressed_tensors_config,
    compressed_tensors_mask,
    compressed_tensors_tensors,
)
from quant.formats.folder import read_quantized_folder
from quant.formats.own_layers import MASKS_FILE
from quant.model_folder import ModelFolder

transformers = pytest.importorskip("transformers")


def tiny_llama() -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_neox() -> torch.nn.Module:
    config = transformers.GPTNeoXConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.GPTNeoXForCausalLM(config)


#: Patterns and group sizes of layers; 12 and 16 do not divide every K.
MIXED = (("2:4", 16), ("dense", -1), ("4:8", 8), ("1:3", 12), ("3:5", -1), ("dense", 20))


def quantise(
    model: torch.nn.Module, symmetric: bool, choices: Sequence[tuple[str, int]] = MIXED
) -> dict[str, QuantizedLinear]:
    """Quantise the linear layers of the blocks, the choices one after the other, and fill biases."""
    layers: dict[str, QuantizedLinear] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name in ("lm_head", "embed_out"):
            continue
        text, group_size = choices[len(layers) % len(choices)]
        pattern = NMPattern.parse(text)
        weight = module.weight.detach().numpy()
        mask = magnitude_mask(weight, pattern)
        quantised = quantize_rtn(weight, pattern, group_size, symmetric, mask)
        bias = None
        if module.bias is not None:
            torch.nn.init.normal_(module.bias)
            bias = module.bias.detach().numpy().copy()
        layers[name] = QuantizedLinear(quantised, bias)
    return layers


def write_folder(path: Path, model: Any, layers: dict[str, QuantizedLinear]) -> None:
    model.config.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = compressed_tensors_config(layers)
    (path / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in layers}
    masks: dict[str, torch.Tensor] = {}
    for name, linear in layers.items():
        tensors.update(compressed_tensors_tensors(name, linear))
        masks.update(compressed_tensors_mask(name, linear))
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / MASKS_FILE).parent.mkdir()
    save_file(masks, path / MASKS_FILE)


def dequantise(model: torch.nn.Module, layers: dict[str, QuantizedLinear]) -> None:
    for name, linear in layers.items():
        model.get_submodule(name).weight.data = torch.from_numpy(linear.weight.to_dense())


@pytest.fixture(params=[tiny_llama, tiny_neox])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    make: Callable[[], torch.nn.Module] = request.param
    return make().eval()


@pytest.mark.parametrize("symmetric", [True, False])
def test_transformers_computes_with_the_very_weights(model: Any, symmetric: bool, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="transformers loads compressed-tensors files with it")
    # Of files with several schemes, dequantize=True below takes one for all layers.
    layers = quantise(model, symmetric, MIXED if symmetric else [("2:4", 8), ("4:8", 8)])
    write_folder(tmp_path, model, layers)
    dequantise(model, layers)
    if symmetric:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    else:
        # transformers 5.23 loads asymmetric files only so, those of compressed-tensors itself included.
        config = transformers.CompressedTensorsConfig(dequantize=True)
        with pytest.warns(UserWarning, match="loading attributes"):
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path, dtype=torch.float32, quantization_config=config
            )
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        assert (loaded(tokens).logits - model(tokens).logits).abs().max() == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_our_folder_comes_back_as_it_was(model: Any, symmetric: bool, tmp_path: Path) -> None:
    layers = quantise(model, symmetric)
    write_folder(tmp_path, model, layers)
    read = dict(read_quantized_folder(ModelFolder.open(tmp_path)))
    assert list(read) == sorted(layers)
    for name, linear in layers.items():
        was, found = linear.weight, read[name].weight
        assert (found.pattern, found.group_size) == (was.pattern, was.group_size)
        assert np.array_equal(found.mask, was.mask)
        assert np.array_equal(found.to_dense(), was.to_dense())
        assert read[name].scale_error == 0
        assert (read[name].bias is None) == (linear.bias is None)
        if linear.bias is not None:
            assert np.array_equal(read[name].bias, linear.bias)
    assert any((linear.weight.mask & (linear.weight.integers() == 0)).any() for linear in layers.values())
