"""A quantised model as a run leaves it in its work folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quant.architectures import Architecture, Sizes
from quant.folding import fold_tensor
from quant.layer_file import read_checked, read_error, read_layer
from quant.linear import LayerSettings, QuantizedLinear
from quant.model_folder import ModelFolder
from quant.pattern_check import check_pattern
from quant.run_folder import RunFolder


class QuantizedLayers(Mapping[str, QuantizedLinear]):
    """Quantised linear layers by their full names, in order of execution, each read from disk when asked for.

    Reading checks the file's checksum and the layer's pattern.
    """

    def __init__(self, run: RunFolder, settings: Mapping[str, LayerSettings]) -> None:
        self._run = run
        self._settings = settings

    def __getitem__(self, name: str) -> QuantizedLinear:
        settings = self._settings[name]
        linear = read_layer(self._run.layer(name)).linear
        check_pattern(linear.weight, settings.pattern, name, "reload")
        return linear

    def __contains__(self, name: object) -> bool:
        return name in self._settings  # Mapping's own would read the layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


class OtherTensors(Mapping[str, torch.Tensor]):
    """Everything but the quantised linear layers, by name and in the checkpoint's types, read when asked for.

    AWQ's scales are folded in.
    """

    def __init__(self, run: RunFolder, folder: ModelFolder, quantised: frozenset[str], awq: bool) -> None:
        self._run = run
        self._folder = folder
        names = sorted(name for name in folder.tensor_names if name.rpartition(".")[0] not in quantised)
        self._names = dict.fromkeys(names)
        self._scaled_blocks = {folder.architecture.split_name(name)[0] for name in quantised} if awq else set()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(f"{name} is quantised, or no tensor of {self._folder.path}.")
        tensor = self._folder.tensor(name)
        block, inner = self._folder.architecture.split_name(name)
        if block is None or block not in self._scaled_blocks:
            return tensor
        groups = self._folder.architecture.groups(self._folder.sizes)
        return fold_tensor(inner, tensor.float(), groups, read_scales(self._run.scales(block))).to(tensor.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class QuantizedModel:
    """A quantised model in the work folder of its run.

    `quant.blocks.BlockModel` runs it as the dequantised model: as a source of tensors it gives the dense weights.
    """

    def __init__(self, folder: ModelFolder, run: RunFolder, settings: Mapping[str, LayerSettings], awq: bool) -> None:
        #: The float model.
        self.folder = folder
        #: Quantised layers.
        self.layers: Mapping[str, QuantizedLinear] = QuantizedLayers(run, settings)
        #: Everything else, norms and layers that stayed float included.
        self.tensors: Mapping[str, torch.Tensor] = OtherTensors(run, folder, frozenset(settings), awq)
        #: Relative squared error of each layer's output on the calibration text.
        self.errors = {name: read_error(run.layer(name)) for name in settings}

    @property
    def config(self) -> dict[str, Any]:
        """The float model's config.json."""
        return self.folder.config

    @property
    def architecture(self) -> Architecture:
        """The float model's architecture."""
        return self.folder.architecture

    @property
    def sizes(self) -> Sizes:
        """The float model's sizes."""
        return self.folder.sizes

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of the float model's tensors."""
        return self.folder.tensor_names

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor; a quantised layer's weight is dequantised to float32.

        Raises
        ------
        KeyError
            If there is no such tensor.
        """
        layer, _, attribute = name.rpartition(".")
        if layer not in self.layers:
            return self.tensors[name]
        linear = self.layers[layer]
        if attribute == "weight":
            return torch.from_numpy(linear.weight.to_dense())
        if attribute != "bias" or linear.bias is None:
            raise KeyError(f"{layer} has no {attribute}.")
        return torch.from_numpy(np.array(linear.bias))


def read_scales(path: Path) -> dict[str, torch.Tensor]:
    """AWQ's scales of a block, float32 [K] by the name of each group's first layer."""
    arrays, _ = read_checked(path)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
