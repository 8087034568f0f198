"""From activations to results: NMLinear against the core on its packed stream, in every bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from accel import CoreConfig, PackedStream, load_preset, pack
from accel.packed_checkpoint import PackedCheckpoint, write_packed
from golden.linear import NMLinear, quantise_tokens
from quant import NMPattern, QuantizedLinear, magnitude_mask, quantize_rtn
from verify.cases import Case
from verify.gemm import run_gemm
from verify.strategies import cases, core_configs


def on_the_core(
    config: CoreConfig, x: NDArray[np.float32], linear: QuantizedLinear, stream: PackedStream, level: str
) -> NDArray[np.float32]:
    """What a host makes of the core's accumulators."""
    codes, scale = quantise_tokens(torch.from_numpy(x), config.act_bits)
    features = codes.numpy().astype(np.int64)
    if linear.column_order is not None:
        features = features[:, linear.column_order]
    acc = run_gemm(config, features, stream, level).y
    y: NDArray[np.float32] = acc.astype(np.float32) * linear.weight.channel_scale * scale.numpy()[:, None]
    return y if linear.bias is None else y + linear.bias


def same_bits(a: torch.Tensor, b: NDArray[np.float32]) -> bool:
    return np.array_equal(a.numpy().view(np.uint32), b.view(np.uint32))


@given(cases(core_configs()), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_layer_on_any_core(case: Case, bias: bool, ordered: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    integers, weight = case.build()
    rows, columns = weight.values.shape
    linear = QuantizedLinear(
        dataclasses.replace(weight, channel_scale=rng.standard_normal(rows).astype(np.float32)),
        bias=rng.standard_normal(rows).astype(np.float32) if bias else None,
        column_order=rng.permutation(columns) if ordered else None,
    )
    x = (integers * rng.uniform(0.001, 3, (len(integers), 1))).astype(np.float32)
    got = NMLinear(linear, case.config.act_bits)(torch.from_numpy(x))
    stream = pack(linear.weight, case.config, case.code)
    assert same_bits(got, on_the_core(case.config, x, linear, stream, "fl"))


@pytest.mark.parametrize("pattern", ["2:4", "3:4", "dense"])
def test_a_stored_layer_on_the_verilated_core(pattern: str, tmp_path: Path) -> None:
    """Quantised, packed, written, read: the stream on disk on the core is NMLinear of what was quantised."""
    tiny = load_preset("tiny")
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((7, 100)).astype(np.float32)
    kept = NMPattern.parse(pattern)
    linear = QuantizedLinear(
        quantize_rtn(matrix, kept, 24, symmetric=False, mask=magnitude_mask(matrix, kept)),
        bias=rng.standard_normal(7).astype(np.float32),
        column_order=rng.permutation(100),
    )
    write_packed(tmp_path / "model", {"layer": linear}, {}, {}, tiny)
    packed = PackedCheckpoint.open(tmp_path / "model")
    x = rng.standard_normal((5, 100)).astype(np.float32)
    x[1] *= 1e-30
    x[2] = 0
    got = NMLinear(linear)(torch.from_numpy(x))
    assert torch.equal(NMLinear(packed.layers["layer"])(torch.from_numpy(x)), got)
    for level in ("golden", "fl", "cl", "verilog"):
        assert same_bits(got, on_the_core(tiny, x, packed.layers["layer"], packed.stream("layer"), level))
