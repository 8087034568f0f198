from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern
from quant.mask_search import fit_kept, pull_to_pattern, search_kept
from quant.masks import keep_largest
from quant.second_order import ErrorFactor, Settled, factor_hessian, sweep

Inputs = Callable[..., torch.Tensor]
PATTERNS = st.integers(1, 32).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m), st.just(m)))


def factored(x: torch.Tensor) -> ErrorFactor:
    return factor_hessian((x.T @ x) / len(x), 0.01)


def error(weights: torch.Tensor, hessian: torch.Tensor, found: torch.Tensor) -> np.ndarray:
    """Output error of each row, in float64."""
    off = (weights - found).double().numpy()
    return (off * (hessian.double().numpy() @ off)).sum(axis=0)


def best_on_mask(weights: torch.Tensor, hessian: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Least output error of each row with the kept weights free, by solving their normal equations in float64."""
    h, w = hessian.double().numpy(), weights.double().numpy()
    found = np.zeros_like(w)
    for row, kept in enumerate(mask.T.numpy()):
        found[kept, row] = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ w[:, row])
    return error(weights, hessian, torch.from_numpy(found))


@given(PATTERNS, st.integers(1, 80), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_every_block_keeps_exactly_n(
    correlated: Inputs, pattern: NMPattern, columns: int, rows: int, seed: int
) -> None:
    weights = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed))
    factor = factored(correlated(columns, seed))
    before = weights.clone(), factor.hessian.clone()
    found = search_kept(weights, factor, pattern)
    for first in range(0, columns, pattern.m):
        block = found.mask[first : first + pattern.m]
        assert (block.sum(dim=0) == min(pattern.n, len(block))).all()
    assert not found.weights[~found.mask].any()
    assert torch.equal(weights, before[0])
    assert torch.equal(factor.hessian, before[1])


@given(PATTERNS, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_without_correlations_the_best_mask_is_found_and_weights_stay(
    pattern: NMPattern, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(columns, 3, generator=generator)
    size = torch.randn(columns, generator=generator).exp()
    found = search_kept(weights, factor_hessian(torch.diag(size.square()), 0.0), pattern)
    assert torch.equal(found.mask, keep_largest((weights * size[:, None]).abs(), pattern, axis=0))
    assert torch.allclose(found.weights, weights * found.mask, rtol=1e-4)


@given(st.integers(2, 24), st.integers(0, 2**32 - 1))
def test_no_step_raises_the_error_and_many_reach_the_least(correlated: Inputs, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(columns, 4, generator=generator)
    hessian = factored(correlated(columns, seed)).hessian
    mask = keep_largest(torch.rand(columns, 4, generator=generator), NMPattern(2, 4), axis=0)
    start = Settled(weights * mask, mask)
    energy = error(weights, hessian, torch.zeros_like(weights))
    errors = []
    for steps in (0, 1, 2, 4, 50):
        found, told = fit_kept(weights, hessian, start, steps)
        errors.append(error(weights, hessian, found.weights))
        assert told.double().numpy() == pytest.approx(errors[-1], rel=1e-3, abs=1e-4 * energy.max())
    for before, after in itertools.pairwise(errors):
        assert (after <= before + 1e-5 * energy).all()
    assert errors[-1] == pytest.approx(best_on_mask(weights, hessian, mask), rel=1e-3, abs=1e-4 * energy.max())


def test_masks_are_near_the_best_of_all(correlated: Inputs) -> None:
    """Every one of the 216 masks of 2:4 over 12 columns is tried, each with its best weights."""
    factor = factored(correlated(12, 3))
    weights = torch.randn(12, 40, generator=torch.Generator().manual_seed(3))
    pairs = list(itertools.combinations(range(4), 2))
    every = []
    for chosen in itertools.product(pairs, repeat=3):
        mask = torch.zeros(12, 40, dtype=torch.bool)
        for block, pair in enumerate(chosen):
            mask[[4 * block + position for position in pair]] = True
        every.append(best_on_mask(weights, factor.hessian, mask))
    least = np.min(every, axis=0).sum()
    searched = best_on_mask(weights, factor.hessian, search_kept(weights, factor, NMPattern(2, 4)).mask).sum()
    swept = best_on_mask(weights, factor.hessian, sweep(weights, factor, NMPattern(2, 4)).mask).sum()
    assert searched <= 1.12 * least < swept


def test_pulling_follows_the_textbook_method(correlated: Inputs) -> None:
    """The alternating direction method in float64 with its multiplier unscaled, which no penalty changes."""
    factor, pattern = factored(correlated(24, 6)), NMPattern(2, 4)
    weights = torch.randn(24, 60, generator=torch.Generator().manual_seed(6))
    size = factor.hessian.diagonal().double().sqrt().numpy()[:, None]
    h, w = factor.hessian.double().numpy() / size / size.T, weights.double().numpy() * size

    def legal(x: np.ndarray) -> np.ndarray:
        largest = np.argsort(-np.abs(x.reshape(6, 4, 60)), axis=1)[:, :2]
        mask = np.zeros((6, 4, 60), dtype=bool)
        np.put_along_axis(mask, largest, True, axis=1)
        return x * mask.reshape(24, 60)

    x, multiplier = w, np.zeros_like(w)
    for penalty in np.repeat([0.03, 0.1, 0.3], 4):
        z = legal(x + multiplier / penalty)
        multiplier = multiplier + penalty * (x - z)
        x = np.linalg.solve(h + penalty * np.eye(24), h @ w + penalty * z - multiplier)
    expected = legal(x + multiplier / 0.3)
    found = pull_to_pattern(weights, factor.hessian, pattern)
    same_rows = (found.mask.numpy() == (expected != 0)).all(axis=0)
    assert same_rows.mean() >= 0.95  # float32 may decide a tie otherwise
    assert found.weights.numpy()[:, same_rows] == pytest.approx((expected / size)[:, same_rows], rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("text", ["2:4", "1:4", "5:8", "3:5"])
def test_error_is_far_below_that_of_one_sweep(correlated: Inputs, text: str) -> None:
    pattern = NMPattern.parse(text)
    factor = factored(correlated(160, 5))
    weights = torch.randn(160, 32, generator=torch.Generator().manual_seed(5))
    swept = sweep(weights, factor, pattern).weights
    searched = search_kept(weights, factor, pattern).weights
    assert error(weights, factor.hessian, searched).sum() <= 0.8 * error(weights, factor.hessian, swept).sum()
