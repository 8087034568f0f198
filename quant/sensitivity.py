"""How much a model's loss rises when one linear layer alone is quantised, for each setting that it could have.

The rise is measured, not guessed: the layer is quantised from the statistics of its input, and text that the
statistics have not seen runs through the rest of the model. The float model's input of the layer's block is kept, so
that only the blocks from that one on run again.

What it costs: with L blocks of P weights, l linear layers each, c settings and t held-out tokens, l·c·L·(L + 1) / 2
passes of t tokens through a block, each of 2·P·t operations, and l·c·L layers quantised. LLaMA-7B has L = 32, l = 7 and
P = 202 million: with six settings and 16 samples of 512 tokens these are 22,176 passes of 3.3·10¹² operations, about
200 hours at 100·10⁹ operations a second, and 1,344 layers to quantise, about 34 hours of one core if 4096 × 4096 take
joint 52 seconds. Fewer settings cost proportionally less, fewer held-out tokens as much less of the first. A setting
whose layer error is no smaller than that of another that costs no more is not run.

Memory holds one block, the matrix of second moments of one input, the settings' codes of one layer, and the held-out
hidden states once for the float model and once for each setting; the calibration's lie in a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quant.atomic_file import write_bytes
from quant.blocks import BlockModel, samples_at_a_time
from quant.calibration import Activations, collect_statistics, embed_samples, run_samples
from quant.judgement import Rise, losses_of, rise_of
from quant.layer import layer_error, quantize_layer
from quant.linear import LayerSettings
from quant.model_folder import ModelFolder
from quant.pattern_check import check_pattern
from quant.run_folder import RunFolder, run_identity
from quant.statistics import InputStatistics

#: What a setting costs a layer of a full name, in bits, cycles or whatever counts.
Cost = Callable[[str, LayerSettings], int]


@dataclass(frozen=True)
class Sensitivity:
    """What one setting does to a layer, and through it alone to the model."""

    #: Relative squared error of the layer's output on the calibration text.
    error: float
    #: Rise of the loss, below 0 where noise helps. None where it was not measured, because another setting costs no
    #: more and has no larger error.
    rise: Rise | None


@dataclass(frozen=True)
class Sensitivities:
    """Measurements of all layers."""

    #: Mean loss of the float model in nats a token.
    float_loss: float
    #: By the layer's full name and its setting.
    layers: Mapping[str, Mapping[LayerSettings, Sensitivity]]

    def rises(self, name: str) -> dict[LayerSettings, Rise]:
        """Rises of one layer, where they were measured."""
        return {settings: found.rise for settings, found in self.layers[name].items() if found.rise is not None}


def measure_sensitivities(
    folder: ModelFolder,
    settings: Sequence[LayerSettings],
    calibration: Tensor,
    held_out: Tensor,
    cost: Cost,
    work: Path,
    progress: Callable[[str], None] | None = None,
) -> Sensitivities:
    """Measure every linear layer of a model's blocks with every setting that could be worth its cost.

    Parameters
    ----------
    settings
        Settings to try for each layer, each once.
    calibration
        int64 [samples, length], for the statistics of the layers' inputs.
    held_out
        int64 [samples, length of 2 or more], for the losses.
    cost
        Of two settings one is not measured if it costs no less and has no smaller layer error.
    work
        Folder for the hidden states and the finished layers. A later call with equal arguments does not measure
        again what is there.
    progress
        Called with a layer's full name when it is done.

    Raises
    ------
    ValueError
        If a layer cannot be quantised so, or `work` belongs to other arguments or is damaged.
    PatternBreach
        If a quantised layer breaks its pattern.
    OSError
        If a file cannot be read or written, or another process works in the folder.
    """
    costs = {name: [cost(name, one) for one in settings] for name in folder.linears}
    run = RunFolder(work, _identity(folder, settings, calibration, held_out, costs))
    try:
        return _Measurement(folder, settings, calibration, held_out, costs, run, progress).run()
    finally:
        run.close()


def _identity(
    folder: ModelFolder,
    settings: Sequence[LayerSettings],
    calibration: Tensor,
    held_out: Tensor,
    costs: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """What the measurements depend on."""
    return {
        **run_identity(folder, {}, calibration, awq=False, seed=0),
        "held-out text": hashlib.sha256(held_out.contiguous().numpy().tobytes()).hexdigest(),
        "candidates": [{**asdict(one), "pattern": str(one.pattern)} for one in settings],
        "costs": {name: list(row) for name, row in costs.items()},
    }


class _Measurement:
    """One run: what its steps share."""

    def __init__(
        self,
        folder: ModelFolder,
        settings: Sequence[LayerSettings],
        calibration: Tensor,
        held_out: Tensor,
        costs: Mapping[str, Sequence[int]],
        work: RunFolder,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.model = BlockModel(folder)
        self.architecture, self.sizes = folder.architecture, folder.sizes
        self.settings = settings
        self.calibration = calibration
        self.tokens = held_out
        self.costs = costs
        self.work = work
        self.progress = progress
        self.float_losses = torch.zeros(0)

    def run(self) -> Sensitivities:
        model = self.model
        shape = (len(self.calibration), self.calibration.shape[1], self.sizes.hidden)
        activations = Activations(self.work.activations(0), shape)
        activations.write(embed_samples(model, self.calibration))
        hidden = torch.cat(list(embed_samples(model, self.tokens)))
        self.float_losses = losses_of(model, self._run_blocks(hidden, 0), self.tokens)
        layers = {}
        for index in range(model.blocks):
            block = model.load_block(index)
            for group in self.architecture.groups(self.sizes):
                statistics = None
                for linear in group.linears:
                    name = f"{self.architecture.block(index)}.{linear}"
                    file = self.work.path / "layers" / f"{name}.json"
                    found = _read(file, len(self.settings)) if file.exists() else None
                    if found is None:
                        if statistics is None:
                            statistics = collect_statistics(model, block, activations, linear)
                        found = self._measure(_Layer(name, index, block, linear, statistics), hidden)
                        write_bytes(file, json.dumps([[one.error, one.rise] for one in found]).encode())
                    layers[name] = dict(zip(self.settings, found, strict=True))
                    if self.progress is not None:
                        self.progress(name)
            if index + 1 < model.blocks:
                activations.write(run_samples(model, block, activations))
                hidden = self._run_block(block, hidden)
        self.work.remove_activations()
        return Sensitivities(float(self.float_losses.mean()), layers)

    def _measure(self, layer: _Layer, hidden: Tensor) -> list[Sensitivity]:
        """Measurements of one layer, in the order of the settings; `hidden` is what its block reads."""
        module = layer.block.get_submodule(layer.linear)
        assert isinstance(module, nn.Linear)
        float_weight = module.weight
        weights = []
        for settings in self.settings:
            weight = quantize_layer(float_weight, layer.statistics, settings)
            check_pattern(weight, settings.pattern, layer.name, "quantise")
            weights.append(weight)
        errors = [layer_error(float_weight, weight, layer.statistics) for weight in weights]
        worth = worth_measuring(self.costs[layer.name], errors)
        outputs = []
        try:
            for number in worth:
                dense = torch.from_numpy(weights[number].to_dense())
                module.weight = nn.Parameter(dense, requires_grad=False)
                outputs.append(self._run_block(layer.block, hidden))
        finally:
            module.weight = float_weight
        states = self._run_blocks(torch.cat(outputs), layer.index + 1).split(len(self.tokens))
        rises = {
            number: rise_of(self.float_losses, losses_of(self.model, hidden, self.tokens))
            for number, hidden in zip(worth, states, strict=True)
        }
        return [Sensitivity(error, rises.get(number)) for number, error in enumerate(errors)]

    def _run_block(self, block: nn.Module, hidden: Tensor) -> Tensor:
        pieces = hidden.split(samples_at_a_time(hidden.shape[1]))
        return torch.cat([self.model.run_block(block, piece) for piece in pieces])

    def _run_blocks(self, hidden: Tensor, first: int) -> Tensor:
        for index in range(first, self.model.blocks):
            hidden = self._run_block(self.model.load_block(index), hidden)
        return hidden


@dataclass(frozen=True)
class _Layer:
    name: str
    #: Index of its block, and the block.
    index: int
    block: nn.Module
    #: Name within the block.
    linear: str
    statistics: InputStatistics


def worth_measuring(costs: Sequence[int], errors: Sequence[float]) -> list[int]:
    """Numbers of the settings that no other one beats: that costs no more, errs no more, and is better in one of
    the two or, where both are equal, comes first."""
    rivals = list(zip(costs, errors, strict=True))
    return [
        number
        for number, (cost, error) in enumerate(rivals)
        if not any(
            other[0] <= cost and other[1] <= error and (other != (cost, error) or place < number)
            for place, other in enumerate(rivals)
        )
    ]


def _read(file: Path, settings: int) -> list[Sensitivity]:
    """A finished layer's file.

    Raises
    ------
    ValueError
        If it is not one.
    """
    try:
        found = [
            Sensitivity(float(error), None if rise is None else Rise(*map(float, rise)))
            for error, rise in json.loads(file.read_bytes())
        ]
        if len(found) != settings:
            raise ValueError(f"it holds {len(found)} measurements in place of {settings}")
        return found
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}; delete it to have it measured again.") from None
