"""nimble.json: what a folder of packed weights holds, read strictly.

Format 1. An object with exactly the keys

* ``format``, ``version``: `FORMAT` and `VERSION`;
* ``core``: every parameter of the core that the streams are packed for;
* ``layers``: for each quantised linear layer what its stream says (pattern, group_size, symmetric, code,
  scale_bits, out_features, in_features), the stream's 64-byte header in hexadecimal, and whether the layer has a bias
  and an order of columns;
* ``tensors``: for every tensor its file, type, shape and SHA-256. Those of a layer are ``<layer>.stream`` (the
  payload, as it lies in the core's memory), ``<layer>.channel_scale``, and ``<layer>.bias`` and
  ``<layer>.column_order`` where it has them; all others are the rest of the model;
* ``files``: length and SHA-256 of every other file, config.json among them;
* ``checksum``: SHA-256 of all of the above as JSON with sorted keys and no spaces.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from accel.config import ConfigError, CoreConfig
from accel.stream import StreamLayout

FORMAT = "nimble packed weights"
VERSION = 1

#: Name of the manifest, and of the model's configuration beside it.
MANIFEST = "nimble.json"
CONFIG = "config.json"

#: Most bytes of a manifest that is read: a layer takes about 1,200.
MANIFEST_BYTES_MAX = 1 << 24

#: Types of tensors as safetensors names them.
DTYPES = ("BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64")

#: Last parts of names that only tensors of quantised layers have.
_LAYER_TENSORS = ("stream", "channel_scale", "column_order")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]{0,199}")
_SHARD = re.compile(r"nimble-[0-9]{5}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEADER = re.compile(r"(?:[0-9a-f]{2}){64}")


class PackedError(ValueError):
    """A folder of packed weights that must not be trusted: incomplete, altered, hostile or of another version."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies, and what it is."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class LayerEntry:
    """What a layer's stream says, readable without the stream."""

    pattern: str
    group_size: int
    symmetric: bool
    code: str
    scale_bits: int
    out_features: int
    in_features: int
    #: The stream's header, in hexadecimal.
    header: str
    bias: bool
    column_order: bool

    @classmethod
    def of(cls, layout: StreamLayout, header: bytes, bias: bool, column_order: bool) -> LayerEntry:
        """The entry of a stream."""
        return cls(
            pattern=str(layout.pattern),
            group_size=layout.group_size,
            symmetric=not layout.asymmetric,
            code=layout.code,
            scale_bits=8 * layout.scale_bytes,
            out_features=layout.out_features,
            in_features=layout.in_features,
            header=header.hex(),
            bias=bias,
            column_order=column_order,
        )

    def tensors(self, name: str) -> dict[str, tuple[str, tuple[int | None, ...]]]:
        """Types and shapes that the tensors of the layer must have; the length of the stream is its header's."""
        expected: dict[str, tuple[str, tuple[int | None, ...]]] = {
            f"{name}.stream": ("U8", (None,)),
            f"{name}.channel_scale": ("F32", (self.out_features,)),
        }
        if self.bias:
            expected[f"{name}.bias"] = ("F32", (self.out_features,))
        if self.column_order:
            expected[f"{name}.column_order"] = ("I64", (self.in_features,))
        return expected


