"""Files of the format pack-quantized: our writer, our reader and compressed-tensors' own functions agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern, NMWeight, QuantizedLinear, split_scales
from quant.formats.compressed_tensors import (
    compressed_tensors_config,
    compressed_tensors_mask,
    compressed_tensors_tensors,
    scale_error,
)
from quant.formats.own_layers import StoredLayer
from quant.formats.pack_quantized import read_pack_quantized
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
