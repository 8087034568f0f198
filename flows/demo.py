"""The whole chain once: a model's layers, one full matrix on the verilated core, and tokens per second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from accel.config import load_preset
from accel.timing import GemmTiming, gemm_timing
from flows.estimate import Estimates, estimate_model
from flows.model_trace import LinearLayer, ModelTrace
from flows.simulate import LayerGemm, Simulation, layer_gemm, simulate
from flows.terminal import progress
from flows.trace import trace_model
from flows.workload import Workload
from quant import NMPattern

MODEL = "llama-7b"
CORE = "edge"
LAYER = "q_proj"
TOKENS = 16
PREFILL, DECODE = 128, 32

#: The first is compared with the second.
SIMULATED = (NMPattern(2, 4), NMPattern(1, 1))
ESTIMATED = (NMPattern(1, 1), NMPattern(2, 4), NMPattern(4, 8), NMPattern(3, 4), NMPattern(1, 4))


@dataclass(frozen=True)
class MatrixRun:
    """The layer's whole matrix with one pattern: functional model and verilated core beside PyTorch."""

    gemm: LayerGemm
    functional: Simulation
    verilated: Simulation
    #: What `accel.timing` says that the core takes.
    timing: GemmTiming
    #: Wall time of drawing, pruning, quantising and packing.
    prepare_seconds: float

    @property
    def cycles(self) -> int:
        """Cycles that the verilated core took."""
        assert self.verilated.run.cycles is not None
        return self.verilated.run.cycles

    @property
    def timing_matches(self) -> bool:
        """Whether the cycle model gives the cycles that the verilated core took."""
        return self.timing.cycles == self.cycles

    @property
    def match(self) -> bool:
        """Whether everything agrees."""
        return self.functional.match and self.verilated.match and self.timing_matches

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the run."""
        return {
            **self.verilated.document(),
            "functional_match": self.functional.match,
            "model_cycles": self.timing.cycles,
            "model_cycles_match": self.timing_matches,
            "prepare_seconds": self.prepare_seconds,
        }


@dataclass(frozen=True)
class Demonstration:
    """Everything that the demo shows."""

    trace: ModelTrace
    layer: LinearLayer
    #: One for each of `SIMULATED`.
    runs: tuple[MatrixRun, ...]
    estimates: Estimates
    seconds: float

    @property
    def core(self) -> str:
        """Name of the core."""
        return self.estimates.core

    @property
    def cycle_ratio(self) -> float:
        """How many times fewer cycles the sparse matrix takes than the dense one."""
        sparse, dense = self.runs
        return dense.cycles / sparse.cycles

    @property
    def match(self) -> bool:
        """Whether everything that must agree does."""
        return all(run.match for run in self.runs)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble demo``."""
        return {
            "model": self.trace.model,
            "core": self.core,
            "layer": self.layer.name,
            "shape": {
                "tokens": TOKENS,
                "in_features": self.layer.in_features,
                "out_features": self.layer.out_features,
            },
            "linear_layers": len(self.trace.layers),
            "macs_per_token": self.trace.macs_per_token._asdict(),
            "match": self.match,
            "runs": [run.document() for run in self.runs],
            "cycle_ratio": self.cycle_ratio,
            "estimate": self.estimates.document(),
            "seconds": self.seconds,
        }


def demonstrate() -> Demonstration:
    """Run the demo; progress bars show what it is at."""
    start = time.perf_counter()
    config = load_preset(CORE)
    with progress(f"Tracing {MODEL}"):
        trace = trace_model(MODEL)
    layer = trace.find(LAYER)
    runs = tuple(
        run_matrix(layer_gemm(config, layer, tokens=TOKENS, pattern=pattern), f"{layer.kind}, {pattern}")
        for pattern in SIMULATED
    )
    workload = Workload(config, MODEL, prefill=PREFILL, decode=DECODE)
    with progress(f"Estimating {MODEL}"):
        estimates = estimate_model(CORE, workload, ESTIMATED)
    return Demonstration(trace, layer, runs, estimates, time.perf_counter() - start)


def run_matrix(gemm: LayerGemm, what: str) -> MatrixRun:
    """Prepare a GEMM and run it at the functional and the Verilog level.

    Parameters
    ----------
    what
        Whose GEMM it is, for the progress bars.
    """
    start = time.perf_counter()
    with progress(f"Pruning, quantising and packing {what}"):
        job = gemm.prepare()
    seconds = time.perf_counter() - start
    functional = simulate(job, "fl", what)
    verilated = simulate(job, "verilog", what, golden=functional.golden)
    timing = gemm_timing(gemm.config, job.stream.layout, gemm.tokens)
    return MatrixRun(gemm, functional, verilated, timing, seconds)
