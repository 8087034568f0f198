"""Masks of any n:m pattern from scores, in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.pattern import NMPattern
from quant.statistics import InputStatistics


def keep_largest(score: Tensor, pattern: NMPattern) -> Tensor:
    """Keep the n positions of highest score in each block of m along a row.

    Equal scores keep the lower index, as `quant.prune.magnitude_mask` does.

    Parameters
    ----------
    score : floating [O, K]
        Scores without NaN; infinities are legal.
    pattern : NMPattern
        n counts the kept positions.

    Returns
    -------
    bool [O, K]
        True where kept: exactly min(n, block length) per block.

    Raises
    ------
    ValueError
        If a score is NaN.
    """
    rows, columns = score.shape
    if pattern.is_dense:
        return torch.ones((rows, columns), dtype=torch.bool)
    if score.isnan().any():
        row, column = (int(i) for i in score.isnan().nonzero()[0])
        raise ValueError(f"The score in row {row}, column {column} is nan, so that it cannot be ranked.")
    blocks = -(-columns // pattern.m)
    # Position-major, so that each comparison runs over contiguous memory. The padding of a short last block has
    # the lowest score and the highest indices, so that it never wins.
    lanes = score.new_full((pattern.m, rows, blocks), -torch.inf)
    for position in range(min(pattern.m, columns)):
        lane = score[:, position :: pattern.m]
        lanes[position, :, : lane.shape[1]] = lane
    kept = keep_largest_lanes(lanes, pattern.n)
    mask = torch.empty((rows, columns), dtype=torch.bool)
    for position in range(min(pattern.m, columns)):
        lane = mask[:, position :: pattern.m]
        lane.copy_(kept[position, :, : lane.shape[1]])
    return mask


def keep_largest_lanes(lanes: Tensor, n: int) -> Tensor:
    """Mask of the n highest along the first axis of [length, ...]; equal scores keep the lower index."""
    length = lanes.shape[0]
    if n >= length:
        return torch.ones(lanes.shape, dtype=torch.bool)
    # A position's rank is how many others beat it; comparing every pair is faster than one small sort per block.
    rank = torch.zeros(lanes.shape, dtype=torch.uint8)
    for low in range(length - 1):
        low_wins = lanes[low] >= lanes[low + 1 :]
        rank[low + 1 :] += low_wins
        rank[low] += (~low_wins).sum(dim=0, dtype=torch.uint8)
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
    return W.abs().float() * statistics.mean_square.sqrt()
