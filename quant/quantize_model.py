"""Quantisation of a whole model, block by block, in a work folder that a killed run is continued from.

Each layer is calibrated on what the layers before it give after their own quantisation. In memory are one decoder
block, the statistics of one input and a piece of the hidden states; those of all samples, and finished layers, lie in
the work folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quant.architectures import LinearGroup
from quant.awq import awq_scales
from quant.blocks import BlockModel
from quant.calibration import Activations, collect_statistics, embed_samples, run_samples
from quant.folding import fold_tensor, representable_scales
from quant.layer import layer_error, quantize_layer
from quant.layer_file import read_layer, write_checked, write_layer
from quant.linear import LayerSettings, QuantizedLinear
from quant.model_folder import ModelFolder
from quant.pattern_check import check_pattern
from quant.quantized_model import QuantizedModel, read_scales
from quant.run_folder import RunFolder, run_identity


def quantize_model(
    folder: ModelFolder,
    settings_of: Callable[[str], LayerSettings | None],
    tokens: torch.Tensor,
    work: Path,
    awq: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizedModel:
    """Quantise the linear layers of a model's blocks.

    A run that was stopped, however, goes on where it was when it is started again with the same arguments, and ends
    with the same bits as one that was not, with as many threads of torch.

    Parameters
    ----------
    folder
        Float model.
    settings_of
        How a layer is to be quantised, by its full name; None leaves it float.
    tokens
        int64 [samples, length], calibration text.
    work
        Folder for finished layers and hidden states, 8 bytes for each token and feature of a hidden state. The
        result is read from it.
    awq
        Whether input features are scaled by `quant.awq` first, where the scales fold into what produces the input.
        Layers that share an input share scales, which are searched for the settings of the first one quantised.
    seed
        Recorded with the run; the tokens were drawn with it. Nothing here is random.
    progress
        Called with how many layers are finished and how many there are, at the start and after each one.

    Raises
    ------
    ValueError
        If the model is quantised already or holds a bad number, the tokens do not fit it, or the work folder
        belongs to another run.
    PatternBreach
        If a block of a finished layer holds more than its pattern allows.
    OSError
        If a file cannot be read or written, or another process works in the folder.
    """
    if folder.quantization is not None:
        raise ValueError(f"{folder.path} is quantised already; give the folder of the float model.")
    _check_tokens(tokens, folder.sizes.vocabulary)
    chosen = {name: settings_of(name) for name in folder.linears}
    run = RunFolder(Path(work), run_identity(folder, chosen, tokens, awq, seed))
    try:
        settings = {name: layer for name, layer in chosen.items() if layer is not None}
        _Quantizer(folder, settings, tokens, run, awq, progress).run()
        return QuantizedModel(folder, run, settings, awq)
    finally:
        run.close()


class _Quantizer:
    """One run: what its steps share."""

    def __init__(
        self,
        folder: ModelFolder,
        settings: Mapping[str, LayerSettings],
        tokens: torch.Tensor,
        run: RunFolder,
        awq: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.tokens = tokens
        self.work = run
        self.awq = awq
        self.progress = progress
        self.groups = folder.architecture.groups(folder.sizes)
        self.finished = {name for name in settings if run.layer(name).exists()}

    def run(self) -> None:
        self._report()
        last = self._last_block()
        if last is None:
            self.work.remove_activations()
            return
        if not self.finished:
            self.folder.check()  # before hours of work, not after
        model = BlockModel(self.folder)
        first = max((i for i in range(1, last + 1) if self._may_start_at(i)), default=0)
        hidden = self._activations(first)
        if first == 0 and not hidden.is_complete():
            hidden.write(embed_samples(model, self.tokens))
        for index in range(first, last + 1):
            block = self._quantize_block(model, index, hidden)
            if index < last:
                following = self._activations(index + 1)
                following.write(run_samples(model, block, hidden))
                hidden = following
                self.work.remove_activations(but=index + 1)
            del block
        self.work.remove_activations()

    def _last_block(self) -> int | None:
        """The last block with unfinished work; None when there is none."""
        unfinished = self.settings.keys() - self.finished
        blocks = [self.folder.architecture.split_name(name)[0] for name in unfinished]
        return max((block for block in blocks if block is not None), default=None)

    def _names(self, index: int, group: LinearGroup | None = None) -> list[str]:
        """Names within a block of its layers to quantise."""
        prefix = self.folder.architecture.block(index)
        groups = self.groups if group is None else (group,)
        return [name for part in groups for name in part.linears if f"{prefix}.{name}" in self.settings]

    def _may_start_at(self, index: int) -> bool:
        before = (
            f"{self.folder.architecture.block(block)}.{name}" for block in range(index) for name in self._names(block)
        )
        return self._activations(index).is_complete() and all(name in self.finished for name in before)

    def _activations(self, index: int) -> Activations:
        samples, length = self.tokens.shape
        return Activations(self.work.activations(index), (samples, length, self.folder.sizes.hidden))

    def _quantize_block(self, model: BlockModel, index: int, hidden: Activations) -> nn.Module:
        """Finish the layers of a block; returns it with their dequantised weights."""
        block = model.load_block(index)
        if self.awq and self._names(index):
            self._scale_block(model, block, index, hidden)
        prefix = self.folder.architecture.block(index)
        for group in self.groups:
            names = self._names(index, group)
            unfinished = [name for name in names if f"{prefix}.{name}" not in self.finished]
            if unfinished:
                statistics = collect_statistics(model, block, hidden, unfinished[0])
                for name in unfinished:
                    self._quantize_layer(block.get_submodule(name), f"{prefix}.{name}", statistics)
                del statistics
            for name in names:
                self._put_back(block.get_submodule(name), f"{prefix}.{name}")
        return block

    def _quantize_layer(self, linear: Any, name: str, statistics: Any) -> None:
        settings = self.settings[name]
        weight = quantize_layer(linear.weight, statistics, settings)
        check_pattern(weight, settings.pattern, name, "quantise")
        bias = None if linear.bias is None else linear.bias.detach().numpy()
        error = layer_error(linear.weight, weight, statistics)
        write_layer(self.work.layer(name), QuantizedLinear(weight, bias), error)
        self.finished.add(name)
        self._report()

    def _put_back(self, linear: Any, name: str) -> None:
        """Give a layer of the block the weights that its file holds."""
        stored = read_layer(self.work.layer(name)).linear
        check_pattern(stored.weight, self.settings[name].pattern, name, "reload")
        if stored.weight.values.shape != tuple(linear.weight.shape):
            raise ValueError(f"{self.work.layer(name)} holds a layer of another shape; delete it.")
        linear.weight = nn.Parameter(torch.from_numpy(stored.weight.to_dense()), requires_grad=False)

    def _scale_block(self, model: BlockModel, block: nn.Module, index: int, hidden: Activations) -> None:
        """Find a block's AWQ scales, or read them, and fold them in."""
        path = self.work.scales(index)
        scales = read_scales(path) if path.exists() else self._find_scales(model, block, index, hidden)
        for name, parameter in list(block.named_parameters()):
            folded = fold_tensor(name, parameter.detach(), self.groups, scales)
            layer = name.rpartition(".")[0]
            if layer not in self._names(index):
                # What stays float is stored in the checkpoint's type, and computed with as it is stored.
                stored = self.folder.tensor(f"{self.folder.architecture.block(index)}.{name}").dtype
                folded = folded.to(stored).float()
            parameter.data = folded

    def _find_scales(
        self, model: BlockModel, block: nn.Module, index: int, hidden: Activations
    ) -> dict[str, torch.Tensor]:
        prefix = self.folder.architecture.block(index)
        scales = {}
        for group in self.groups:
            names = self._names(index, group)
            if group.scaled_by is None or not names:
                continue
            statistics = collect_statistics(model, block, hidden, names[0])
            weights = [block.get_submodule(name).weight for name in names]
            found = awq_scales(weights, statistics, self.settings[f"{prefix}.{names[0]}"])  # type: ignore[arg-type]
            producer = block.get_submodule(group.scaled_by).weight
            assert isinstance(producer, torch.Tensor)
            if producer.ndim == 1:
                stored = self.folder.tensor(f"{prefix}.{group.scaled_by}.weight").dtype
                found = representable_scales(found, producer.detach(), stored)
            scales[group.linears[0]] = found
        write_checked(self.work.scales(index), {name: scale.numpy() for name, scale in scales.items()}, {})
        return scales

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(len(self.finished), len(self.settings))


def _check_tokens(tokens: torch.Tensor, vocabulary: int) -> None:
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype != torch.int64:
        raise ValueError(
            f"The tokens have shape {list(tokens.shape)} and type {tokens.dtype}; they must be int64 [samples, length]."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"The tokens range from {int(tokens.min())} to {int(tokens.max())}; the model's vocabulary is 0 to "
            f"{vocabulary - 1}."
        )
