"""Round-to-nearest INT4 quantisation with two-level scales."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quant.pattern import NMPattern
from quant.prune import magnitude_mask, read_weight_matrix
from quant.scales import split_scales
from quant.weight import NMWeight

#: Weights quantised at a time; float32 working arrays of this size stay in the cache.
_WEIGHTS_AT_A_TIME = 1 << 18


def quantize_rtn(
    W: ArrayLike,
    pattern: NMPattern,
    group_size: int = 128,
    symmetric: bool = True,
    mask: ArrayLike | None = None,
) -> NMWeight:
    """Quantise weights to INT4 by rounding each to the nearest code.

    For each group the float scale is f = absmax / 7.5 (symmetric, codes -8..7), or (max - min) / 15 with
    zero point round(-min / f) over a range that includes 0 (asymmetric, codes 0..15), over the kept
    weights. It is split in two levels: channel_scale = (largest f of the row) / 127, rounded down to 16
    significant bits (`quant.scales`), and group_scale = round(f / channel_scale) in 1..127. Codes are rounded,
    half to even, against channel_scale * group_scale, which is the scale that the hardware rebuilds, not
    against f.

    Parameters
    ----------
    W : floating [O, K]
        Weights, finite in float32; a NumPy array or a CPU torch tensor.
    pattern : NMPattern
        The pattern that W obeys.
    group_size : int
        Weights along K per group scale: a positive multiple of m, or -1 for one group per row.
    symmetric : bool
        Whether codes are signed without a zero point.
    mask : bool [O, K], optional
        The kept positions, which decide alone: weights outside are pruned. By default it is the magnitude
        mask of W, which must then be zero outside of it; a pruned W keeps its positions.

    Returns
    -------
    NMWeight
        With group_scale 1..127 and channel_scale > 0 (1.0 for an all-zero row). The stored value at a pruned
        position is 0, or the group's zero point.

    Raises
    ------
    TypeError
        If W is not of a floating dtype, or the mask not bool.
    ValueError
        If W is empty, not 2-D or not finite, W or the mask breaks the pattern, or m does not divide the group
        size.

    Source
    ------
    Scale conventions: compressed-tensors 0.20. Two-level scales: QServe (QoQ), arXiv 2405.04532.
    """
    weights = read_weight_matrix(W)
    pattern.check_group_size(group_size)
    if mask is None:
        kept = magnitude_mask(weights, pattern)
        _check_obeys(weights, kept, pattern)
    else:
        kept = _read_mask(mask, weights.shape)
    single = _to_float32(weights)

    rows, columns = single.shape
    whole_row = -(-columns // pattern.m) * pattern.m
    # A group longer than the row is the row: padding to its full length would only cost memory.
    length = whole_row if group_size == -1 else min(int(group_size), whole_row)
    groups = -(-columns // length)

    values = np.empty((rows, columns), dtype=np.int8)
    group_scale = np.empty((rows, groups), dtype=np.int32)
    channel_scale = np.empty(rows, dtype=np.float32)
    zero_point = None if symmetric else np.empty((rows, groups), dtype=np.int32)
    step = max(1, _WEIGHTS_AT_A_TIME // columns)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        # Zeros in the padding and at pruned positions change neither absmax nor a range that includes 0.
        padded = np.zeros((part.stop - first, groups * length), dtype=np.float32)
        np.copyto(padded[:, :columns], single[part], where=kept[part])
        in_groups = padded.reshape(-1, groups, length)
        scale, zero = _float_scales(in_groups, symmetric)
        channel_scale[part], group_scale[part], _ = split_scales(scale)

        rebuilt = channel_scale[part][:, None] * group_scale[part].astype(np.float32)
        np.divide(in_groups, rebuilt[:, :, None], out=in_groups)
        np.rint(in_groups, out=in_groups)
        if zero_point is not None:
            zero_point[part] = zero
            # Rounding comes before the zero point, so that ties do not depend on the zero point's parity.
            in_groups += zero.astype(np.float32)[:, :, None]
        low, high = (-8, 7) if symmetric else (0, 15)
        np.clip(in_groups, low, high, out=in_groups)
        values[part] = padded[:, :columns]
    return NMWeight(values, kept, group_scale, channel_scale, pattern, group_size, zero_point)


def _float_scales(
    in_groups: NDArray[np.float32], symmetric: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Float scale f and zero point of each group: two float64 [rows, groups] arrays."""
    # float64, as max - min of float32 weights may overflow float32.
    highest = in_groups.max(axis=2).astype(np.float64)
    lowest = in_groups.min(axis=2).astype(np.float64)
    if symmetric:
        return np.maximum(highest, -lowest) / 7.5, np.zeros_like(highest)
    highest, lowest = np.maximum(highest, 0.0), np.minimum(lowest, 0.0)
    scale = (highest - lowest) / 15
    zero = np.divide(-lowest, scale, out=np.zeros_like(scale), where=scale > 0)
    return scale, np.clip(np.rint(zero), 0, 15)


def _to_float32(weights: NDArray[np.floating]) -> NDArray[np.float32]:
    if weights.dtype == np.float32:
        return weights
    with np.errstate(over="ignore", under="ignore"):  # an overflow is refused in words below
        single = weights.astype(np.float32)
    finite = np.isfinite(single)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"The weight in row {row}, column {column} is {weights[row, column]!s}, "
            "which does not fit float32."
        )
    return single


def _read_mask(given: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.asarray(given)
    if mask.dtype != np.bool_:
        raise TypeError(f"mask has dtype {mask.dtype}, but it must have the bool dtype.")
    if mask.shape != shape:
        raise ValueError(f"mask has shape {mask.shape}, but the weight matrix has shape {shape}.")
    return mask


def _check_obeys(weights: NDArray[np.floating], kept: NDArray[np.bool_], pattern: NMPattern) -> None:
    if pattern.is_dense:
        return
    outside = (weights != 0) & ~kept
    if not outside.any():
        return
    row, column = (int(i) for i in np.argwhere(outside)[0])
    block = column // pattern.m
    nonzero = np.count_nonzero(weights[row, block * pattern.m : (block + 1) * pattern.m])
    raise ValueError(
        f"The weight matrix has {nonzero} nonzero weights in row {row}, "
        f"{pattern.name_block(block, weights.shape[1])}, but pattern {pattern} allows at most {pattern.n}; "
        "prune it first, for example with prune_magnitude, or give a mask."
    )
