"""Columns in the order of their groups, for files in activation order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quant.formats.foreign_linear import groups_of
from quant.formats.layer_tensors import LayerTensors


def contiguous_order(
    layer: LayerTensors, suffix: str, group_of_column: NDArray[np.int64], group_size: int
) -> NDArray[np.int64] | None:
    """Order of the columns that makes their groups contiguous: a stable sort; None where they are already.

    Raises
    ------
    ValueError
        If a group does not exist, or sorted columns do not fill groups of `group_size` one after the other.
    """
    columns = len(group_of_column)
    groups = groups_of(columns, group_size)
    outside = (group_of_column < 0) | (group_of_column >= groups)
    if outside.any():
        column = int(np.argmax(outside))
        raise layer.fault(
            suffix, f"puts column {column} in group {group_of_column[column]}, but there are groups 0 to {groups - 1}."
        )
    if groups == 1:
        return None
    expected = np.arange(columns) // group_size
    if np.array_equal(group_of_column, expected):
        return None
    order = np.argsort(group_of_column, kind="stable")
    if not np.array_equal(group_of_column[order], expected):
        sizes = np.bincount(group_of_column, minlength=groups)
        group = int(np.argmax(sizes != np.bincount(expected, minlength=groups)))
        raise layer.fault(
            suffix,
            f"puts {sizes[group]} columns in group {group}, but only groups of {group_size} can be made contiguous.",
        )
    return order
