from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quant import NMPattern, magnitude_mask, prune_magnitude

PATTERNS = st.integers(1, 32).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m), st.just(m)))


def mask_by_sorting(weights: np.ndarray, pattern: NMPattern) -> list[list[bool]]:
    """Sort each block by falling magnitude, then by index, with Python's own sort."""
    mask = []
    for row in weights.tolist():
        kept = [False] * len(row)
        for first in range(0, len(row), pattern.m):
            block = range(first, min(first + pattern.m, len(row)))
            for k in sorted(block, key=lambda k: (-abs(row[k]), k))[: pattern.n]:
                kept[k] = True
        mask.append(kept)
    return mask


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Few distinct magnitudes of both signs make ties and zeros common.
    levels = draw(st.sampled_from([1, 2, 5, 1000000]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    return (rng.integers(-levels, levels + 1, (rows, columns)) / 16.0 / levels).astype(dtype)


@given(matrices(), PATTERNS)
@example(np.zeros((1, 7)), NMPattern(2, 4))
@example(np.array([[1.0, -1.0, 1.0, -1.0, -0.0]]), NMPattern(2, 3))
def test_mask_keeps_what_sorting_keeps(weights: np.ndarray, pattern: NMPattern) -> None:
    assert magnitude_mask(weights, pattern).tolist() == mask_by_sorting(weights, pattern)


@given(matrices(), PATTERNS)
def test_every_block_keeps_exactly_n_or_its_whole_length(weights: np.ndarray, pattern: NMPattern) -> None:
    mask = magnitude_mask(weights, pattern)
    for first in range(0, weights.shape[1], pattern.m):
        block = mask[:, first : first + pattern.m]
        assert (block.sum(axis=1) == min(pattern.n, block.shape[1])).all()


@given(matrices(), PATTERNS)
def test_pruning_zeroes_the_rest_and_keeps_its_own_mask(weights: np.ndarray, pattern: NMPattern) -> None:
    before = weights.copy()
    pruned = prune_magnitude(weights, pattern)
    mask = magnitude_mask(weights, pattern)
    assert pruned.dtype == weights.dtype
    assert np.array_equal(pruned[mask], weights[mask])
    assert not pruned[~mask].any()
    assert np.array_equal(magnitude_mask(pruned, pattern), mask)
    assert np.array_equal(prune_magnitude(pruned, pattern), pruned)
    assert np.array_equal(weights, before)


@pytest.mark.parametrize("columns", [4096, 4095])
def test_wide_matrix_is_ranked_like_a_stable_sort(columns: int) -> None:
    """Large enough that rows are ranked in several portions."""
    rng = np.random.default_rng(7)
    weights = rng.integers(-9, 10, (70, columns)).astype(np.float32)
    padded = np.full((70, 4096), -1.0, dtype=np.float32)
    padded[:, :columns] = np.abs(weights)
    order = np.argsort(-padded.reshape(70, 1024, 4), axis=2, kind="stable")
    expected = np.zeros((70, 1024, 4), dtype=bool)
    np.put_along_axis(expected, order[:, :, :2], True, axis=2)
    assert np.array_equal(magnitude_mask(weights, NMPattern(2, 4)), expected.reshape(70, 4096)[:, :columns])


def test_one_of_four_keeps_one() -> None:
    weights = np.array([[0.1, -0.4, 0.3, 0.2, 1.0, 2.0, 3.0, -4.0]])
    assert prune_magnitude(weights, NMPattern(1, 4)).tolist() == [[0, -0.4, 0, 0, 0, 0, 0, -4.0]]
    three = prune_magnitude(weights, NMPattern.from_pruned_count(1, 4))
    assert three.tolist() == [[0, -0.4, 0.3, 0.2, 0, 2.0, 3.0, -4.0]]


def test_most_negative_weights_are_the_largest() -> None:
    """A rank on biased codes would put -8 last."""
    weights = np.array([[-8.0, 7.0, -1.0, 0.0]])
    assert magnitude_mask(weights, NMPattern(1, 4)).tolist() == [[True, False, False, False]]


def test_ties_keep_the_lower_index_whatever_the_sign() -> None:
    weights = np.array([[1.0, -1.0, 1.0, -1.0, 0.0, -0.0, 2.0, -2.0]])
    mask = magnitude_mask(weights, NMPattern(3, 4))
    assert mask.tolist() == [[True, True, True, False, True, False, True, True]]


def test_short_last_block_keeps_up_to_n() -> None:
    weights = np.array([[5.0, 1.0, 2.0, 4.0, 3.0, 1.0, 2.0]])
    assert prune_magnitude(weights, NMPattern(2, 4)).tolist() == [[5.0, 0, 0, 4.0, 3.0, 0, 2.0]]
    assert prune_magnitude(weights[:, :5], NMPattern(2, 4)).tolist() == [[5.0, 0, 0, 4.0, 3.0]]


def test_strided_and_transposed_matrices_are_read_as_they_look() -> None:
    base = np.random.default_rng(0).standard_normal((24, 30))
    for view in (base.T, base[::2, ::-1]):
        assert magnitude_mask(view, NMPattern(3, 5)).tolist() == mask_by_sorting(view, NMPattern(3, 5))


def test_torch_tensors_are_taken() -> None:
    weights = torch.tensor([[0.5, -1.0, 0.25, 0.0]])
    assert prune_magnitude(weights, NMPattern(2, 4)).tolist() == [[0.5, -1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, 4, dtype=torch.bfloat16), torch.nn.Parameter(torch.zeros(2, 4))]
)
def test_unreadable_tensors_are_answered_with_the_way_out(tensor: torch.Tensor) -> None:
    with pytest.raises(TypeError) as raised:
        magnitude_mask(tensor, NMPattern(2, 4))
    assert str(raised.value).startswith("The weight matrix cannot be read as a NumPy array (")
    assert str(raised.value).endswith("pass a torch tensor as W.detach().float().cpu().")


@pytest.mark.parametrize("function", [magnitude_mask, prune_magnitude])
@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (
            np.array([[0.0, 1.0], [np.nan, 1.0]]),
            ValueError,
            "The weight in row 1, column 0 is nan, but every weight must be finite.",
        ),
        (
            np.array([[0.0, -np.inf]], dtype=np.float16),
            ValueError,
            "The weight in row 0, column 1 is -inf, but every weight must be finite.",
        ),
        (
            np.ones((2, 4), dtype=np.int8),
            TypeError,
            "The weight matrix has dtype int8, but it must have a floating dtype.",
        ),
        (
            np.ones(4),
            ValueError,
            "The weight matrix has shape (4,), but it must be [O, K] with O and K at least 1.",
        ),
        (
            np.ones((0, 4)),
            ValueError,
            "The weight matrix has shape (0, 4), but it must be [O, K] with O and K at least 1.",
        ),
    ],
)
def test_errors_are_sentences(function, weights, error, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as raised:
        function(weights, NMPattern(2, 4))
    assert str(raised.value) == words
