"""Folded scales leave what a block computes as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.blocks import BlockModel
from quant.folding import fold_tensor, representable_scales
from quant.model_folder import ModelFolder


@pytest.mark.parametrize("name", ["llama", "llama-grouped", "mistral", "neox", "neox-sequential"])
def test_a_block_computes_the_same(tiny_folders: dict[str, Path], name: str) -> None:
    folder = ModelFolder.open(tiny_folders[name])
    model = BlockModel(folder)
    groups = folder.architecture.groups(folder.sizes)
    features = {linear.name: linear.in_features for linear in folder.architecture.linears(folder.sizes)}
    draws = torch.Generator().manual_seed(1)
    scales = {
        group.linears[0]: torch.rand(features[group.linears[0]], generator=draws) * 3 + 0.2
        for group in groups
        if group.scaled_by is not None
    }
    assert len(scales) == {"llama": 4, "llama-grouped": 3, "mistral": 3}.get(name, 2)
    hidden = torch.randn(2, 20, 24, generator=draws)
    plain, folded = model.load_block(0), model.load_block(0)
    changed = set()
    for key, parameter in folded.named_parameters():
        parameter.data = fold_tensor(key, parameter.data, groups, scales)
        if not torch.equal(parameter, plain.get_parameter(key)):
            changed.add(key)
    for group in groups:
        for linear in group.linears:
            assert (f"{linear}.weight" in changed) or group.scaled_by is None
    expected = model.run_block(plain, hidden)
    assert torch.allclose(model.run_block(folded, hidden), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@given(
    norm=st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=20),
    scale=st.floats(2**-10, 2**10, width=32),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_representable_scales_are_near_and_exact(norm: list[float], scale: float, dtype: torch.dtype) -> None:
    weight = torch.tensor(norm).to(dtype).float()
    asked = torch.full_like(weight, scale)
    found = representable_scales(asked, weight, dtype)
    assert bool((found > 0).all())
    assert bool(found.isfinite().all())
    stored = (weight / found).to(dtype).float()
    tiny = (weight / asked).abs() < torch.finfo(dtype).tiny
    huge = (weight / asked).abs() > torch.finfo(dtype).max
    usual = ~tiny & ~huge
    assert torch.allclose(found[usual], asked[usual], rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert torch.allclose(stored[usual] * found[usual], weight[usual], rtol=3e-7, atol=0)
    assert bool((found[(weight == 0)] == 1).all())
