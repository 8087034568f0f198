from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden import dequantised_product, integer_gemm
from quant import NMPattern, NMWeight, prune_magnitude, quantize_rtn


def random_weight(
    rng: np.random.Generator, pattern: NMPattern, rows: int, columns: int, group_size: int, symmetric: bool
) -> NMWeight:
    """A weight over the full ranges of everything, with arbitrary codes at pruned positions."""
    m = pattern.m
    groups = 1 if group_size == -1 else math.ceil(columns / group_size)
    order = rng.random((rows, math.ceil(columns / m), m)).argsort(axis=2)
    mask = (order < rng.integers(0, pattern.n + 1, order.shape[:2])[:, :, None]).reshape(rows, -1)[
        :, :columns
    ]
    low, high = (-8, 8) if symmetric else (0, 16)
    return NMWeight(
        values=rng.integers(low, high, (rows, columns)),
        mask=mask,
        group_scale=rng.integers(-128, 128, (rows, groups)),
        channel_scale=rng.standard_normal(rows),
        pattern=pattern,
        group_size=group_size,
        zero_point=None if symmetric else rng.integers(0, 16, (rows, groups)),
    )


def gemm_in_python_integers(x: np.ndarray, w: NMWeight) -> list[list[int]]:
    """The definition, one product at a time, in integers of unlimited width."""
    values, mask, scales = w.values.tolist(), w.mask.tolist(), w.group_scale.tolist()
    zeros = None if w.zero_point is None else w.zero_point.tolist()
    result = []
    for row in x.tolist():
        outputs = []
        for o in range(len(values)):
            acc = 0
            for g, scale in enumerate(scales[o]):
                length = len(row) if w.group_size == -1 else w.group_size
                partial = 0
                for k in range(g * length, min((g + 1) * length, len(row))):
                    if mask[o][k]:
                        partial += row[k] * (values[o][k] - (zeros[o][g] if zeros else 0))
                acc += partial * scale
            outputs.append(acc)
        result.append(outputs)
    return result


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, NMWeight, int]:
    m = draw(st.integers(1, 32))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    tokens, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 90))
    group_size = draw(st.one_of(st.just(-1), st.integers(1, 5).map(lambda blocks: blocks * m)))
    act_bits = draw(st.sampled_from([4, 8, 16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = random_weight(rng, pattern, rows, columns, group_size, draw(st.booleans()))
    x = rng.integers(-(1 << act_bits - 1), 1 << act_bits - 1, (tokens, columns))
    if draw(st.booleans()):
        x = np.where(x < 0, -(1 << act_bits - 1), (1 << act_bits - 1) - 1)
    return x, w, act_bits


@given(cases())
def test_integer_gemm_is_the_definition(case: tuple[np.ndarray, NMWeight, int]) -> None:
    x, w, act_bits = case
    acc = integer_gemm(x, w, act_bits)
    assert acc.dtype == torch.int64
    assert acc.tolist() == gemm_in_python_integers(x, w)
    assert torch.equal(integer_gemm(torch.from_numpy(x), w, act_bits), acc)


@given(cases(), st.integers(0, 2**32 - 1))
def test_float_product_agrees_with_the_scaled_accumulator(
    case: tuple[np.ndarray, NMWeight, int], seed: int
) -> None:
    x, w, _act_bits = case
    token_scale = np.random.default_rng(seed).uniform(0.001, 2.0, x.shape[0]).astype(np.float32)
    product = dequantised_product(x, token_scale, w)
    assert product.dtype == torch.float32
    acc = np.array(gemm_in_python_integers(x, w), dtype=np.float64)
    expected = acc * w.channel_scale.astype(np.float64) * token_scale.astype(np.float64)[:, None]
    # The float sum cancels where the integers do, so the bound is on the sum of magnitudes.
    magnitude = np.abs(x) @ np.abs(w.to_dense().astype(np.float64)).T * token_scale[:, None]
    bound = 2.0**-24 * np.abs(expected) + x.shape[1] * 2.0**-50 * magnitude
    assert (np.abs(product.numpy() - expected) <= bound).all()


@given(cases(), st.integers(0, 2**32 - 1))
def test_codes_at_pruned_positions_have_no_effect(case: tuple[np.ndarray, NMWeight, int], seed: int) -> None:
    x, w, act_bits = case
    low, high = (-8, 8) if w.symmetric else (0, 16)
    other = np.random.default_rng(seed).integers(low, high, w.values.shape)
    changed = NMWeight(
        np.where(w.mask, w.values, other),
        w.mask,
        w.group_scale,
        w.channel_scale,
        w.pattern,
        w.group_size,
        w.zero_point,
    )
    assert torch.equal(integer_gemm(x, changed, act_bits), integer_gemm(x, w, act_bits))
    ones = np.ones(x.shape[0])
    assert torch.equal(dequantised_product(x, ones, changed), dequantised_product(x, ones, w))


@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize("group_size", [4, -1])
def test_several_portions_of_output_features(tokens: int, group_size: int) -> None:
    """Large enough that output features go in portions; one sum over all of K is the other route."""
    rng = np.random.default_rng(11)
    w = random_weight(rng, NMPattern(2, 4), 700, 2002, group_size, symmetric=False)
    x = rng.integers(-128, 128, (tokens, 2002))
    group = np.zeros(2002, int) if group_size == -1 else np.arange(2002) // group_size
    assert w.zero_point is not None
    scaled = (w.values.astype(np.int64) - w.zero_point[:, group]) * w.group_scale[:, group] * w.mask
    expected = x.astype(np.float64) @ scaled.astype(np.float64).T  # integers below 2**53: exact
    assert np.array_equal(integer_gemm(x, w).numpy(), expected.astype(np.int64))
    ones = np.ones(tokens)
    product = dequantised_product(x, ones, w).numpy()
    assert np.allclose(product, expected * w.channel_scale, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_extremes_are_exact(act_bits: int, symmetric: bool) -> None:
    columns = 4096
    w = NMWeight(
        values=np.full((1, columns), -8 if symmetric else 0),
        mask=np.ones((1, columns), dtype=bool),
        group_scale=np.full((1, 32), -128),
        channel_scale=np.ones(1),
        pattern=NMPattern(4, 4),
        group_size=128,
        zero_point=None if symmetric else np.full((1, 32), 15),
    )
    lowest = -(1 << act_bits - 1)
    weight = -8 if symmetric else -15
    acc = integer_gemm(np.full((2, columns), lowest), w, act_bits)
    assert acc.tolist() == [[columns * lowest * weight * -128]] * 2


def test_odd_partials_beyond_a_float32_mantissa_are_exact() -> None:
    columns = 4095
    w = NMWeight(
        values=np.full((1, columns), 15),
        mask=np.ones((1, columns), dtype=bool),
        group_scale=np.array([[127]]),
        channel_scale=np.ones(1),
        pattern=NMPattern(1, 1),
        group_size=-1,
        zero_point=np.array([[0]]),
    )
    x = np.full((1, columns), 32767)
    assert integer_gemm(x, w, act_bits=16).tolist() == [[columns * 32767 * 15 * 127]]


def test_a_pruned_position_adds_nothing_rather_than_minus_zero_point() -> None:
    w = NMWeight(
        values=np.zeros((1, 4), int),
        mask=np.array([[False, True, False, False]]),
        group_scale=np.array([[3]]),
        channel_scale=np.array([0.5]),
        pattern=NMPattern(1, 4),
        group_size=4,
        zero_point=np.array([[7]]),
    )
    x = np.array([[100, 2, 100, 100]])
    assert integer_gemm(x, w).tolist() == [[2 * -7 * 3]]
    assert dequantised_product(x, np.array([2.0]), w).tolist() == [[2 * -7 * 3 * 0.5 * 2.0]]


def test_a_kept_zero_code_counts_when_there_is_a_zero_point_and_not_otherwise() -> None:
    mask = np.array([[True, True]])
    parts: dict[str, Any] = {"group_scale": np.array([[1]]), "channel_scale": np.ones(1), "group_size": -1}
    symmetric = NMWeight(np.array([[0, 1]]), mask, pattern=NMPattern(2, 2), **parts)
    asymmetric = NMWeight(
        np.array([[0, 1]]), mask, pattern=NMPattern(2, 2), zero_point=np.array([[4]]), **parts
    )
    x = np.array([[10, 1]])
    assert integer_gemm(x, symmetric).tolist() == [[1]]
    assert integer_gemm(x, asymmetric).tolist() == [[-43]]


def test_quantised_model_weights_multiply_like_their_dense_form() -> None:
    rng = np.random.default_rng(4)
    weights = prune_magnitude(rng.standard_normal((64, 256)).astype(np.float32), NMPattern(4, 8))
    w = quantize_rtn(weights, NMPattern(4, 8), 64)
    x = rng.integers(-128, 128, (8, 256))
    expected = x @ w.to_dense().astype(np.float64).T * 0.25
    assert np.allclose(dequantised_product(x, np.full(8, 0.25), w).numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint64])
def test_integer_dtypes_of_activations_agree(dtype: type[np.integer]) -> None:
    w = random_weight(np.random.default_rng(6), NMPattern(2, 4), 3, 8, 4, symmetric=True)
    x = np.arange(16).reshape(2, 8)
    assert torch.equal(integer_gemm(x.astype(dtype), w), integer_gemm(x, w))


W = random_weight(np.random.default_rng(0), NMPattern(2, 4), 3, 8, 4, symmetric=True)
OUT_OF_RANGE = np.zeros((2, 8), int)
OUT_OF_RANGE[1, 5] = 128


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: integer_gemm(OUT_OF_RANGE, W),
            ValueError,
            "The activation at token 1, feature 5 is 128, but act_bits = 8 allows -128 to 127.",
        ),
        (
            lambda: integer_gemm(-OUT_OF_RANGE, W, act_bits=4),
            ValueError,
            "The activation at token 1, feature 5 is -128, but act_bits = 4 allows -8 to 7.",
        ),
        (
            lambda: dequantised_product(OUT_OF_RANGE * 256, np.ones(2), W),
            ValueError,
            "The activation at token 1, feature 5 is 32768, but act_bits = 16 allows -32768 to 32767.",
        ),
        (
            lambda: integer_gemm(OUT_OF_RANGE, W, act_bits=9),
            ValueError,
            "act_bits is 9, but it must be 4, 8 or 16.",
        ),
        (
            lambda: integer_gemm(np.zeros((2, 8)), W),
            TypeError,
            "The activations have dtype float64, but they must have an integer dtype.",
        ),
        (
            lambda: integer_gemm(np.zeros((2, 7), int), W),
            ValueError,
            "The activations have shape (2, 7), but they must be [T, K] with T at least 1 and K = 8 "
            "to match the weights.",
        ),
        (
            lambda: integer_gemm(np.zeros((0, 8), int), W),
            ValueError,
            "The activations have shape (0, 8), but they must be [T, K] with T at least 1 and K = 8 "
            "to match the weights.",
        ),
        (
            lambda: dequantised_product(np.zeros((2, 8), int), np.ones(2, int), W),
            TypeError,
            "token_scale has dtype int64, but it must have a floating dtype.",
        ),
        (
            lambda: dequantised_product(np.zeros((2, 8), int), np.ones(3), W),
            ValueError,
            "token_scale has shape (3,), but x has 2 tokens.",
        ),
        (
            lambda: dequantised_product(np.zeros((2, 8), int), np.array([1.0, np.inf]), W),
            ValueError,
            "token_scale holds inf at token 1, but every scale must be finite.",
        ),
    ],
)
def test_errors_are_sentences(call, error, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == words
