"""Scales per input feature that make the weights of layers with one input easier to quantise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quant.layer import layer_error, output_energy, quantize_layer
from quant.linear import LayerSettings
from quant.statistics import InputStatistics

#: Exponents tried; 0 is the layers as they are.
_EXPONENTS = tuple(step / 10 for step in range(11))


def awq_scales(layers: Sequence[Tensor], statistics: InputStatistics, settings: LayerSettings) -> Tensor:
    """Search scales s = rms(x)^α; W · diag(s) is then quantised in place of W, and the input divided by s.

    The α of the least output error, summed over the layers, is taken. Each is judged by round-to-nearest on
    Wanda's mask.

    Parameters
    ----------
    layers : floating [O_i, K] each
        Weights of the layers that read the same input.
    statistics : InputStatistics
        Of that input.
    settings : LayerSettings
        Pattern, group and codes.

    Returns
    -------
    float32 [K]
        Positive scales; all ones where no exponent lowers the error.

    Source
    ------
    Lin et al., "AWQ: Activation-aware Weight Quantization", arXiv 2306.00978.
    """
    judged_by = replace(settings, method="wanda-rtn")
    energy = [output_energy(layer.detach().float(), statistics) for layer in layers]
    best, least = torch.ones(statistics.in_features), float("inf")
    for exponent in _EXPONENTS:
        scales = feature_scales(statistics, exponent)
        seen = scaled_statistics(statistics, scales)
        scaled = [layer.detach().float() * scales for layer in layers]
        error = sum(
            layer_error(layer, quantize_layer(layer, seen, judged_by), seen) * share
            for layer, share in zip(scaled, energy, strict=True)
        )
        if error < least:
            best, least = scales, error
    return best


def feature_scales(statistics: InputStatistics, exponent: float) -> Tensor:
    """rms(x)^exponent with the largest times the smallest being 1, float32 [K]; 1 where a feature is always 0."""
    rms = statistics.mean_square.sqrt()
    alive = rms > 0
    if not alive.any():
        return torch.ones_like(rms)
    scales = rms.pow(exponent).clamp(min=1e-4)
    scales = scales / (scales[alive].max() * scales[alive].min()).sqrt()
    return torch.where(alive, scales, 1.0)


def scaled_statistics(statistics: InputStatistics, scales: Tensor) -> InputStatistics:
    """Statistics of the input divided by the scales [K]."""
    scaled = InputStatistics(statistics.in_features, full=False)
    scaled.rows = statistics.rows
    scaled.mean_square = statistics.mean_square / scales.square()
    if statistics.hessian is not None:
        scaled.hessian = statistics.hessian / scales / scales[:, None]
    return scaled
