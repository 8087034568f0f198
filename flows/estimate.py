"""A model's prompt and answer on one core and one memory: cycles of the exact model, and time from a clock.

Cycles are those of `accel.timing`, which a test holds against the RTL, at a memory of fixed bandwidth and latency.
That the clock and the memory are so is an assumption: everything in seconds is an estimate, and `assumptions`
says what it rests on.

A layer's time is from its first command until its last result is in memory, and layers run strictly one after
the other. What bounds it is the largest of five numbers of cycles:

* lanes: steps, in which the lanes multiply;
* memory: those in which the memory port moves a word, or if they are more, those that wait for weights;
* activations: those that wait for activations;
* drain: those that wait for a chain of partial sums;
* results: those that wait for accumulators, and those before the first step and after the last one, which are
  mostly the last results' way to memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accel.causes import CAUSES
from accel.timing import GemmTiming, gemm_timings
from flows.assumptions import assumptions
from flows.info import multipliers
from flows.model_trace import ModelTrace
from flows.recipe import Recipe
from flows.trace import trace_model
from flows.workload import Gemm, Work, Workload, attention_works, linear_works
from quant import NMPattern

SCHEMA = "nimble.estimate"
VERSION = 1

#: Causes of the core, and the cycles after its last result has left until that one is in memory.
COUNTERS = (*CAUSES, "write_back")

#: How each number of the JSON object comes about.
SOURCES = {
    **dict.fromkeys(
        ("cycles", "counters", "lane_use", "array_use", "dense_equivalent", "bytes", "macs", "dense_macs",
         "weight_gbytes", "multipliers"),
        "exact model",
    ),
    **dict.fromkeys(
        ("seconds", "linear_seconds", "attention_seconds", "host_seconds", "ttft_seconds", "tpot_seconds",
         "tokens_per_second", "prefill_tokens_per_second", "lane_limit_seconds", "bytes_limit_seconds", "over_limit",
         "bound"),
        "estimated",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LayerEstimate:
    """What the calls of one line take. Every number but `bound`'s is of all calls of the phase."""

    work: Work
    #: Cycles on the core, and those in which all its lanes at work would multiply.
    cycles: int
    ideal_cycles: int
    #: Cycles in which the memory port moves a word.
    memory_cycles: float
    #: Cycles by `COUNTERS`; they sum to ``cycles``.
    counters: dict[str, int]
    #: Bytes that memory moves, either way.
    bytes: int
    seconds: float
    #: Cycles in which all multipliers would do the useful ones.
    array_cycles: float

    @property
    def lane_use(self) -> float | None:
        """Share of the lane cycles of the rows at work with a weight slot to work on; None on the host."""
        return self.ideal_cycles / self.cycles if self.cycles else None

    @property
    def bound(self) -> str:
        """What takes most cycles, as at the head of this module; ``memory`` on the host."""
        return bound_of(self.counters, self.memory_cycles) if self.cycles else "memory"

    def document(self) -> dict[str, Any]:
        """Return one entry of ``layers``."""
        work = self.work
        return {
            "phase": work.phase,
            "name": work.name,
            "role": work.role,
            "where": work.where,
            "tokens": work.tokens,
            "in_features": _whole(work.in_features),
            "out_features": _whole(work.out_features),
            "pattern": work.pattern,
            "calls": work.calls,
            "cycles": _whole(self.cycles / work.calls),
            "seconds": self.seconds,
            "bytes": _whole(self.bytes / work.calls),
            "macs": work.macs,
            "dense_macs": work.dense_macs,
            "counters": self.counters,
            "lane_use": self.lane_use,
            "bound": self.bound,
        }


def bound_of(counters: Mapping[str, int], memory_cycles: float) -> str:
    """What bounds a layer, by the rule at the head of this module."""
    shares = {
        "lanes": counters["busy"],
        "memory": max(memory_cycles, counters["wait_weights"]),
        "activations": counters["wait_acts"],
        "drain": counters["wait_drain"],
        "results": counters["wait_write"] + counters["idle"] + counters["write_back"],
    }
    return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True)
