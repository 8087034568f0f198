"""Packed weights on disk: a folder whose tensors are the accelerator's memory streams.

Tensors lie in safetensors files, `nimble.json` (see `accel.packed_manifest`) says what they are. The tensor
``<layer>.stream`` is a stream's payload byte for byte, so that loading it is a copy and it runs without packing.
The files are not named as transformers names them: it would load what it finds, and fill up the rest at random.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from accel.config import ConfigError, CoreConfig
from accel.packed_manifest import (
    CONFIG,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    FileEntry,
    LayerEntry,
    Manifest,
    PackedError,
    TensorEntry,
)
from accel.stream import HEADER_BYTES, PackedStream, StreamLayout, pack, unpack
from quant import NMPattern, NMWeight, QuantizedLinear
from quant.atomic_folder import new_folder
from quant.lazy_mapping import LazyMapping
from quant.pattern_check import check_pattern
from quant.shard_writer import ShardWriter

#: quant_method in the config.json of a packed folder: what transformers names when it refuses it.
QUANT_METHOD = "nimble"


class PackedCheckpoint:
    """A folder of packed weights. `open` makes one; tensors are read and checked when they are asked for."""

    #: The folder.
    path: Path
    manifest: Manifest
    #: The model's config.json, as it was before it was quantised.
    config: dict[str, Any]
    #: Quantised layers, by name: a stream taken apart, with its channel scales, bias and order of columns. Slots that
    #: filled up a block are kept zeros, and a dense pattern is 1:1; all else is as it was before it was packed.
    layers: Mapping[str, QuantizedLinear]
    #: All other tensors, by name.
    others: Mapping[str, torch.Tensor]

    def __init__(self, path: Path, manifest: Manifest, config: dict[str, Any]) -> None:
        """Hold what `open` has checked."""
        self.path, self.manifest, self.config = path, manifest, config
        self.layers = LazyMapping(manifest.layers, self._layer)
        self.others = LazyMapping(manifest.others, self.tensor)

    @classmethod
    def open(cls, path: str | Path) -> PackedCheckpoint:
        """Open a folder and check its manifest, its files, and name, type and shape of every tensor.

        The checksum of a tensor is checked when it is read; `check` reads all.

        Raises
        ------
        PackedError
            If anything is missing, unknown, altered, of another version, or outside of the folder.
        OSError
            If the folder or a file cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; give one with a {MANIFEST}.")
        manifest = Manifest.parse(_read_file(path / MANIFEST, MANIFEST_BYTES_MAX + 1), str(path / MANIFEST))
        data = {name: _checked_file(path / name, entry) for name, entry in manifest.files.items()}
        for file, entries in manifest.shards.items():
            _check_shard(path / file, entries)
        try:
            config = json.loads(data[CONFIG].decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise PackedError(f"{path / CONFIG} is not JSON: {error}.") from None
        if not isinstance(config, dict):
            raise PackedError(f"{path / CONFIG} holds a JSON {type(config).__name__}; it must be an object.")
        config.pop("quantization_config", None)
        return cls(path, manifest, config)

    @property
    def core(self) -> CoreConfig:
        """The core that the streams are packed for."""
        return self.manifest.core

    @property
    def extra_files(self) -> dict[str, Path]:
        """Files other than tensors, manifest and config.json, such as a tokenizer's."""
        return {name: self.path / name for name in self.manifest.files if name != CONFIG}

    def stream(self, name: str) -> PackedStream:
        """The packed stream of a layer, which its core executes as it is.

        Raises
        ------
        KeyError
            If there is no such layer.
        PackedError
            If it is altered, or says other than the manifest.
        """
        entry = self.manifest.layers[name]
        where = f"{self.path}: layer {name}"
        header = bytes.fromhex(entry.header)
        payload = self.tensor(f"{name}.stream").numpy().tobytes()
        try:
            stream = PackedStream.from_bytes(header + payload)
            stream.require_core(self.core)
        except ValueError as error:
            raise PackedError(f"{where}: {error}") from None
        if LayerEntry.of(stream.layout, header, entry.bias, entry.column_order) != entry:
            raise PackedError(f"{where} is described otherwise in {MANIFEST} than in its stream.")
        return stream

    def tensor(self, name: str) -> torch.Tensor:
        """Read any tensor of the folder, those of layers under their own names too.

        Raises
        ------
        KeyError
            If there is no such tensor.
        PackedError
            If it is altered.
        """
        entry = self.manifest.tensors[name]
        with _opened(_regular(self.path / entry.file)) as shard:
            if _facts(shard, name) != (entry.dtype, entry.shape):
                raise PackedError(f"{self.path / entry.file} has changed since it was opened.")
            tensor: torch.Tensor = shard.get_tensor(name).clone()
        if _sha256_of(tensor) != entry.sha256:
            raise PackedError(f"{self.path / entry.file}: tensor {name} is altered: its checksum does not match.")
        return tensor

    def check(self, progress: Callable[[str], None] | None = None) -> None:
        """Read everything once: every checksum, every stream, every pattern.

        Parameters
        ----------
        progress
            Called with the name of each layer or tensor that is done.

        Raises
        ------
        PackedError, ValueError
            For the first thing that is wrong.
        """
        for part in (self.layers, self.others):
            for name in part:
                part[name]
                if progress is not None:
                    progress(name)

    def _layer(self, name: str) -> QuantizedLinear:
        entry = self.manifest.layers[name]
        stream = self.stream(name)
        try:
            weight = _with_whole_groups(unpack(stream, self.tensor(f"{name}.channel_scale").numpy()), stream.layout)
        except ValueError as error:
            raise PackedError(f"{self.path}: layer {name}: {error}") from None
        return QuantizedLinear(
            weight,
            bias=self.tensor(f"{name}.bias").numpy() if entry.bias else None,
            column_order=self.tensor(f"{name}.column_order").numpy() if entry.column_order else None,
        )


def write_packed(
    path: str | Path,
    layers: Mapping[str, QuantizedLinear],
    others: Mapping[str, torch.Tensor],
    model_config: Mapping[str, Any],
    core: CoreConfig,
    extra_files: Mapping[str, bytes] | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Pack a model's layers for a core and write them with the rest of the model into a new folder.

    Layers and tensors are taken one after the other. Each stream is taken apart again and compared with the weight,
    and its pattern is checked; patterns are checked once more as they are read from the complete folder, which only
    then gets its name.

    Parameters
    ----------
    path
        Folder to make.
    layers
        Quantised linear layers, by their full names.
    others
        All other tensors, by their full names.
    model_config
        The model's config.json; a quantization_config in it is left out.
    core
        Core that the streams are packed for.
    extra_files
        Contents of other files, by name, such as a tokenizer's.
    overwrite
        Whether a folder of packed weights may be replaced. No other folder ever is, nor one with files that its
        manifest does not name.
    progress
        Called with the name of each layer or tensor that is done.

    Raises
    ------
    ConfigError
        If a layer is beyond the core's capacity.
    ValueError
        If a name or a file is not allowed, the configuration is no JSON, or a layer breaks its pattern.
    OSError
        If the folder exists and may not be replaced, or cannot be written.
    """
    if CONFIG in (extra_files or {}):
        raise ValueError(f"{CONFIG} is written from model_config; it cannot be one of extra_files.")
    with new_folder(path, _may_replace if overwrite else None) as folder:
        writer = ShardWriter(folder, "nimble-{:05}.safetensors".format)
        tensors: dict[str, TensorEntry] = {}
        entries: dict[str, LayerEntry] = {}
        patterns: dict[str, NMPattern] = {}
        for name, linear in layers.items():
            stream = _packed(name, linear.weight, core)
            patterns[name] = linear.weight.pattern
            entries[name] = LayerEntry.of(
                stream.layout,
                stream.to_bytes()[:HEADER_BYTES],
                bias=linear.bias is not None,
                column_order=linear.column_order is not None,
            )
            arrays: dict[str, Any] = {
                f"{name}.stream": np.frombuffer(stream.payload, np.uint8),
                f"{name}.channel_scale": linear.weight.channel_scale,
            }
            if linear.bias is not None:
                arrays[f"{name}.bias"] = linear.bias.astype(np.float32)
            if linear.column_order is not None:
                arrays[f"{name}.column_order"] = linear.column_order.astype(np.int64)
            for tensor_name, array in arrays.items():
                tensors[tensor_name] = _written(writer, tensor_name, torch.tensor(array))
            if progress is not None:
                progress(name)
        for name, tensor in others.items():
            tensors[name] = _written(writer, name, tensor)
            if progress is not None:
                progress(name)
        writer.finish()
        config = {name: value for name, value in model_config.items() if name != "quantization_config"}
        config["quantization_config"] = {"quant_method": QUANT_METHOD}
        contents = {**(extra_files or {}), CONFIG: _json(config, CONFIG)}
        files = {name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
        manifest = Manifest(core, entries, tensors, files)
        manifest.check(f"The {MANIFEST} to be written")
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_bytes(_json(manifest.document(), MANIFEST))
        for name, linear in PackedCheckpoint.open(folder).layers.items():
            check_pattern(linear.weight, patterns[name], name, "reload")


def _with_whole_groups(weight: NMWeight, layout: StreamLayout) -> NMWeight:
    """The weight with the quantiser's groups, where the stream has cut them for its core."""
    if layout.group_size == weight.group_size:
        return weight
    ratio = layout.groups if layout.group_size == -1 else layout.group_size // layout.group

    def whole(part: np.ndarray, what: str) -> np.ndarray:
        first = part[:, ::ratio]
        if not np.array_equal(first[:, np.arange(layout.groups) // ratio], part):
            raise ValueError(f"Parts of one group have different {what} in the stream.")
        return first

    return dataclasses.replace(
        weight,
        group_size=layout.group_size,
        group_scale=whole(weight.group_scale, "scales"),
        zero_point=None if weight.zero_point is None else whole(weight.zero_point, "zero points"),
    )


def _packed(name: str, weight: NMWeight, core: CoreConfig) -> PackedStream:
    """Pack a layer, take its stream apart again, and compare every integer and every scale, and the pattern."""
    try:
        stream = pack(weight, core)
    except ConfigError as error:
        raise ConfigError(f"Layer {name}: {error}") from None
    again = unpack(stream, weight.channel_scale)
    check_pattern(again, weight.pattern, name, "pack")
    chunks = np.arange(again.groups) * again.effective_group_size // weight.effective_group_size
    wrong = again.integers() != weight.integers()
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise PackedError(f"Layer {name}: the packed stream holds another weight in row {row}, column {column}.")
    if not np.array_equal(again.group_scale, weight.group_scale[:, chunks]):
        raise PackedError(f"Layer {name}: the packed stream holds other group scales.")
    return stream


_DTYPES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32"},
    **{torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"},
}


def _written(writer: ShardWriter, name: str, tensor: torch.Tensor) -> TensorEntry:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"Tensor {name} has type {tensor.dtype}, which a packed folder does not hold.")
    copy = writer.add(name, tensor)
    return TensorEntry(writer.file_of[name], _DTYPES[copy.dtype], tuple(copy.shape), _sha256_of(copy))


def _sha256_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _json(document: Mapping[str, Any], what: str) -> bytes:
    try:
        return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}.") from None


def _may_replace(path: Path) -> None:
    """Refuse to replace anything but a folder of packed weights, all of whose files the manifest names."""
    try:
        manifest = Manifest.parse(_read_file(path / MANIFEST, MANIFEST_BYTES_MAX + 1), str(path / MANIFEST))
    except (PackedError, OSError) as error:
        raise FileExistsError(f"Cannot replace {path}: it is not a folder of packed weights ({error})") from None
    foreign = sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *manifest.files, *manifest.shards})
    if foreign:
        raise FileExistsError(f"Cannot replace {path}: it holds {foreign[0]}, which is not part of the packed weights.")


