"""Legacy compressed-tensors files of the format marlin-24: 2:4 INT4 weights in the order of a GPU kernel.

The format was made for one kernel and has no published decompressor; this reader undoes, step by step, what the
compressor of compressed-tensors up to 0.14 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.foreign_linear import SYMMETRIC_ZERO, ForeignLinear, make_linear
from quant.formats.layer_tensors import LayerTensors
from quant.formats.packed_bits import unpack_nibbles
from quant.pattern import NMPattern

#: Codes that one thread block of the kernel loads: a tile of 16 kept rows along K by 64 outputs.
_TILE = 1024

#: Weights per scale of a grouped file; there is no other.
_GROUP = 128


def read_marlin_24(tensors: Mapping[str, Any], name: str, pattern: NMPattern | None = None) -> ForeignLinear:
    """Read a linear layer of a marlin-24 file with 4-bit weights.

    Tensors: `weight_packed` int32 [K / 32, 2 * O], code + 8 of the kept half in kernel order; `meta` int16
    [K / 32, 2 * O], per block of four the positions of its two kept weights, in kernel order; `scale_packed`
    [groups, O], in kernel order where there are more than two groups; `bias`. Weights are symmetric, and every
    block of four keeps exactly two, of which some may be 0.

    Parameters
    ----------
    tensors : mapping of names to NumPy arrays or CPU torch tensors
    name : str
        Full name of the layer.
    pattern : NMPattern or None
        None is 2:4.

    Raises
    ------
    ValueError
        Naming layer and tensor, where something does not fit.
    """
    layer = LayerTensors(tensors, name)
    words = layer.read("weight_packed", ("int32",), (None, None), "[K / 32, 2 * O]")
    columns, rows = words.shape[0] * 32, words.shape[1] // 2
    if words.shape[1] % 128:
        raise layer.fault(
            "weight_packed", f"has shape {words.shape}, but 4-bit marlin-24 has [K / 32, 2 * O] with 64 dividing O."
        )
    meta = layer.read("meta", ("int16",), words.shape, "[K / 32, 2 * O]")
    packed_scale = layer.read_floats("scale_packed", (None, rows), "[groups, O]")
    groups = len(packed_scale)
    if groups > 1 and groups * _GROUP != columns:
        raise layer.fault("scale_packed", f"has {groups} scales per row; K = {columns} has 1, or one per 128 weights.")

    first, second = _kept_positions(meta, rows, columns)
    if (first >= second).any():
        row, block = (int(i) for i in np.argwhere(first >= second)[0])
        raise layer.fault(
            "meta",
            f"lists positions {first[row, block]} and {second[row, block]} in row {row}, block {block} (columns "
            f"{4 * block} to {4 * block + 3}); the second must be above the first.",
        )
    positions = np.stack((first, second), axis=2)
    kept_codes = _kept_codes(words, rows, columns).reshape(rows, columns // 4, 2)
    nibbles = np.full((rows, columns // 4, 4), SYMMETRIC_ZERO, dtype=np.uint8)
    np.put_along_axis(nibbles, positions, kept_codes, axis=2)
    mask = np.zeros(nibbles.shape, dtype=np.bool_)
    np.put_along_axis(mask, positions, True, axis=2)
    return make_linear(
        layer,
        nibbles.reshape(rows, columns),
        _scales(packed_scale).T,
        -1 if groups == 1 else _GROUP,
        pattern=pattern or NMPattern(2, 4),
        mask=mask.reshape(rows, columns),
    )


@cache
def _tile_order() -> NDArray[np.intp]:
    """Place in a tile, row-major [kept row 0..15, output 0..63] in four 16 x 16 squares, of each code as stored.

    A tile is stored by the 32 lanes of a warp, each with four rows of eight codes: what mma.m16n8k16 wants of the
    lane at once. In a word, nibbles take the eight codes in the order 0, 2, 4, 6, 1, 3, 5, 7.
    """
    lane, j, block, pair, parity = np.indices((32, 4, 2, 2, 2))
    kept_row = 2 * (lane % 4) + 8 * pair + parity
    column = lane // 4
    place = 16 * kept_row + 256 * (column // 2) + 8 * (column % 2) + 4 * block + j
    return place.reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].ravel()


def _kept_codes(words: NDArray[np.int32], rows: int, columns: int) -> NDArray[np.uint8]:
    """Codes + 8 of the kept half, uint8 [O, K / 2]."""
    stored = unpack_nibbles(words).reshape(-1, _TILE)
    tiles = np.empty_like(stored)
    tiles[:, _tile_order()] = stored
    # [K / 32, O / 16] squares of 16 kept rows by 16 outputs.
    squares = tiles.reshape(columns // 32, rows // 16, 16, 16)
    return np.ascontiguousarray(squares.transpose(1, 3, 0, 2).reshape(rows, columns // 2))


def _kept_positions(meta: NDArray[np.int16], rows: int, columns: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Positions 0..3 of the first and second kept weight of each block, two uint8 [O, K / 4].

    An entry of `meta` describes four blocks of a row, the first in its lowest bits: four bits each, the first
    position in the lower two. Entries lie in the order of CUTLASS's reorder_meta: within 64 rows those of four
    neighbours go to two halves of 32, then 2 x 2 squares swap their off-diagonal, and pairs of entries of a row
    stay together, pair columns one after the other.
    """
    row = np.arange(rows)[:, None]
    entry = np.arange(columns // 16)[None, :]
    place = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
    swap = np.where((place % 2 == 0) & (entry % 2 == 1), 1, 0) - np.where((place % 2 == 1) & (entry % 2 == 0), 1, 0)
    place, entry = place + swap, entry - swap
    entries = np.ravel(meta)[entry // 2 * rows * 2 + place * 2 + entry % 2].view(np.uint16)
    blocks = (entries[:, :, None] >> np.arange(0, 16, 4, dtype=np.uint16)).astype(np.uint8) & 15
    blocks = blocks.reshape(rows, columns // 4)
    return blocks & 3, blocks >> 2


def _scales(packed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales [groups, O] in the order of the outputs.

    The compressor compares the group size with the kept half of K, so that the scales of one or two groups are
    left in order.
    """
    if len(packed) <= 2:
        return packed
    in_order = np.empty_like(packed).reshape(-1, 8)
    in_order[:, [0, 4, 1, 5, 2, 6, 3, 7]] = packed.reshape(-1, 8)
    return in_order.reshape(packed.shape)
