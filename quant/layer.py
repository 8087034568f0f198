"""One linear layer: pruned and quantised by any of the methods, and how far that moved its output."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.descent import descend
from quant.grid import Grid, LayerGrid, fit_grid
from quant.linear import LayerSettings
from quant.mask_search import search_kept
from quant.masks import keep_largest, wanda_score
from quant.second_order import ErrorFactor, Settled, factor_hessian, sweep
from quant.statistics import InputStatistics
from quant.weight import NMWeight


def quantize_layer(
    W: Tensor, statistics: InputStatistics | None, settings: LayerSettings, damping: float = 0.01
) -> NMWeight:
    """Prune and quantise a layer's weights.

    The mask comes first in the name of a method, the codes last:

    * magnitude: keeps the largest weights;
    * wanda: keeps the largest products of weight and root mean square of its input;
    * sparsegpt: keeps what would cost most to prune, and moves the later weights to compensate;
    * rtn: rounds each weight to the nearest code;
    * gptq: moves the kept weights to compensate the pruned ones, then rounds column by column, and moves the later
      kept weights to compensate that; pruned weights stay 0;
    * joint: searches the mask and the kept weights together, fits the scales to them, rounds as gptq does, and then
      moves codes and mask, each with all others in view, as long as the output error falls.

    Parameters
    ----------
    W : floating [O, K]
        Finite weights.
    statistics : InputStatistics, optional
        Of the layer's input. magnitude-rtn needs none, wanda-rtn only the diagonal, all others the whole matrix.
    settings : LayerSettings
        Pattern, group, codes and method.
    damping : float
        Share of the mean of the Hessian's diagonal that is added to it.

    Returns
    -------
    NMWeight
        Exactly min(n, block length) kept per block.

    Raises
    ------
    ValueError
        If W is empty, not 2-D or not finite, or if the statistics do not fit it or lack what the method needs.
    """
    weights = _read_weights(W)
    _check_statistics(weights, statistics, settings.method)
    columns = weights.shape[1]
    whole_row = -(-columns // settings.pattern.m) * settings.pattern.m
    length = whole_row if settings.group_size == -1 else min(settings.group_size, whole_row)
    chosen, _, rounding = settings.method.partition("-")

    if settings.method in _NEED_NO_MATRIX:
        importance = torch.ones(columns) if statistics is None else statistics.mean_square
        return _round(_keep(weights, statistics, chosen, settings), importance, length, settings)
    assert statistics is not None
    assert statistics.hessian is not None
    factor = factor_hessian(statistics.hessian, damping)
    by_column = weights.T.contiguous()
    if chosen == "joint":
        kept = search_kept(by_column, factor, settings.pattern)
        rounded, grid = _round_by_column(kept, factor, length, settings)
        return _weight(descend(by_column, factor.hessian, rounded, grid, settings.pattern), grid, settings)
    mask = None if chosen == "sparsegpt" else _keep(weights, statistics, chosen, settings).mask
    start = sweep(by_column, factor, settings.pattern, mask)
    if rounding == "rtn":
        return _round(start, statistics.mean_square, length, settings)
    return _weight(*_round_by_column(start, factor, length, settings), settings)


#: Methods that need no second moments between two features.
_NEED_NO_MATRIX = ("magnitude-rtn", "wanda-rtn")


def _keep(weights: Tensor, statistics: InputStatistics | None, chosen: str, settings: LayerSettings) -> Settled:
    """Keep what scores highest, weights [O, K] as they are."""
    score = weights.abs() if chosen == "magnitude" or statistics is None else wanda_score(weights, statistics)
    return Settled(weights.T.contiguous(), keep_largest(score, settings.pattern).T.contiguous())


def _round(start: Settled, importance: Tensor, length: int, settings: LayerSettings) -> NMWeight:
    return _weight(start, _fit_grids(start, importance, length, settings), settings)


def _round_by_column(
    start: Settled, factor: ErrorFactor, length: int, settings: LayerSettings
) -> tuple[Settled, LayerGrid]:
    """Sweep with real-valued scales, fitted as groups are reached; split them in two levels, and sweep again."""
    groups: list[Grid] = []

    def fit(index: int, target: Tensor) -> Grid:
        part = slice(index * length, index * length + len(target))
        importance = factor.cost[part] if settings.clip else None
        groups.append(fit_grid(target, start.mask[part], settings.symmetric, importance))
        return groups[-1]

    sweep(start.weights, factor, settings.pattern, start.mask, length, fit)
    grid = LayerGrid.from_groups(groups, length, settings.scale_bits)
    again = sweep(start.weights, factor, settings.pattern, start.mask, length, lambda index, target: grid.group(index))
    return again, grid


def _fit_grids(start: Settled, importance: Tensor, length: int, settings: LayerSettings) -> LayerGrid:
    """Fit every group's scale to the weights as they are, errors weighted by an importance [K] if clipping."""
    groups = []
    for first in range(0, len(start.weights), length):
        part = slice(first, first + length)
        weight_of_error = importance[part] if settings.clip else None
        groups.append(fit_grid(start.weights[part], start.mask[part], settings.symmetric, weight_of_error))
    return LayerGrid.from_groups(groups, length, settings.scale_bits)


