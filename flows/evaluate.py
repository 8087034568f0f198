"""Perplexity of a model on disk: in float, with dequantised weights, and exactly as the accelerator computes it.

torch takes seconds to import; import this module inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flows.stored_model import StoredModel, dense_weight, open_model
from golden.linear import NMLinear
from quant import QuantizedLinear
from quant.blocks import BlockModel, Replace, perplexities
from quant.model_folder import ModelFolder
from quant.text import read_tokens

#: Tokens of a sample unless the model is made for fewer.
LENGTH = 512

#: Bits of an activation where no core says how many.
ACT_BITS = 8


@dataclass(frozen=True)
class Evaluation:
    """Perplexities of one model, all on the same tokens."""

    model: Path
    #: ``float``, ``packed``, or the name of another tool's format.
    kind: str
    float_model: Path | None
    text: Path | None
    samples: int
    length: int
    seed: int
    act_bits: int
    #: Perplexity of the float model; None where there is none at hand.
    float_perplexity: float | None
    #: Perplexities with dequantised weights, and as the accelerator computes; None for a float model.
    dequantised: float | None
    accelerator: float | None
    #: For each quantised layer the squared error of its outputs that integer activations make, relative to the squares
    #: of its outputs with float ones.
    activation_errors: Mapping[str, float]

    @property
    def predicted(self) -> int:
        """Tokens whose likelihood counts: all but the first of each sample."""
        return self.samples * (self.length - 1)

    @property
    def perplexities(self) -> dict[str, float | None]:
        """All three by their names in the JSON object."""
        return {
            "float": self.float_perplexity,
            "dequantised": self.dequantised,
            "accelerator": self.accelerator,
        }

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble evaluate``."""
        return {
            "model": str(self.model),
            "format": self.kind,
            "float_model": None if self.float_model is None else str(self.float_model),
            "text": None if self.text is None else str(self.text),
            "samples": self.samples,
            "length": self.length,
            "seed": self.seed,
            "predicted_tokens": self.predicted,
            "act_bits": self.act_bits,
            "perplexity": self.perplexities,
            "activation_errors": dict(self.activation_errors),
        }


def evaluate(
    model: Path,
    float_model: Path | None = None,
    text: Path | None = None,
    samples: int = 16,
    length: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure the perplexities of a model on the last fifth of a text, which nothing is calibrated on.

    Each block is read once for the dequantised and the exact model together.

    Parameters
    ----------
    model
        Folder of any kind that `open_model` reads.
    float_model
        Folder of the model that it was quantised from; with it, its perplexity is measured too.
    text
        UTF-8 text; None is the one that ships with CPython.
    samples, length, seed
        Samples to draw, tokens of each (None: `LENGTH`, or what the model is made for), and the seed of the draw.
    progress
        Called with what is being run, how many of its blocks are done, and how many there are.

    Raises
    ------
    ValueError
        If a folder, the text or a number is not possible, the two models are of different sizes, or a result is not
        finite.
    OSError
        If a file cannot be read.
    """
    stored = open_model(model)
    act_bits = ACT_BITS if stored.core is None else stored.core.act_bits
    if float_model is not None and stored.kind == "float":
        raise ValueError(f"{model} is a float model already; --model is for the one that a model was quantised from.")
    reference = None if float_model is None else _open_float(float_model, stored)
    length = _length(stored, length)
    tokens = read_tokens(cast(ModelFolder, stored), text, samples, length, seed, "evaluation")

    def report(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, blocks: progress(what, done, blocks)

    found: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    in_float = stored if stored.kind == "float" else reference
    if in_float is not None:
        found |= _finite(in_float, tokens, {"float": None}, report("float"))
    if stored.kind != "float":
        found |= _finite(stored, tokens, _variants(stored, act_bits, sums), report("quantised"))
    return Evaluation(
        model=model,
        kind=stored.kind,
        float_model=float_model,
        text=text,
        samples=samples,
        length=length,
        seed=seed,
        act_bits=act_bits,
        float_perplexity=found.get("float"),
        dequantised=found.get("dequantised"),
        accelerator=found.get("accelerator"),
        activation_errors={name: error / size if size else 0.0 for name, (error, size) in sums.items()},
    )


def _finite(
    stored: StoredModel,
    tokens: torch.Tensor,
    variants: Mapping[str, Replace | None],
    progress: Callable[[int, int], None] | None,
) -> dict[str, float]:
    """Perplexities of a model's variants; what is no number, or too large for one, is refused."""
    try:
        found = perplexities(BlockModel(stored), tokens, variants, progress)
    except OverflowError:
        raise ValueError(f"The perplexity of {stored.path} is too large for a number.") from None
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"The perplexity of {stored.path} ({name}) is {value}; the model gives no likelihoods.")
    return found


def _open_float(path: Path, quantised: StoredModel) -> StoredModel:
    stored = open_model(path)
    if stored.kind != "float":
        raise ValueError(f"{path} is quantised ({stored.kind}); --model takes the folder of the float model.")
    if (stored.architecture, stored.sizes) != (quantised.architecture, quantised.sizes):
        raise ValueError(f"{quantised.path} was not quantised from {path}: their sizes differ.")
    return stored


def _length(stored: StoredModel, length: int | None) -> int:
    longest = stored.config.get("max_position_embeddings", LENGTH)
    if not isinstance(longest, int):
        raise ValueError(f"{stored.path} has max_position_embeddings {longest!r}; it must be an integer.")
    if length is None:
        return min(LENGTH, longest)
    if length > longest:
        raise ValueError(f"--length is {length}, but {stored.path} is made for at most {longest} tokens.")
    return length


class _Watched(nn.Module):
    """The accelerator's layer, beside what it would give with float activations."""

    def __init__(self, name: str, linear: QuantizedLinear, act_bits: int, sums: list[float]) -> None:
        super().__init__()
        self.name, self.exact, self.dense = name, NMLinear(linear, act_bits), _dense(linear)
        #: Sum of squares of the difference, and of the float result.
        self.sums = sums

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            y, wanted = self.exact(x), self.dense(x)
        except ValueError as error:
            raise ValueError(f"Layer {self.name}: {error}") from None
        self.sums[0] += float((y - wanted).double().square().sum())
        self.sums[1] += float(wanted.double().square().sum())
        return cast(torch.Tensor, y)


def _variants(stored: StoredModel, act_bits: int, sums: dict[str, list[float]]) -> dict[str, Replace]:
    """Both ways to run the quantised layers; `sums` becomes the sums of `_Watched` of each."""
    # The layers of one block at a time: each variant asks for all of them.
    read = lru_cache(maxsize=len(stored.architecture.linears(stored.sizes)))(stored.layers.__getitem__)

    def dequantised(name: str, linear: nn.Linear) -> nn.Module:
        return _dense(read(name)) if name in stored.layers else linear

    def accelerator(name: str, linear: nn.Linear) -> nn.Module:
        if name not in stored.layers:
            return linear
        return _Watched(name, read(name), act_bits, sums.setdefault(name, [0.0, 0.0]))

    return {"dequantised": dequantised, "accelerator": accelerator}


def _dense(linear: QuantizedLinear) -> nn.Linear:
    weight = linear.weight
    module = nn.Linear(weight.in_features, weight.out_features, bias=linear.bias is not None, device="meta")
    module.weight = nn.Parameter(torch.from_numpy(dense_weight(linear)), requires_grad=False)
    if linear.bias is not None:
        module.bias = nn.Parameter(torch.tensor(linear.bias), requires_grad=False)
    return module
