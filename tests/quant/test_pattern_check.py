"""A breach is found wherever it is and named by stage, layer, row and block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern, NMWeight
from quant.pattern_check import PatternBreach, check_pattern


@given(st.data())
def test_finds_the_first_block_that_holds_too_many(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 32), label="m")
    n = data.draw(st.integers(1, m), label="n")
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 70))
    draws = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    dense = draws.normal(size=(rows, columns)) * (draws.random((rows, columns)) < data.draw(st.floats(0, 1)))
    expected = None
    for row in range(rows):
        for block, first in enumerate(range(0, columns, m)):
            if expected is None and sum(weight != 0 for weight in dense[row, first : first + m]) > n:
                expected = (row, block)
    for weight in (dense, torch.from_numpy(dense), torch.from_numpy(dense).float()):
        try:
            check_pattern(weight, NMPattern(n, m), "a.layer", "export")
            found = None
        except PatternBreach as breach:
            found = (breach.layer, breach.stage, breach.row, breach.block)
        assert found == (None if expected is None else ("a.layer", "export", *expected))


def make_weight(mask: np.ndarray, pattern: NMPattern, codes: int = 3) -> NMWeight:
    rows, columns = mask.shape
    return NMWeight(
        values=np.full((rows, columns), codes, dtype=np.int8),
        mask=mask,
        group_scale=np.ones((rows, 1), dtype=np.int32),
        channel_scale=np.ones(rows, dtype=np.float32),
        pattern=pattern,
        group_size=-1,
    )


def test_judges_by_the_pattern_asked_for_and_counts_kept_zeros() -> None:
    mask = np.array([[True, True, False, False] * 2, [False, False, True, True, True, False, True, True]])
    for codes in (3, 0):  # a kept weight of 0 is kept
        weight = make_weight(mask, NMPattern(1, 1), codes)
        check_pattern(weight, NMPattern(3, 4), "l", "prune")
        with pytest.raises(PatternBreach) as caught:
            check_pattern(weight, NMPattern(2, 4), "model.layers.0.mlp.up_proj", "reload")
        assert str(caught.value) == (
            "After stage reload, model.layers.0.mlp.up_proj breaks its pattern: row 1, block 1 (columns 4 to 7) keeps "
            "3 weights, but 2:4 allows at most 2."
        )


def test_counts_what_dequantisation_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that come back at pruned positions, as from a scale or zero point that is applied there, too."""
    weight = make_weight(np.array([[True, True, False, False]]), NMPattern(2, 4))
    monkeypatch.setattr(NMWeight, "to_dense", lambda self: np.ones((1, 4), dtype=np.float32))
    with pytest.raises(PatternBreach, match=r"row 0, block 0 \(columns 0 to 3\) has 4 nonzero weights, but 2:4"):
        check_pattern(weight, NMPattern(2, 4), "l", "quantise")


def test_nan_counts_and_negative_zero_does_not() -> None:
    check_pattern(np.array([[-0.0, 1.0]]), NMPattern(1, 2), "l", "prune")
    with pytest.raises(PatternBreach):
        check_pattern(np.array([[np.nan, 1.0]]), NMPattern(1, 2), "l", "prune")


@pytest.mark.parametrize("weight", [None, [[1.0]], np.ones(4), torch.ones(2, 2, 2)])
def test_refuses_what_is_no_matrix(weight: object) -> None:
    with pytest.raises(TypeError, match=r"^l (is a|has shape) .* a pattern is checked on an"):
        check_pattern(weight, NMPattern(1, 2), "l", "prune")
