"""Coordinate descent on the codes and the mask of a quantised layer: no step raises the output error.

Source
------
On codes: QuantEase, Behdin et al., arXiv 2309.01885. Exchanging a kept and a pruned weight within a block is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.grid import Grid, LayerGrid
from quant.pattern import NMPattern
from quant.second_order import Settled, panels


def descend(
    weights: Tensor, hessian: Tensor, start: Settled, grid: LayerGrid, pattern: NMPattern, passes: int = 3
) -> Settled:
    """Move every code to where the output error is least with all others held, block after block.

    After the codes of a block, the exchange of one kept for one pruned weight that lowers the error most is made in
    each row.

    Parameters
    ----------
    weights : float32 [K, O]
        The layer's weights, column-major.
    hessian : float32 [K, K]
        Damped second moments of the input.
    start : Settled
        Weights on the grid, and their mask.
    grid : LayerGrid
        Scales and zero points, which stay.
    pattern : NMPattern
        Pattern that the mask obeys.
    passes : int
        Times that all columns are visited.
    """
    settled, mask = start.weights.clone(), start.mask.clone()
    residual = weights - settled
    here = grid.group(0)
    for _ in range(passes):
        for first, last in panels(len(weights), pattern.m, grid.length):
            panel = slice(first, last)
            local = hessian[panel, panel]
            # Half the negative gradient of the error; a change d of weight j lowers it by d (2 pullⱼ - d Hⱼⱼ).
            pull = hessian[panel] @ residual
            for block in range(first, last, pattern.m):
                if block % grid.length == 0:
                    here = grid.group(block // grid.length)
                end = min(block + pattern.m, last)
                inside, onwards = slice(block - first, end - first), slice(block - first, None)
                for column in range(block, end):
                    j = column - first
                    moved = here.nearest(pull[j] / local[j, j] + settled[column]).mul_(mask[column])
                    pull[onwards].addr_(local[onwards, j], moved - settled[column], alpha=-1)
                    settled[column] = moved
                if pattern.n < end - block:
                    change = _exchange(settled[block:end], mask[block:end], pull[inside], local[inside, inside], here)
                    pull[onwards].addmm_(local[onwards, inside], change, alpha=-1)
            torch.sub(weights[panel], settled[panel], out=residual[panel])
    return Settled(settled, mask)


def _exchange(settled: Tensor, mask: Tensor, pull: Tensor, local: Tensor, grid: Grid) -> Tensor:
    """Make the best exchange of each row in place on a block's weights and mask [length, O]; returns the change."""
    diagonal = local.diagonal()[:, None]
    best = torch.zeros(settled.shape[1])
    out = torch.full(best.shape, -1)
    into, value = torch.zeros_like(out), torch.zeros_like(best)
    # What dropping a kept weight costs by itself, and what bringing in a pruned one then gains.
    cost = settled * (2 * pull + settled * diagonal)
    for dropped in range(len(settled)):
        freed = torch.addcmul(pull, local[dropped][:, None], settled[dropped])
        brought = grid.nearest(freed / diagonal)
        gain = brought * (2 * freed - brought * diagonal)
        gain.masked_fill_(mask, -torch.inf)
        most, position = gain.max(dim=0)
        lowered = (most - cost[dropped]).masked_fill_(~mask[dropped], -torch.inf)
        better = lowered > best
        best = torch.where(better, lowered, best)
        out.masked_fill_(better, dropped)
        into = torch.where(better, position, into)
        value = torch.where(better, brought.gather(0, position[None])[0], value)
    change = torch.zeros_like(settled)
    rows = (out >= 0).nonzero()[:, 0]
    if len(rows):
        out, into = out[rows], into[rows]
        change[out, rows] = -settled[out, rows]
        change[into, rows] = value[rows]
        mask[out, rows] = False
        mask[into, rows] = True
        settled += change
    return change
