from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import statistics as statistics_module
from quant.statistics import InputStatistics


def gathered(x: np.ndarray, full: bool = True) -> InputStatistics:
    statistics = InputStatistics(x.shape[-1], full)
    statistics.add(torch.from_numpy(x))
    return statistics


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_moments_are_those_of_all_rows_however_they_come(seed: int, features: int, batches: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal((rows, features)) * 10).astype(np.float32) for rows in batches]
    statistics, diagonal = InputStatistics(features), InputStatistics(features, full=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics_module, "_ROWS_AT_A_TIME", 7)
        for part in parts:
            statistics.add(torch.from_numpy(part))
            diagonal.add(torch.from_numpy(part).reshape(-1, 1, features))
    x = np.concatenate(parts).astype(np.float64)
    expected = x.T @ x / max(len(x), 1)
    assert statistics.rows == diagonal.rows == len(x)
    assert statistics.hessian is not None
    assert statistics.hessian.dtype == torch.float32
    assert statistics.hessian.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert statistics.mean_square.numpy() == pytest.approx(np.diag(expected), rel=1e-5, abs=1e-6)
    assert diagonal.mean_square.numpy() == pytest.approx(np.diag(expected), rel=1e-5, abs=1e-6)
    assert diagonal.hessian is None


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_merging_counts_both(seed: int, first_rows: int, second_rows: int, full: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((first_rows + second_rows, 5)).astype(np.float32)
    merged, whole = gathered(x[:first_rows], full), gathered(x, full)
    merged.merge(gathered(x[first_rows:], full))
    assert merged.rows == whole.rows
    assert torch.allclose(merged.mean_square, whole.mean_square, rtol=1e-5)
    if full:
        assert merged.hessian is not None
        assert whole.hessian is not None
        assert torch.allclose(merged.hessian, whole.hessian, rtol=1e-4, atol=1e-6)


def test_late_rows_count_as_much_as_early_ones() -> None:
    """A float32 sum over 2**40 rows would no longer change."""
    early, late = gathered(np.full((1, 3), 1.0, np.float32)), gathered(np.full((1, 3), 3.0, np.float32))
    for statistics in (early, late):
        for _ in range(40):
            statistics.merge(InputStatistics.from_tensors(statistics.tensors()))
    assert early.rows == 2**40
    early.merge(late)
    assert early.mean_square.tolist() == [5.0] * 3
    assert early.hessian is not None
    assert early.hessian.tolist() == [[5.0] * 3] * 3


@pytest.mark.parametrize("full", [True, False])
def test_state_survives_as_tensors(full: bool) -> None:
    statistics = gathered(np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32), full)
    again = InputStatistics.from_tensors(statistics.tensors())
    assert again.rows == 7
    assert again.mean_square.tolist() == statistics.mean_square.tolist()
    assert (again.hessian is None) == (statistics.hessian is None)
    if again.hessian is not None and statistics.hessian is not None:
        assert again.hessian.tolist() == statistics.hessian.tolist()


def test_half_precision_inputs_do_not_overflow() -> None:
    statistics = InputStatistics(2)
    statistics.add(torch.full((3, 2), 60000.0, dtype=torch.float16))
    statistics.add(torch.zeros((3, 2), dtype=torch.bfloat16).requires_grad_())
    assert statistics.mean_square.tolist() == pytest.approx([torch.tensor(60000.0).half().item() ** 2 / 2] * 2)
    assert not statistics.mean_square.requires_grad


def test_a_refused_input_is_not_counted() -> None:
    statistics = gathered(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="finite") as raised:
        statistics.add(torch.tensor([[1.0, 1.0, 1.0], [1.0, float("inf"), 1.0]]))
    assert str(raised.value) == "Input feature 1 is inf in row 1, but every calibration input must be finite."
    assert statistics.rows == 2
    assert statistics.mean_square.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InputStatistics(0), "Statistics of 0 input features were asked for; a layer has at least 1."),
        (
            lambda: InputStatistics(3).add(torch.ones(2, 4)),
            "The input has shape (2, 4), but its last axis must hold 3 features.",
        ),
        (
            lambda: InputStatistics(3).merge(InputStatistics(4)),
            "Statistics of 4 features cannot be merged with those of 3.",
        ),
        (
            lambda: InputStatistics(3).merge(InputStatistics(3, full=False)),
            "Statistics with the whole matrix cannot be merged with those of the diagonal alone.",
        ),
        (
            lambda: InputStatistics.from_tensors({"rows": torch.tensor(1)}),
            "The stored statistics lack mean_square.",
        ),
        (
            lambda: InputStatistics.from_tensors(
                {"rows": torch.tensor(1), "mean_square": torch.ones(3), "hessian": torch.ones(2, 2)}
            ),
            "The stored statistics hold a matrix of shape (2, 2) for mean squares of shape (3,).",
        ),
    ],
)
def test_errors_are_sentences(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        make()
    assert str(raised.value) == words
