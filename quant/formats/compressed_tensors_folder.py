"""A whole model as a compressed-tensors pack-quantized folder, read back before it gets its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from quant.atomic_folder import new_folder
from quant.formats.compressed_tensors import (
    compressed_tensors_config,
    compressed_tensors_mask,
    compressed_tensors_tensors,
    scale_error,
)
from quant.formats.folder import read_quantized_folder
from quant.formats.own_layers import MASKS_FILE
from quant.linear import QuantizedLinear
from quant.model_folder import ModelFolder
from quant.pattern import NMPattern
from quant.pattern_check import check_pattern
from quant.shard_writer import ShardWriter, write_tensors
from quant.weight import NMWeight


def write_compressed_tensors(
    path: str | Path,
    layers: Mapping[str, QuantizedLinear],
    others: Mapping[str, torch.Tensor],
    model_config: Mapping[str, Any],
    extra_files: Mapping[str, bytes] | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> float:
    """Write a model into a new folder that transformers and compressed-tensors load, zeros in their places.

    Layers and tensors are taken one after the other. Scales are written in float32. Before the folder gets its name,
    every layer is read from it again: its pattern is checked, and its weights are compared with those written.

    Parameters
    ----------
    path
        Folder to make; it must not exist.
    layers
        Quantised linear layers by their full names.
    others
        All other tensors by their full names, written in their own types.
    model_config
        The model's config.json; a quantization_config in it is replaced.
    extra_files
        Contents of other files, by plain name, such as a tokenizer's.
    progress
        Called with the name of each layer when it is written, and once more when it has been read again.

    Returns
    -------
    float
        Largest relative error of a scale in the file, 0.0 where all are exact. Only layers without one are compared
        weight by weight.

    Raises
    ------
    PatternBreach
        If a layer holds more than its pattern allows.
    ValueError
        If the format cannot hold a layer, or it is read back as another.
    OSError
        If the folder exists or cannot be written.
    """
    with new_folder(path) as folder:
        writer = ShardWriter(folder, "model-{:05}.safetensors".format)
        export = _Export(layers, writer, progress)
        quantization = compressed_tensors_config(export)
        for name, tensor in others.items():
            writer.add(name, tensor)
        writer.finish()
        _name_as_transformers_does(folder, writer)
        if export.masks:
            (folder / MASKS_FILE).parent.mkdir()
            write_tensors(folder / MASKS_FILE, export.masks)
        contents = {
            **(extra_files or {}),
            "config.json": _json({**model_config, "quantization_config": quantization}),
        }
        for name, data in contents.items():
            if Path(name).name != name or (folder / name).exists():
                raise ValueError(f"The file {name!r} cannot be written beside the model's own files.")
            (folder / name).write_bytes(data)
        read = read_quantized_folder(ModelFolder.open(folder))
        for name, linear in read:
            export.compare(name, linear.weight)
            if progress is not None:
                progress(name)
    return export.scale_error


class _Export(Mapping[str, QuantizedLinear]):
    """Layers that are written when they are asked for, so that one pass both writes and describes them."""

    def __init__(
        self, layers: Mapping[str, QuantizedLinear], writer: ShardWriter, progress: Callable[[str], None] | None
    ) -> None:
        #: Which weights are kept, by tensor.
        self.masks: dict[str, torch.Tensor] = {}
        self.scale_error = 0.0
        self._layers, self._writer, self._progress = layers, writer, progress
        self._written: dict[str, tuple[NMPattern, str | None]] = {}

    def __getitem__(self, name: str) -> QuantizedLinear:
        linear = self._layers[name]
        for tensor_name, tensor in compressed_tensors_tensors(name, linear).items():
            self._writer.add(tensor_name, tensor)
        self.masks.update(compressed_tensors_mask(name, linear))
        error = scale_error(linear)
        self.scale_error = max(self.scale_error, error)
        self._written[name] = (linear.weight.pattern, None if error else _digest(linear.weight))
        if self._progress is not None:
            self._progress(name)
        return linear

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def compare(self, name: str, weight: NMWeight) -> None:
        """Refuse a layer that was read back and is not what was written."""
        pattern, digest = self._written[name]
        check_pattern(weight, pattern, name, "export")
        if digest is not None and _digest(weight) != digest:
            raise ValueError(f"Layer {name} holds other weights in the file than those that were written.")


def _digest(weight: NMWeight) -> str:
    return hashlib.sha256(weight.to_dense().data).hexdigest()


def _json(document: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.json cannot be written as JSON: {error}.") from None


def _name_as_transformers_does(folder: Path, writer: ShardWriter) -> None:
    """One file is model.safetensors; several say of how many they are, and have an index."""
    names = {
        file: "model.safetensors"
        if len(writer.files) == 1
        else f"model-{number:05}-of-{len(writer.files):05}.safetensors"
        for number, file in enumerate(writer.files, start=1)
    }
    for file, name in names.items():
        (folder / file).rename(folder / name)
    if len(names) > 1:
        index = {
            "metadata": {"total_size": writer.total_bytes},
            "weight_map": {tensor: names[file] for tensor, file in writer.file_of.items()},
        }
        (folder / "model.safetensors.index.json").write_bytes(_json(index))
