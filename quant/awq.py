"""Scales per input feature that make the weights of layers with one input easier to quantise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quant.layer import layer_error, output_energy, quantize_layer
from quant.linear import LayerSettings
from quant.statistics import InputStatistics

#: Exponents tried in this order; 0 is the layers as they are.
_EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Exponents in a row that may be no better than the best before the search ends.
_PATIENCE = 2


def awq_scales(layers: Sequence[Tensor], statistics: InputStatistics, settings: LayerSettings) -> Tensor:
    """Search scales s = rms(x)^α; W · diag(s) is then quantised in place of W, and the input divided by s.

    The α of the least output error, summed over the layers, is taken. Each is judged by the settings' own method:
    scales that serve round-to-nearest were seen to harm methods that compensate errors.

    Parameters
    ----------
    layers : floating [O_i, K] each
        Weights of the layers that read the same input.
    statistics : InputStatistics
        Of that input, with the whole matrix if the method needs it.
    settings : LayerSettings
        Pattern, group, codes and method.

    Returns
    -------
    float32 [K]
        Positive scales; all ones where no exponent lowers the error.

    Raises
    ------
    ValueError
        Where `quantize_layer` does.

    Source
    ------
    Lin et al., "AWQ: Activation-aware Weight Quantization", arXiv 2306.00978.
    """
    weights = [layer.detach().float() for layer in layers]
    energy = [output_energy(layer, statistics) for layer in weights]
    best, least, worse = torch.ones(statistics.in_features), float("inf"), 0
    for exponent in _EXPONENTS:
        scales = feature_scales(statistics, exponent)
        seen = scaled_statistics(statistics, scales)
        error = 0.0
        for layer, share in zip(weights, energy, strict=True):
            scaled = layer * scales
            error += share * layer_error(scaled, quantize_layer(scaled, seen, settings), seen)
        if error < least:
            best, least, worse = scales, error, 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return best


def feature_scales(statistics: InputStatistics, exponent: float) -> Tensor:
    """rms(x)^exponent divided by the geometric mean of its extremes, float32 [K]; 1 where a feature is always 0."""
    rms = statistics.mean_square.double().sqrt()
    alive = rms > 0
    if not alive.any():
        return torch.ones_like(statistics.mean_square)
    middle = (rms[alive].max() * rms[alive].min()).sqrt()
    return torch.where(alive, (rms / middle).pow(exponent), 1.0).float()


def scaled_statistics(statistics: InputStatistics, scales: Tensor) -> InputStatistics:
    """Statistics of the input divided by the scales [K]."""
    scaled = InputStatistics(statistics.in_features, full=False)
    scaled.rows = statistics.rows
    scaled.mean_square = statistics.mean_square / scales.square()
    if statistics.hessian is not None:
        scaled.hessian = statistics.hessian / scales / scales[:, None]
    return scaled
