"""The pattern that the zeros of a weight obey, for files that do not say one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.pattern import NMPattern

#: Patterns that are looked for, the smallest share of kept weights first and the tighter of two equal ones first.
LISTED = tuple(
    NMPattern.parse(text)
    for text in ("1:8", "1:4", "2:8", "1:3", "3:8", "1:2", "2:4", "4:8", "8:16", "3:5", "5:8", "2:3", "3:4", "6:8")
)

DENSE = NMPattern(1, 1)


def infer_pattern(nonzero: NDArray[np.bool_], group_size: int = -1) -> NMPattern:
    """Take the smallest pattern of `LISTED` that a weight's zeros obey, or 1:1 where none does.

    A zero says nothing about why it is zero: the pattern found may be smaller than the one that was pruned to,
    and kept weights that became zero are taken as pruned. The weights are the same either way.

    Parameters
    ----------
    nonzero : bool [O, K]
        True where the weight is not zero.
    group_size : int
        Weights per scale, or -1; patterns whose m does not divide it are left out.
    """
    rows, columns = nonzero.shape
    count = int(np.count_nonzero(nonzero))
    for pattern in LISTED:
        if group_size != -1 and group_size % pattern.m:
            continue
        # What the whole matrix may keep rules most patterns out without a look at its blocks.
        if count > rows * -(-columns // pattern.m) * pattern.n:
            continue
        if int(pattern.kept_per_block(nonzero).max()) <= pattern.n:
            return pattern
    return DENSE
