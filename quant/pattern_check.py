"""The N:M pattern is checked after every stage that could break it."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.pattern import NMPattern
from quant.weight import NMWeight


class PatternBreach(ValueError):  # noqa: N818 - it breaks the run as a breach, by that name
    """A block of a weight holds more than its pattern allows."""

    def __init__(self, stage: str, layer: str, row: int, block: int, found: str) -> None:
        super().__init__(f"After stage {stage}, {layer} breaks its pattern: {found}")
        #: What had been done.
        self.stage = stage
        #: Full name of the linear layer.
        self.layer = layer
        #: Row of the weight matrix, and block of m weights within it, from 0.
        self.row = row
        self.block = block


def check_pattern(weight: Any, pattern: NMPattern, layer: str, stage: str) -> None:
    """Check that no block of m weights along K holds more than n that count.

    Of an `NMWeight` the kept weights and the nonzero dequantised ones are both counted; of a matrix the nonzero ones.
    A NaN counts as nonzero.

    Parameters
    ----------
    weight
        NMWeight, or an [O, K] array or CPU tensor.
    pattern
        The pattern that was asked for, whatever the weight itself says.
    layer
        Full name of the linear layer, for the message.
    stage
        What was done last: prune, quantise, pack, export, reload.

    Raises
    ------
    PatternBreach
        Naming the stage, the layer, the row and the block.
    TypeError
        If the weight is neither an NMWeight nor a matrix.
    """
    if isinstance(weight, NMWeight):
        _count(weight.mask, "keeps", pattern, layer, stage)
        # integers() obeys the mask by construction; to_dense is what others read, so that it is what is counted.
        _count(weight.to_dense() != 0, "has", pattern, layer, stage)
        return
    if isinstance(weight, np.ndarray):
        dense = weight
    elif hasattr(weight, "detach"):
        dense = weight.detach().float().cpu().numpy()
    else:
        raise TypeError(f"{layer} is a {type(weight).__name__}; a pattern is checked on an NMWeight or a matrix.")
    if dense.ndim != 2:
        raise TypeError(f"{layer} has shape {dense.shape}; a pattern is checked on an [O, K] matrix.")
    _count(dense != 0, "has", pattern, layer, stage)


def _count(counted: np.ndarray, verb: str, pattern: NMPattern, layer: str, stage: str) -> None:
    if pattern.is_dense:
        return
    counts = pattern.kept_per_block(counted)
    if int(counts.max()) <= pattern.n:
        return
    row, block = (int(i) for i in np.argwhere(counts > pattern.n)[0])
    what = "weights" if verb == "keeps" else "nonzero weights"
    raise PatternBreach(
        stage,
        layer,
        row,
        block,
        f"row {row}, {pattern.name_block(block, counted.shape[1])} {verb} {counts[row, block]} {what}, but {pattern} "
        f"allows at most {pattern.n}.",
    )