@dataclass(frozen=True)
class FileEntry:
    """A file that is no tensor file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A manifest whose parts agree with each other."""

    core: CoreConfig
    layers: Mapping[str, LayerEntry]
    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, FileEntry]

    @property
    def shards(self) -> dict[str, dict[str, TensorEntry]]:
        """Tensors of each tensor file."""
        shards: dict[str, dict[str, TensorEntry]] = {}
        for name, entry in self.tensors.items():
            shards.setdefault(entry.file, {})[name] = entry
        return shards

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "core": self.core.as_dict(),
            "layers": {name: dataclasses.asdict(entry) for name, entry in self.layers.items()},
            "tensors": {
                name: {**dataclasses.asdict(entry), "shape": list(entry.shape)} for name, entry in self.tensors.items()
            },
            "files": {name: dataclasses.asdict(entry) for name, entry in self.files.items()},
        }
        return {**document, "checksum": _checksum(document)}

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest, believing nothing.

        Parameters
        ----------
        where
            Name of the file, for messages.

        Raises
        ------
        PackedError
            For anything that a manifest of this version does not hold, or that contradicts the rest of it.
        """
        if len(data) > MANIFEST_BYTES_MAX:
            raise PackedError(f"{where} is too long for a manifest: it has more than {MANIFEST_BYTES_MAX} bytes.")
        try:
            document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
        except PackedError as error:
            raise PackedError(f"{where}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise PackedError(f"{where} is not JSON: {error}.") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise PackedError(f"{where} is not the manifest of packed weights: its format is not {FORMAT!r}.")
        if document.get("version") != VERSION or isinstance(document["version"], bool):
            raise PackedError(
                f"{where} has version {document.get('version')!r}, but this program reads version {VERSION}."
            )
        keys = ("format", "version", "core", "layers", "tensors", "files", "checksum")
        _require_keys(document, keys, where)
        for key in ("core", "layers", "tensors", "files"):
            if not isinstance(document[key], dict):
                raise PackedError(f"{where}: {key} must be an object.")
        claimed = document.pop("checksum")
        if claimed != _checksum(document):
            raise PackedError(f"{where} is altered: its checksum does not match.")
        try:
            core = CoreConfig.from_dict(document["core"])
        except (ConfigError, TypeError) as error:
            raise PackedError(f"{where}: {error}") from None
        manifest = cls(
            core,
            {name: _entry(LayerEntry, value, f"{where}: layer {name}") for name, value in document["layers"].items()},
            {
                name: _entry(TensorEntry, value, f"{where}: tensor {name}")
                for name, value in document["tensors"].items()
            },
            {name: _entry(FileEntry, value, f"{where}: file {name}") for name, value in document["files"].items()},
        )
        manifest.check(where)
        return manifest

    def check(self, where: str) -> None:
        """Refuse names that reach out of the folder, and layers whose tensors are missing or of other shapes.

        Raises
        ------
        PackedError
            Naming the first contradiction.
        """
        if CONFIG not in self.files:
            raise PackedError(f"{where} names no {CONFIG}.")
        for file in self.files:
            if not _PLAIN_NAME.fullmatch(file) or file == MANIFEST or _SHARD.fullmatch(file):
                raise PackedError(f"{where} names the file {file!r}; it must be the plain name of a file beside it.")
        for name, tensor in self.tensors.items():
            if not _SHARD.fullmatch(tensor.file):
                raise PackedError(
                    f"{where}: tensor {name} is in {tensor.file!r}; tensor files are named nimble-00001.safetensors "
                    "and on."
                )
        for name, layer in self.layers.items():
            expected = layer.tensors(name)
            for tensor_name, (dtype, shape) in expected.items():
                entry = self.tensors.get(tensor_name)
                if entry is None:
                    raise PackedError(f"{where}: layer {name} has no tensor {tensor_name}.")
                fits = len(entry.shape) == len(shape) and all(
                    wanted in (None, found) for wanted, found in zip(shape, entry.shape, strict=True)
                )
                if entry.dtype != dtype or not fits:
                    words = ", ".join("any" if length is None else str(length) for length in shape)
                    raise PackedError(
                        f"{where}: tensor {tensor_name} is {entry.dtype} {list(entry.shape)}, but it must be "
                        f"{dtype} [{words}]."
                    )
        for name in self.others:
            layer_name, _, part = name.rpartition(".")
            if layer_name in self.layers or part in _LAYER_TENSORS:
                raise PackedError(f"{where}: tensor {name} is none that a layer {layer_name} says it has.")

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the tensors that belong to no quantised layer."""
        own = {tensor for name, layer in self.layers.items() for tensor in layer.tensors(name)}
        return tuple(name for name in self.tensors if name not in own)


def _checksum(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise PackedError(f"an object has the key {_short(name)} twice.")
        found[name] = value
    return found


def _no_number(text: str) -> None:
    raise PackedError(f"{text} is no number of JSON.")


def _require_keys(found: Mapping[str, Any], wanted: Iterable[str], where: str) -> None:
    wanted = list(wanted)
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    if missing or unknown:
        raise PackedError(
            f"{where} must have the keys {', '.join(wanted)}; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}."
        )


def _entry(kind: Any, found: Any, where: str) -> Any:
    """An entry of a dataclass's fields, each present once and of its type."""
    if not isinstance(found, dict):
        raise PackedError(f"{where} must be an object.")
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    _require_keys(found, types, where)
    for key, value in found.items():
        if not _is_of(value, str(types[key])) or not _is_allowed(key, value):
            raise PackedError(f"{where} has {key} = {_short(value)}, which is not allowed.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return kind(**values)


def _is_of(value: Any, annotation: str) -> bool:
    if annotation == "tuple[int, ...]":
        return isinstance(value, list) and all(type(item) is int for item in value)
    return type(value).__name__ == annotation


#: What a value must be besides of its type.
_RULES = {
    "sha256": lambda value: _SHA256.fullmatch(value),
    "header": lambda value: _HEADER.fullmatch(value),
    "dtype": lambda value: value in DTYPES,
    "shape": lambda value: len(value) <= 8 and all(0 <= length < 1 << 40 for length in value),
    "bytes": lambda value: 0 <= value < 1 << 40,
    "out_features": lambda value: 0 < value < 1 << 31,
    "in_features": lambda value: 0 < value < 1 << 31,
}


def _is_allowed(key: str, value: Any) -> bool:
    return key not in _RULES or bool(_RULES[key](value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
