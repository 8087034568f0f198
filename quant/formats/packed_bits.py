"""INT4 codes in 32-bit words and masks in bytes, as other tools pack them: lowest bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unpack_nibbles(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Split int32 [R, C] words along their last axis in uint8 [R, 8 * C] nibbles of 0..15, lowest bits first."""
    octets = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    nibbles = np.empty((*octets.shape, 2), dtype=np.uint8)
    np.bitwise_and(octets, 15, out=nibbles[..., 0])
    np.right_shift(octets, 4, out=nibbles[..., 1])
    return nibbles.reshape(len(words), -1)


def pack_nibbles(nibbles: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Pack uint8 [R, C] nibbles of 0..15 in int32 [R, ceil(C / 8)] words, the inverse of `unpack_nibbles`.

    The unused nibbles of a row's last word are 0.
    """
    rows, columns = nibbles.shape
    padded = np.zeros((rows, -(-columns // 8) * 8), dtype=np.uint8)
    padded[:, :columns] = nibbles
    octets = padded[:, 0::2] | padded[:, 1::2] << 4
    return octets.view("<i4").astype(np.int32, copy=False)


def unpack_mask(octets: NDArray[np.uint8], columns: int) -> NDArray[np.bool_]:
    """Split uint8 [R, ceil(columns / 8)] in bool [R, columns]; bit j of byte i is column 8 * i + j."""
    return np.unpackbits(octets, axis=1, count=columns, bitorder="little").view(np.bool_)


def pack_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack bool [R, C] in uint8 [R, ceil(C / 8)], the inverse of `unpack_mask`; unused bits are 0."""
    return np.packbits(mask, axis=1, bitorder="little")
