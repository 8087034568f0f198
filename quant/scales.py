"""Group scales as integers: two levels from float scales, and the exact integers of a checkpoint's scales.

The accelerator multiplies a group's partial sum by a signed integer and knows no float, so that a scale of
a group is channel_scale[row] * group_scale[row, group]. Channel scales made here have at most 8 of float32's
24 significant bits unset at the end: their product with a signed 8-bit group scale is exact in float32, and a
checkpoint that stores that product as one float32 loses nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Widths of a group scale in the stream.
SCALE_BITS = (8, 16)

#: Significant bits of a channel scale that `split_scales` makes, by the width of the group scale.
_CHANNEL_BITS = {8: 16, 16: 8}


class TwoLevelScales(NamedTuple):
    """Scales of groups as float32 [O] channel scales times int32 [O, groups] integers."""

    channel_scale: NDArray[np.float32]
    group_scale: NDArray[np.int32]
    #: Largest |rebuilt - given| / |given| over all groups; 0.0 where every scale is met exactly.
    relative_error: float


def split_scales(scale: ArrayLike, bits: int = 8) -> TwoLevelScales:
    """Split float scales in a channel scale per row and an integer of 1 to 2**(bits - 1) - 1 per group.

    The row's largest scale takes the largest integer of 8 bits, or one of the largest of 16, and the others are
    rounded to the nearest.

    Parameters
    ----------
    scale : floating [O, groups]
        Finite scales, 0 or more; a row of zeros gets channel scale 1.
    bits : int
        8 or 16.

    Raises
    ------
    ValueError
        If bits is neither, or a scale is negative or not finite.

    Source
    ------
    Two-level scales: QServe (QoQ), arXiv 2405.04532.
    """
    _check_bits(bits)
    given = _read_scales(scale)
    if (given < 0).any():
        row, group = (int(i) for i in np.argwhere(given < 0)[0])
        raise ValueError(
            f"The scale of row {row}, group {group} is {given[row, group]!s}, but a scale to split must be 0 or more."
        )
    largest_integer = (1 << bits - 1) - 1
    largest = given.max(axis=1)
    # Weights near the smallest float32 would give a channel scale of 0; the smallest normal number stands in.
    channel = np.maximum(largest / largest_integer, np.finfo(np.float32).tiny)
    channel[largest == 0] = 1.0
    # Down, so that an 8-bit row's largest weight still takes the outermost code, which costs 2**-15 of its scale;
    # up where so short a channel scale would cut off more.
    rounding = np.floor if bits == 8 else np.ceil
    mantissa, exponent = np.frexp(channel)
    significant = _CHANNEL_BITS[bits]
    channel_scale = np.ldexp(rounding(np.ldexp(mantissa, significant)), exponent - significant).astype(np.float32)
    group_scale = np.clip(np.rint(given / channel_scale.astype(np.float64)[:, None]), 1, largest_integer)
    return _with_error(given, channel_scale, group_scale)


def integer_scales(scale: ArrayLike) -> TwoLevelScales:
    """Write any float scales, negative and zero ones too, as integers of the fewest bits that are exact.

    Scales of a row are integer multiples of their greatest common divisor, which becomes the channel scale.
    8 bits are taken where they hold the multiples of every row, else 16. A row whose multiples pass 16 bits is
    rounded to the nearest of 16; `relative_error` then tells.

    Parameters
    ----------
    scale : floating [O, groups]
        Finite scales of a checkpoint in float16, bfloat16 (as float32) or float32.

    Raises
    ------
    ValueError
        If a scale is not finite.
    """
    given = _read_scales(scale)
    mantissa, exponent = np.frexp(given)
    whole = np.ldexp(mantissa, 53).astype(np.int64)  # given = whole * 2**(exponent - 53), exactly
    zeros = _trailing_zeros(whole)
    odd, power = whole >> zeros, exponent - 53 + zeros
    power[whole == 0] = np.iinfo(power.dtype).max
    lowest = power.min(axis=1)
    lowest[(whole == 0).all(axis=1)] = 0
    shift = np.where(whole == 0, 0, power - lowest[:, None])
    bits_needed = shift + np.ceil(np.log2(np.abs(odd) + 1.0)).astype(np.int64)
    fits_int64 = (bits_needed <= 62).all(axis=1)
    integers = np.where(fits_int64[:, None], odd << np.minimum(shift, 62), 0)
    divisor = np.maximum(np.gcd.reduce(integers, axis=1), 1)
    multiples = integers // divisor[:, None]
    low, high = multiples.min(axis=1), multiples.max(axis=1)
    with np.errstate(over="ignore", under="ignore"):
        channel = np.ldexp(divisor.astype(np.float64), lowest).astype(np.float32)
    exact = fits_int64 & (low >= -(1 << 15)) & (high < 1 << 15)
    exact &= channel.astype(np.float64) == np.ldexp(divisor.astype(np.float64), lowest)
    if not exact.all():
        rough = ~exact
        largest = np.abs(given[rough]).max(axis=1)
        channel[rough] = np.maximum(largest / ((1 << 15) - 1), np.finfo(np.float32).tiny)
        multiples[rough] = np.rint(given[rough] / channel[rough].astype(np.float64)[:, None])
        multiples[rough] = np.clip(multiples[rough], -(1 << 15), (1 << 15) - 1)
    return _with_error(given, channel, multiples)


def _check_bits(bits: int) -> None:
    if bits not in SCALE_BITS:
        raise ValueError(f"Group scales of {bits!r} bits were asked for; they have 8 or 16.")


def _read_scales(scale: ArrayLike) -> NDArray[np.float64]:
    given = np.asarray(scale).astype(np.float64)
    if not np.isfinite(given).all():
        row, group = (int(i) for i in np.argwhere(~np.isfinite(given))[0])
        raise ValueError(
            f"The scale of row {row}, group {group} is {given[row, group]!s}, but every scale must be finite."
        )
    return given


def _trailing_zeros(whole: NDArray[np.int64]) -> NDArray[np.int64]:
    lowest_bit = whole & -whole
    return np.where(whole == 0, 0, np.rint(np.log2(np.maximum(lowest_bit, 1).astype(np.float64)))).astype(np.int64)


def _with_error(
    given: NDArray[np.float64], channel_scale: NDArray[np.float32], group_scale: NDArray[np.generic]
) -> TwoLevelScales:
    rebuilt = channel_scale.astype(np.float64)[:, None] * group_scale.astype(np.float64)
    size = np.abs(given)
    error = np.divide(np.abs(rebuilt - given), size, out=np.zeros_like(given), where=size > 0)
    return TwoLevelScales(channel_scale, group_scale.astype(np.int32), float(error.max(initial=0.0)))