class Total:
    """A phase, or both."""

    #: Tokens of all sequences, and forward passes.
    tokens: int
    passes: int
    layers: tuple[LayerEstimate, ...]
    workload: Workload

    def _seconds(self, *, role: Sequence[str] = ("linear", "head", "attention"), where: str | None = None) -> float:
        return sum(
            layer.seconds
            for layer in self.layers
            if layer.work.role in role and (where is None or layer.work.where == where)
        )

    @property
    def cycles(self) -> int:
        """Cycles on the core."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def seconds(self) -> float:
        """All layers one after the other: `linear_seconds` and `attention_seconds`."""
        return self.linear_seconds + self.attention_seconds

    @property
    def linear_seconds(self) -> float:
        """Linear layers, the head among them."""
        return self._seconds(role=("linear", "head"))

    @property
    def attention_seconds(self) -> float:
        """Attention's own products."""
        return self._seconds(role=("attention",))

    @property
    def host_seconds(self) -> float:
        """What of both runs on the host."""
        return self._seconds(where="host")

    @property
    def bytes(self) -> int:
        """Bytes that memory moves, either way."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def tokens_per_second(self) -> float:
        """Tokens over seconds."""
        return self.tokens / self.seconds

    @property
    def lane_use(self) -> float | None:
        """Lane use of the rows at work in the core's cycles, at most 1; None when all is on the host."""
        return sum(layer.ideal_cycles for layer in self.layers) / self.cycles if self.cycles else None

    @property
    def array_use(self) -> float | None:
        """Useful multiplications, of all that all rows could do in the core's cycles: idle rows and padding lose."""
        return sum(layer.array_cycles for layer in self.layers) / self.cycles if self.cycles else None

    @property
    def dense_equivalent(self) -> float | None:
        """Multiply-accumulates of the unpruned model, of all that could be done: above 1 if pruning pays that much."""
        if not self.cycles:
            return None
        dense = sum(layer.work.dense_macs for layer in self.layers if layer.work.where == "core")
        return dense / (multipliers(self.workload.config) * self.cycles)

    @property
    def lane_limit_seconds(self) -> float:
        """Time in which the lanes of the rows at work can do it, whatever memory does."""
        return sum(layer.ideal_cycles for layer in self.layers) / (self.workload.clock.mhz * 1e6)

    @property
    def bytes_limit_seconds(self) -> float:
        """Time in which memory can move the bytes, the host's among them, whatever the core does."""
        return self.bytes / (self.workload.memory.bandwidth_gb_s * 1e9)

    @property
    def over_limit(self) -> float:
        """Time over the larger of the two limits, at least 1."""
        return self.seconds / max(self.lane_limit_seconds, self.bytes_limit_seconds)

    @property
    def bound(self) -> str:
        """What bounds the layers that take most of the time."""
        shares: dict[str, float] = {}
        for layer in self.layers:
            shares[layer.bound] = shares.get(layer.bound, 0.0) + layer.seconds
        return max(shares, key=lambda bound: shares[bound])

    @property
    def counters(self) -> dict[str, int]:
        """Cycles by `COUNTERS`."""
        return {cause: sum(layer.counters[cause] for layer in self.layers) for cause in COUNTERS}

    def document(self) -> dict[str, Any]:
        """Return one entry of ``phases``."""
        names = (
            "tokens", "passes", "cycles", "seconds", "linear_seconds", "attention_seconds", "host_seconds", "bytes",
            "tokens_per_second", "lane_use", "array_use", "dense_equivalent", "lane_limit_seconds",
            "bytes_limit_seconds", "over_limit", "bound", "counters",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Estimate:
    """One recipe's cycles and times."""

    workload: Workload
    recipe: Recipe
    layers: tuple[LayerEstimate, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the linear layers' weights as they are stored, which one pass reads at least once."""
        first = self.layers[0].work.phase
        return sum(layer.work.weight_bytes for layer in self.layers if layer.work.phase == first)

    @property
    def totals(self) -> dict[str, Total]:
        """Totals of each phase that has tokens, and of both under ``total``."""
        work = self.workload
        phases = {
            phase: Total(
                tokens=tokens * work.batch,
                passes=passes,
                layers=tuple(layer for layer in self.layers if layer.work.phase == phase),
                workload=work,
            )
            for phase, tokens, passes in (("prefill", work.prefill, 1), ("decode", work.decode, work.decode))
            if tokens
        }
        tokens = sum(total.tokens for total in phases.values())
        passes = sum(total.passes for total in phases.values())
        return {**phases, "total": Total(tokens, passes, self.layers, work)}

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token: the pass over the prompt gives it. None without a prompt."""
        return self.totals["prefill"].seconds if self.workload.prefill else None

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token of a sequence after the first, the mean over the growing context."""
        return self.totals["decode"].seconds / self.workload.decode if self.workload.decode else None

    def document(self) -> dict[str, Any]:
        """Return one entry of ``patterns``."""
        totals = self.totals
        speeds = {phase: total.tokens_per_second for phase, total in totals.items()}
        return {
            "pattern": self.recipe.name,
            "ttft_seconds": self.ttft_seconds,
            "tpot_seconds": self.tpot_seconds,
            "tokens_per_second": speeds.get("decode"),
            "prefill_tokens_per_second": speeds.get("prefill"),
            "weight_gbytes": self.weight_bytes / 1e9,
            "phases": {phase: total.document() for phase, total in totals.items()},
            "layers": [layer.document() for layer in self.layers],
        }


@dataclass(frozen=True)
class Estimates:
    """The same work with one recipe or several."""

    core: str
    workload: Workload
    trace: ModelTrace
    estimates: tuple[Estimate, ...]
    #: Processor time of the estimate itself, without tracing the model.
    model_seconds: float

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the numbers rest on, in full sentences."""
        return assumptions(self.workload, self.trace)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble estimate``."""
        work = self.workload
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "model": self.trace.model,
            "core": self.core,
            "clock_mhz": work.clock.mhz,
            "clock_source": work.clock.source,
            "memory": work.memory.document(),
            "prefill": work.prefill,
            "decode": work.decode,
            "batch": work.batch,
            "group_size": work.group_size,
            "asymmetric": work.asymmetric,
            "attention": work.attention,
            "lm_head": work.lm_head,
            "multipliers": multipliers(work.config),
            "patterns": [estimate.document() for estimate in self.estimates],
            "sources": SOURCES,
            "assumptions": list(self.assumptions),
            "model_seconds": self.model_seconds,
        }


def read_patterns(text: str) -> list[NMPattern]:
    """Return the patterns of a comma-separated list, such as ``dense,2:4``.

    Raises
    ------
    ValueError
        An item is no pattern, or stands twice.
    """
    patterns = [NMPattern.parse(item) for item in text.split(",")]
    if len(set(patterns)) != len(patterns):
        raise ValueError(f"The patterns {text!r} were given; each is named once.")
    return patterns


def estimate_model(
    core: str,
    workload: Workload,
    recipes: Sequence[Recipe | NMPattern],
    traces: Mapping[str, ModelTrace] | None = None,
) -> Estimates:
    """Trace a model and estimate it with each of the recipes; a pattern is that for all layers.

    Parameters
    ----------
    traces
        What `traces_of` has returned for a workload that differs in its core only; by default the model is traced.

    Raises
    ------
    ValueError
        The workload is no possible one, the model is unknown or made for fewer tokens, a recipe's rule matches
        no layer, or a layer is beyond the core's capacity.
    """
    workload.check()
    chosen = [recipe if isinstance(recipe, Recipe) else Recipe.uniform(recipe) for recipe in recipes]
    if traces is None:
        traces = traces_of(workload)
    trace = next(iter(traces.values()))
    start = time.process_time()
    attention = [work for phase, trace in traces.items() for work in attention_works(workload, phase, trace)]
    works = []
    for recipe in chosen:
        linear = [work for phase, trace in traces.items() for work in linear_works(workload, phase, trace, recipe)]
        # A phase's attention comes after its linear layers.
        works.append(sorted(linear + attention, key=lambda work: list(traces).index(work.phase)))
    if not all(works):
        raise ValueError(
            f"{workload.model} has no linear layers in blocks, and lm_head and attention are 'skip'; nothing is left "
            "to estimate."
        )
    gemms = list(dict.fromkeys(gemm for column in works for work in column for gemm in work.gemms))
    memory = workload.memory.at_clock(workload.clock.mhz)
    timings = dict(zip(gemms, gemm_timings(workload.config, gemms, memory=memory), strict=True))
    estimates = tuple(
        Estimate(workload, recipe, tuple(_layer_estimate(workload, work, timings) for work in column))
        for recipe, column in zip(chosen, works, strict=True)
    )
    return Estimates(core, workload, trace, estimates, time.process_time() - start)


def traces_of(workload: Workload) -> dict[str, ModelTrace]:
    """A trace of each phase that has tokens; that of decode is its first pass.

    Raises
    ------
    ValueError
        The model is unknown or made for fewer tokens.
    """
    work = workload
    traces: dict[str, ModelTrace] = {}
    if work.prefill:
        traces["prefill"] = _check_length(work, trace_model(work.model, work.prefill, batch=work.batch))
    if work.decode:
        traces["decode"] = _check_length(work, trace_model(work.model, 1, batch=work.batch, context=work.prefill))
    return traces


def _check_length(workload: Workload, trace: ModelTrace) -> ModelTrace:
    """The same trace, unless the model is made for fewer tokens than the workload has."""
    longest = trace.facts.max_position_embeddings
    tokens = workload.prefill + workload.decode
    if longest is not None and tokens > longest:
        raise ValueError(
            f"prefill and decode are {tokens} tokens together; {trace.model} is made for at most {longest} "
            "(its max_position_embeddings)."
        )
    return trace


# -- from calls to cycles ------------------------------------------------------------------------------------


def _layer_estimate(workload: Workload, work: Work, timings: Mapping[Gemm, GemmTiming]) -> LayerEstimate:
    memory = workload.memory.bandwidth_gb_s * 1e9
    counters = dict.fromkeys(COUNTERS, 0)
    cycles = ideal = moved = 0
    memory_cycles = 0.0
    for gemm, calls in work.gemms.items():
        timing = timings[gemm]
        cycles += calls * timing.written
        ideal += calls * timing.ideal_cycles
        moved += calls * timing.bytes
        memory_cycles += calls * timing.memory_cycles
        for cause, count in timing.counters.items():
            counters[cause] += calls * count
        counters["write_back"] += calls * (timing.written - timing.cycles)
    return LayerEstimate(
        work=work,
        cycles=cycles,
        ideal_cycles=ideal,
        memory_cycles=memory_cycles,
        counters=counters,
        bytes=moved + work.host_bytes,
        seconds=cycles / (workload.clock.mhz * 1e6) + work.host_bytes / memory,
        array_cycles=work.lane_macs / multipliers(workload.config),
    )


def _whole(value: float) -> float:
    """The same number, an integer where it is whole."""
    return int(value) if value == int(value) else value
