"""The whole way: a trained Llama is quantised and packed, and its layers run on the verilated core as in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from accel import load_preset
from accel.packed_checkpoint import PackedCheckpoint
from flows.cli import app
from flows.small_model import SmallModelSettings, train_small_model
from golden.linear import NMLinear, quantise_tokens
from quant.blocks import BlockModel, perplexity
from quant.model_folder import ModelFolder
from quant.text import read_tokens
from verify.gemm import run_gemm


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "model"
    settings = SmallModelSettings(hidden=64, intermediate=128, blocks=2, steps=60, batch=8, length=128)
    train_small_model(folder, settings=settings)
    return folder


@pytest.mark.parametrize(("pattern", "layer"), [("2:4", "1.mlp.down_proj"), ("3:4", "0.self_attn.q_proj")])
def test_a_trained_llama_runs_on_the_verilated_core(trained: Path, tmp_path: Path, pattern: str, layer: str) -> None:
    command = [
        *("quantize", str(trained), "-o", str(tmp_path / "packed"), "--preset", "tiny", "--pattern", pattern),
        *("--group", "32", "--samples", "8", "--held-out", "8", "--length", "64"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output

    packed = PackedCheckpoint.open(tmp_path / "packed")
    name = f"model.layers.{layer}"
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def replace(full_name: str, linear: torch.nn.Linear) -> NMLinear:
        module = NMLinear(packed.layers[full_name])
        if full_name == name:
            module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        return module

    folder = ModelFolder.open(trained)
    tokens = read_tokens(folder, None, 1, 24, part="evaluation")
    # Every layer of the model computes as the accelerator does, and the text still means something to it.
    assert perplexity(BlockModel(folder), tokens, replace) < 64
    ((inputs, outputs),) = seen

    codes, scale = quantise_tokens(inputs[0])
    # What is in the file runs as it is: no weight is packed again.
    acc = run_gemm(load_preset("tiny"), codes.numpy().astype(np.int64), packed.stream(name), "verilog").y
    results = acc.astype(np.float32) * packed.layers[name].weight.channel_scale * scale.numpy()[:, None]
    assert len(np.unique(results)) > results.size // 2
    assert np.array_equal(results.view(np.uint32), outputs[0].numpy().view(np.uint32))
