"""One linear layer with random weights on the core at any level, timed and held against PyTorch's results."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accel.command import commands_for
from accel.config import CoreConfig
from accel.stream import layout_for
from flows.info import FP16_BITS, multipliers, pattern_name
from flows.model_trace import LinearLayer
from flows.terminal import progress
from quant import NMPattern, prune_magnitude, quantize_rtn
from verify.gemm import LEVELS, TIMED_LEVELS, GemmJob, GemmRun, execute, prepare

#: Levels that can be held against ``golden``.
COMPARED_LEVELS = tuple(level for level in LEVELS if level != "golden")


@dataclass(frozen=True)
class LayerGemm:
    """A GEMM with random operands; its sizes are usually those of a model's layer."""

    config: CoreConfig
    tokens: int
    in_features: int
    out_features: int
    pattern: NMPattern
    group_size: int = 128
    symmetric: bool = True
    #: Block code, or None for the one with the fewest bits.
    code: str | None = None
    #: Decides weights and activations.
    seed: int = 0

    def check(self) -> None:
        """Refuse what does not fit the core, before weights are made.

        Raises
        ------
        ValueError
            In a full sentence.
        """
        self.pattern.check_group_size(self.group_size)
        layout = layout_for(
            self.config,
            self.pattern,
            self.out_features,
            self.in_features,
            self.group_size,
            asymmetric=not self.symmetric,
            code=self.code,
        )
        commands_for(self.config, layout, self.tokens)
        if self.seed < 0:
            raise ValueError(f"The seed is {self.seed}; a seed is an integer from 0 on.")

    def prepare(self) -> GemmJob:
        """Draw activations, uniform over their range, and normal weights; prune, quantise and pack these."""
        self.check()
        rng = np.random.default_rng(self.seed)
        low, high = self.config.act_range
        x = rng.integers(low, high, (self.tokens, self.in_features), endpoint=True)
        # Last, row by row: fewer output features are the first ones of more.
        weights = rng.standard_normal((self.out_features, self.in_features), np.float32)
        weight = quantize_rtn(
            prune_magnitude(weights, self.pattern), self.pattern, self.group_size, symmetric=self.symmetric
        )
        return prepare(self.config, x, weight, code=self.code)


