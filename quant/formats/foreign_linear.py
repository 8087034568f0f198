"""What readers return, and the one way from codes, zero points and float scales to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.formats.infer import infer_pattern
from quant.formats.layer_tensors import LayerTensors
from quant.linear import QuantizedLinear
from quant.pattern import NMPattern
from quant.pattern_check import check_pattern
from quant.scales import integer_scales
from quant.weight import NMWeight

#: Zero point of symmetric codes, which files store as code + 8.
SYMMETRIC_ZERO = 8


@dataclass(frozen=True, eq=False)
class ForeignLinear(QuantizedLinear):
    """A linear layer read from another tool's file."""

    #: Largest relative error of a group's scale after it was written in integers; 0.0 means that every weight is
    #: the file's.
    scale_error: float = 0.0


@dataclass(frozen=True, eq=False)
class PrunedLinear:
    """A linear layer that a sparse file holds in floats: pruned, and still to be quantised."""

    #: Weight, float32 [O, K], 0 where the mask is False.
    weight: NDArray[np.float32]
    #: Kept positions as the file lists them, bool [O, K].
    mask: NDArray[np.bool_]
    #: Pattern that the mask obeys.
    pattern: NMPattern
    #: Bias, float32 [O], or None.
    bias: NDArray[np.float32] | None = None


def groups_of(columns: int, group_size: int) -> int:
    """Groups of a row: 1 for group size -1.

    Raises
    ------
    ValueError
        If the group size is neither -1 nor from 1 to 2**31 - 1.
    """
    if group_size != -1 and not 1 <= group_size < 1 << 31:
        raise ValueError(f"The file states group size {group_size}; it must be positive and fit 32 bits, or -1.")
    return 1 if group_size == -1 else -(-columns // group_size)


def make_linear(
    layer: LayerTensors,
    nibbles: NDArray[np.uint8],
    scale: NDArray[np.float32],
    group_size: int,
    *,
    zero_point: NDArray[np.uint8] | None = None,
    pattern: NMPattern | None = None,
    mask: NDArray[np.bool_] | None = None,
    column_order: NDArray[np.int64] | None = None,
) -> ForeignLinear:
    """Build a layer whose weight [o, k] is ``scale[o, g] * (nibbles[o, k] - zero_point[o, g])``.

    Parameters
    ----------
    layer : LayerTensors
        Names the layer in messages and holds its bias.
    nibbles : uint8 [O, K], 0..15
    scale : float32 [O, groups]
        Finite; negative and zero scales are legal.
    group_size : int
        Weights per scale along K, or -1.
    zero_point : uint8 [O, groups], 0..15, or None
        None is 8 everywhere and makes the weight symmetric.
    pattern : NMPattern or None
        None takes the pattern that the zeros, or the mask, obey (`infer_pattern`).
    mask : bool [O, K] or None
        Kept positions where the file knows them. None keeps the weights that are not zero, or all of them if the
        pattern is dense.
    column_order : int64 [K] or None
        Input feature of each column.

    Raises
    ------
    PatternBreach
        Naming layer, row and block, if the weight breaks the pattern.
    ValueError
        Naming the layer, if a weight outside the mask is not zero, or m does not divide the group size.
    """
    rows, columns = nibbles.shape
    if zero_point is None:
        nonzero = nibbles != SYMMETRIC_ZERO
    else:
        per_group = columns if group_size == -1 else group_size
        nonzero = nibbles != np.take(zero_point, np.arange(columns) // per_group, axis=1)
    if mask is not None and (nonzero & ~mask).any():
        row, column = (int(i) for i in np.argwhere(nonzero & ~mask)[0])
        raise ValueError(
            f"Layer {layer.layer} has a weight that is not zero in row {row}, column {column}, where its mask says "
            "that it is pruned."
        )
    if pattern is None:
        pattern = infer_pattern(nonzero if mask is None else mask, group_size)
    if mask is None:
        mask = np.ones((rows, columns), dtype=np.bool_) if pattern.is_dense else nonzero
    check_claim(layer.layer, pattern, mask, group_size)
    two_level = integer_scales(scale)
    weight = NMWeight(
        values=nibbles.view(np.int8) - np.int8(0 if zero_point is not None else SYMMETRIC_ZERO),
        mask=mask,
        group_scale=two_level.group_scale,
        channel_scale=two_level.channel_scale,
        pattern=pattern,
        group_size=group_size,
        zero_point=None if zero_point is None else zero_point.astype(np.int32),
    )
    return ForeignLinear(weight, layer.read_bias(rows), column_order, two_level.relative_error)


def check_claim(layer: str, pattern: NMPattern, mask: NDArray[np.bool_], group_size: int = -1) -> None:
    """Check a mask and a group size against the pattern that a file or the caller claims.

    Raises
    ------
    PatternBreach
        Naming layer, row and block.
    ValueError
        Naming the layer, if m does not divide the group size.
    """
    try:
        pattern.check_group_size(group_size)
    except ValueError as error:
        raise ValueError(f"Layer {layer} cannot have pattern {pattern}: {error}") from None
    check_pattern(mask, pattern, layer, "read")
