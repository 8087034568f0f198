from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern, NMWeight, magnitude_mask, prune_magnitude, quantize_rtn


def quantize_row(row: list[float], kept: list[bool], length: int, symmetric: bool) -> tuple[Any, ...]:
    """Quantise one row in Python floats, rounding to float32 only where the method does."""
    groups = [range(first, min(first + length, len(row))) for first in range(0, len(row), length)]
    scales, zeros = [], []
    for group in groups:
        weights = [row[k] for k in group if kept[k]]
        if symmetric:
            scales.append(max((abs(weight) for weight in weights), default=0.0) / 7.5)
            zeros.append(0)
        else:
            low, high = min([0.0, *weights]), max([0.0, *weights])
            scale = (high - low) / 15
            scales.append(scale)
            zeros.append(min(15, max(0, round(-low / scale))) if scale else 0)
    channel = 1.0
    if max(scales):
        mantissa, exponent = math.frexp(max(scales) / 127)
        channel = math.ldexp(math.floor(mantissa * 2**16), exponent - 16)  # 16 significant bits
    group_scales = [min(127, max(1, round(scale / channel))) for scale in scales]
    low_code, high_code = (-8, 7) if symmetric else (0, 15)
    values = []
    for group, group_scale, zero in zip(groups, group_scales, zeros, strict=True):
        rebuilt = np.float32(channel) * np.float32(group_scale)
        for k in group:
            code = round(float(np.float32(row[k]) / rebuilt)) + zero
            values.append(min(high_code, max(low_code, code)) if kept[k] else zero)
    return values, group_scales, zeros, channel


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, NMPattern, int, bool]:
    m = draw(st.integers(1, 32))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 120))
    group_size = draw(st.one_of(st.just(-1), st.integers(1, 5).map(lambda blocks: blocks * m)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    weights *= np.exp2(rng.integers(-12, 3, (rows, columns)) * draw(st.sampled_from([0, 1]))).astype(
        np.float32
    )
    weights[rng.random((rows, columns)) < draw(st.sampled_from([0.0, 0.3, 0.95]))] = 0
    shift = draw(st.sampled_from([0.0, 0.0, 3.0]))  # one-sided groups put the zero point at an end
    return weights + np.float32(shift) * (weights != 0), pattern, group_size, draw(st.booleans())


@given(cases())
def test_codes_scales_and_zero_points_follow_the_method(
    case: tuple[np.ndarray, NMPattern, int, bool],
) -> None:
    weights, pattern, group_size, symmetric = case
    weights = prune_magnitude(weights, pattern)
    w = quantize_rtn(weights, pattern, group_size, symmetric)
    length = weights.shape[1] if group_size == -1 else group_size
    assert w.symmetric == symmetric
    assert w.group_size == group_size
    assert w.pattern == pattern
    for o, row in enumerate(weights.tolist()):
        values, group_scales, zeros, channel = quantize_row(row, w.mask[o].tolist(), length, symmetric)
        assert w.channel_scale[o] == channel
        assert w.group_scale[o].tolist() == group_scales
        if w.zero_point is not None:
            assert w.zero_point[o].tolist() == zeros
        assert w.values[o].tolist() == values


@given(cases())
def test_pruned_weights_keep_their_positions_and_every_block_complies(
    case: tuple[np.ndarray, NMPattern, int, bool],
) -> None:
    weights, pattern, group_size, symmetric = case
    w = quantize_rtn(prune_magnitude(weights, pattern), pattern, group_size, symmetric)
    assert np.array_equal(w.mask, magnitude_mask(weights, pattern))
    assert not w.to_dense()[~w.mask].any()
    for first in range(0, weights.shape[1], pattern.m):
        nonzero = np.count_nonzero(w.to_dense()[:, first : first + pattern.m], axis=1)
        assert (nonzero <= pattern.n).all()


@given(cases())
def test_zero_weights_stay_exactly_zero(case: tuple[np.ndarray, NMPattern, int, bool]) -> None:
    weights, pattern, group_size, symmetric = case
    weights = prune_magnitude(weights, pattern)
    dense = quantize_rtn(weights, pattern, group_size, symmetric).to_dense()
    assert not dense[weights == 0].any()


@given(cases(), st.integers(0, 2**32 - 1))
def test_a_given_mask_decides_alone(case: tuple[np.ndarray, NMPattern, int, bool], seed: int) -> None:
    weights, pattern, group_size, symmetric = case
    noise = np.random.default_rng(seed).standard_normal(weights.shape)
    mask = magnitude_mask(noise, pattern)
    w = quantize_rtn(weights, pattern, group_size, symmetric, mask=mask)
    emptied = quantize_rtn(np.where(mask, weights, 0), pattern, group_size, symmetric, mask=mask)
    assert np.array_equal(w.mask, mask)
    assert np.array_equal(w.values, emptied.values)
    assert np.array_equal(w.group_scale, emptied.group_scale)
    assert np.array_equal(w.to_dense(), emptied.to_dense())


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_one_step_when_groups_are_alike(symmetric: bool) -> None:
    """The group scale's own rounding (1 part in 2 * 127) adds clipping at the ends, less than half a step."""
    weights = np.random.default_rng(3).uniform(-1, 1, (64, 512)).astype(np.float32)
    weights = prune_magnitude(weights, NMPattern(2, 4))
    w = quantize_rtn(weights, NMPattern(2, 4), 128, symmetric)
    assert w.group_scale.min() > 100
    step = np.repeat(w.channel_scale[:, None] * w.group_scale, 128, axis=1)
    assert (np.abs(w.to_dense() - weights) <= step).all()
    inside = (w.values > -8) & (w.values < 7) if symmetric else (w.values > 0) & (w.values < 15)
    assert (np.abs(w.to_dense() - weights)[inside] <= step[inside] * 0.50001).all()


def test_several_portions_of_rows_are_quantised_like_single_rows() -> None:
    rng = np.random.default_rng(5)
    weights = prune_magnitude(rng.standard_normal((150, 4100)).astype(np.float32), NMPattern(3, 5))
    whole = quantize_rtn(weights, NMPattern(3, 5), 125, symmetric=False)
    for o in (0, 62, 63, 64, 126, 149):
        alone = quantize_rtn(weights[o : o + 1], NMPattern(3, 5), 125, symmetric=False)
        assert np.array_equal(whole.values[o], alone.values[0])
        assert np.array_equal(whole.group_scale[o], alone.group_scale[0])
        assert whole.zero_point is not None
        assert alone.zero_point is not None
        assert np.array_equal(whole.zero_point[o], alone.zero_point[0])
        assert whole.channel_scale[o] == alone.channel_scale[0]


def test_most_negative_code_is_used() -> None:
    w = quantize_rtn(127 * np.array([[-7.5, 7.5, 0.5, 1.5]]), NMPattern(1, 1), -1)
    assert w.group_scale.tolist() == [[127]]
    assert w.values.tolist() == [[-8, 7, 0, 2]]


def test_asymmetric_zero_point_is_at_an_end_for_one_sided_groups() -> None:
    w = quantize_rtn(np.array([[0.5, 1.5, -0.5, -1.5]]), NMPattern(1, 1), 2, symmetric=False)
    assert w.zero_point is not None
    assert w.zero_point.tolist() == [[0, 15]]
    assert w.values.tolist() == [[5, 15, 10, 0]]


def test_stored_value_of_a_pruned_position_is_the_zero_point() -> None:
    weights = np.array([[-1.0, 0.0, 0.0, 0.5]])
    asymmetric = quantize_rtn(weights, NMPattern(2, 4), 4, symmetric=False)
    assert asymmetric.zero_point is not None
    assert asymmetric.zero_point.tolist() == [[10]]
    assert asymmetric.values.tolist() == [[0, 10, 10, 15]]
    assert quantize_rtn(weights, NMPattern(2, 4), 4).values.tolist() == [[-8, 0, 0, 4]]


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_zero_rows_and_groups(symmetric: bool) -> None:
    weights = np.zeros((2, 12), dtype=np.float32)
    weights[1, 5] = 3.0
    w = quantize_rtn(weights, NMPattern(2, 4), 4, symmetric)
    assert w.channel_scale[0] == 1.0
    assert w.group_scale.tolist() == [[1, 1, 1], [1, 127, 1]]
    assert np.array_equal(w.mask, magnitude_mask(weights, NMPattern(2, 4)))  # kept zeros stay kept
    # Symmetric absmax stands at code 7.5, which rounds to 8 and is clipped to 7.
    assert w.to_dense()[1, 5] == pytest.approx(2.8 if symmetric else 3.0, rel=2**-15)
    assert np.count_nonzero(w.to_dense()) == 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-36, 3.1e38])
