"""Which weights an N:M layer keeps, and their real values, such that its output moves least.

SparseGPT decides each block for good with the columns before it settled. Here all columns move together as well:
the alternating direction method of multipliers pulls the best unconstrained weights X towards the nearest ones Z
that obey the pattern, X = (H + ρI)⁻¹ (H W + ρ (Z - U)) and Z = the largest n of every m of X + U, where U adds up
what is left between the two. A small ρ lets masks change freely, which finds far better ones where inputs are
correlated, and worse ones where they are not; so each output row takes the better of this mask and SparseGPT's.

Source
------
ADMM for pruning, on inputs scaled to one size: Boža, "Fast and Effective Weight Update for Pruned Large Language
Models", arXiv 2401.02938. ρ that grows: ALPS, Meng et al., arXiv 2406.07831.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.masks import keep_largest
from quant.pattern import NMPattern
from quant.second_order import ErrorFactor, Settled, sweep

#: Penalties, relative to a diagonal of ones, and steps with each.
_PENALTIES = (0.03, 0.1, 0.3)
_STEPS_PER_PENALTY = 4

#: Steps of conjugate gradients before two masks are compared, and after.
_STEPS_TO_COMPARE = 2
_STEPS_TO_FINISH = 8


def search_kept(weights: Tensor, factor: ErrorFactor, pattern: NMPattern) -> Settled:
    """Find a mask and weights on it of little output error.

    Parameters
    ----------
    weights : float32 [K, O]
        Weights, column-major.
    factor : ErrorFactor
        Of the layer's input.
    pattern : NMPattern
        Pattern to prune to; a dense one leaves the weights as they are.
    """
    if pattern.is_dense:
        return Settled(weights, torch.ones(weights.shape, dtype=torch.bool))
    hessian = factor.hessian
    swept, error = fit_kept(weights, hessian, sweep(weights, factor, pattern), _STEPS_TO_COMPARE)
    pulled, other_error = fit_kept(weights, hessian, pull_to_pattern(weights, hessian, pattern), _STEPS_TO_COMPARE)
    better = other_error < error
    chosen = Settled(*(torch.where(better, new, old) for new, old in zip(pulled, swept, strict=True)))
    del swept, pulled
    return fit_kept(weights, hessian, chosen, _STEPS_TO_FINISH)[0]


def pull_to_pattern(weights: Tensor, hessian: Tensor, pattern: NMPattern) -> Settled:
    """Find a mask by the alternating direction method of multipliers, with rough weights; arguments as above."""
    size = hessian.diagonal().sqrt()[:, None]
    scaled = (hessian / size).div_(size.T)
    goal = hessian @ weights
    goal /= size
    nearest = weights * size
    multiplier = torch.zeros_like(weights)
    penalty_before = _PENALTIES[0]
    for penalty in _PENALTIES:
        # The multiplier is held as a multiple of the penalty.
        multiplier *= penalty_before / penalty
        penalty_before = penalty
        nearest = _alternate(scaled, goal, nearest, multiplier, pattern, penalty)
    multiplier += nearest
    mask = keep_largest(multiplier.abs(), pattern, axis=0)
    return Settled(multiplier.mul_(mask).div_(size), mask)


def _alternate(
    scaled: Tensor, goal: Tensor, nearest: Tensor, multiplier: Tensor, pattern: NMPattern, penalty: float
) -> Tensor:
    """Steps of one penalty, from and to the unconstrained weights; the multiplier changes in place."""
    shifted = scaled.clone()
    shifted.diagonal().add_(penalty)
    torch.linalg.cholesky(shifted, out=shifted)
    inverse = torch.cholesky_inverse(shifted)
    del shifted
    for _ in range(_STEPS_PER_PENALTY):
        multiplier += nearest
        legal = multiplier * keep_largest(multiplier.abs(), pattern, axis=0)
        multiplier -= legal
        torch.mm(inverse, legal.sub_(multiplier).mul_(penalty).add_(goal), out=nearest)
    return nearest


def fit_kept(weights: Tensor, hessian: Tensor, start: Settled, steps: int) -> tuple[Settled, Tensor]:
    """Move the kept weights towards the least output error by conjugate gradients; no step raises it.

    Parameters
    ----------
    weights : float32 [K, O]
        The layer's weights, column-major.
    hessian : float32 [K, K]
        Damped second moments of the input, positive definite.
    start : Settled
        Mask, which stays, and weights to start from.
    steps : int
        Matrix products spent, besides one.

    Returns
    -------
    Settled, float32 [O]
        Weights, and the output error of each row.
    """
    diagonal = hessian.diagonal()[:, None]
    found = start.weights.clone()
    residual = weights - found
    gradient = hessian @ residual
    error = residual.mul_(gradient).sum(dim=0)
    del residual
    gradient *= start.mask
    direction = gradient / diagonal
    decline = (gradient * direction).sum(dim=0)
    smallest = torch.finfo(torch.float32).tiny
    for _ in range(steps):
        image = (hessian @ direction).mul_(start.mask)
        length = decline / (direction * image).sum(dim=0).clamp(min=smallest)
        error -= length * decline
        found.addcmul_(direction, length)
        gradient.addcmul_(image, length, value=-1)
        ahead = gradient / diagonal
        decline_before, decline = decline, (gradient * ahead).sum(dim=0)
        direction.mul_(decline / decline_before.clamp(min=smallest)).add_(ahead)
    return Settled(found, start.mask), error
