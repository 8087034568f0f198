from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern, second_order
from quant.grid import Grid, fit_grid
from quant.masks import keep_largest
from quant.second_order import factor_hessian, panels, sweep

Inputs = Callable[..., torch.Tensor]


def second_moments(x: torch.Tensor) -> torch.Tensor:
    return (x.T @ x) / len(x)


def follow_by_elimination(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    pattern: NMPattern,
    settled: torch.Tensor,
    mask: torch.Tensor,
    grids: list[Grid] | None,
    length: int,
    choose: bool,
) -> None:
    """Optimal brain surgeon in float64: settle one column, move all later ones by the inverse of what is left of
    the Hessian, drop its row and column, invert again. Each choice of the sweep must be one that this could make,
    up to float32's rounding; the sweep's choice is then followed, so that ties do not split the two."""
    w = weights.T.double().numpy().copy()  # [O, K]
    h = hessian.double().numpy()
    found, kept = settled.T.double().numpy(), mask.T.numpy()
    rows, columns = w.shape
    size = np.abs(w).max()
    for column in range(columns):
        if choose and column % pattern.m == 0:
            end = min(column + pattern.m, columns)
            score = np.stack([w[:, j] ** 2 / np.linalg.inv(h[j:, j:])[0, 0] for j in range(column, end)], axis=1)
            chosen = kept[:, column:end]
            assert (chosen.sum(axis=1) == min(pattern.n, end - column)).all()
            lowest_kept = np.where(chosen, score, np.inf).min(axis=1)
            highest_pruned = np.where(chosen, -np.inf, score).max(axis=1)
            assert (highest_pruned <= lowest_kept * 1.001 + 1e-9 * score.max()).all()
        inverse = np.linalg.inv(h[column:, column:])
        for row in range(rows):
            target, value = w[row, column], found[row, column]
            if not kept[row, column]:
                assert value == 0
            elif grids is None:
                assert abs(value - target) <= 2e-4 * size
            else:
                grid = grids[column // length]
                scale = float(grid.scale[row])
                zero = None if grid.zero is None else float(grid.zero[row])
                codes = np.arange(-8, 8) if zero is None else np.arange(16) - zero
                assert np.abs(codes * scale - target).min() >= abs(value - target) - 2e-3 * abs(scale)
                assert np.abs(codes * scale - value).min() <= 1e-5 * abs(scale)
            w[row, column:] -= (target - value) / inverse[0, 0] * inverse[0]
            w[row, column] = value


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, ...]:
    m = draw(st.integers(1, 9))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    columns, rows = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    length = m * draw(st.integers(1, 4))
    panel = draw(st.sampled_from([1, 6, 128]))
    return pattern, columns, rows, length, panel, draw(st.integers(0, 2**32 - 1))


@given(layers())
def test_pruning_follows_the_brute_force_surgeon(correlated: Inputs, case: tuple[Any, ...]) -> None:
    pattern, columns, rows, _, panel, seed = case
    factor = factor_hessian(second_moments(correlated(columns, seed)), 0.01)
    weights = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed))
    before = weights.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_order, "_PANEL", panel)
        found = sweep(weights, factor, pattern)
    assert torch.equal(weights, before)
    follow_by_elimination(weights, factor.hessian, pattern, found.weights, found.mask, None, columns, True)


