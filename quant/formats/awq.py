"""AWQ checkpoints in the GEMM layout, as AutoAWQ and AutoRound write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.foreign_linear import SYMMETRIC_ZERO, ForeignLinear, groups_of, make_linear
from quant.formats.layer_tensors import LayerTensors
from quant.pattern import NMPattern

#: Output, of the eight of a word, that each nibble holds, lowest bits first.
_OUTPUT_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)


def read_awq(tensors: Mapping[str, Any], name: str, group_size: int, pattern: NMPattern | None = None) -> ForeignLinear:
    """Read a linear layer of a 4-bit AWQ checkpoint of version GEMM.

    Tensors: `qweight` int32 [K, O / 8], eight codes of 0..15 along O per word in the order 0, 2, 4, 6, 1, 3, 5, 7;
    `qzeros` int32 [groups, O / 8], likewise; `scales` [groups, O]; `bias`. The weight is
    ``scales * (code - zero)``, symmetric where every zero point is 8.

    Parameters
    ----------
    tensors : mapping of names to NumPy arrays or CPU torch tensors
    name : str
        Full name of the layer.
    group_size : int
        `group_size` of the file's configuration, -1 for a whole row.
    pattern : NMPattern or None
        None takes the one that the zeros obey.

    Raises
    ------
    ValueError
        Naming layer and tensor, where something does not fit.
    """
    layer = LayerTensors(tensors, name)
    words = layer.read("qweight", ("int32",), (None, None), "[K, O / 8]")
    columns, rows = words.shape[0], words.shape[1] * 8
    groups = groups_of(columns, group_size)
    scale = layer.read_floats("scales", (groups, rows), "[groups, O]").T
    zero_words = layer.read("qzeros", ("int32",), (groups, rows // 8), "[groups, O / 8]")
    zero_point = _unpack(zero_words)
    return make_linear(
        layer,
        _unpack(words),
        scale,
        group_size,
        zero_point=None if (zero_point == SYMMETRIC_ZERO).all() else zero_point,
        pattern=pattern,
    )


def _unpack(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Codes [O, R] of int32 [R, O / 8] words."""
    by_output = np.ascontiguousarray(words.T)
    codes = np.empty((8 * len(by_output), len(words)), dtype=np.uint8)
    for nibble, output in enumerate(_OUTPUT_OF_NIBBLE):
        codes[output::8] = by_output >> 4 * nibble & 15
    return codes
