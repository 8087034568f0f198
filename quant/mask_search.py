"""Which weights an N:M layer keeps, and their real values, such that its output moves least.

SparseGPT decides each block for good with the columns before it settled. Here all columns move together: the
alternating direction method of multipliers pulls the best unconstrained weights X towards the nearest ones Z that
obey the pattern, X = (H + ρI)⁻¹ (H W + ρ (Z - U)) and Z = the largest n of every m of X + U, where U adds up what
is left between the two. ρ grows, so that masks change freely first and settle last. Conjugate gradients then find
the best weights on the mask.

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
from quant.second_order import Settled

#: Penalties, relative to a diagonal of ones, and steps with each.
_PENALTIES = (0.03, 0.1, 0.3)
_STEPS_PER_PENALTY = 4


def search_mask(weights: Tensor, hessian: Tensor, pattern: NMPattern) -> Settled:
    """Find a mask and weights of little output error.

    Parameters
    ----------
    weights : float32 [K, O]
        Weights, column-major.
    hessian : float32 [K, K]
        Damped second moments of the input, positive definite.
    pattern : NMPattern
        Pattern to prune to.
    """
    size = hessian.diagonal().sqrt()[:, None]
    scaled = hessian / size / size.T
    goal = scaled @ (weights * size)
    multiplier = torch.zeros_like(weights)
    nearest = weights * size
    penalty_before = _PENALTIES[0]
    for penalty in _PENALTIES:
        # The multiplier is held as a multiple of the penalty.
        multiplier *= penalty_before / penalty
        penalty_before = penalty
        inverse = _inverse(scaled, penalty)
        for _ in range(_STEPS_PER_PENALTY):
            multiplier += nearest
            legal = multiplier * keep_largest(multiplier.abs(), pattern, axis=0)
            multiplier -= legal
            nearest = inverse @ legal.sub_(multiplier).mul_(penalty).add_(goal)
    multiplier += nearest
    mask = keep_largest(multiplier.abs(), pattern, axis=0)
    return Settled(multiplier.mul_(mask).div_(size), mask)


def _inverse(scaled: Tensor, penalty: float) -> Tensor:
    shifted = scaled.clone()
    shifted.diagonal().add_(penalty)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))


def fit_kept(weights: Tensor, hessian: Tensor, start: Settled, steps: int = 8) -> Settled:
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
        Matrix products spent.
    """
    diagonal = hessian.diagonal()[:, None]
    found = start.weights.clone()
    gradient = (hessian @ (weights - found)).mul_(start.mask)
    direction = gradient / diagonal
    decline = (gradient * direction).sum(dim=0)
    smallest = torch.finfo(torch.float32).tiny
    for _ in range(steps):
        image = (hessian @ direction).mul_(start.mask)
        length = decline / (direction * image).sum(dim=0).clamp(min=smallest)
        found.addcmul_(direction, length)
        gradient.addcmul_(image, length, value=-1)
        ahead = gradient / diagonal
        decline_before, decline = decline, (gradient * ahead).sum(dim=0)
        direction.mul_(decline / decline_before.clamp(min=smallest)).add_(ahead)
    return Settled(found, start.mask)