def _regular(path: Path) -> Path:
    """Refuse a symbolic link, which may lead out of the folder, and all that is no file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise PackedError(f"{path.parent} has no {path.name}.") from None
    if not stat.S_ISREG(mode):
        raise PackedError(f"{path} is not a plain file; a packed folder holds no links and no folders.")
    return path


def _read_file(path: Path, most: int) -> bytes:
    with open(_regular(path), "rb") as file:
        return file.read(most)


def _checked_file(path: Path, entry: FileEntry) -> bytes:
    size = _regular(path).stat().st_size
    if size != entry.bytes:
        raise PackedError(f"{path} has {size} bytes, but {MANIFEST} says {entry.bytes}.")
    data = _read_file(path, entry.bytes)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise PackedError(f"{path} is altered: its checksum does not match.")
    return data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(os.fspath(path), framework="pt") as shard:
            yield shard
    except SafetensorError as error:
        raise PackedError(f"{path} is not a safetensors file: {error}.") from None


def _facts(shard: Any, name: str) -> tuple[str, tuple[int, ...]]:
    """Type and shape of a tensor, which the library has checked against the file's length."""
    part = shard.get_slice(name)
    return part.get_dtype(), tuple(part.get_shape())


def _check_shard(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    with _opened(_regular(path)) as shard:
        names = set(shard.keys())
        if names != set(entries):
            missing, unknown = sorted(set(entries) - names), sorted(names - set(entries))
            raise PackedError(
                f"{path} does not hold the tensors that {MANIFEST} says; missing: {', '.join(missing[:3]) or 'none'}; "
                f"unknown: {', '.join(unknown[:3]) or 'none'}."
            )
        for name, entry in entries.items():
            dtype, shape = _facts(shard, name)
            if (dtype, shape) != (entry.dtype, entry.shape):
                raise PackedError(
                    f"{path}: tensor {name} is {dtype} {list(shape)}, but {MANIFEST} says {entry.dtype} "
                    f"{list(entry.shape)}."
                )
