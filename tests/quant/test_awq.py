from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import METHODS, LayerSettings, NMPattern
from quant.awq import awq_scales, feature_scales, scaled_statistics
from quant.layer import layer_error, quantize_layer
from quant.statistics import InputStatistics

Inputs = Callable[..., torch.Tensor]


def gathered(x: torch.Tensor, full: bool = True) -> InputStatistics:
    statistics = InputStatistics(x.shape[-1], full)
    statistics.add(x)
    return statistics


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_scaled_statistics_are_those_of_the_divided_input(
    correlated: Inputs, features: int, seed: int, exponent: float
) -> None:
    x = correlated(features, seed)
    scales = feature_scales(gathered(x), exponent)
    found, expected = scaled_statistics(gathered(x), scales), gathered(x / scales)
    assert found.rows == expected.rows
    assert torch.allclose(found.mean_square, expected.mean_square, rtol=1e-4)
    assert found.hessian is not None
    assert expected.hessian is not None
    assert torch.allclose(found.hessian, expected.hessian, rtol=1e-3, atol=1e-5 * float(expected.mean_square.max()))
    assert scaled_statistics(gathered(x, full=False), scales).hessian is None
    ratio = scales.log() - scales.log().mean()
    size = gathered(x).mean_square.sqrt().log()
    assert torch.allclose(ratio, exponent * (size - size.mean()), atol=1e-4)


@pytest.mark.parametrize("method", ["wanda-rtn", "wanda-gptq", "joint"])
def test_scales_never_raise_the_summed_error(correlated: Inputs, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(rows, 64, generator=generator) for rows in (8, 24)]
    x = correlated(64)
    how = LayerSettings(NMPattern(2, 4), 32, method=method)
    scales = awq_scales(layers, gathered(x), how)
    assert scales.dtype == torch.float32
    assert (scales > 0).all()

    def summed(scales: torch.Tensor) -> float:
        off = 0.0
        for layer in layers:
            dense = torch.from_numpy(quantize_layer(layer * scales, gathered(x / scales), how).to_dense())
            off += float((x @ layer.T - (x / scales) @ dense.T).double().square().sum())
        return off

    assert summed(scales) <= summed(torch.ones(64)) * (1 + 1e-3)


def test_weights_of_a_few_strong_features_are_protected() -> None:
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(1))
    x[:, ::37] *= 30
    statistics = gathered(x)
    layer = torch.randn(32, 128, generator=torch.Generator().manual_seed(2))
    how = LayerSettings(NMPattern.parse("dense"), 128, method="magnitude-rtn", clip=False)
    scales = awq_scales([layer], statistics, how)
    assert scales[0] > 1.5 * scales[1]
    seen = scaled_statistics(statistics, scales)
    plain = layer_error(layer, quantize_layer(layer, statistics, how), statistics)
    assert layer_error(layer * scales, quantize_layer(layer * scales, seen, how), seen) < 0.6 * plain


def test_the_layer_of_the_louder_output_decides() -> None:
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(1))
    x[:, ::37] *= 30
    generator = torch.Generator().manual_seed(2)
    quiet, loud = 0.01 * torch.randn(32, 128, generator=generator), torch.randn(32, 128, generator=generator)
    loud[:, ::37] *= 3  # already large where the input is
    how = LayerSettings(NMPattern.parse("dense"), 128, method="magnitude-rtn", clip=False)
    ones = [1.0] * 128
    assert awq_scales([loud], gathered(x), how).tolist() == ones
    assert awq_scales([quiet], gathered(x), how).tolist() != ones
    assert awq_scales([quiet, loud], gathered(x), how).tolist() == ones


@pytest.mark.parametrize("method", METHODS)
def test_scales_are_ones_where_nothing_is_to_gain(method: str) -> None:
    statistics = InputStatistics(16)
    statistics.add(torch.eye(16))
    layer = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    how = LayerSettings(NMPattern(2, 4), 16, method=method)
    assert awq_scales([layer], statistics, how).tolist() == [1.0] * 16


def test_dead_features_are_left_alone(correlated: Inputs) -> None:
    x = correlated(32)
    x[:, 3] = 0
    assert feature_scales(gathered(x), 0.7)[3] == 1.0
    assert feature_scales(gathered(torch.zeros(2, 4)), 0.7).tolist() == [1.0] * 4
    layer = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    scales = awq_scales([layer], gathered(x), LayerSettings(NMPattern(2, 4), 32, method="wanda-rtn"))
    assert scales[3] == 1.0
    assert scales.isfinite().all()
