"""NMLinear against the integer GEMM and an epilogue in NumPy: equal in every bit, signs of zeros included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from golden import integer_gemm
from golden import linear as golden_linear
from golden.linear import NMLinear, quantise_tokens
from quant import NMPattern, NMWeight, QuantizedLinear

#: Spread of activations: within a token, and from token to token down to where float32 ends.
DATA = ("normal", "wide", "subnormal", "ties", "zeros", "extremes")


def draw_layer(
    rng: np.random.Generator,
    pattern: NMPattern,
    shape: tuple[int, int],
    group_size: int,
    symmetric: bool = True,
    scale_bits: int = 8,
    bias: bool = True,
    ordered: bool = False,
) -> QuantizedLinear:
    """A layer over the full ranges of everything; a third of its weights and scales are the most extreme ones."""
    rows, columns = shape
    groups = 1 if group_size == -1 else math.ceil(columns / group_size)
    order = rng.random((rows, math.ceil(columns / pattern.m), pattern.m)).argsort(axis=2)
    low, high = (-8, 7) if symmetric else (0, 15)
    edge = 1 << scale_bits - 1

    def spread(low: int, high: int, size: tuple[int, int]) -> NDArray[np.int64]:
        return np.where(rng.random(size) < 0.3, rng.choice([low, high], size), rng.integers(low, high + 1, size))

    return QuantizedLinear(
        NMWeight(
            values=spread(low, high, shape),
            mask=(order < pattern.n).reshape(rows, -1)[:, :columns],
            group_scale=spread(-edge, edge - 1, (rows, groups)),
            channel_scale=rng.standard_normal(rows).astype(np.float32) * np.float32(2.0) ** rng.integers(-20, 3),
            pattern=pattern,
            group_size=group_size,
            zero_point=None if symmetric else spread(0, 15, (rows, groups)),
        ),
        bias=rng.standard_normal(rows).astype(np.float32) if bias else None,
        column_order=rng.permutation(columns) if ordered else None,
    )


def draw_tokens(rng: np.random.Generator, shape: tuple[int, int], data: str, act_bits: int = 8) -> NDArray[np.float32]:
    x = rng.standard_normal(shape).astype(np.float32)
    if data == "wide":
        x *= np.exp2(rng.integers(-60, 60, shape)).astype(np.float32)
    elif data == "subnormal":
        x = (rng.integers(-1000, 1000, shape) * 2.0**-149).astype(np.float32)
    elif data == "ties":
        limit = 2 ** (act_bits - 1) - 1
        x = rng.integers(-2 * limit, 2 * limit + 1, shape).astype(np.float32) / 2
        x[:, 0] = limit  # scale 1
    elif data == "zeros":
        x[rng.random(shape[0]) < 0.7] = -0.0
    elif data == "extremes":
        x = rng.choice(np.array([-1, 0, 1], np.float32), shape) * np.finfo(np.float32).max
    return x


def tokens_in_numpy(x: NDArray[np.float32], act_bits: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    limit = np.float32(2 ** (act_bits - 1) - 1)
    scale = np.abs(x).max(axis=1) / limit
    scale = np.where(np.abs(x).max(axis=1) == 0, np.float32(1), np.maximum(scale, np.float32(2.0**-126)))
    assert scale.dtype == np.float32
    return np.rint(x / scale[:, None]).astype(np.int64), scale


def layer_in_numpy(x: NDArray[np.float32], layer: QuantizedLinear, act_bits: int) -> NDArray[np.float32]:
    codes, scale = tokens_in_numpy(x, act_bits)
    if layer.column_order is not None:
        codes = np.stack([codes[:, feature] for feature in layer.column_order.tolist()], axis=1)
    acc = integer_gemm(codes, layer.weight, act_bits).numpy()
    with np.errstate(over="ignore"):
        y = acc.astype(np.float32) * layer.weight.channel_scale[None, :] * scale[:, None]
    assert y.dtype == np.float32
    return y if layer.bias is None else y + layer.bias


def assert_same_bits(got: torch.Tensor, expected: NDArray[np.float32]) -> None:
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy().view(np.uint32), expected.view(np.uint32))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], QuantizedLinear, int]:
    m = draw(st.integers(1, 12) | st.just(32))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    tokens, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 90))
    group_size = draw(st.just(-1) | st.integers(1, 5).map(lambda blocks: blocks * m))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layer = draw_layer(
        rng,
        pattern,
        (rows, columns),
        group_size,
        symmetric=draw(st.booleans()),
        scale_bits=draw(st.sampled_from([8, 16])),
        bias=draw(st.booleans()),
        ordered=draw(st.booleans()),
    )
    act_bits = draw(st.sampled_from([8, 4, 16]))
    return draw_tokens(rng, (tokens, columns), draw(st.sampled_from(DATA)), act_bits), layer, act_bits


@given(cases(), st.integers(1, 200))
def test_every_bit_is_that_of_the_integer_gemm_and_its_epilogue(
    case: tuple[NDArray[np.float32], QuantizedLinear, int], portion: int
) -> None:
    x, layer, act_bits = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden_linear, "_NUMBERS_AT_A_TIME", portion)
        got = NMLinear(layer, act_bits)(torch.from_numpy(x))
    assert_same_bits(got, layer_in_numpy(x, layer, act_bits))


@given(st.integers(0, 2**32 - 1), st.sampled_from(DATA), st.sampled_from([4, 8, 16]))
def test_tokens_become_the_nearest_integers_within_their_limit(seed: int, data: str, act_bits: int) -> None:
    x = draw_tokens(np.random.default_rng(seed), (3, 40), data, act_bits)
    codes, scale = quantise_tokens(torch.from_numpy(x).reshape(3, 1, 40), act_bits)
    expected_codes, expected_scale = tokens_in_numpy(x, act_bits)
    assert codes.dtype == (torch.int16 if act_bits == 16 else torch.int8)
    assert codes.shape == (3, 1, 40)
    assert scale.shape == (3, 1)
    assert np.array_equal(codes.numpy()[:, 0], expected_codes)
    assert_same_bits(scale[:, 0], expected_scale)
    limit = 2 ** (act_bits - 1) - 1
    assert np.abs(expected_codes).max() <= limit
    # Away from the smallest numbers, the largest activation of a token takes the outermost code.
    normal = np.abs(x).max(axis=1) > 2.0**-100
    assert (np.abs(expected_codes).max(axis=1)[normal] == limit).all()


def test_ties_go_to_even_and_the_most_negative_integer_does_not_occur() -> None:
    x = torch.tensor([[-127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5]])
    codes, scale = quantise_tokens(x)
    assert codes.tolist() == [[-127, 0, 2, 2, 0, -2, 126, -126]]
    assert scale.tolist() == [1.0]
    codes, scale = quantise_tokens(torch.zeros(2, 3))
    assert (codes.tolist(), scale.tolist()) == ([[0, 0, 0], [0, 0, 0]], [1.0, 1.0])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_of_zero_is_a_positive_zero(sign: int) -> None:
    """Zero times a negative weight must not leave the sign that a float product has."""
    scale = np.full(2, sign, np.float32)
    weight = NMWeight([[-3], [-3]], [[True], [True]], [[1], [1]], scale, NMPattern(1, 1), -1)
    y = NMLinear(QuantizedLinear(weight))(torch.zeros(2, 1))
    assert torch.signbit(y).tolist() == [[sign < 0] * 2] * 2


def test_a_layer_of_several_portions() -> None:
    rng = np.random.default_rng(5)
    layer = draw_layer(rng, NMPattern(2, 4), (700, 2002), 128, symmetric=False, scale_bits=16, ordered=True)
    x = draw_tokens(rng, (600, 2002), "normal")
    module = NMLinear(layer)
    assert_same_bits(module(torch.from_numpy(x)), layer_in_numpy(x, layer, 8))
    assert "in_features=2002, out_features=700, pattern=2:4, group_size=128, act_bits=8, bias=True" in repr(module)


def test_extreme_sums_are_exact() -> None:
    """Sums near the largest that k_max allows, one apart: a float32 GEMM could not tell them."""
    columns = 1 << 17
    values = np.full((2, columns), 0, np.int8)
    values[1, -1] = 1
    weight = NMWeight(
        values, np.ones(values.shape, bool), [[-32768]] * 2, np.ones(2), NMPattern(1, 1), -1, [[15], [15]]
    )
    x = torch.full((1, columns), -32767.0)
    acc = columns * 15 * 32768 * 32767
    assert acc > 1 << 50
    module = NMLinear(QuantizedLinear(weight), act_bits=16)
    seen: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        to = torch.Tensor.to

        def spy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            if dtype == torch.float32 and tensor.dtype == torch.float64:
                seen.append(tensor.clone())
            return to(tensor, dtype)

        patch.setattr(torch.Tensor, "to", spy)
        module(x)
    assert [int(value) for value in torch.cat(seen, dim=1)[0].tolist()] == [-acc, -acc + 32768 * 32767]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_type_of_the_activations(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    layer = draw_layer(rng, NMPattern(2, 4), (6, 32), 16)
    x = torch.from_numpy(draw_tokens(rng, (5, 32), "normal")).to(dtype)
    expected = layer_in_numpy(x.to(torch.float32).numpy(), layer, 8)
    got = NMLinear(layer)(x.reshape(1, 5, 32))
    assert got.shape == (1, 5, 6)
    assert torch.equal(got[0], torch.from_numpy(expected).to(dtype))


def test_no_tokens_give_no_results() -> None:
    layer = draw_layer(np.random.default_rng(3), NMPattern(2, 4), (6, 32), 16)
    assert NMLinear(layer)(torch.empty(2, 0, 32)).shape == (2, 0, 6)


def test_weights_take_a_byte_each_and_ask_for_no_gradient() -> None:
    module = NMLinear(draw_layer(np.random.default_rng(3), NMPattern(2, 4), (64, 256), 128, bias=False))
    assert sum(buffer.nbytes for buffer in module.buffers()) == 64 * 256 + 64 * 2 * 2 + 64 * 4
    assert list(module.parameters()) == []
    assert not module(torch.ones(1, 256, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("value", "words"), [(math.nan, "is nan"), (math.inf, "is inf"), (-math.inf, "is -inf"), (1e300, "is 1e+300")]
)
def test_an_activation_that_is_not_finite(value: float, words: str) -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    x[1, 2, 3] = value
    with pytest.raises(ValueError, match="must be finite in float32") as error:
        quantise_tokens(x)
    assert str(error.value) == (
        f"The activation of token 1, 2, feature 3 {words}, but every activation must be finite in float32."
    )


def test_refusals() -> None:
    rng = np.random.default_rng(3)
    layer = draw_layer(rng, NMPattern(2, 4), (6, 32), 16)
    module = NMLinear(layer)
    refused = [
        (lambda: module(torch.zeros(3, 31)), "The activations have shape (3, 31), but the layer takes [..., 32]."),
        (lambda: quantise_tokens(torch.zeros(3, 0)), "The activations have shape (3, 0), but they must be [..., K]"),
        (lambda: quantise_tokens(torch.zeros(3), 5), "act_bits is 5, but it must be 4, 8 or 16."),
        (lambda: NMLinear(layer, 32), "act_bits is 32, but it must be 4, 8 or 16."),
        (lambda: NMLinear(QuantizedLinear(layer.weight, np.zeros(5, np.float32))), "The bias is torch.float32 (5,)"),
        (
            lambda: NMLinear(QuantizedLinear(layer.weight, None, np.zeros(32, np.int64))),
            "column_order must name each of the 32 input features once.",
        ),
    ]
    for call, sentence in refused:
        with pytest.raises(ValueError, match=r"\.$") as error:
            call()
        assert str(error.value).startswith(sentence)
    with pytest.raises(TypeError, match=r"dtype torch\.int64, but they must have a floating dtype"):
        quantise_tokens(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="convert activations, not the layer"):
        module.half()(torch.zeros(1, 32))


def test_sums_beyond_float64s_integers_are_refused() -> None:
    def layer(columns: int) -> QuantizedLinear:
        shape = (1, columns)
        return QuantizedLinear(
            NMWeight(np.zeros(shape, np.int8), np.ones(shape, bool), [[-32768]], np.ones(1), NMPattern(1, 1), -1)
        )

    NMLinear(layer(1 << 19), act_bits=16)
    NMLinear(layer(1 << 20), act_bits=8)
    with pytest.raises(ValueError, match=r"1048576 input features .* exact below 2\*\*53 only\.$"):
        NMLinear(layer(1 << 20), act_bits=16)
