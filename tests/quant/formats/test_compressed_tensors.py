"""Files of the format pack-quantized: our writer, our reader and compressed-tensors' own functions agree."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern, NMWeight, QuantizedLinear, quantize_rtn, split_scales
from quant.formats.compressed_tensors import (
    compressed_tensors_config,
    compressed_tensors_mask,
    compressed_tensors_tensors,
    scale_error,
)
from quant.formats.own_layers import StoredLayer
from quant.formats.pack_quantized import read_pack_quantized
from quant.formats.packed_bits import pack_nibbles, unpack_nibbles
from quant.formats.schemes import weight_schemes

NAME = "model.layers.0.mlp.up_proj"


@st.composite
def weights(draw: st.DrawFn) -> NMWeight:
    """Any weight whose scales come from `split_scales`; codes at pruned positions are arbitrary."""
    m = draw(st.integers(1, 32))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    rows, columns = draw(st.integers(1, 20)), draw(st.integers(1, 100))
    group_size = draw(st.one_of(st.just(-1), st.integers(1, 5).map(lambda blocks: blocks * m)))
    symmetric, bits = draw(st.booleans()), draw(st.sampled_from([8, 16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = 1 if group_size == -1 else math.ceil(columns / group_size)
    order = rng.random((rows, math.ceil(columns / m), m)).argsort(axis=2)
    kept = rng.integers(0, pattern.n + 1, order.shape[:2])[:, :, None]
    low, high = (-8, 8) if symmetric else (0, 16)
    channel_scale, group_scale, _ = split_scales(rng.random((rows, groups)) + 1e-3, bits)
    sign = rng.choice([-1, 1], (rows, groups))
    return NMWeight(
        values=rng.integers(low, high, (rows, columns)).astype(np.int8),
        mask=(order < kept).reshape(rows, -1)[:, :columns],
        group_scale=group_scale * sign,
        channel_scale=channel_scale,
        pattern=pattern,
        group_size=group_size,
        zero_point=None if symmetric else rng.integers(0, 16, (rows, groups)),
    )


def stored(linear: QuantizedLinear) -> StoredLayer:
    mask = compressed_tensors_mask(NAME, linear).get(f"{NAME}.weight_mask")
    weight = linear.weight
    return StoredLayer(weight.pattern, weight.group_size, None if mask is None else mask.numpy())


def same_weight(read: NMWeight, written: NMWeight) -> None:
    """Equal in all that a weight means; codes of pruned weights and the split of scales in two mean nothing."""
    assert (read.pattern, read.group_size, read.symmetric) == (written.pattern, written.group_size, written.symmetric)
    assert np.array_equal(read.mask, written.mask)
    assert np.array_equal(read.integers(), written.integers())
    if written.zero_point is not None:
        assert np.array_equal(read.zero_point, written.zero_point)
    product = [w.channel_scale.astype(np.float64)[:, None] * w.group_scale for w in (read, written)]
    assert np.array_equal(*product)
    assert np.array_equal(read.to_dense(), written.to_dense())


@given(weights(), st.booleans())
def test_what_is_written_is_read(weight: NMWeight, with_bias: bool) -> None:
    bias = np.linspace(-1, 1, weight.out_features, dtype=np.float32) if with_bias else None
    linear = QuantizedLinear(weight, bias)
    assert scale_error(linear) == 0
    tensors = compressed_tensors_tensors(NAME, linear)
    schemes = weight_schemes(compressed_tensors_config({NAME: linear}))
    read = read_pack_quantized(tensors, NAME, schemes, stored=stored(linear))
    same_weight(read.weight, weight)
    assert read.scale_error == 0
    assert read.column_order is None
    assert (read.bias is None) if bias is None else np.array_equal(read.bias, bias)


@given(weights())
def test_compressed_tensors_decompresses_what_we_write(weight: NMWeight) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors judges our files")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    linear = QuantizedLinear(weight)
    config = QuantizationConfig.model_validate(compressed_tensors_config({NAME: linear}))
    (scheme,) = config.config_groups.values()
    tensors = {key.rpartition(".")[2]: value for key, value in compressed_tensors_tensors(NAME, linear).items()}
    dense = PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
    assert torch.equal(dense, torch.from_numpy(weight.to_dense()))
    assert not dense[torch.from_numpy(~weight.mask)].any()


@st.composite
def foreign_layers(draw: st.DrawFn) -> tuple[Any, ...]:
    """A float weight, float16 scales within a factor of 8 as float32, zero points or None, and the group size.

    compressed-tensors 0.20 cannot unpack zero points of eight rows or fewer, which lie in one row of words.
    """
    rows, groups, group_size = draw(st.integers(9, 25)), draw(st.integers(1, 4)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = rng.uniform(0.01, 0.08, (rows, groups)).astype(np.float16).astype(np.float32)
    weight = (rng.normal(size=(rows, groups * group_size)) * 0.2).astype(np.float32)
    zero = rng.integers(-8, 8, (rows, groups)).astype(np.int8) if draw(st.booleans()) else None
    return (
        torch.from_numpy(weight),
        torch.from_numpy(scale),
        None if zero is None else torch.from_numpy(zero),
        group_size,
    )


@given(foreign_layers())
def test_what_compressed_tensors_packs_is_read(
    layer: tuple[Any, ...],
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is the other side of the format")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    weight, scale, zero, group_size = layer
    arguments = {
        "num_bits": 4,
        "symmetric": zero is None,
        "strategy": "channel" if scale.shape[1] == 1 else "group",
        "group_size": None if scale.shape[1] == 1 else group_size,
    }
    settings = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments}}}
    (scheme,) = QuantizationConfig.model_validate(settings).config_groups.values()
    state = {"weight": weight, "weight_scale": scale, **({} if zero is None else {"weight_zero_point": zero})}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    dense = PackedQuantizationCompressor.decompress(packed, scheme)["weight"]
    tensors = {f"{NAME}.{suffix}": tensor for suffix, tensor in packed.items()}
    read = read_pack_quantized(tensors, NAME, weight_schemes(settings))
    assert read.scale_error == 0
    assert read.weight.symmetric == (zero is None)
    assert torch.equal(torch.from_numpy(read.weight.to_dense()), dense)
    zeros = read_pack_quantized(tensors, NAME, weight_schemes(settings), NMPattern(1, 1))
    assert zeros.weight.mask.all()
    assert torch.equal(torch.from_numpy(zeros.weight.to_dense()), dense)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_words_are_those_of_compressed_tensors(rows: int, columns: int, seed: int) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is the other side of the format")
    from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32

    codes = np.random.default_rng(seed).integers(-8, 8, (rows, columns)).astype(np.int8)
    words = pack_nibbles((codes + 8).astype(np.uint8))
    assert torch.equal(torch.from_numpy(words), pack_to_int32(torch.from_numpy(codes), 4))
    assert np.array_equal(unpack_nibbles(words)[:, :columns].astype(np.int8) - 8, codes)
    assert torch.equal(unpack_from_int32(torch.from_numpy(words), 4, (rows, columns)), torch.from_numpy(codes))


def test_scales_are_rounded_to_the_dtype_and_it_is_told() -> None:
    weight = quantize_rtn(np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32), NMPattern(1, 1), 16)
    linear = QuantizedLinear(weight, np.full(8, 1.001, np.float32))
    for dtype, significant in ((torch.float32, 24), (torch.float16, 11), (torch.bfloat16, 8)):
        tensors = compressed_tensors_tensors(NAME, linear, dtype)
        assert tensors[f"{NAME}.weight_scale"].dtype == tensors[f"{NAME}.bias"].dtype == dtype
        read = read_pack_quantized(tensors, NAME).weight
        told = scale_error(linear, dtype)
        assert (told == 0) if dtype == torch.float32 else (2.0 ** -(significant + 3) < told <= 2.0**-significant)
        difference = np.abs(read.to_dense() - weight.to_dense())
        assert difference.max() <= np.abs(weight.to_dense()).max() * (told + 1e-7)
    large = dataclasses.replace(weight, channel_scale=np.full(8, 1e4, np.float32))
    with pytest.raises(
        ValueError, match=rf"^Layer {NAME} has a scale of 1270000\.0, which is too large for torch\.float16"
    ):
        compressed_tensors_tensors(NAME, QuantizedLinear(large), torch.float16)


def test_scales_of_zero_are_exact() -> None:
    weight = quantize_rtn(np.ones((2, 8), np.float32), NMPattern(1, 1), 4)
    linear = QuantizedLinear(dataclasses.replace(weight, group_scale=np.array([[0, 3], [0, 0]])))
    assert scale_error(linear) == 0
    read = read_pack_quantized(compressed_tensors_tensors(NAME, linear), NAME)
    assert read.scale_error == 0
    assert np.array_equal(read.weight.to_dense(), linear.weight.to_dense())


def test_a_column_order_cannot_be_written() -> None:
    weight = quantize_rtn(np.ones((2, 8), np.float32), NMPattern(1, 1), 4)
    with pytest.raises(ValueError, match=f"^Layer {NAME} takes its input features in an order of its own"):
        compressed_tensors_tensors(NAME, QuantizedLinear(weight, None, np.arange(8)[::-1].copy()))
