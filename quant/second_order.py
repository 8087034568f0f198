"""Pruning and quantisation that pass the error of each column on to the later ones.

The error of a layer on its calibration inputs is tr(E H Eᵀ) for E = W - Ŵ. Columns are settled from left to right,
and after each the later ones move to where the error is least: with H⁻¹ = Uᵀ U, U upper triangular, column j moves
by -(wᵢ - ŵᵢ) Uᵢⱼ / Uᵢᵢ when column i settles at ŵᵢ, and the error grows by (wᵢ - ŵᵢ)² / Uᵢᵢ².

Source
------
SparseGPT: Frantar and Alistarh, arXiv 2301.00774. GPTQ: Frantar et al., arXiv 2210.17323.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from quant.grid import Grid
from quant.masks import keep_largest_lanes
from quant.pattern import NMPattern

#: Columns settled between two matrix products, rounded to whole blocks.
_PANEL = 128

#: How often damping grows tenfold before a Hessian is given up.
_DAMPING_STEPS = 5


class ErrorFactor(NamedTuple):
    """A damped Hessian, and its triangular factor in the form that the sweep reads."""

    #: H + damping, float32 [K, K].
    hessian: Tensor
    #: Uᵢⱼ / Uᵢᵢ, float32 [K, K], unit upper triangular.
    feedback: Tensor
    #: 1 / Uᵢᵢ², float32 [K].
    cost: Tensor


def factor_hessian(hessian: Tensor, damping: float = 0.01) -> ErrorFactor:
    """Factor H + damping · mean(diag H) · I.

    Where float32 cannot factor it, the damping grows tenfold, up to five times.

    Parameters
    ----------
    hessian : float32 [K, K]
        Symmetric, positive semidefinite up to rounding. Features that were always 0 are legal, all of them too.
    damping : float
        Share of the mean of H's diagonal, 0 or more.

    Raises
    ------
    ValueError
        If the damping is negative or not finite, or if the matrix cannot be factored.
    """
    if not 0 <= damping < float("inf"):
        raise ValueError(f"The damping is {damping}, but it must be a finite number, 0 or more.")
    mean = float(hessian.diagonal().mean())
    share = damping
    for _ in range(_DAMPING_STEPS + 1):
        damped = hessian.clone()
        damped.diagonal().add_(share * mean if mean > 0 else 1.0)
        # Reversed in both axes, the lower factor L of H gives U as the reverse of its inverse.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        diagonal = lower.diagonal().flip(0).contiguous()
        if not failed and bool(diagonal.isfinite().all()) and bool((diagonal > 0).all()):
            inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False)
            return ErrorFactor(damped, inverse.flip(0, 1).mul_(diagonal[:, None]), diagonal.square())
        share = max(10 * share, 1e-6)
    raise ValueError(
        f"The second moments of {len(hessian)} input features are not positive definite, even with {share / 10:.3g} "
        "of their mean added to the diagonal; they were not gathered from finite inputs, or are not symmetric."
    )


class Settled(NamedTuple):
    """Weights of a layer after a method, column-major."""

    #: float32 [K, O], 0 where pruned.
    weights: Tensor
    #: Kept positions, bool [K, O].
    mask: Tensor


def sweep(
    weights: Tensor,
    factor: ErrorFactor,
    pattern: NMPattern,
    mask: Tensor | None = None,
    group_length: int | None = None,
    open_group: Callable[[int, Tensor], Grid] | None = None,
) -> Settled:
    """Settle the columns from left to right, each one compensating the errors of those before it.

    Without a mask this is SparseGPT: each block of m keeps the n positions whose pruning would cost most, decided
    when the sweep reaches the block. With a mask and a grid it is GPTQ, in which pruned weights stay 0.

    Parameters
    ----------
    weights : float32 [K, O]
        Weights, column-major; left as they are.
    factor : ErrorFactor
        Of the layer's input.
    pattern : NMPattern
        Where blocks lie, and what is kept if no mask is given.
    mask : bool [K, O], optional
        Positions to keep.
    group_length : int, optional
        Columns of a group, a multiple of m; needed with open_group.
    open_group : callable, optional
        Called at the first column of each group with the group's index and its columns' targets [length, O];
        returns the grid that kept weights are moved to. Without it they stay real-valued.
    """
    columns = len(weights)
    settled = torch.empty_like(weights)
    error = torch.empty_like(weights)
    kept = torch.ones(weights.shape, dtype=torch.bool) if mask is None else mask
    grid: Grid | None = None

    def targets(first: int, last: int) -> Tensor:
        return torch.addmm(weights[first:last], factor.feedback[:first, first:last].T, error[:first], alpha=-1)

    for first, last in panels(columns, pattern.m, group_length):
        target = targets(first, last)
        for block in range(first, last, pattern.m):
            end = min(block + pattern.m, last)
            if open_group is not None and group_length is not None and block % group_length == 0:
                group_end = min(block + group_length, columns)
                in_panel = target[block - first : group_end - first]
                grid = open_group(block // group_length, in_panel if group_end <= last else targets(block, group_end))
            if mask is None:
                score = target[block - first : end - first].square() * factor.cost[block:end, None]
                kept[block:end] = keep_largest_lanes(score, pattern.n)
            for column in range(block, end):
                value = target[column - first]
                torch.mul(value if grid is None else grid.nearest(value), kept[column], out=settled[column])
                torch.sub(value, settled[column], out=error[column])
                target[column - first + 1 :].addr_(factor.feedback[column, column + 1 : last], error[column], alpha=-1)
    return Settled(settled, kept)


def panels(columns: int, m: int, group_length: int | None) -> Iterator[tuple[int, int]]:
    """First and last column (excluded) of each panel: whole groups where they are short, else parts of one group,
    and whole blocks of m in any case."""
    short = group_length is not None and group_length <= _PANEL
    unit = group_length if group_length is not None and short else m
    step = max(1, _PANEL // unit) * unit
    stretch = columns if group_length is None or short else group_length
    for start in range(0, columns, stretch):
        end = min(start + stretch, columns)
        for first in range(start, end, step):
            yield first, min(first + step, end)
