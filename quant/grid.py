"""INT4 grids: the scale and zero point of each group, on the kept weights only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.scales import split_scales

#: Multiples of a group's range that the clip search tries after the whole range. The outermost code of a symmetric
#: group's range is 7.5, so that up to 7.5 / 7 is of use.
_RANGES = (1.06, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52)


@dataclass(frozen=True)
class Grid:
    """What codes of a group can stand for: (code - zero) * scale, one scale and zero per output row."""

    #: Scale, float32 [O], not 0. A negative one is for a group whose largest weight is positive: it can take -8.
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
    other ranges are tried as well, and negative symmetric scales, and the one of least weighted squared error is
    taken.

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
    Scale conventions: compressed-tensors 0.20. Negative scales: Intel Neural Compressor's full range.
    """
    alive = weights * kept
    # A pruned position is 0, which every grid meets exactly and every range includes.
    # float64, as max - min of float32 weights may overflow float32.
    highest, lowest = alive.amax(dim=0).double().clamp_(min=0), alive.amin(dim=0).double().clamp_(max=0)
    smallest = torch.finfo(torch.float32).tiny
    if symmetric:
        scale = (torch.maximum(highest, -lowest) / 7.5).float().clamp_(min=smallest)
        best = Grid(scale, None)
        signs: tuple[float, ...] = (1.0, -1.0)
    else:
        step = (highest - lowest) / 15
        scale = step.float().clamp_(min=smallest)
        best = Grid(scale, torch.where(step > 0, -lowest / step.clamp(min=smallest), 0.0).round().clamp(0, 15).float())
        signs = (1.0,)
    if importance is None:
        return best
    least = _error(best, alive, importance)
    found = scale
    for multiple in (1.0, *_RANGES):
        for sign in signs:
            candidate = (scale * multiple).clamp_(min=smallest) * sign
            error = _error(Grid(candidate, best.zero), alive, importance)
            better = error < least
            least = torch.where(better, error, least)
            found = torch.where(better, candidate, found)
    return Grid(found, best.zero)


def _error(grid: Grid, alive: Tensor, importance: Tensor) -> Tensor:
    return importance @ (grid.nearest(alive) - alive).square_()


@dataclass(frozen=True)
class LayerGrid:
    """Two-level scales of a layer, and the grid of each group that the hardware rebuilds from them."""

    #: Scale of each output row, float32 [O].
    channel_scale: Tensor
    #: Integer scale of each group, int32 [groups, O], not 0.
    group_scale: Tensor
    #: Zero point of each group, float32 [groups, O], or None if symmetric.
    zero: Tensor | None
    #: Columns per group.
    length: int

    @classmethod
    def from_groups(cls, groups: list[Grid], length: int, scale_bits: int) -> LayerGrid:
        """Split the real-valued scales of every group in two levels; signs go to the integers."""
        scale = torch.stack([grid.scale for grid in groups], dim=1).double()
        size = scale.abs()
        # The smallest scale stands for a group of zeros, which takes any.
        size[size <= torch.finfo(torch.float32).tiny] = 0.0
        split = split_scales(size.numpy(), scale_bits)
        group_scale = torch.from_numpy(split.group_scale) * torch.where(scale < 0, -1, 1)
        zeros = [grid.zero for grid in groups if grid.zero is not None]
        return cls(
            torch.from_numpy(split.channel_scale),
            group_scale.T.to(torch.int32).contiguous(),
            torch.stack(zeros) if zeros else None,
            length,
        )

    def group(self, index: int) -> Grid:
        """Grid of a group; channel_scale * group_scale is exact in float32."""
        scale = self.channel_scale * self.group_scale[index].float()
        return Grid(scale, None if self.zero is None else self.zero[index])
