from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.grid import Grid, LayerGrid, fit_grid


@st.composite
def groups(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Weights and mask of a group, column-major, and whether its codes are symmetric."""
    length, rows = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    weights = torch.randn(length, rows, generator=generator) + draw(st.sampled_from([0.0, 0.0, 3.0, -3.0]))
    weights *= draw(st.sampled_from([1.0, 1e-30, 1e30]))
    kept = torch.rand(length, rows, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return weights, kept, draw(st.booleans())


@given(groups())
def test_scales_are_those_of_the_kept_weights(group: tuple[torch.Tensor, torch.Tensor, bool]) -> None:
    weights, kept, symmetric = group
    grid = fit_grid(weights, kept, symmetric)
    for row in range(weights.shape[1]):
        alive = weights[kept[:, row], row].double().tolist()
        low, high = min([0.0, *alive]), max([0.0, *alive])
        scale = max(high, -low) / 7.5 if symmetric else (high - low) / 15
        assert grid.scale[row].item() == pytest.approx(max(scale, float(np.finfo(np.float32).tiny)), rel=1e-6)
        assert (grid.zero is None) == symmetric
        if grid.zero is not None:
            assert grid.zero[row].item() == (round(-low / scale) if scale else 0)


@given(groups(), st.booleans())
def test_pruned_weights_have_no_say(group: tuple[torch.Tensor, torch.Tensor, bool], clip: bool) -> None:
    weights, kept, symmetric = group
    importance = torch.ones(len(weights)) if clip else None
    grid = fit_grid(weights, kept, symmetric, importance)
    other = fit_grid(torch.where(kept, weights, 100 * weights.flip(0)), kept, symmetric, importance)
    assert other.scale.tolist() == grid.scale.tolist()
    if grid.zero is not None and other.zero is not None:
        assert other.zero.tolist() == grid.zero.tolist()


@given(groups(), st.integers(0, 2**32 - 1))
def test_no_code_is_nearer(group: tuple[torch.Tensor, torch.Tensor, bool], seed: int) -> None:
    weights, kept, symmetric = group
    importance = torch.rand(len(weights), generator=torch.Generator().manual_seed(seed))
    grid = fit_grid(weights, kept, symmetric, importance)
    codes = grid.codes(weights)
    every = torch.arange(-8, 8) if symmetric else torch.arange(16)
    assert set(codes.flatten().tolist()) <= set(every.tolist())
    zero = torch.zeros(1) if grid.zero is None else grid.zero
    points = (every[:, None] - zero).double() * grid.scale.double()  # [codes, rows]
    nearest = (weights.double()[:, None] - points).abs().amin(dim=1)
    distance = (grid.nearest(weights).double() - weights.double()).abs()
    assert (distance <= nearest * (1 + 1e-5) + grid.scale.abs() * 1e-5).all()


@given(groups(), st.integers(0, 2**32 - 1))
def test_the_search_never_raises_the_weighted_error(group: tuple[torch.Tensor, torch.Tensor, bool], seed: int) -> None:
    weights, kept, symmetric = group
    importance = torch.rand(len(weights), generator=torch.Generator().manual_seed(seed))

    def error(grid: Grid) -> torch.Tensor:
        unit = weights.abs().amax().double().clamp(min=1e-40)
        off = (grid.nearest(weights).double() - weights.double()) / unit * kept
        return importance.double() @ off.square()

    searched, plain = fit_grid(weights, kept, symmetric, importance), fit_grid(weights, kept, symmetric)
    assert (error(searched) <= error(plain) * (1 + 1e-5)).all()


def test_the_search_gives_up_an_outlier_that_matters_little() -> None:
    weights = torch.cat([torch.linspace(-1, 1, 63), torch.tensor([2.0])])[:, None]
    kept = torch.ones(weights.shape, dtype=torch.bool)
    importance = torch.ones(64)
    importance[-1] = 0.0
    found = fit_grid(weights, kept, True, importance).scale.abs().item()
    assert found == pytest.approx(0.52 * 2 / 7.5)
    importance[-1] = 1e6
    found = fit_grid(weights, kept, True, importance).scale.item()
    assert abs(found) >= 0.94 * 2 / 7.5


def test_a_negative_scale_gives_the_outermost_code_to_a_positive_weight() -> None:
    weights = torch.tensor([[8.0], [-7.0], [3.0], [1.0]])
    grid = fit_grid(weights, torch.ones(4, 1, dtype=torch.bool), True, torch.ones(4))
    assert grid.scale.item() < 0
    assert grid.codes(weights)[0].item() == -8


def test_two_levels_rebuild_every_scale_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    given_groups = [
        Grid(torch.rand(6, generator=generator) * torch.tensor([1.0, -1.0]).repeat(3), None) for _ in range(9)
    ]
    errors = {}
    for bits in (8, 16):
        layer = LayerGrid.from_groups(given_groups, 32, bits)
        assert layer.group_scale.abs().max().item() < 1 << bits - 1
        assert layer.zero is None
        for index, group in enumerate(given_groups):
            rebuilt = layer.group(index).scale
            exact = layer.channel_scale.double() * layer.group_scale[index].double()
            assert rebuilt.double().tolist() == exact.tolist()
            assert (rebuilt.sign() == group.scale.sign()).all()
            errors[bits] = max(errors.get(bits, 0.0), ((rebuilt - group.scale) / group.scale).abs().max().item())
    assert errors[16] < errors[8] / 50


def test_groups_of_zeros_do_not_disturb_the_others() -> None:
    weights = torch.tensor([[0.0, 1.0], [0.0, -2.0]])
    kept = torch.ones(2, 2, dtype=torch.bool)
    empty = fit_grid(torch.zeros(2, 2), kept, False)
    full = fit_grid(weights, kept, False)
    layer = LayerGrid.from_groups([empty, full], 2, 8)
    assert layer.channel_scale[0].item() == 1.0  # a row of zeros
    assert layer.group_scale.tolist() == [[1, 1], [1, 127]]
    assert layer.group(1).nearest(weights)[:, 1].tolist() == pytest.approx([1.0, -2.0], rel=2**-14)
