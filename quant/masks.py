"""Masks of any n:m pattern from scores, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.pattern import NMPattern
from quant.statistics import InputStatistics


def keep_largest(score: Tensor, pattern: NMPattern, axis: int = 1) -> Tensor:
    """Keep the n positions of highest score in each block of m.

    Equal scores keep the lower index, as `quant.prune.magnitude_mask` does.

    Parameters
    ----------
    score : floating [O, K]
        Scores without NaN; infinities are legal.
    pattern : NMPattern
        n counts the kept positions.
    axis : int
        The axis of K, along which blocks lie: 1, or 0 for a score [K, O].

    Returns
    -------
    bool, of the score's shape
        True where kept: exactly min(n, block length) per block.

    Raises
    ------
    ValueError
        If a score is NaN.
    """
    if pattern.is_dense:
        return torch.ones(score.shape, dtype=torch.bool)
    if score.isnan().any():
        row, column = (int(i) for i in score.isnan().nonzero()[0])
        raise ValueError(f"The score at [{row}, {column}] is nan, so that it cannot be ranked.")
    columns = score.shape[axis]
    blocks = -(-columns // pattern.m)
    padding = blocks * pattern.m - columns
    if padding:
        # The lowest score at the highest indices never wins.
        shape = [padding if dimension == axis else length for dimension, length in enumerate(score.shape)]
        score = torch.cat([score, score.new_full(shape, -torch.inf)], dim=axis)
    # Position-major, so that comparisons run over long stretches of memory.
    lanes = score.unflatten(axis, (blocks, pattern.m)).movedim(axis + 1, 0)
    kept = keep_largest_lanes(lanes if axis == 0 else lanes.contiguous(), pattern.n).movedim(0, axis + 1)
    return kept.flatten(axis, axis + 1).narrow(axis, 0, columns).contiguous()


def keep_largest_lanes(lanes: Tensor, n: int) -> Tensor:
    """Mask of the n highest along the first axis of [length, ...]; equal scores keep the lower index."""
    length = lanes.shape[0]
    if n >= length:
        return torch.ones(lanes.shape, dtype=torch.bool)
    # A position's rank is how many others beat it; comparing every pair is faster than one small sort per block.
    rank = torch.zeros(lanes.shape, dtype=torch.uint8)
    for low in range(length):
        for high in range(low + 1, length):
            low_wins = lanes[low] >= lanes[high]
            rank[high] += low_wins
            rank[low] += ~low_wins
    return rank < n


def wanda_score(W: Tensor, statistics: InputStatistics) -> Tensor:
    """Score of Wanda: |weight| times the root mean square of the input feature that it multiplies.

    Parameters
    ----------
    W : floating [O, K]
        Weights.
    statistics : InputStatistics
        Of the layer's input, K features.

    Returns
    -------
    float32 [O, K]

    Source
    ------
    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.
    """
    return W.float().abs() * statistics.mean_square.sqrt()