@dataclass(frozen=True)
class Simulation:
    """A GEMM that ran at a level, beside PyTorch's results."""

    job: GemmJob
    run: GemmRun
    golden: GemmRun
    #: Wall time of the run; building the model is not in it.
    seconds: float

    @cached_property
    def differences(self) -> int:
        """Results that are not PyTorch's."""
        return int((self.run.y != self.golden.y).sum())

    @property
    def match(self) -> bool:
        """Whether every result is PyTorch's."""
        return self.differences == 0

    @property
    def complaint(self) -> str | None:
        """Where the first difference is, if there is one."""
        if self.match:
            return None
        token, output = (int(i) for i in np.argwhere(self.run.y != self.golden.y)[0])
        return (
            f"{self.run.level} disagrees with PyTorch in {self.differences:,} of {self.run.y.size:,} "
            f"results; the first is token {token}, output {output}: {self.run.y[token, output]} instead of "
            f"{self.golden.y[token, output]}."
        )

    @property
    def utilisation(self) -> float | None:
        """Lane use in the rows at work: ideal over actual cycles; None at levels without time."""
        return None if self.run.cycles is None else self.job.ideal_cycles / self.run.cycles

    @property
    def mac_utilisation(self) -> float | None:
        """Use of all multipliers: kept weights times tokens only, so that padding and idle rows are losses."""
        if self.run.cycles is None:
            return None
        kept = int(self.job.weight.mask.sum())
        return kept * self.job.tokens / (multipliers(self.job.config) * self.run.cycles)

    @property
    def cycles_per_second(self) -> float | None:
        """Speed of the simulation in wall time; None at levels without time."""
        return None if self.run.cycles is None else self.run.cycles / self.seconds

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the run."""
        layout = self.job.stream.layout
        return {
            "level": self.run.level,
            "pattern": pattern_name(layout.pattern),
            "group_size": layout.group_size,
            "asymmetric": layout.asymmetric,
            "code": layout.code,
            "match": self.match,
            "results": self.run.y.size,
            "differences": self.differences,
            "complaint": self.complaint,
            "cycles": self.run.cycles,
            "ideal_cycles": self.job.ideal_cycles,
            "utilisation": self.utilisation,
            "mac_utilisation": self.mac_utilisation,
            "counters": self.run.counters,
            "seconds": self.seconds,
            "cycles_per_second": self.cycles_per_second,
            "stream_bytes": layout.payload_bytes,
            "bits_per_weight": layout.bits_per_weight,
            "ratio_to_fp16": FP16_BITS / layout.bits_per_weight,
        }


def check_compared_level(level: str) -> None:
    """Raise ValueError unless `level` can be held against ``golden``."""
    if level not in COMPARED_LEVELS:
        reason = "is what the others are compared with" if level == "golden" else "does not exist"
        raise ValueError(f"Level {level!r} {reason}; the levels are {', '.join(COMPARED_LEVELS)}.")


def build_model(config: CoreConfig, levels: Iterable[str]) -> None:
    """Build the core's model at each timed level, so that a run that follows takes only its own time.

    Models are kept: the Verilog level's on disk, the CL and RTL levels' in this process.
    """
    for level in levels:
        if level in TIMED_LEVELS:
            # One weight: whatever a level does before its first run is done.
            execute(LayerGemm(config, 1, 1, 1, NMPattern(1, 1), group_size=-1).prepare(), level)


def simulate(job: GemmJob, level: str, what: str, *, golden: GemmRun | None = None) -> Simulation:
    """Run a prepared GEMM at a level, and PyTorch's reference; show progress meanwhile.

    Parameters
    ----------
    what
        Whose GEMM it is, for the progress bars.
    golden
        The reference's results, if they are there already.
    """
    with progress(f"Building the {level} model (the first time takes about a minute)"):
        build_model(job.config, [level])
    # Only the Verilog level calls back.
    total = job.result_words if level == "verilog" else None
    with progress(f"Simulating {what}", total) as bar:
        words = 0

        def advance(now: int) -> None:
            nonlocal words
            bar.advance(now - words)
            words = now

        start = time.perf_counter()
        run = execute(job, level, progress=advance)
        seconds = time.perf_counter() - start
    return Simulation(job, run, golden or execute(job, "golden"), seconds)


@dataclass(frozen=True)
class LayerSimulation:
    """A model's layer with random weights, simulated."""

    core: str
    model: str
    layer: LinearLayer
    gemm: LayerGemm
    simulation: Simulation

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble simulate``."""
        return {
            "core": self.core,
            "model": self.model,
            "layer": self.layer.name,
            "shape": {
                "tokens": self.gemm.tokens,
                "in_features": self.gemm.in_features,
                "out_features": self.gemm.out_features,
            },
            "layer_out_features": self.layer.out_features,
            "weights": "random",
            "seed": self.gemm.seed,
            **self.simulation.document(),
        }


def layer_gemm(config: CoreConfig, layer: LinearLayer, *, outputs: int | None = None, **options: Any) -> LayerGemm:
    """Return a GEMM of a layer's sizes.

    Parameters
    ----------
    outputs
        Output features to take, at most the layer's; None for all.
    options
        The other fields of `LayerGemm`.

    Raises
    ------
    ValueError
        The layer has fewer output features.
    """
    if outputs is not None and not 1 <= outputs <= layer.out_features:
        raise ValueError(
            f"{outputs} outputs were asked for, but layer {layer.name} has {layer.out_features:,}; "
            f"from 1 to {layer.out_features} can be taken."
        )
    return LayerGemm(config, in_features=layer.in_features, out_features=outputs or layer.out_features, **options)


def simulate_layer(core: str, model: str, layer: LinearLayer, gemm: LayerGemm, level: str) -> LayerSimulation:
    """Prepare and run a layer's GEMM.

    Raises
    ------
    ValueError
        The GEMM does not fit the core, in a full sentence.
    """
    with progress(f"Pruning, quantising and packing {layer.kind}"):
        job = gemm.prepare()
    return LayerSimulation(core, model, layer, gemm, simulate(job, level, layer.kind))