@given(layers(), st.booleans())
def test_gptq_on_a_mask_follows_the_brute_force_surgeon(
    correlated: Inputs, case: tuple[Any, ...], symmetric: bool
) -> None:
    pattern, columns, rows, length, panel, seed = case
    factor = factor_hessian(second_moments(correlated(columns, seed)), 0.01)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(columns, rows, generator=generator)
    mask = keep_largest(torch.rand(columns, rows, generator=generator), pattern, axis=0)
    grids: list[Grid] = []
    seen = []

    def open_group(index: int, target: torch.Tensor) -> Grid:
        assert index == len(grids)
        first = index * length
        assert len(target) == min(length, columns - first)
        seen.append(target.clone())
        grids.append(fit_grid(target, mask[first : first + length], symmetric))
        return grids[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_order, "_PANEL", panel)
        found = sweep(weights, factor, pattern, mask, length, open_group)
    assert len(grids) == -(-columns // length)
    follow_by_elimination(weights, factor.hessian, pattern, found.weights, mask, grids, length, False)
    # A group's targets are the weights that the columns before it ask for, those at its end included.
    residual = (weights - found.weights).double().numpy()
    for index, target in enumerate(seen[1:], 1):
        first = index * length
        h = factor.hessian.double().numpy()
        moved = np.linalg.solve(h[first:, first:], h[first:, :first] @ residual[:first])
        expected = weights[first:].double().numpy() + moved
        assert target.numpy() == pytest.approx(expected[: len(target)], rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("text", ["3:5", "5:8", "3:7", "1:3", "2:4", "8:32"])
def test_blocks_of_any_length_keep_n_beside_the_panels_of_128(correlated: Inputs, text: str) -> None:
    """SparseGPT's blocks of 128 leave 0 to 4 nonzeros in 3:5, as blocks of 5 straddle them."""
    pattern = NMPattern.parse(text)
    factor = factor_hessian(second_moments(correlated(170)))
    weights = torch.randn(170, 4, generator=torch.Generator().manual_seed(0))
    found = sweep(weights, factor, pattern)
    for first in range(0, 170, pattern.m):
        nonzero = (found.weights[first : first + pattern.m] != 0).sum(dim=0)
        assert (nonzero == min(pattern.n, 170 - first)).all()
    follow_by_elimination(weights, factor.hessian, pattern, found.weights, found.mask, None, 170, True)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.01, 1.0]))
def test_factor_is_that_of_the_inverse(correlated: Inputs, features: int, seed: int, damping: float) -> None:
    hessian = second_moments(correlated(features, seed, rows=40 + features))
    factor = factor_hessian(hessian, damping)
    mean = float(hessian.diagonal().double().mean())
    expected = hessian.double() + damping * mean * torch.eye(features)
    assert torch.allclose(factor.hessian.double(), expected, rtol=1e-5, atol=1e-5 * mean)
    upper = factor.feedback.double() / factor.cost.double().sqrt()[:, None]
    assert torch.allclose(upper.T @ upper @ expected, torch.eye(features).double(), atol=2e-3)
    assert not factor.feedback.tril(-1).any()


def test_dead_features_and_dead_layers_are_factored() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0
    weights = torch.tensor([[1.0], [2.0], [9.0], [1.0], [1.0], [1.0]])
    found = sweep(weights, factor_hessian(second_moments(x)), NMPattern(1, 3))
    assert not found.mask[2].any()  # its weight is the largest, but multiplies nothing
    still = sweep(weights, factor_hessian(torch.zeros(6, 6)), NMPattern(1, 3))
    assert still.weights.tolist() == [[0.0], [0.0], [9.0], [1.0], [0.0], [0.0]]


def test_damping_grows_where_float32_cannot_factor() -> None:
    """Fewer rows than features: without damping the matrix has no inverse."""
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    hessian = second_moments(x)
    hessian[0, 1] += 1e-4  # not quite symmetric, as after rounding; the lower half is what counts
    factor = factor_hessian(hessian, 0.0)
    added = (factor.hessian - hessian).diagonal()
    assert (added > 0).all()
    assert added.max() <= 1e-2 * hessian.diagonal().mean()
    assert factor.cost.isfinite().all()


def test_matrices_that_are_no_second_moments_are_refused() -> None:
    hessian = torch.tensor([[1.0, -3e4], [-3e4, 1.0]])
    with pytest.raises(ValueError, match="positive definite") as raised:
        factor_hessian(hessian)
    assert str(raised.value) == (
        "The second moments of 2 input features are not positive definite, even with 1e+03 of their mean added to "
        "the diagonal; they were not gathered from finite inputs, or are not symmetric."
    )
    for damping in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="damping") as raised:
            factor_hessian(torch.eye(2), damping)
        assert str(raised.value) == f"The damping is {damping}, but it must be a finite number, 0 or more."


@given(st.integers(1, 1000), st.integers(1, 32), st.one_of(st.none(), st.integers(1, 40)))
def test_panels_hold_whole_blocks_and_never_parts_of_two_groups(columns: int, m: int, blocks: int | None) -> None:
    length = None if blocks is None else m * blocks
    found = list(panels(columns, m, length))
    assert [first for first, _ in found] + [columns] == [0] + [last for _, last in found]
    for first, last in found:
        assert first % m == 0
        assert last - first <= max(128, m)
        if length is not None:
            whole_groups = first % length == 0 and (last % length == 0 or last == columns)
            assert whole_groups or first // length == (last - 1) // length
