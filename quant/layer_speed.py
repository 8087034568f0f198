"""How long one layer takes to be pruned and quantised."""

from __future__ import annotations

import time

import torch

from quant.layer import quantize_layer
from quant.linear import LayerSettings
from quant.pattern import NMPattern
from quant.statistics import InputStatistics


def quantize_seconds(settings: LayerSettings | None = None, size: int = 4096, seed: int = 0) -> float:
    """Wall time of `quantize_layer` on random weights, [size, size], with the second moments of the input given.

    The input has size / 16 hidden causes and noise, so that features are correlated as a model's are.

    Parameters
    ----------
    settings : LayerSettings, optional
        joint at 2:4 in groups of 128 by default.
    size : int
        Inputs and outputs of the layer.
    seed : int
        Of the weights and the input.
    """
    generator = torch.Generator().manual_seed(seed)
    causes = max(1, size // 16)
    mixing = torch.randn(causes, size, generator=generator) / causes**0.5
    statistics = InputStatistics(size)
    for _ in range(2):
        x = torch.randn(size, causes, generator=generator) @ mixing
        statistics.add(x.add_(torch.randn(size, size, generator=generator), alpha=0.5))
    del x
    weights = 0.02 * torch.randn(size, size, generator=generator)
    start = time.perf_counter()
    quantize_layer(weights, statistics, settings or LayerSettings(NMPattern(2, 4)))
    return time.perf_counter() - start
