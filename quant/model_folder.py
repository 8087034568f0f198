"""A transformers folder on disk, checked before anything in it is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from quant.architectures import Architecture, Sizes, find_architecture

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

#: Types of weights, as safetensors names them.
_FLOATS = ("F16", "BF16", "F32", "F64")


class ModelSource(Protocol):
    """What `quant.blocks.BlockModel` reads a model from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config.json."""

    @property
    def architecture(self) -> Architecture:
        """The architecture that the configuration names."""

    @property
    def sizes(self) -> Sizes:
        """The sizes that the configuration states."""

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of all tensors; that of a linear layer's plain weight is missing where it is quantised."""

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor."""


class ModelFolder:
    """A causal language model in a local folder: config.json and safetensors, in one file or in shards.

    `open` makes one. Tensors are read one at a time; pickles are never read.
    """

    #: The folder.
    path: Path
    #: The config.json.
    config: dict[str, Any]
    architecture: Architecture
    sizes: Sizes
    #: Full names of the linear layers of all blocks, in order of execution.
    linears: tuple[str, ...]
    #: Names of all tensors that hold weights, under their present names in transformers.
    tensor_names: frozenset[str]
    #: The quantization_config of config.json, or None.
    quantization: dict[str, Any] | None
    #: The safetensors files, sorted by name.
    files: tuple[Path, ...]

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        """Read everything but the tensors; `open` is the public name of this."""
        self.path = path
        self.config = config
        self.architecture = find_architecture(config, str(path / "config.json"))
        try:
            self.sizes = self.architecture.sizes(config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        quantization = config.get("quantization_config")
        if quantization is not None and not isinstance(quantization, dict):
            raise ValueError(f"{path / 'config.json'} has quantization_config {quantization!r}; it must be an object.")
        self.quantization = quantization
        self._headers = {file: _read_header(path / file) for file in _weight_files(path)}
        self.files = tuple(path / file for file in sorted(self._headers))
        # Where each tensor is: its file and its name there.
        self._places: dict[str, tuple[str, str]] = {}
        for file, header in self._headers.items():
            for name in header:
                if self.architecture.unused.fullmatch(name):
                    continue
                present = self.architecture.renamed.get(name, name)
                if present in self._places:
                    raise ValueError(f"{path} holds {present} twice: in {self._places[present][0]} and in {file}.")
                self._places[present] = (file, name)
        _check_index(path, self._headers)
        self.tensor_names = frozenset(self._places)
        self._check_blocks()
        self.linears = tuple(
            f"{self.architecture.block(index)}.{linear.name}"
            for index in range(self.sizes.blocks)
            for linear in self.architecture.linears(self.sizes)
        )
        self._check_tensors()

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Open a folder and check its configuration, its files and the name, type and shape of every tensor.

        Raises
        ------
        OSError
            If the folder, its config.json, its weights or a shard is missing or cannot be read.
        ValueError
            If the configuration or a file is corrupt, the architecture is not supported, or a tensor is missing,
            unknown or of another shape than the configuration says.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; give one with a config.json and safetensors files.")
        return cls(path, _read_json(path / "config.json"))

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor in its own type.

        Raises
        ------
        KeyError
            If there is no such tensor.
        ValueError
            If it is the plain weight of a quantised linear layer, or holds a number that is not finite.
        OSError
            If its file cannot be read any more.
        """
        if name not in self._places:
            if self.quantization is not None and name.removesuffix(".weight") in self.linears:
                method = self.quantization.get("quant_method", "of an unnamed method")
                raise ValueError(
                    f"{name} is quantised ({method}) in {self.path} and has no plain weight; read it with "
                    "quant.formats, or give the folder of the float model."
                )
            raise KeyError(f"{self.path} holds no tensor {name}.")
        file, stored = self._places[name]
        # The file is opened for each tensor and the tensor copied, as pages of an open one stay in memory.
        try:
            with safe_open(self.path / file, framework="pt") as shard:
                tensor = shard.get_tensor(stored).clone()
        except SafetensorError as error:
            raise ValueError(f"{self.path / file} is not a safetensors file: {error}.") from None
        check_finite(tensor, f"{name} of {self.path}")
        return tensor

    def check(self) -> None:
        """Read every tensor once, so that a bad number is found before hours of work.

        Raises
        ------
        ValueError
            Naming the first number that is not finite, or a head that differs from the embedding that it is
            tied to.
        """
        for name in sorted(self.tensor_names):
            self.tensor(name)
        own, tied = f"{self.architecture.head}.weight", self.architecture.head_weight(self.sizes)
        if own != tied and own in self.tensor_names and not torch.equal(self.tensor(own), self.tensor(tied)):
            raise ValueError(f"{self.path} ties {own} to {tied} in config.json, but holds a different {own}.")

    def _check_blocks(self) -> None:
        """Compare the number of blocks with the tensors, before anything is made for each block."""
        blocks = {self.architecture.split_name(name)[0] for name in self.tensor_names}
        found = {block for block in blocks if block is not None}
        if len(found) != self.sizes.blocks or max(found, default=-1) != self.sizes.blocks - 1:
            raise ValueError(
                f"{self.path / 'config.json'} has num_hidden_layers = {self.sizes.blocks}, but the weights hold "
                f"{len(found)} blocks"
                + (f", the last of them {self.architecture.block(max(found))}." if found else ".")
            )

    def _check_tensors(self) -> None:
        expected = self.architecture.outer_tensors(self.sizes)
        for index in range(self.sizes.blocks):
            prefix = self.architecture.block(index)
            for name, shape in self.architecture.block_tensors(self.sizes).items():
                expected[f"{prefix}.{name}"] = shape
        quantised = self._quantised_prefixes()
        for name, shape in expected.items():
            if name not in self._places:
                if name.removesuffix(".weight") in quantised:
                    continue
                raise ValueError(f"{self.path} holds no {name}, which a {self.architecture.name} needs.")
            self._check_tensor(name, shape)
        allowed = {f"{self.architecture.head}.weight"} if self.sizes.tied else set()
        for name in sorted(self.tensor_names - expected.keys() - allowed):
            if name.rpartition(".")[0] not in quantised:
                raise ValueError(
                    f"{self.path} holds {name}, which a {self.architecture.name} of its config.json does not have."
                )

    def _quantised_prefixes(self) -> set[str]:
        """Linear layers of a quantised folder that have tensors, but no plain weight."""
        if self.quantization is None:
            return set()
        holders = {name.rpartition(".")[0] for name in self.tensor_names}
        linears = (*self.linears, self.architecture.head)
        return {name for name in linears if name in holders and f"{name}.weight" not in self.tensor_names}

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        file, stored = self._places[name]
        dtype, found = self._headers[file][stored]
        if found != shape:
            raise ValueError(
                f"{name} in {self.path / file} has shape {list(found)}, but config.json says {list(shape)}."
            )
        if dtype not in _FLOATS:
            raise ValueError(
                f"{name} in {self.path / file} has type {dtype}, but a plain weight must be of {', '.join(_FLOATS)}."
            )


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """Raise ValueError for a NaN or an infinity, by row and column."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return
    bad = tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)
    row, column = (int(i) for i in torch.nonzero(~torch.isfinite(bad))[0])
    where = f"row {row}, column {column}" if tensor.ndim > 1 else f"position {column}"
    raise ValueError(f"{what} holds {float(bad[row, column])} in {where}, but every number must be finite.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} has no {path.name}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a JSON {type(document).__name__}; it must be an object.")
    return document


def _weight_files(path: Path) -> list[str]:
    """Names of the files that hold the weights: one, or the shards that the index names."""
    if (path / _WEIGHTS).exists():
        return [_WEIGHTS]
    if not (path / _INDEX).exists():
        pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in path.glob(kind))
        if pickles:
            raise FileNotFoundError(
                f"{path} holds weights only as pickles ({', '.join(pickles[:3])}), which run code when they are read "
                "and are never loaded; save the model as safetensors."
            )
        raise FileNotFoundError(f"{path} has neither {_WEIGHTS} nor {_INDEX}.")
    files = sorted(set(_weight_map(path).values()))
    for file in files:
        if not (path / file).is_file():
            raise FileNotFoundError(f"{path / _INDEX} names the shard {file}, which is missing.")
    return files


def _weight_map(path: Path) -> dict[str, str]:
    """The index of a sharded model: the shard of each tensor."""
    weight_map = _read_json(path / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path / _INDEX} has no weight_map, an object with the shard of each tensor.")
    for name, file in weight_map.items():
        # A name with a separator or a drive could reach outside of the folder.
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors", file):
            raise ValueError(
                f"{path / _INDEX} says that {name} is in {file!r}; a shard is the name of a .safetensors file in "
                "the same folder."
            )
    return weight_map


def _check_index(path: Path, headers: Mapping[str, Mapping[str, object]]) -> None:
    if list(headers) == [_WEIGHTS]:
        return  # a single file needs no index; transformers, too, takes it where both are there
    for name, file in _weight_map(path).items():
        if name not in headers[file]:
            elsewhere = next((other for other, header in headers.items() if name in header), None)
            found = "no shard has it" if elsewhere is None else f"{elsewhere} has it"
            raise ValueError(f"{path / _INDEX} says that {name} is in {file}, but {found}.")


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor of a safetensors file, which the library checks against the file's length."""
    try:
        with safe_open(path, framework="pt") as shard:
            slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 - not a mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}.") from None
