"""A quantised linear layer as one safetensors file with a checksum, for the work folder of a run.

Tensors of the file, with O rows, K columns and G groups per row:

====================  ======================  ====================================================
``codes``             uint8 [O, ⌈K/2⌉]        two nibbles per byte, the lower column in the low
                                              one; a symmetric code is stored plus 8
``mask``              uint8 [O, ⌈K/8⌉]        bit j of byte i is column 8i + j
``group_scale``       int16 [O, G]
``channel_scale``     float32 [O]
``zero_point``        uint8 [O, G]            asymmetric only
``bias``              float32 [O]             where there is one
``column_order``      int64 [K]               where there is one
====================  ======================  ====================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quant.atomic_file import write_bytes
from quant.linear import QuantizedLinear
from quant.pattern import NMPattern
from quant.weight import NMWeight

_FORMAT = "nimble.layer.1"
_METADATA = "nimble"
_SHA256 = "sha256"


@dataclass(frozen=True, eq=False)
class LayerFile:
    """What a file holds."""

    linear: QuantizedLinear
    #: Relative squared error of the layer's output on the calibration text.
    error: float


def write_layer(path: Path, linear: QuantizedLinear, error: float) -> None:
    """Write a layer to a file, which is complete or untouched whatever happens.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    weight = linear.weight
    tensors: dict[str, NDArray[Any]] = {
        "codes": _pack_nibbles(weight.values.astype(np.int16) + (8 if weight.symmetric else 0)),
        "mask": np.packbits(weight.mask, axis=1, bitorder="little"),
        "group_scale": weight.group_scale.astype(np.int16),
        "channel_scale": weight.channel_scale,
    }
    if weight.zero_point is not None:
        tensors["zero_point"] = weight.zero_point.astype(np.uint8)
    if linear.bias is not None:
        tensors["bias"] = linear.bias.astype(np.float32)
    if linear.column_order is not None:
        tensors["column_order"] = linear.column_order.astype(np.int64)
    facts = {
        "format": _FORMAT,
        "pattern": str(weight.pattern),
        "group_size": weight.group_size,
        "columns": weight.in_features,
        "error": float(error),
    }
    write_checked(path, tensors, facts)


def read_layer(path: Path) -> LayerFile:
    """Read what `write_layer` wrote.

    Raises
    ------
    OSError
        If the file is missing or cannot be read.
    ValueError
        If it is not such a file, or is damaged.
    """
    tensors, facts = read_checked(path)
    if facts.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {facts.get('format')!r}; a layer of this version has {_FORMAT!r}.")
    try:
        columns = facts["columns"]
        zero_point = tensors.get("zero_point")
        codes = _unpack_nibbles(tensors["codes"], columns)
        values = codes.astype(np.int8) - np.int8(8 if zero_point is None else 0)
        mask = np.unpackbits(tensors["mask"], axis=1, count=columns, bitorder="little").astype(np.bool_)
        weight = NMWeight(
            values=values,
            mask=mask,
            group_scale=tensors["group_scale"],
            channel_scale=tensors["channel_scale"],
            pattern=NMPattern.parse(facts["pattern"]),
            group_size=facts["group_size"],
            zero_point=zero_point,
        )
        linear = QuantizedLinear(weight, tensors.get("bias"), tensors.get("column_order"))
        return LayerFile(linear, facts["error"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a quantised layer: {error}") from None


def read_error(path: Path) -> float:
    """Read a layer's relative error alone, without its tensors.

    Raises
    ------
    OSError
        If the file is missing or cannot be read.
    ValueError
        If it is not such a file.
    """
    error = _facts(path).get("error")
    if not isinstance(error, float):
        raise ValueError(f"{path} does not hold the error of a quantised layer.")
    return error


def write_checked(path: Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as a safetensors file with a SHA-256 over both, atomically.

    Equal content gives equal bytes.

    Raises
    ------
    OSError
        If the file cannot be written; what was there is untouched then.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    # One entry: safetensors writes several in any order.
    document = json.dumps({**facts, _SHA256: _checksum(arrays, facts)}, sort_keys=True)
    write_bytes(path, save(arrays, metadata={_METADATA: document}))


def read_checked(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_checked` wrote: tensors and JSON values.

    Raises
    ------
    OSError
        If the file is missing or cannot be read.
    ValueError
        If it is damaged.
    """
    facts = _facts(path)
    with _naming_damage(path), safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    found = facts.pop(_SHA256, None)
    if found != _checksum(tensors, facts):
        raise ValueError(f"{path} is damaged: its checksum does not match; delete it to have it made again.")
    return tensors, facts


def _facts(path: Path) -> dict[str, Any]:
    with _naming_damage(path):
        with safe_open(path, framework="np") as file:
            document = (file.metadata() or {}).get(_METADATA, "")
        facts = json.loads(document)
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: its metadata are no JSON object; delete it to have it made again.")
    return facts


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it to have it made again.") from None


def _checksum(tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _pack_nibbles(codes: NDArray[np.int16]) -> NDArray[np.uint8]:
    rows, columns = codes.shape
    padded = np.zeros((rows, columns + columns % 2), dtype=np.uint8)
    padded[:, :columns] = codes
    return padded[:, ::2] | padded[:, 1::2] << 4


def _unpack_nibbles(packed: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-columns // 2):
        raise ValueError(f"codes of {columns} columns cannot have shape {packed.shape} and type {packed.dtype}.")
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), dtype=np.uint8)
    codes[:, ::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes[:, :columns]
