"""Any model folder that can be run: plain floats, our packed weights, or INT4 weights of another tool.

torch takes seconds to import; import this module inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel.config import CoreConfig
from accel.packed_checkpoint import PackedCheckpoint
from accel.packed_manifest import MANIFEST
from quant import NMPattern, QuantizedLinear
from quant.architectures import Architecture, Sizes, find_architecture
from quant.formats.detect import detect
from quant.formats.folder import read_quantized_folder
from quant.lazy_mapping import LazyMapping
from quant.model_folder import ModelFolder, check_finite
from quant.pattern_check import check_pattern

#: Names of files beside the weights that go with a model.
COMPANIONS = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json"),
)


@dataclass(frozen=True)
class StoredModel:
    """A model on disk, as `quant.blocks.BlockModel` reads it, with its quantised layers apart.

    As a source of tensors it has no plain weights of quantised layers of blocks; one is dequantised when it is asked
    for all the same, as that of a quantised head is.
    """

    path: Path
    #: ``float``, ``packed``, or a key of `quant.formats.detect.FORMATS`.
    kind: str
    #: The config.json without what it says about quantisation.
    config: dict[str, Any]
    architecture: Architecture
    sizes: Sizes
    #: Quantised layers by full name, in the order of the blocks, each read when it is asked for.
    layers: Mapping[str, QuantizedLinear]
    #: All other tensors, by name.
    others: Mapping[str, torch.Tensor]
    #: Files that go with the model, by name.
    extra_files: dict[str, Path]
    #: The folder of packed weights; None for any other.
    packed: PackedCheckpoint | None = None

    @property
    def core(self) -> CoreConfig | None:
        """The core that the layers are packed for; None if they are not packed."""
        return None if self.packed is None else self.packed.core

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of all tensors but the plain weights of quantised layers."""
        biases = (f"{self.architecture.block(index)}.{linear.name}" for index, linear in self._linears() if linear.bias)
        return frozenset(self.others) | {f"{name}.bias" for name in biases if name in self.layers}

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor; the weight of a quantised layer is dequantised, with its columns in the input's order.

        Raises
        ------
        KeyError
            If there is no such tensor.
        """
        layer, _, part = name.rpartition(".")
        if layer not in self.layers:
            tensor = self.others[name]
            check_finite(tensor, f"{name} of {self.path}")
            return tensor
        linear = self.layers[layer]
        if part == "weight":
            return torch.from_numpy(dense_weight(linear))
        if part != "bias" or linear.bias is None:
            raise KeyError(f"{layer} of {self.path} has no {part}.")
        return torch.tensor(linear.bias)

    def _linears(self) -> Iterator[tuple[int, Any]]:
        for index in range(self.sizes.blocks):
            for linear in self.architecture.linears(self.sizes):
                yield index, linear


def dense_weight(linear: QuantizedLinear) -> np.ndarray:
    """Dequantised weight, float32 [O, K], its columns in the order of the input features."""
    dense = linear.weight.to_dense()
    if linear.column_order is None:
        return dense
    in_order = np.empty_like(dense)
    in_order[:, linear.column_order] = dense
    return in_order


def open_model(path: str | Path, pattern: NMPattern | None = None) -> StoredModel:
    """Open a folder of any kind and check what can be checked without reading weights.

    Parameters
    ----------
    pattern
        Pattern that every quantised layer must obey; None takes what the files say, or what their zeros obey.

    Raises
    ------
    ValueError
        If the folder is corrupt, of an unknown format, or holds no model that can be run.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return _open_packed(path, pattern)
    folder = ModelFolder.open(path)
    extra = {name: path / name for name in COMPANIONS if (path / name).is_file()}
    kind = detect(folder.config, folder.tensor_names)
    names: list[str] = []
    if kind is not None:
        linears = (*folder.linears, folder.architecture.head)
        owners = {name.rpartition(".")[0] for name in folder.tensor_names}
        names = [name for name in linears if f"{name}.weight" not in folder.tensor_names and name in owners]
    layers = _checked(names, lambda name: _foreign_layer(folder, name, pattern), pattern)
    others = sorted(name for name in folder.tensor_names if name.rpartition(".")[0] not in layers)
    config = {
        key: value for key, value in folder.config.items() if key not in ("quantization_config", "compression_config")
    }
    return StoredModel(
        path,
        kind or "float",
        config,
        folder.architecture,
        folder.sizes,
        layers,
        LazyMapping(others, folder.tensor),
        extra,
    )


def _open_packed(path: Path, pattern: NMPattern | None) -> StoredModel:
    packed = PackedCheckpoint.open(path)
    where = str(path / "config.json")
    architecture = find_architecture(packed.config, where)
    try:
        sizes = architecture.sizes(packed.config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    expected = architecture.outer_tensors(sizes)
    if sizes.blocks > len(packed.manifest.tensors):
        raise ValueError(f"{where} has num_hidden_layers = {sizes.blocks}, more than there are tensors.")
    for index in range(sizes.blocks):
        for name, shape in architecture.block_tensors(sizes).items():
            expected[f"{architecture.block(index)}.{name}"] = shape
    for name, shape in expected.items():
        layer, _, part = name.rpartition(".")
        found: tuple[int, ...] | None
        if layer in packed.manifest.layers:
            entry = packed.manifest.layers[layer]
            found = (entry.out_features, entry.in_features) if part == "weight" else (entry.out_features,)
            if part == "bias" and not entry.bias:
                found = None
        else:
            found = packed.manifest.tensors[name].shape if name in packed.manifest.tensors else None
        if found is None:
            raise ValueError(f"{path} holds no {name}, which a {architecture.name} needs.")
        if found != shape:
            raise ValueError(f"{name} in {path} has shape {list(found)}, but config.json says {list(shape)}.")
    unknown = [name for name in packed.layers if f"{name}.weight" not in expected]
    if unknown:
        raise ValueError(f"{path} holds the layer {unknown[0]}, which a {architecture.name} does not have.")
    layers = _checked(packed.layers, packed.layers.__getitem__, pattern)
    return StoredModel(
        path, "packed", packed.config, architecture, sizes, layers, packed.others, packed.extra_files, packed
    )


def _foreign_layer(folder: ModelFolder, name: str, pattern: NMPattern | None) -> QuantizedLinear:
    found, linear = next(read_quantized_folder(_OneLayer(folder, name), pattern))
    assert found == name
    return linear


class _OneLayer:
    """A folder seen as one that has the tensors of a single layer: what `read_quantized_folder` then reads is it."""

    def __init__(self, folder: ModelFolder, layer: str) -> None:
        self.path, self.config, self.tensor = folder.path, folder.config, folder.tensor
        self.tensor_names = [name for name in folder.tensor_names if name.rpartition(".")[0] == layer]


def _checked(
    names: Iterable[str], read: Callable[[str], QuantizedLinear], pattern: NMPattern | None
) -> LazyMapping[QuantizedLinear]:
    """Layers whose pattern is checked when they are read."""

    def read_checked(name: str) -> QuantizedLinear:
        linear = read(name)
        check_pattern(linear.weight, pattern or linear.weight.pattern, name, "reload")
        return linear

    return LazyMapping(names, read_checked)
