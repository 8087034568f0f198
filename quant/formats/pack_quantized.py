"""Reading compressed-tensors files of the format pack-quantized, foreign ones and our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.column_order import contiguous_order
from quant.formats.foreign_linear import SYMMETRIC_ZERO, ForeignLinear, groups_of, make_linear
from quant.formats.layer_tensors import LayerTensors
from quant.formats.own_layers import MASK_SUFFIX, StoredLayer
from quant.formats.packed_bits import unpack_mask, unpack_nibbles
from quant.formats.schemes import WeightScheme
from quant.pattern import NMPattern


def read_pack_quantized(
    tensors: Mapping[str, Any],
    name: str,
    schemes: Sequence[WeightScheme] = (),
    pattern: NMPattern | None = None,
    stored: StoredLayer | None = None,
) -> ForeignLinear:
    """Read a linear layer of a 4-bit pack-quantized file.

    Tensors: `weight_packed` int32 [O, ceil(K / 8)], eight code + 8 per word; `weight_scale` [O, groups];
    `weight_shape` [2], (O, K); `weight_zero_point` int32 [ceil(O / 8), groups], packed along O, where the weights
    are asymmetric (int8 [O, groups] in early files); `weight_g_idx` int32 [K], the group of each input feature, in
    files of compressed-tensors up to 0.18 in activation order; `bias`.

    Parameters
    ----------
    tensors : mapping of names to NumPy arrays or CPU torch tensors
    name : str
        Full name of the layer.
    schemes : sequence of WeightScheme
        Those of the file's configuration; the layer takes the first that its tensors fit. Without one, groups
        divide K evenly and one group per row is group size -1.
    pattern : NMPattern or None
        For files that hold no pattern; None takes the one that the zeros obey.
    stored : StoredLayer or None
        Pattern, group size and mask of a file of our own. Beside another pattern the mask is not used.

    Raises
    ------
    ValueError
        Naming layer and tensor, where something does not fit.
    """
    layer = LayerTensors(tensors, name)
    words = layer.read("weight_packed", ("int32",), (None, None), "[O, ⌈K / 8⌉]")
    rows, columns = layer.read_matrix_shape("weight_shape")
    if words.shape != (rows, -(-columns // 8)):
        raise layer.fault(
            "weight_packed",
            f"has shape {words.shape}, but weight_shape says [{rows}, {columns}], which 4-bit codes fill "
            f"({rows}, {-(-columns // 8)}).",
        )
    scale = layer.read_floats("weight_scale", (rows, None), "[O, groups]")
    scheme = choose_scheme(layer, "weight_zero_point" in layer, scale.shape[1], columns, schemes)
    group_size = scheme.group_size
    zero_point = read_zero_point(layer, rows, scale.shape[1])
    order = None
    if scheme.activation_order or "weight_g_idx" in layer:
        group_of_column = layer.read("weight_g_idx", ("int32", "int64"), (columns,), "[K]").astype(np.int64)
        # A file without activation order may hold -1 everywhere.
        if not (group_of_column == -1).all():
            order = contiguous_order(layer, "weight_g_idx", group_of_column, group_size)
    nibbles = unpack_nibbles(words)[:, :columns]
    if order is not None:
        nibbles = nibbles[:, order]
    mask = None
    if stored is not None:
        scale, zero_point = _join_groups(layer, scale, zero_point, group_size, stored.group_size, columns)
        group_size = stored.group_size
        pattern = pattern or stored.pattern
        if stored.mask is not None and pattern == stored.pattern:
            mask = _unpack_stored_mask(layer, stored.mask, rows, columns)
    return make_linear(
        layer,
        nibbles,
        scale,
        group_size,
        zero_point=zero_point,
        pattern=pattern,
        mask=mask,
        column_order=order,
    )


def choose_scheme(
    layer: LayerTensors, asymmetric: bool, groups: int, columns: int, schemes: Sequence[WeightScheme]
) -> WeightScheme:
    """The first scheme of the configuration that a layer with so many groups per row fits.

    Raises
    ------
    ValueError
        If none fits, or without schemes if the groups do not divide K evenly.
    """
    for scheme in schemes:
        if scheme.symmetric != asymmetric and groups_of(columns, scheme.group_size) == groups:
            return scheme
    if schemes:
        known = ", ".join(
            f"{'symmetric' if scheme.symmetric else 'asymmetric'} weights in groups of {scheme.group_size}"
            for scheme in schemes
        )
        raise layer.fault(
            "weight_scale",
            f"has {groups} scales for each row of {columns} {'a' if asymmetric else ''}symmetric weights, which fits "
            f"no scheme of the file: {known}.",
        )
    if groups == 1:
        return WeightScheme(-1, not asymmetric)
    if columns % groups:
        raise layer.fault("weight_scale", f"has {groups} scales per row, which do not divide K = {columns} evenly.")
    return WeightScheme(columns // groups, not asymmetric)


def read_zero_point(layer: LayerTensors, rows: int, groups: int) -> NDArray[np.uint8] | None:
    """Zero points [O, groups] of 0..15 for codes stored + 8; None where the layer has none.

    Raises
    ------
    ValueError
        If they have another dtype or shape, or are outside -8..7 before 8 is added.
    """
    if "weight_zero_point" not in layer:
        return None
    if layer.dtype("weight_zero_point") == "int8":
        signed = layer.read("weight_zero_point", ("int8",), (rows, groups), "[O, groups]")
        return to_nibbles(layer, "weight_zero_point", signed)
    words = layer.read("weight_zero_point", ("int32", "int8"), (-(-rows // 8), groups), "[⌈O / 8⌉, groups]")
    return unpack_nibbles(words.T)[:, :rows].T


def to_nibbles(layer: LayerTensors, suffix: str, signed: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Add 8 to int8 codes or zero points of -8..7.

    Raises
    ------
    ValueError
        Naming the first that is outside.
    """
    outside = (signed < -8) | (signed > 7)
    if outside.any():
        index = [int(i) for i in np.argwhere(outside)[0]]
        raise layer.fault(suffix, f"holds {signed[tuple(index)]} at {index}, but a 4-bit code is -8 to 7.")
    return (signed + np.int8(SYMMETRIC_ZERO)).view(np.uint8)


def _join_groups(
    layer: LayerTensors,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint8] | None,
    group_size: int,
    wanted: int,
    columns: int,
) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """Scales and zero points of groups of `wanted` weights, from the shorter groups that our writer made of them."""
    joined = groups_of(columns, wanted)
    if -1 in (group_size, wanted) or group_size == wanted:
        if scale.shape[1] != joined:
            raise layer.fault("weight_scale", f"has {scale.shape[1]} scales per row; groups of {wanted} have {joined}.")
        return scale, zero_point
    group = np.arange(scale.shape[1]) * group_size // wanted
    first = np.searchsorted(group, np.arange(joined))
    for name, values in (("weight_scale", scale), ("weight_zero_point", zero_point)):
        if wanted % group_size or (values is not None and not np.array_equal(values, values[:, first][:, group])):
            raise layer.fault(name, f"is not one value per group of {wanted}, the group size that the file states.")
    return scale[:, first], None if zero_point is None else zero_point[:, first]


def _unpack_stored_mask(layer: LayerTensors, mask: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.bool_]:
    octets = -(-columns // 8)
    if mask.dtype != np.uint8 or mask.shape != (rows, octets):
        raise layer.fault(
            MASK_SUFFIX, f"has dtype {mask.dtype} and shape {mask.shape}; it must be uint8 ({rows}, {octets})."
        )
    return unpack_mask(mask, columns)
