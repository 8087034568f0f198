"""Pruning and quantisation that pass the error of each column on to the later ones.

The error of a layer on its calibration inputs is tr(E H Eᵀ) for E = W - Ŵ. With H = R Rᵀ, R upper triangular,
a row's error is Σⱼ (e R)ⱼ² = Σⱼ Rⱼⱼ² (ŵⱼ - tⱼ)², where tⱼ = wⱼ + Σ_{i<j} (wᵢ - ŵᵢ) Rᵢⱼ / Rⱼⱼ depends only on the
columns before j. Going from left to right, t is the weight that would undo the error made so far, and Rⱼⱼ² what a
deviation from it costs; Rⱼⱼ² is 1 / [H⁻¹]ⱼⱼ of the columns not yet settled, without an inverse.

Source
------
SparseGPT: Frantar and Alistarh, arXiv 2301.00774. GPTQ: Frantar et al., arXiv 2210.17323. As successive
elimination without an inverse: QuIP's LDL view, Chee et al., arXiv 2307.13304.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.masks import keep_largest_lanes
from quant.pattern import NMPattern

#: Columns settled between two matrix products, rounded to a multiple of m.
_COLUMNS_AT_A_TIME = 128

#: How often damping grows tenfold before a Hessian is given up.
_DAMPING_STEPS = 5


class ErrorFactor(NamedTuple):
    """Triangular factor of a damped Hessian, in the form that the sweep reads."""

    #: Rᵢⱼ / Rⱼⱼ, float32 [K, K], unit upper triangular.
    feedback: Tensor
    #: Rⱼⱼ², float32 [K].
    cost: Tensor


def factor_hessian(hessian: Tensor, damping: float = 0.01) -> ErrorFactor:
    """Factor H + damping · mean(diag H) · I.

    Where float32 cannot factor it, the damping grows tenfold, up to five times.

    Parameters
    ----------
    hessian : float32 [K, K]
        Symmetric, positive semidefinite up to rounding. Features that were always 0 are legal.
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
    added = (damping * mean) if mean > 0 else 1.0
    for _ in range(_DAMPING_STEPS + 1):
        # Reversed in both axes, the lower factor of LAPACK is the upper one.
        reversed_hessian = hessian.flip(0, 1)
        reversed_hessian.diagonal().add_(added)
        lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
        diagonal = lower.diagonal().flip(0)
        if not failed and bool(diagonal.isfinite().all()) and bool((diagonal > 0).all()):
            upper = lower.flip(0, 1)
            return ErrorFactor(upper.div_(diagonal), diagonal.square())
        added = max(10 * added, 1e-6 * mean)
    raise ValueError(
        f"The Hessian of {len(hessian)} features is not positive definite even with {added / 10 / mean:.3g} of its "
        "mean diagonal added; the calibration inputs may hold huge values."
    )


class Swept(NamedTuple):
    """Result of a sweep, column-major."""

    #: Settled weights, float32 [K, O], 0 where pruned.
    weights: Tensor
    #: Kept positions, bool [K, O].
    mask: Tensor


#: Called at each column that starts a group with its index and the current targets [length, O]; returns how
#: targets [..., O] are moved to the grid.
OpenGroup = Callable[[int, Tensor], Callable[[Tensor], Tensor]]


def sweep(
    weights: Tensor,
    factor: ErrorFactor,
    pattern: NMPattern,
    mask: Tensor | None = None,
    group_length: int | None = None,
    open_group: OpenGroup | None = None,
) -> Swept:
    """Settle the columns from left to right, each one compensating the errors of those before it.

    Without a mask each block of m keeps the n positions whose pruning would cost most, decided when the sweep
    reaches the block. Without open_group kept weights stay real-valued.
    """
    columns = len(weights)
    settled = torch.empty_like(weights)
    kept = torch.ones(weights.shape, dtype=torch.bool) if mask is None else mask
    residual = torch.zeros_like(weights)
    step = max(1, _COLUMNS_AT_A_TIME // pattern.m) * pattern.m
    if open_group is not None and group_length is not None:
        # A panel never spans two groups, as a group's targets must be known when its grid is fitted.
        step = group_length
    move: Callable[[Tensor], Tensor] | None = None
    for first in range(0, columns, step):
        last = min(first + step, columns)
        target = torch.addmm(weights[first:last], factor.feedback[:first, first:last].T, residual[:first])
        if open_group is not None:
            move = open_group(first // step, target)
        for block in range(first, last, pattern.m):
            end = min(block + pattern.m, last)
            if mask is None and pattern.n < end - block:
                here = target[block - first : end - first]
                gain = here.square()
                if move is not None:
                    gain = gain - (move(here) - here).square_()
                kept[block:end] = keep_largest_lanes(gain * factor.cost[block:end, None], pattern.n)
            for column in range(block, end):
                value = target[column - first]
                if move is not None:
                    value = move(value)
                settled[column] = value * kept[column]
                residual[column] = weights[column] - settled[column]
                target[column - first + 1 :].addr_(factor.feedback[column, column + 1 : last], residual[column])
    return Swept(settled, kept)