def test_ends_of_the_float32_range(magnitude: float, symmetric: bool) -> None:
    weights = np.array([[magnitude, -magnitude, magnitude / 2, 0.0]], dtype=np.float32)
    w = quantize_rtn(weights, NMPattern(1, 1), 2, symmetric)
    assert w.channel_scale[0] > 0
    # The smallest normal channel scale is the smallest step that there is.
    assert np.abs(w.to_dense() - weights).max() <= max(magnitude / 7, np.finfo(np.float32).tiny)


def test_group_far_below_its_row_rounds_up_to_scale_one() -> None:
    w = quantize_rtn(np.array([[100.0, 1e-3]]), NMPattern(1, 1), 1)
    assert w.group_scale.tolist() == [[127, 1]]
    assert w.values.tolist() == [[7, 0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_dtypes_agree_on_what_float16_holds(dtype: type[np.floating]) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float16)
    pruned = prune_magnitude(weights, NMPattern(2, 4))
    expected = quantize_rtn(pruned.astype(np.float32), NMPattern(2, 4), 32)
    for matrix in (pruned.astype(dtype), torch.from_numpy(pruned.astype(dtype))):
        w = quantize_rtn(matrix, NMPattern(2, 4), 32)
        assert np.array_equal(w.to_dense(), expected.to_dense())


def test_weights_are_left_as_they_were() -> None:
    weights = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    before = weights.copy()
    quantize_rtn(weights, NMPattern(1, 1), 32)
    assert np.array_equal(weights, before)


def test_one_of_four_keeps_one_and_refuses_three() -> None:
    weights = np.array([[1.0, 2.0, 3.0, 0.0]])
    w = quantize_rtn(prune_magnitude(weights, NMPattern(1, 4)), NMPattern(1, 4), 4)
    assert w.mask.tolist() == [[False, False, True, False]]
    assert quantize_rtn(weights, NMPattern.from_pruned_count(1, 4), 4).mask.sum() == 3
    with pytest.raises(ValueError, match="allows at most 1"):
        quantize_rtn(weights, NMPattern(1, 4), 4)


def test_patterns_of_five_need_their_own_group_size() -> None:
    weights = prune_magnitude(np.random.default_rng(0).standard_normal((3, 256)), NMPattern(3, 5))
    with pytest.raises(ValueError, match="Group size") as raised:
        quantize_rtn(weights, NMPattern(3, 5))
    assert str(raised.value) == (
        "Group size 128 is not a multiple of m = 5 of pattern 3:5; "
        "allowed are multiples of 5 or -1 for one group per row."
    )
    w = quantize_rtn(weights, NMPattern(3, 5), 125)
    assert isinstance(w, NMWeight)
    assert w.groups == math.ceil(256 / 125)


WEIGHTS = np.zeros((6, 12))
WEIGHTS[5, 8:11] = 1.0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"W": WEIGHTS},
            ValueError,
            "The weight matrix has 3 nonzero weights in row 5, block 2 (columns 8 to 11), "
            "but pattern 2:4 allows at most 2; "
            "prune it first, for example with prune_magnitude, or give a mask.",
        ),
        (
            {"W": np.full((1, 2), 1e300)},
            ValueError,
            "The weight in row 0, column 0 is 1e+300, which does not fit float32.",
        ),
        (
            {"W": np.array([[0.0, np.nan]])},
            ValueError,
            "The weight in row 0, column 1 is nan, but every weight must be finite.",
        ),
        (
            {"W": np.zeros((1, 4)), "mask": np.zeros((1, 4))},
            TypeError,
            "mask has dtype float64, but it must have the bool dtype.",
        ),
        (
            {"W": np.zeros((1, 4)), "mask": np.zeros((1, 3), bool)},
            ValueError,
            "mask has shape (1, 3), but the weight matrix has shape (1, 4).",
        ),
        (
            {"W": np.zeros((6, 12)), "mask": WEIGHTS != 0},
            ValueError,
            "The mask keeps 3 weights in row 5, block 2 (columns 8 to 11), but pattern 2:4 allows at most 2.",
        ),
    ],
)
def test_errors_are_sentences(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        quantize_rtn(**arguments, pattern=NMPattern(2, 4))
    assert str(raised.value) == words
