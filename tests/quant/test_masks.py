from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quant import NMPattern, magnitude_mask
from quant.masks import keep_largest, wanda_score
from quant.statistics import InputStatistics

PATTERNS = st.integers(1, 32).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m), st.just(m)))


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Few distinct magnitudes of both signs make ties and zeros common.
    levels = draw(st.sampled_from([1, 2, 5, 1000000]))
    return (rng.integers(-levels, levels + 1, (rows, columns)) / levels).astype(np.float32)


@given(matrices(), PATTERNS)
@example(np.zeros((1, 7), np.float32), NMPattern(2, 4))
@example(np.ones((2, 3), np.float32), NMPattern(5, 32))
def test_magnitudes_are_kept_as_magnitude_mask_keeps_them(weights: np.ndarray, pattern: NMPattern) -> None:
    expected = magnitude_mask(weights, pattern).tolist()
    score = torch.from_numpy(weights).abs()
    assert keep_largest(score, pattern).tolist() == expected
    assert keep_largest(score.T.contiguous(), pattern, axis=0).T.tolist() == expected


@given(matrices(), PATTERNS)
def test_every_block_keeps_exactly_n_even_of_the_lowest_scores(weights: np.ndarray, pattern: NMPattern) -> None:
    score = torch.from_numpy(weights).log()  # -inf and nan: the padding of a tail is -inf as well
    mask = keep_largest(score.nan_to_num(nan=-torch.inf, neginf=-torch.inf), pattern)
    for first in range(0, weights.shape[1], pattern.m):
        block = mask[:, first : first + pattern.m]
        assert (block.sum(dim=1) == min(pattern.n, block.shape[1])).all()


def test_one_of_four_keeps_one_and_one_pruned_keeps_three() -> None:
    score = torch.tensor([[0.1, 0.4, 0.3, 0.2]])
    assert keep_largest(score, NMPattern(1, 4)).tolist() == [[False, True, False, False]]
    assert keep_largest(score, NMPattern.from_pruned_count(1, 4)).tolist() == [[False, True, True, True]]


@given(matrices(), st.integers(0, 2**32 - 1))
def test_wanda_scores_by_the_size_of_the_inputs(weights: np.ndarray, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((9, weights.shape[1])).astype(np.float32)
    statistics = InputStatistics(weights.shape[1], full=False)
    statistics.add(torch.from_numpy(x))
    expected = np.abs(weights) * np.linalg.norm(x.astype(np.float64), axis=0) / 3
    assert wanda_score(torch.from_numpy(weights), statistics).numpy() == pytest.approx(expected, rel=1e-5)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match="nan") as raised:
        keep_largest(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), NMPattern(1, 2))
    assert str(raised.value) == "The score at [1, 0] is nan, so that it cannot be ranked."
