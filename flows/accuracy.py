"""Perplexity of one model under several patterns and methods, side by side.

torch takes seconds to import; import this module inside functions only.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flows.info import pattern_name
from flows.terminal import progress
from quant import METHODS, LayerSettings, NMPattern
from quant.blocks import BlockModel, perplexity
from quant.model_folder import ModelFolder
from quant.quantize_model import quantize_model
from quant.text import read_tokens

SCHEMA = "nimble.accuracy"
VERSION = 1

#: What is left of the methods on a dense pattern, where there is nothing to prune; the others repeat these.
DENSE_METHODS = {"joint": "joint", "sparsegpt-gptq": "gptq", "magnitude-rtn": "rtn"}


@dataclass(frozen=True)
class AccuracyPlan:
    """What is measured."""

    model: Path
    #: UTF-8 text; None is the one that ships with CPython.
    text: Path | None = None
    patterns: tuple[NMPattern, ...] = (NMPattern(1, 1), NMPattern(4, 8), NMPattern(2, 4))
    methods: tuple[str, ...] = METHODS
    #: Each draws calibration samples of its own.
    seeds: tuple[int, ...] = (0, 1, 2)
    group_size: int = 128
    symmetric: bool = True
    #: Calibration samples, and tokens of every sample.
    samples: int = 128
    length: int = 256
    #: Evaluation samples, drawn with seed 0 for all.
    evaluation: int = 128

    def __post_init__(self) -> None:
        for name, values in (("patterns", self.patterns), ("methods", self.methods), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                given = ", ".join(map(str, values)) or "none"
                raise ValueError(f"The {name} {given} were given; at least one is needed, and each is named once.")
        for pattern in self.patterns:
            for method in self.methods:
                LayerSettings(pattern, self.group_size, self.symmetric, method)
        if not self.runs():
            raise ValueError(
                f"A dense pattern has the methods {', '.join(DENSE_METHODS)}, but {', '.join(self.methods)} was "
                "given, and no other pattern."
            )

    def runs(self) -> list[tuple[NMPattern, str]]:
        """Every pattern with every method that is one of its own on it."""
        return [
            (pattern, method)
            for pattern in self.patterns
            for method in self.methods
            if not pattern.is_dense or method in DENSE_METHODS
        ]


@dataclass(frozen=True)
class AccuracyRow:
    """One pattern under one method."""

    pattern: NMPattern
    method: str
    #: Perplexity by seed, in the plan's order.
    perplexities: tuple[float, ...]

    @property
    def name(self) -> str:
        """The method, by what is left of it on a dense pattern."""
        return DENSE_METHODS[self.method] if self.pattern.is_dense else self.method

    @property
    def median(self) -> float:
        """Median over the seeds."""
        return statistics.median(self.perplexities)

    def document(self) -> dict[str, Any]:
        """Return one entry of ``rows``."""
        return {
            "pattern": pattern_name(self.pattern),
            "method": self.name,
            "perplexities": list(self.perplexities),
            "median": self.median,
        }


@dataclass(frozen=True)
class Accuracy:
    """Perplexities of the float model and of every run."""

    plan: AccuracyPlan
    float_perplexity: float
    #: Tokens that are predicted in an evaluation.
    predicted: int
    rows: tuple[AccuracyRow, ...]

    def document(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        plan = self.plan
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "model": str(plan.model),
            "text": "CPython's help topics" if plan.text is None else str(plan.text),
            "seeds": list(plan.seeds),
            "group_size": plan.group_size,
            "symmetric": plan.symmetric,
            "samples": plan.samples,
            "length": plan.length,
            "predicted_tokens": self.predicted,
            "float": self.float_perplexity,
            "rows": [row.document() for row in self.rows],
        }


def measure_accuracy(plan: AccuracyPlan, work: Path | None = None) -> Accuracy:
    """Quantise a model once for each pattern, method and seed, and measure each on held-out text.

    Parameters
    ----------
    work
        Keeps every quantised model in a folder of its own, so that a stopped measurement goes on; None uses a
        temporary folder.

    Raises
    ------
    ValueError, OSError
        As `quantize_model` and `read_tokens` do.
    """
    folder = ModelFolder.open(plan.model)
    folder.check()
    held_out = read_tokens(folder, plan.text, plan.evaluation, plan.length, part="evaluation")
    calibration = {seed: read_tokens(folder, plan.text, plan.samples, plan.length, seed) for seed in plan.seeds}
    runs = plan.runs()
    rows = []
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimble-"))) if work is None else work
        bar = stack.enter_context(progress("Float model", total=len(runs) * len(plan.seeds)))
        float_perplexity = perplexity(BlockModel(folder), held_out)
        for pattern, method in runs:
            settings = LayerSettings(pattern, plan.group_size, plan.symmetric, method)
            values = []
            for seed, tokens in calibration.items():
                bar.describe(f"{pattern_name(pattern)} {method}, seed {seed}")
                place = root / f"{pattern.n}of{pattern.m}-{method}-{seed}"
                values.append(_run(folder, settings, tokens, place, seed, held_out))
                bar.advance()
            rows.append(AccuracyRow(pattern, method, tuple(values)))
    return Accuracy(plan, float_perplexity, held_out.numel() - len(held_out), tuple(rows))


def _run(
    folder: ModelFolder, settings: LayerSettings, tokens: torch.Tensor, place: Path, seed: int, held_out: torch.Tensor
) -> float:
    quantised = quantize_model(folder, lambda name: settings, tokens, place, seed=seed)
    return perplexity(BlockModel(quantised), held_out)


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds "0,1,2".

    Raises
    ------
    ValueError
        If one is no whole number of 0 or more.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"The seeds {text!r} were given; they are whole numbers with commas between, such as 0,1,2.")
    return tuple(int(part) for part in parts)


def read_methods(text: str) -> tuple[str, ...]:
    """Read methods "joint,wanda-rtn"; "all" is every one of `METHODS`."""
    return METHODS if text == "all" else tuple(part.strip() for part in text.split(","))
