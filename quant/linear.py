"""What a quantised checkpoint holds of one linear layer, and how a layer is to be quantised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.pattern import NMPattern
from quant.scales import SCALE_BITS
from quant.weight import NMWeight

#: How a layer's mask and codes are found, `quant.layer` tells each in a sentence.
METHODS = (
    "joint",
    "sparsegpt-gptq",
    "sparsegpt-rtn",
    "wanda-gptq",
    "wanda-rtn",
    "magnitude-gptq",
    "magnitude-rtn",
)


@dataclass(frozen=True)
class LayerSettings:
    """How one linear layer is pruned and quantised.

    Raises
    ------
    ValueError
        If the method or the width of scales does not exist, or m does not divide the group size.
    """

    #: Pattern to prune to; dense prunes nothing.
    pattern: NMPattern
    #: Weights along K that share a scale: a multiple of m, or -1 for a whole row.
    group_size: int = 128
    #: Whether codes are signed without a zero point.
    symmetric: bool = True
    #: One of `METHODS`. On a dense pattern every -gptq is GPTQ, joint is GPTQ and descent, and every -rtn is RTN.
    method: str = "joint"
    #: Bits of a group scale, 8 or 16.
    scale_bits: int = 8
    #: Whether other ranges of a group, and negative symmetric scales, are tried for one of lower error.
    clip: bool = True

    def __post_init__(self) -> None:
        self.pattern.check_group_size(self.group_size)
        if self.method not in METHODS:
            raise ValueError(f"The method is {self.method!r}; it must be one of {', '.join(METHODS)}.")
        if self.scale_bits not in SCALE_BITS:
            raise ValueError(f"Group scales of {self.scale_bits!r} bits were asked for; they have 8 or 16.")


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A linear layer of a checkpoint: y = x[..., column_order] · weightᵀ + bias."""

    #: Weight, [O, K].
    weight: NMWeight
    #: Bias, float32 [O], or None.
    bias: NDArray[np.float32] | None = None
    #: Input feature that each column of the weight multiplies, int64 [K]; None where it is 0..K-1. GPTQ
    #: files in activation order have one, so that the groups are contiguous.
    column_order: NDArray[np.int64] | None = None
