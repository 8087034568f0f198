"""Every quantised linear layer of a model folder, whatever tool wrote it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from quant.formats.awq import read_awq
from quant.formats.detect import FORMATS, claims_two_of_four, detect, quantization_config
from quant.formats.foreign_linear import ForeignLinear, PrunedLinear
from quant.formats.gptq import read_gptq
from quant.formats.marlin_24 import read_marlin_24
from quant.formats.own_layers import OwnLayers
from quant.formats.pack_quantized import read_pack_quantized
from quant.formats.schemes import weight_schemes
from quant.formats.sparse_bitmask import read_sparse_24, read_sparse_bitmask
from quant.pattern import NMPattern

#: Ending of a tensor that each layer of a format has.
_MARKS = {
    "pack-quantized": ".weight_packed",
    "sparse-24-bitmask": ".bitmask",
    "sparse-bitmask": ".bitmask",
    "marlin-24": ".weight_packed",
    "gptq": ".qweight",
    "gptq_v2": ".qweight",
    "awq": ".qweight",
}


class Folder(Protocol):
    """What is asked of a model folder; `quant.model_folder.ModelFolder` is one."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json."""

    @property
    def tensor_names(self) -> Collection[str]:
        """Full names of all tensors."""

    def tensor(self, name: str) -> Any:
        """Read one tensor."""


def read_quantized_folder(folder: Folder, pattern: NMPattern | None = None) -> Iterator[tuple[str, ForeignLinear]]:
    """Read the INT4 linear layers of a folder one after the other, sorted by name.

    Parameters
    ----------
    folder : Folder
        Of any format of `quant.formats.detect.FORMATS`.
    pattern : NMPattern or None
        Pattern that every layer must obey. None takes what the file says of a layer: the pattern and mask of
        a file of our own, 2:4 where a format or a configuration claims it; else the smallest usual one that its
        zeros obey, or 1:1.

    Raises
    ------
    ValueError
        If the folder is not quantised, its format is not known, it holds floats, or a layer is malformed or breaks its
        pattern.
    OSError
        If a file cannot be read.
    """
    for name, linear in _read_folder(folder, pattern):
        if isinstance(linear, PrunedLinear):
            raise ValueError(
                f"Layer {name} of {folder.path} holds float weights, pruned to {linear.pattern} but not quantised; "
                "quantise the model first."
            )
        yield name, linear


def read_pruned_folder(folder: Folder, pattern: NMPattern | None = None) -> Iterator[tuple[str, PrunedLinear]]:
    """Read the float linear layers of a sparse-bitmask or sparse-24-bitmask folder, sorted by name.

    Parameters
    ----------
    folder : Folder
    pattern : NMPattern or None
        As `read_quantized_folder`.

    Raises
    ------
    ValueError
        If the folder is of another format or holds codes, or a layer is malformed or breaks its pattern.
    OSError
        If a file cannot be read.
    """
    for name, linear in _read_folder(folder, pattern):
        if not isinstance(linear, PrunedLinear):
            raise ValueError(f"Layer {name} of {folder.path} holds INT4 weights already.")
        yield name, linear


class _FolderTensors(Mapping[str, Any]):
    """Tensors of a folder by name, read when they are asked for."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def __getitem__(self, name: str) -> Any:
        if name not in self._folder.tensor_names:
            raise KeyError(name)
        return self._folder.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._folder.tensor_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.tensor_names)

    def __len__(self) -> int:
        return len(self._folder.tensor_names)


def _read_folder(folder: Folder, pattern: NMPattern | None) -> Iterator[tuple[str, ForeignLinear | PrunedLinear]]:
    name_of_format = detect(folder.config, folder.tensor_names)
    settings = quantization_config(folder.config)
    if name_of_format is None or settings is None:
        raise ValueError(
            f"{folder.path} holds plain float weights; what is read as quantised is {'; '.join(FORMATS.values())}."
        )
    mark = _MARKS[name_of_format]
    names = sorted(name.removesuffix(mark) for name in folder.tensor_names if name.endswith(mark))
    if not names:
        raise ValueError(f"{folder.path} says that it is {FORMATS[name_of_format]}, but no tensor ends in {mark}.")
    read = _reader(name_of_format, folder, settings, pattern)
    for name in names:
        yield name, read(name)


def _reader(
    name_of_format: str, folder: Folder, settings: Mapping[str, Any], pattern: NMPattern | None
) -> Callable[[str], ForeignLinear | PrunedLinear]:
    """A function that reads a layer by its name."""
    tensors = _FolderTensors(folder)
    if name_of_format == "awq":
        size = _group_size(settings)
        return lambda name: read_awq(tensors, name, size, pattern)
    if name_of_format in ("gptq", "gptq_v2"):
        size, version = _group_size(settings), 1 if name_of_format == "gptq" else 2
        symmetric, ordered = settings.get("sym") is True, settings.get("desc_act") is True
        return lambda name: read_gptq(tensors, name, size, version, symmetric, ordered, pattern)

    schemes = weight_schemes(settings)
    if name_of_format == "marlin-24":
        return lambda name: read_marlin_24(tensors, name, pattern)
    if name_of_format == "sparse-24-bitmask":
        return lambda name: read_sparse_24(tensors, name, schemes, pattern)

    def claimed(name: str) -> NMPattern | None:
        return NMPattern(2, 4) if pattern is None and claims_two_of_four(settings, name) else pattern

    if name_of_format == "sparse-bitmask":
        return lambda name: read_sparse_bitmask(tensors, name, schemes, claimed(name))
    own = OwnLayers(settings, folder.path)
    return lambda name: read_pack_quantized(tensors, name, schemes, claimed(name), own.get(name))


def _group_size(settings: Mapping[str, Any]) -> int:
    # AutoAWQ's own files say q_group_size.
    size = settings.get("group_size", settings.get("q_group_size"))
    if isinstance(size, bool) or not isinstance(size, int):
        raise ValueError(f"quantization_config has group_size {size!r}; it must be an integer.")
    return size