def _weight(settled: Settled, grid: LayerGrid, settings: LayerSettings) -> NMWeight:
    codes = torch.empty(settled.weights.shape, dtype=torch.int8)
    for first in range(0, len(codes), grid.length):
        part = slice(first, first + grid.length)
        codes[part] = grid.group(first // grid.length).codes(settled.weights[part] * settled.mask[part])
    return NMWeight(
        codes.T.numpy(),
        settled.mask.T.numpy(),
        grid.group_scale.T.numpy(),
        grid.channel_scale.numpy(),
        settings.pattern,
        settings.group_size,
        None if grid.zero is None else grid.zero.T.to(torch.int32).numpy(),
    )


def layer_error(W: Tensor, weight: NMWeight, statistics: InputStatistics) -> float:
    """Relative squared error of the layer's output on the calibration inputs: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ).

    Where the statistics hold no whole matrix, its diagonal stands for it. An output of zeros has error 0.
    """
    weights = _read_weights(W)
    delta = weights - torch.from_numpy(weight.to_dense())
    energy = output_energy(weights, statistics)
    return output_energy(delta, statistics) / energy if energy > 0 else 0.0


def output_energy(weights: Tensor, statistics: InputStatistics) -> float:
    """Mean square of the output summed over the rows of weights [O, K]: tr(W H Wᵀ)."""
    if statistics.hessian is None:
        return float((weights.square() @ statistics.mean_square).double().sum())
    return float(((weights @ statistics.hessian) * weights).double().sum())


def _read_weights(W: Tensor) -> Tensor:
    weights = W.detach().float()
    if weights.ndim != 2 or weights.numel() == 0:
        raise ValueError(
            f"The weight matrix has shape {tuple(weights.shape)}, but it must be [O, K] with O and K at least 1."
        )
    finite = weights.isfinite()
    if not finite.all():
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise ValueError(
            f"The weight in row {row}, column {column} is {W[row, column].item()}, but every weight must be finite."
        )
    return weights


def _check_statistics(weights: Tensor, statistics: InputStatistics | None, method: str) -> None:
    if statistics is None:
        if method != "magnitude-rtn":
            raise ValueError(f"Method {method} needs statistics of the layer's input; only magnitude-rtn needs none.")
        return
    if statistics.in_features != weights.shape[1]:
        raise ValueError(
            f"The statistics are of {statistics.in_features} input features, but the layer has {weights.shape[1]}."
        )
    if statistics.rows == 0:
        raise ValueError("The statistics have seen no input; add calibration inputs first.")
    if statistics.hessian is None and method not in _NEED_NO_MATRIX:
        raise ValueError(f"Method {method} needs the whole matrix of second moments, but only its diagonal was kept.")
