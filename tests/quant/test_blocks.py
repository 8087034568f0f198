"""A model run block by block gives what transformers' whole model gives."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from quant.blocks import BlockModel, block_linears, perplexities, perplexity, quiet_transformers
from quant.model_folder import ModelFolder

NAMES = ["llama", "llama-grouped", "mistral", "neox", "neox-sequential"]


def draw_tokens(samples: int, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (samples, length), generator=torch.Generator().manual_seed(3))


def run(model: BlockModel, tokens: torch.Tensor) -> torch.Tensor:
    hidden = model.embed(tokens)
    for index in range(model.blocks):
        hidden = model.run_block(model.load_block(index), hidden)
    return hidden


def load_whole(folder: Path) -> Any:
    with quiet_transformers():
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        transformers.utils.logging.enable_progress_bar()
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_loss_are_those_of_the_whole_model(tiny_folders: dict[str, Path], name: str) -> None:
    tokens = draw_tokens(3, 20)  # longer than Mistral's window
    model = BlockModel(ModelFolder.open(tiny_folders[name]))
    hidden = run(model, tokens)
    with torch.no_grad():
        expected = load_whole(tiny_folders[name])(tokens, labels=tokens)
    assert model.blocks == 2
    assert torch.equal(model.logits(hidden), expected.logits)
    total, predicted = model.loss(hidden, tokens)
    assert predicted == 3 * 19
    assert total / predicted == pytest.approx(float(expected.loss), rel=1e-6)


@pytest.mark.parametrize("name", ["mistral", "neox"])
def test_window_and_kind_of_residual_matter(tiny_folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Guards the test above: a mask or a residual that was left out would show."""
    folder = Path(shutil.copytree(tiny_folders[name], tmp_path / name))
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"sliding_window": None} if name == "mistral" else {"use_parallel_residual": False}
    (folder / "config.json").write_text(json.dumps(fields))
    tokens = draw_tokens(1, 20)
    first, second = (run(BlockModel(ModelFolder.open(path)), tokens) for path in (tiny_folders[name], folder))
    assert not torch.allclose(first, second, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(tiny_model: Callable[..., Any], tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model("llama-grouped").to(dtype).save_pretrained(tmp_path / "half")
    model = BlockModel(ModelFolder.open(tmp_path / "half"))
    tokens = draw_tokens(1, 9)
    with torch.no_grad():
        expected = load_whole(tmp_path / "half")(tokens).logits
    assert torch.equal(model.logits(run(model, tokens)), expected)


def test_rotary_embeddings_of_longer_contexts(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """Llama 3's frequencies, which transformers computes from the configuration."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    }
    tiny_model("llama", rope_parameters=scaling).save_pretrained(tmp_path / "llama3")
    model = BlockModel(ModelFolder.open(tmp_path / "llama3"))
    tokens = draw_tokens(2, 30)
    with torch.no_grad():
        expected = load_whole(tmp_path / "llama3")(tokens).logits
    assert torch.equal(model.logits(run(model, tokens)), expected)


def test_lengths_may_alternate(tiny_folders: dict[str, Path]) -> None:
    model = BlockModel(ModelFolder.open(tiny_folders["mistral"]))
    block = model.load_block(0)
    long, short = model.embed(draw_tokens(2, 20)), model.embed(draw_tokens(1, 5))
    first = model.run_block(block, short)
    model.run_block(block, long)
    assert torch.equal(model.run_block(block, short), first)


def test_perplexity_is_e_to_the_mean_loss(tiny_folders: dict[str, Path]) -> None:
    tokens = draw_tokens(5, 700)  # three pieces of two samples
    with torch.no_grad():
        loss = float(load_whole(tiny_folders["llama"])(tokens, labels=tokens).loss)
    calls = []
    model = BlockModel(ModelFolder.open(tiny_folders["llama"]))
    found = perplexity(model, tokens, progress=lambda *call: calls.append(call))
    assert found == pytest.approx(math.exp(loss), rel=1e-5)
    assert calls == [(1, 2), (2, 2)]


class Scaled(nn.Module):
    """A linear layer whose output is multiplied."""

    def __init__(self, linear: nn.Linear, factor: float) -> None:
        super().__init__()
        self.linear, self.factor = linear, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


def test_variants_see_fresh_blocks_and_full_names(tiny_folders: dict[str, Path]) -> None:
    folder = ModelFolder.open(tiny_folders["llama"])
    tokens = draw_tokens(2, 30)
    named: list[str] = []

    def scale(name: str, linear: nn.Linear) -> nn.Module:
        named.append(name)
        return Scaled(linear, 0.5) if name.endswith("down_proj") else linear

    found = perplexities(BlockModel(folder), tokens, {"scaled": scale, "float": None})
    assert tuple(named) == folder.linears
    assert found["float"] == perplexity(BlockModel(folder), tokens)
    whole = load_whole(tiny_folders["llama"])
    with torch.no_grad():
        for layer in whole.model.layers:
            layer.mlp.down_proj.weight *= 0.5
        expected = math.exp(float(whole(tokens, labels=tokens).loss))
    assert found["scaled"] == pytest.approx(expected, rel=1e-5)
    assert abs(found["scaled"] / found["float"] - 1) > 1e-3


def test_a_quantised_layer_needs_something_that_stands_in(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    weight = tensors.pop(f"{name}.weight")
    save_file({**tensors, f"{name}.qweight": torch.zeros(3, 40, dtype=torch.int32)}, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "quantization_config": {"quant_method": "gptq"}}))
    model = BlockModel(ModelFolder.open(folder))
    tokens = draw_tokens(1, 8)
    with pytest.raises(ValueError, match=f"{name} is quantised and has no plain weight; nothing stands in for it."):
        perplexity(model, tokens)

    def stand_in(layer: str, linear: nn.Linear) -> nn.Module:
        if layer != name:
            return linear
        assert (linear.out_features, linear.in_features) == (40, 24)
        full = nn.Linear(24, 40, bias=False)
        full.weight = nn.Parameter(weight, requires_grad=False)
        return full

    expected = perplexity(BlockModel(ModelFolder.open(tiny_folders["llama"])), tokens)
    assert perplexity(model, tokens, stand_in) == expected


def test_a_block_is_of_its_own_and_in_float32(tiny_folders: dict[str, Path]) -> None:
    model = BlockModel(ModelFolder.open(tiny_folders["neox"]))
    first, second = model.load_block(1), model.load_block(1)
    for block in (first, second):
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in block.parameters())
    linear = block_linears(first)["attention.dense"]
    linear.weight.data.zero_()
    assert block_linears(second)["attention.dense"].weight.count_nonzero() > 0


@pytest.mark.parametrize("token", [-1, 256, 1 << 40])
def test_refuses_tokens_outside_of_the_vocabulary(tiny_folders: dict[str, Path], token: int) -> None:
    model = BlockModel(ModelFolder.open(tiny_folders["llama"]))
    with pytest.raises(ValueError, match=f"^Token {token} was given; the model's vocabulary is 0 to 255.$"):
        model.embed(torch.tensor([[1, token]]))


@pytest.mark.parametrize("shape", [(3,), (1, 1), (0, 9)])
def test_refuses_samples_that_predict_nothing(tiny_folders: dict[str, Path], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"it must be \[samples, length of 2 or more\]"):
        perplexity(BlockModel(ModelFolder.open(tiny_folders["llama"])), torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "no such type"}},
        {"rms_norm_eps": "small"},
    ],
)
def test_refuses_what_transformers_refuses(
    tiny_folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))
    with pytest.raises(ValueError, match=r"^transformers cannot build a LlamaForCausalLM from this config\.json: "):
        BlockModel(ModelFolder.open(folder))


def test_refuses_rotations_beyond_a_head_before_computing_them(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folders["neox"], tmp_path / "neox"))
    fields = json.loads((folder / "config.json").read_text())
    fields["rope_parameters"]["partial_rotary_factor"] = 1e11
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="it rotates more features than a head has"):
        BlockModel(ModelFolder.open(folder))


def test_says_nothing(tiny_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    run(BlockModel(ModelFolder.open(tiny_folders["mistral"])), draw_tokens(1, 5))
    assert capfd.readouterr() == ("", "")
