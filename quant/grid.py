"""INT4 grids: the scale and zero point of each group, on the kept weights only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.scales import split_scales

#: Shares of a group's range that the clip search tries, the whole range first.
_SHRINK_FACTORS = tuple(1.0 - 0.04 * step for step in range(14))


@dataclass(frozen=True)
class Grid:
    """What codes of a group can stand for: (code - zero) * scale, one scale and zero per output row."""

    #: Scale, float32 [O], more than 0.
    scale: Tensor
    #: Zero point as float32 [O], or None if symmetric.
    zero: Tensor | None

    def codes(self, weights: Tensor) -> Tensor:
        """Nearest codes of weights [..., O], as whole numbers in float32; ties to even before the zero point."""
        codes = (weights / self.scale).round_()
        if self.zero is None:
            return codes.clamp_(-8, 7)
        return codes.add_(self.zero).clamp_(0, 15)

    def weights(self, codes: Tensor) -> Tensor:
        """Weights of codes [..., O]."""
        return (codes if self.zero is None else codes - self.zero) * self.scale

    def nearest(self, weights: Tensor) -> Tensor:
        """Weights [..., O] moved to the nearest point of the grid."""
        return self.weights(self.codes(weights))


def fit_grid(weights: Tensor, kept: Tensor, symmetric: bool, importance: Tensor | None = None) -> Grid:
    """Fit a real-valued scale to each row of a group.

    The scale is absmax / 7.5 (symmetric) or (max - min) / 15 over a range that includes 0. With an importance,
    shrunk ranges are tried as well and the one of least weighted squared error is taken.

    Parameters
    ----------
    weights : float32 [length, O]
        Weights of one group, column-major.
    kept : bool [length, O]
        Positions that count.
    symmetric : bool
        Whether there is no zero point.
    importance : float32 [length], optional
        Weight of each column's squared error; None searches nothing.

    Source
    ------
    Scale conventions: compressed-tensors 0.20.
    """
    alive = weights * kept
    highest, lowest = alive.amax(dim=0), alive.amin(dim=0)
    best = _grid_of_range(highest, lowest, symmetric)
    if importance is None:
        return best
    least = _error(best, alive, importance)
    scale, zero = best.scale.clone(), None if best.zero is None else best.zero.clone()
    for factor in _SHRINK_FACTORS[1:]:
        candidate = _grid_of_range(highest * factor, lowest * factor, symmetric)
        error = _error(candidate, alive, importance)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, candidate.scale, scale)
        if zero is not None and candidate.zero is not None:
            zero = torch.where(better, candidate.zero, zero)
    return Grid(scale, zero)


def _grid_of_range(highest: Tensor, lowest: Tensor, symmetric: bool) -> Grid:
    # float64, as max - min of float32 weights may overflow float32.
    high, low = highest.double().clamp(min=0), lowest.double().clamp(max=0)
    smallest = torch.finfo(torch.float32).tiny
    if symmetric:
        return Grid((torch.maximum(high, -low) / 7.5).float().clamp(min=smallest), None)
    scale = (high - low) / 15
    zero = torch.where(scale > 0, -low / scale.clamp(min=smallest), 0.0).round().clamp(0, 15)
    return Grid(scale.float().clamp(min=smallest), zero.float())


def _error(grid: Grid, alive: Tensor, importance: Tensor) -> Tensor:
    # A pruned position is 0, which every grid meets exactly.
    return importance @ (grid.nearest(alive) - alive).square_()


@dataclass(frozen=True)
class LayerGrid:
    """Two-level scales of a layer, and the grid of each group that the hardware rebuilds from them."""

    #: Scale of each output row, float32 [O].
    channel_scale: Tensor
    #: Integer scale of each group, int32 [groups, O].
    group_scale: Tensor
    #: Zero point of each group, float32 [groups, O], or None if symmetric.
    zero: Tensor | None
    #: Columns per group.
    length: int

    @classmethod
    def from_groups(cls, groups: list[Grid], length: int, scale_bits: int) -> LayerGrid:
        """Split the real-valued scales of every group in two levels."""
        scale = torch.stack([grid.scale for grid in groups], dim=1)
        # A scale at the end of the float range stands for a group of zeros, which takes any scale.
        given = scale.double().numpy()
        given[given <= torch.finfo(torch.float32).tiny] = 0.0
        split = split_scales(given, scale_bits)
        zeros = [grid.zero for grid in groups if grid.zero is not None]
        return cls(
            torch.from_numpy(split.channel_scale),
            torch.from_numpy(split.group_scale.T.copy()),
            torch.stack(zeros) if zeros else None,
            length,
        )

    def group(self, index: int) -> Grid:
        """Grid of a group; channel_scale * group_scale is exact in float32."""
        scale = self.channel_scale * self.group_scale[index].float()
        return Grid(scale, None if self.zero is None else self.zero[index])
