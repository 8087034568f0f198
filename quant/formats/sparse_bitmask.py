"""Legacy compressed-tensors files of the formats sparse-bitmask and sparse-24-bitmask.

compressed-tensors 0.15 dropped both. transformers 5.23 takes a sparse-24-bitmask file without an error and leaves
its linear layers at random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.foreign_linear import SYMMETRIC_ZERO, ForeignLinear, PrunedLinear, check_claim, make_linear
from quant.formats.infer import infer_pattern
from quant.formats.layer_tensors import LayerTensors
from quant.formats.pack_quantized import choose_scheme, read_zero_point, to_nibbles
from quant.formats.packed_bits import unpack_mask
from quant.formats.schemes import WeightScheme
from quant.pattern import NMPattern

_TWO_OF_FOUR = NMPattern(2, 4)


def read_sparse_bitmask(
    tensors: Mapping[str, Any],
    name: str,
    schemes: Sequence[WeightScheme] = (),
    pattern: NMPattern | None = None,
) -> ForeignLinear | PrunedLinear:
    """Read a linear layer of a sparse-bitmask file.

    Tensors: `shape` [2], (O, K); `compressed` [values], the nonzero weights in row-major order; `bitmask` uint8
    [O, ceil(K / 8)], bit j of byte i being column 8 * i + j; `row_offsets` [O], where each row starts in
    `compressed`; with int8 codes `weight_scale` [O, groups] and perhaps `weight_zero_point` int8 [O, groups]; `bias`.

    Parameters
    ----------
    tensors : mapping of names to NumPy arrays or CPU torch tensors
    name : str
        Full name of the layer.
    schemes : sequence of WeightScheme
        Those of the file's configuration, for int8 codes.
    pattern : NMPattern or None
        None takes the one that the bitmask obeys.

    Returns
    -------
    ForeignLinear where `compressed` holds int8 codes of INT4 weights, PrunedLinear where it holds floats.

    Raises
    ------
    ValueError
        Naming layer and tensor, where something does not fit: before anything of the shape that the file states
        is made.
    """
    layer = LayerTensors(tensors, name)
    mask = _read_mask(layer, *layer.read_matrix_shape("shape"))
    per_row = np.count_nonzero(mask, axis=1)
    values = _read_values(layer, (None,), "[values]")
    _check_count(layer, values.size, int(per_row.sum()))
    offsets = layer.read("row_offsets", ("int64", "int32"), (len(mask),), "[O]")
    expected = np.cumsum(per_row) - per_row
    if not np.array_equal(offsets, expected):
        row = int(np.argmax(offsets != expected))
        raise layer.fault(
            "row_offsets", f"says that row {row} starts at {offsets[row]}, but by the bitmask it is {expected[row]}."
        )
    return _scatter(layer, values, mask, schemes, pattern)


def read_sparse_24(
    tensors: Mapping[str, Any],
    name: str,
    schemes: Sequence[WeightScheme] = (),
    pattern: NMPattern | None = None,
) -> ForeignLinear | PrunedLinear:
    """Read a linear layer of a sparse-24-bitmask file.

    Tensors are those of `read_sparse_bitmask` with `shape` [2, 1], `compressed` [O, K / 2] and no `row_offsets`.
    Every block of four keeps exactly two. The format drops what exceeds that without an error when it is written,
    so that such a file of a model with another pattern is not that model.

    Parameters
    ----------
    tensors : mapping of names to NumPy arrays or CPU torch tensors
    name : str
        Full name of the layer.
    schemes : sequence of WeightScheme
        Those of the file's configuration, for int8 codes.
    pattern : NMPattern or None
        None is 2:4.

    Returns
    -------
    ForeignLinear where `compressed` holds int8 codes of INT4 weights, PrunedLinear where it holds floats.

    Raises
    ------
    ValueError
        Naming layer and tensor, where something does not fit: before anything of the shape that the file states
        is made.
    """
    layer = LayerTensors(tensors, name)
    rows, columns = layer.read_matrix_shape("shape", column=True)
    mask = _read_mask(layer, rows, columns)
    values = _read_values(layer, (rows, columns // 2), "[O, K / 2]")
    check_claim(name, _TWO_OF_FOUR, mask)
    _check_count(layer, values.size, int(np.count_nonzero(mask)))
    return _scatter(layer, values.ravel(), mask, schemes, pattern or _TWO_OF_FOUR)


def _read_mask(layer: LayerTensors, rows: int, columns: int) -> NDArray[np.bool_]:
    octets = layer.read("bitmask", ("uint8",), (rows, -(-columns // 8)), "[O, ⌈K / 8⌉]")
    if columns % 8 and (octets[:, -1] >> columns % 8).any():
        row = int(np.argmax(octets[:, -1] >> columns % 8 != 0))
        raise layer.fault("bitmask", f"keeps a weight beyond column {columns - 1} in row {row}.")
    return unpack_mask(octets, columns)


def _read_values(layer: LayerTensors, shape: tuple[int | None, ...], words: str) -> NDArray[Any]:
    if "compressed" in layer and layer.dtype("compressed") == "int8":
        return layer.read("compressed", ("int8",), shape, words)
    return layer.read_floats("compressed", shape, words)


def _check_count(layer: LayerTensors, values: int, kept: int) -> None:
    if values != kept:
        raise layer.fault("compressed", f"holds {values} values, but the bitmask keeps {kept} weights.")


def _scatter(
    layer: LayerTensors,
    values: NDArray[Any],
    mask: NDArray[np.bool_],
    schemes: Sequence[WeightScheme],
    pattern: NMPattern | None,
) -> ForeignLinear | PrunedLinear:
    rows, columns = mask.shape
    if values.dtype != np.int8:
        if pattern is None:
            pattern = infer_pattern(mask)
        check_claim(layer.layer, pattern, mask)
        weight = np.zeros(mask.shape, dtype=np.float32)
        weight[mask] = values
        return PrunedLinear(weight, mask, pattern, layer.read_bias(rows))
    scale = layer.read_floats("weight_scale", (rows, None), "[O, groups]")
    groups = scale.shape[1]
    scheme = choose_scheme(layer, "weight_zero_point" in layer, groups, columns, schemes)
    if scheme.activation_order:
        raise ValueError(f"Layer {layer.layer} has activation order, with which a sparse file cannot be read.")
    zero_point = read_zero_point(layer, rows, groups)
    nibbles = np.full(mask.shape, SYMMETRIC_ZERO, dtype=np.uint8)
    nibbles[mask] = to_nibbles(layer, "compressed", values)
    # The bitmask lists codes that are not 0. In an asymmetric layer a pruned weight has the code of its zero point,
    # so that the bitmask says nothing about what is kept.
    kept = mask if zero_point is None else None
    return make_linear(layer, nibbles, scale, scheme.group_size, zero_point=zero_point, pattern=pattern, mask=kept)
