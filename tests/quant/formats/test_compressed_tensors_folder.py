"""Whole models as compressed-tensors folders: transformers computes with our weights, and no half of one is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant import NMPattern, NMWeight, QuantizedLinear, magnitude_mask, quantize_rtn, shard_writer
from quant.formats import compressed_tensors_folder as module
from quant.formats.compressed_tensors_folder import write_compressed_tensors
from quant.formats.folder import read_quantized_folder
from quant.model_folder import ModelFolder
from quant.pattern_check import PatternBreach

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
    )
    config.architectures = ["LlamaForCausalLM"]
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def layers(model: Any) -> dict[str, QuantizedLinear]:
    """The linear layers of the blocks, 2:4 and 3:8 by turns."""
    found: dict[str, QuantizedLinear] = {}
    for name, linear in model.named_modules():
        if isinstance(linear, torch.nn.Linear) and name != "lm_head":
            pattern = NMPattern.parse("2:4" if len(found) % 2 else "3:8")
            weight = linear.weight.detach().numpy()
            found[name] = QuantizedLinear(quantize_rtn(weight, pattern, 8, mask=magnitude_mask(weight, pattern)))
    return found


@pytest.fixture(scope="module")
def others(model: Any, layers: dict[str, QuantizedLinear]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in layers}


@pytest.fixture(scope="module")
def config(model: Any) -> dict[str, Any]:
    # A quantization_config of before is not that of the file.
    return {**model.config.to_dict(), "quantization_config": {"quant_method": "gptq"}}


@pytest.mark.parametrize("shard", [1 << 30, 4000])
def test_transformers_computes_with_the_very_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, layers: Any, others: Any, config: Any, shard: int
) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", shard)
    done: list[str] = []
    path = tmp_path / "model"
    error = write_compressed_tensors(path, layers, others, config, {"LICENSE": b"words"}, progress=done.append)
    assert error == 0
    assert sorted(done) == sorted([*layers, *layers])
    files = {file.name for file in path.iterdir()}
    assert {"LICENSE", "config.json", "nimble"} < files
    assert ("model.safetensors" in files) == (shard > 4000)
    for name, linear in read_quantized_folder(ModelFolder.open(path)):
        assert linear.weight.pattern == layers[name].weight.pattern
        assert np.array_equal(linear.weight.to_dense(), layers[name].weight.to_dense())
    pytest.importorskip("compressed_tensors", reason="transformers loads compressed-tensors files with it")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ours = transformers.LlamaForCausalLM(model.config).eval()
    ours.load_state_dict({**others, **{f"{n}.weight": torch.tensor(x.weight.to_dense()) for n, x in layers.items()}})
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert (loaded(tokens).logits - ours(tokens).logits).abs().max() == 0


def test_scales_that_float32_rounds_are_told(tmp_path: Path, layers: Any, others: Any, config: Any) -> None:
    name = next(iter(layers))
    weight = layers[name].weight
    third = np.full(weight.out_features, 1 / 3, np.float32)
    scale = np.full_like(weight.group_scale, 127)
    odd = NMWeight(weight.values, weight.mask, scale, third, weight.pattern, weight.group_size)
    error = write_compressed_tensors(tmp_path / "model", {**layers, name: QuantizedLinear(odd)}, others, config)
    assert 0 < error < 2**-23


WRONG = "Layer model.layers.0.mlp.down_proj holds other weights in the file than those that were written."


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        ("pattern", PatternBreach, "After stage export, model.layers.0.mlp.down_proj breaks its pattern: row 0, block"),
        ("weight", ValueError, WRONG),
        ("order", ValueError, "takes its input features in an order of its own"),
        ("file", ValueError, "The file '../LICENSE' cannot be written beside the model's own files."),
        ("name", ValueError, "The file 'model.safetensors' cannot be written beside the model's own files."),
        ("config", ValueError, "config.json cannot be written as JSON"),
        ("missing", ValueError, "holds no model.norm.weight, which a LlamaForCausalLM needs."),
        ("stop", KeyboardInterrupt, ""),
    ],
)
def test_nothing_is_left_of_what_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: dict[str, QuantizedLinear],
    others: dict[str, torch.Tensor],
    config: dict[str, Any],
    spoil: str,
    error: type[BaseException],
    sentence: str,
) -> None:
    name = "model.layers.0.mlp.down_proj"
    extra, progress = {}, None
    original = module.read_quantized_folder

    def reads(change: Any) -> None:
        """Let the files be read back as something else."""

        def read(folder: ModelFolder) -> Any:
            for found, linear in original(folder):
                yield found, QuantizedLinear(change(linear.weight)) if found == name else linear

        monkeypatch.setattr(module, "read_quantized_folder", read)

    def stop(layer: str) -> None:
        raise KeyboardInterrupt

    if spoil == "pattern":
        full = np.ones(layers[name].weight.mask.shape, bool)
        reads(lambda w: NMWeight(w.values, full, w.group_scale, w.channel_scale, NMPattern(1, 1), w.group_size))
    elif spoil == "weight":
        reads(lambda w: NMWeight(-1 - w.values, w.mask, w.group_scale, w.channel_scale, w.pattern, w.group_size))
    elif spoil == "order":
        layers = {**layers, name: QuantizedLinear(layers[name].weight, None, np.arange(40))}
    elif spoil in ("file", "name"):
        extra = {"../LICENSE" if spoil == "file" else "model.safetensors": b""}
    elif spoil == "config":
        config = {**config, "rope": {1, 2}}
    elif spoil == "missing":
        others = {found: tensor for found, tensor in others.items() if found != "model.norm.weight"}
    else:
        progress = stop
    with pytest.raises(error) as raised:
        write_compressed_tensors(tmp_path / "model", layers, others, config, extra, progress=progress)
    assert sentence in str(raised.value)
    assert os.listdir(tmp_path) == []
