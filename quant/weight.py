"""The quantised weight matrix that every part of the project exchanges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.pattern import NMPattern


@dataclass(frozen=True, eq=False, repr=False)
class NMWeight:
    """INT4 weights of one linear layer under an N:M pattern, with two-level scales.

    Weight [o, k] is ``channel_scale[o] * group_scale[o, g] * (values[o, k] - zero_point[o, g])`` with
    ``g = k // effective_group_size`` where the mask is True, and exactly 0 where it is False. Symmetric
    weights have no zero point. A kept weight may be 0: only the mask says what is kept.

    The arrays become read-only copies. Any integer dtype in range is taken for the integer arrays, and any
    floating dtype for the channel scale, which is rounded to float32.

    Parameters
    ----------
    values : int8 [O, K]
        Codes: -8..7 if symmetric, 0..15 if asymmetric. At pruned positions any legal code may stand; it
        has no effect.
    mask : bool [O, K]
        True where a weight is kept; at most n in each block of m along K (the last block may be short).
    group_scale : int32 [O, groups], -32768..32767
        Integer scale of each group; negative and zero are legal. `scale_bits` says whether 8 bits hold them.
    channel_scale : float32 [O]
        Finite scale of each output row, in units of the weight.
    pattern : NMPattern
        The pattern that the mask obeys.
    group_size : int
        Weights along K that share a group scale: a positive multiple of m, or -1 for one group per row.
        groups is ceil(K / group_size); the last group may be short.
    zero_point : int32 [O, groups], 0..15, or None
        None makes the weights symmetric.

    Raises
    ------
    TypeError
        If an array has the wrong kind of dtype, or pattern or group_size the wrong type.
    ValueError
        If a shape, a value, the group size or the mask is not legal.

    Source
    ------
    Two-level scales: QServe (QoQ progressive group quantisation), arXiv 2405.04532.
    """

    #: Codes, int8 [O, K]: -8..7 symmetric, 0..15 asymmetric.
    values: NDArray[np.int8]
    #: Kept positions, bool [O, K].
    mask: NDArray[np.bool_]
    #: Integer group scales, int32 [O, groups], -32768..32767 (wider than needed so that products do not wrap).
    group_scale: NDArray[np.int32]
    #: Output row scales, float32 [O], finite.
    channel_scale: NDArray[np.float32]
    #: Pattern that the mask obeys.
    pattern: NMPattern
    #: Weights per group along K, or -1 for the whole row.
    group_size: int
    #: Zero points, int32 [O, groups], 0..15; None if symmetric.
    zero_point: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, NMPattern):
            raise TypeError(
                f"pattern must be an NMPattern, but {self.pattern!r} was given; "
                "NMPattern.parse reads a string."
            )
        self.pattern.check_group_size(self.group_size)
        object.__setattr__(self, "group_size", int(self.group_size))

        values = _read("values", self.values, "integer")
        if values.ndim != 2 or values.size == 0:
            raise ValueError(
                f"values has shape {values.shape}, but it must be [O, K] with O and K at least 1."
            )
        rows, columns = values.shape
        groups = 1 if self.group_size == -1 else -(-columns // self.group_size)
        mask = _read("mask", self.mask, "bool")
        _check_shape("mask", mask, (rows, columns), "[O, K]")
        group_scale = _read("group_scale", self.group_scale, "integer")
        _check_shape("group_scale", group_scale, (rows, groups), "[O, groups]")
        channel_scale = _read("channel_scale", self.channel_scale, "floating")
        _check_shape("channel_scale", channel_scale, (rows,), "[O]")

        if self.zero_point is None:
            _check_range("values", values, -8, 7, "column", "a symmetric INT4 code")
        else:
            _check_range("values", values, 0, 15, "column", "an asymmetric INT4 code")
            zero_point = _read("zero_point", self.zero_point, "integer")
            _check_shape("zero_point", zero_point, (rows, groups), "[O, groups]")
            _check_range("zero_point", zero_point, 0, 15, "group", "a zero point")
            self._freeze("zero_point", zero_point, np.int32)
        _check_range("group_scale", group_scale, -(1 << 15), (1 << 15) - 1, "group", "a signed 16-bit group scale")
        with np.errstate(over="ignore"):  # an overflow becomes inf and is refused in words below
            rounded_scale = channel_scale.astype(np.float32)
        if not np.isfinite(rounded_scale).all():
            row = int(np.argmin(np.isfinite(rounded_scale)))
            raise ValueError(
                f"channel_scale holds {channel_scale[row]!s} in row {row}, "
                "but every channel scale must be finite in float32."
            )
        self.pattern.check_mask(mask)

        self._freeze("values", values, np.int8)
        self._freeze("mask", mask, np.bool_)
        self._freeze("group_scale", group_scale, np.int32)
        self._freeze("channel_scale", rounded_scale, np.float32)

    def _freeze(self, name: str, array: NDArray[Any], dtype: type[np.generic]) -> None:
        copy = np.array(array, dtype=dtype, order="C", copy=True)
        copy.setflags(write=False)
        object.__setattr__(self, name, copy)

    def __repr__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return (
            f"NMWeight([{self.out_features}, {self.in_features}], {self.pattern}, "
            f"group_size={self.group_size}, {kind})"
        )

    @property
    def out_features(self) -> int:
        """O, the rows."""
        return int(self.values.shape[0])

    @property
    def in_features(self) -> int:
        """K, the columns."""
        return int(self.values.shape[1])

    @property
    def groups(self) -> int:
        """Groups per row, ceil(K / group_size); 1 for group_size -1."""
        return int(self.group_scale.shape[1])

    @property
    def effective_group_size(self) -> int:
        """Weights per group: group_size, or K rounded up to a multiple of m for group_size -1."""
        if self.group_size != -1:
            return self.group_size
        return -(-self.in_features // self.pattern.m) * self.pattern.m

    @property
    def symmetric(self) -> bool:
        """Whether there is no zero point."""
        return self.zero_point is None

    @property
    def scale_bits(self) -> int:
        """Bits of a group scale in the stream: 8 if they hold every one of them, else 16."""
        fits = int(self.group_scale.min()) >= -128 and int(self.group_scale.max()) <= 127
        return 8 if fits else 16

    def integers(self) -> NDArray[np.int8]:
        """What a multiplier sees: values - zero_point, and 0 where pruned.

        Returns
        -------
        int8 [O, K]
            -8..7 if symmetric, -15..15 if asymmetric.
        """
        if self.zero_point is None:
            return self.values * self.mask
        difference: NDArray[np.int8] = self.values - self._along_row(self.zero_point.astype(np.int8))
        difference *= self.mask
        return difference

    def to_dense(self) -> NDArray[np.float32]:
        """Dequantise to a dense matrix.

        The integer product ``(value - zero_point) * group_scale`` is exact in float32 (below 2**19), so that
        the one rounding of a weight is that of its product with channel_scale.

        Returns
        -------
        float32 [O, K]
            In units of the original weight; 0.0 where pruned.
        """
        # |product| <= 15 * 128 in 8 bits, which int16 holds.
        wide = np.int16 if self.scale_bits == 8 else np.int32
        product = self.integers() * self._along_row(self.group_scale.astype(wide))
        dense: NDArray[np.float32] = product.astype(np.float32)
        dense *= self.channel_scale[:, None]
        dense += 0.0  # a negative channel scale leaves -0.0, which is not the same bits as a pruned zero
        return dense

    def _along_row(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """Repeat an [O, groups] array over the columns of each group: [O, K]."""
        group_of_column = np.arange(self.in_features) // self.effective_group_size
        return np.take(per_group, group_of_column, axis=1)


#: NumPy's dtype kind characters of each word for a kind.
_KINDS = {"integer": "iu", "bool": "b", "floating": "f"}


def _read(name: str, given: object, kind: str) -> NDArray[Any]:
    array = np.asarray(given)
    if array.dtype.kind not in _KINDS[kind]:
        raise TypeError(f"{name} has dtype {array.dtype}, but its dtype must be {kind}.")
    return array


def _check_shape(name: str, array: NDArray[Any], shape: tuple[int, ...], words: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, but it must be {words} = {shape} to match values.")


def _check_range(name: str, array: NDArray[Any], low: int, high: int, axis: str, what: str) -> None:
    if int(array.min()) >= low and int(array.max()) <= high:
        return
    row, position = (int(i) for i in np.argwhere((array < low) | (array > high))[0])
    raise ValueError(
        f"{name} holds {array[row, position]} in row {row}, {axis} {position}, "
        f"but {what} must be {low} to {high}."
    )
