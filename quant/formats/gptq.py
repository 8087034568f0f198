"""GPTQ checkpoints, version 1 and 2, as AutoGPTQ, GPTQModel and AutoRound write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.column_order import contiguous_order
from quant.formats.foreign_linear import SYMMETRIC_ZERO, ForeignLinear, groups_of, make_linear
from quant.formats.layer_tensors import LayerTensors
from quant.formats.packed_bits import unpack_nibbles
from quant.pattern import NMPattern


def read_gptq(
    tensors: Mapping[str, Any],
    name: str,
    group_size: int,
    version: int = 1,
    symmetric: bool = False,
    activation_order: bool = False,
    pattern: NMPattern | None = None,
) -> ForeignLinear:
    """Read a linear layer of a 4-bit GPTQ checkpoint.

    Tensors: `qweight` int32 [K / 8, O], eight codes of 0..15 along K per word; `qzeros` int32 [groups, O / 8],
    along O; `scales` [groups, O]; `g_idx` int32 [K], the group of each input feature, where it is there; `bias`.
    The weight is ``scales * (code - zero)``. It is symmetric where every zero point is 8, and negative scales are
    legal, as in Intel's full-range symmetric files.

    Parameters
    ----------
    tensors : mapping of names to NumPy arrays or CPU torch tensors
    name : str
        Full name of the layer.
    group_size : int
        `group_size` of the file's configuration, -1 for a whole row.
    version : int
        1, which stores zero - 1, or 2, which stores zero.
    symmetric : bool
        `sym` of the file's configuration. Some tools store the 8 of a symmetric file as version 2 does in files
        that say version 1; it is then taken as it is.
    activation_order : bool
        `desc_act` of the file's configuration: the layer then has a g_idx.
    pattern : NMPattern or None
        Pattern in the order of the groups. None takes the one that the zeros obey.

    Raises
    ------
    ValueError
        Naming layer and tensor. A version 1 file that stores 15 for a zero point is refused, as tools disagree
        whether that is 16 or 0, and one whose groups g_idx does not make equally long.
    """
    layer = LayerTensors(tensors, name)
    words = layer.read("qweight", ("int32",), (None, None), "[K / 8, O]")
    rows, columns = words.shape[1], words.shape[0] * 8
    group_of_column = None
    if activation_order or "g_idx" in layer:
        group_of_column = layer.read("g_idx", ("int32", "int64"), (columns,), "[K]").astype(np.int64)
    groups = groups_of(columns, group_size)
    scale = layer.read_floats("scales", (groups, rows), "[groups, O]").T
    zero_words = layer.read("qzeros", ("int32",), (groups, -(-rows // 8)), "[groups, O / 8]")
    zeros = unpack_nibbles(zero_words)[:, :rows].T
    order = None if group_of_column is None else contiguous_order(layer, "g_idx", group_of_column, group_size)

    nibbles = unpack_nibbles(words.T)
    if order is not None:
        nibbles = nibbles[:, order]
    return make_linear(
        layer,
        nibbles,
        scale,
        group_size,
        zero_point=_zero_points(layer, zeros, version, symmetric),
        pattern=pattern,
        column_order=order,
    )


def _zero_points(
    layer: LayerTensors, stored: NDArray[np.uint8], version: int, symmetric: bool
) -> NDArray[np.uint8] | None:
    """Zero points [O, groups], None where all are 8."""
    if version == 1 and not (symmetric and (stored == SYMMETRIC_ZERO).all()):
        if (stored == 15).any():
            row, group = (int(i) for i in np.argwhere(stored == 15)[0])
            raise layer.fault(
                "qzeros",
                f"stores 15 in row {row}, group {group}, which version 1 of the format leaves open: tools "
                "read it as zero point 16 or 0. Save the model as gptq_v2.",
            )
        stored = stored + np.uint8(1)
    return None if (stored == SYMMETRIC_ZERO).all() else stored
