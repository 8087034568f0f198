"""A model's prompt and answer on one core: exact cycles, and time from a clock and a memory bandwidth.

A number of cycles is exact: `accel.timing` gives what the RTL takes when no stream stalls. Everything that
divides by a clock or a bandwidth is an estimate, and `assumptions` says what it rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accel.config import ConfigError, CoreConfig
from accel.stream import layout_for
from accel.timing import GemmTiming, gemm_timing
from flows.info import multipliers, pattern_name
from flows.trace import ModelTrace, trace_model
from quant import NMPattern

CLOCK_MHZ = 500.0
BANDWIDTH_GB_S = 25.6

#: What is done with the layers outside the blocks: nearly always ``lm_head`` alone.
LM_HEADS = ("int4", "pruned", "skip")

#: How each number comes about.
SOURCES = {
    "cycles": "exact model",
    "ideal_cycles": "exact model",
    "utilisation": "exact model",
    "counters": "exact model",
    "bytes": "exact model",
    "weight_bytes": "exact model",
    "act_bytes": "exact model",
    "result_bytes": "exact model",
    "seconds": "estimated",
    "compute_seconds": "estimated",
    "memory_seconds": "estimated",
    "mac_utilisation": "estimated",
    "bound": "estimated",
    "tokens_per_second": "estimated",
}


@dataclass(frozen=True)
class Workload:
    """What is estimated, but for the pattern."""

    config: CoreConfig
    model: str
    #: Tokens of the prompt, in one pass.
    prefill: int
    #: Passes of one token each after it.
    decode: int
    group_size: int = 128
    asymmetric: bool = False
    lm_head: str = "int4"
    clock_mhz: float = CLOCK_MHZ
    bandwidth_gb_s: float = BANDWIDTH_GB_S

    def check(self) -> None:
        """Refuse what cannot be estimated.

        Raises
        ------
        ValueError
            In a full sentence.
        """
        for phase, tokens in (("prefill", self.prefill), ("decode", self.decode)):
            if tokens < 0:
                raise ValueError(f"{phase} is {tokens}; it is a number of tokens from 0 on.")
        if self.prefill + self.decode == 0:
            raise ValueError("Both prefill and decode are 0; at least one of them has a token.")
        for name, value, unit in (
            ("clock", self.clock_mhz, "MHz"),
            ("bandwidth", self.bandwidth_gb_s, "GB/s"),
        ):
            if not 0 < value < float("inf"):
                raise ValueError(f"The {name} is {value} {unit}; it must be positive and finite.")
        if self.lm_head not in LM_HEADS:
            raise ValueError(f"lm_head is {self.lm_head!r}; it must be one of {', '.join(LM_HEADS)}.")


@dataclass(frozen=True)
class LayerEstimate:
    """Calls of one shape in one pass of a phase."""

    phase: str
    kinds: tuple[str, ...]
    tokens: int
    in_features: int
    out_features: int
    pattern: NMPattern
    #: Calls in one pass.
    count: int
    #: Passes in the phase.
    passes: int
    #: One call on the core.
    timing: GemmTiming
    #: Time of one call at the core's clock, and of its bytes at the bandwidth.
    compute_seconds: float
    memory_seconds: float

    @property
    def bound(self) -> str:
        """``compute`` or ``memory``, whichever takes longer."""
        return "memory" if self.memory_seconds > self.compute_seconds else "compute"

    @property
    def bytes(self) -> int:
        """Bytes that one call moves, either way."""
        return _moved(self.timing)

    @property
    def calls(self) -> int:
        """Calls in the whole phase."""
        return self.count * self.passes

    @property
    def seconds(self) -> float:
        """Time of all calls in the phase."""
        return self.calls * max(self.compute_seconds, self.memory_seconds)

    @property
    def useful_macs(self) -> float:
        """Kept weights times tokens of all calls in the phase."""
        blocks, tail = divmod(self.in_features, self.pattern.m)
        kept = blocks * self.pattern.n + min(tail, self.pattern.n)
        return self.calls * self.tokens * kept * self.out_features

    def document(self) -> dict[str, Any]:
        """Return one entry of ``layers``: sizes and cycles are of one call."""
        return {
            "phase": self.phase,
            "kinds": list(self.kinds),
            "tokens": self.tokens,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "pattern": pattern_name(self.pattern),
            "calls": self.calls,
            "cycles": self.timing.cycles,
            "ideal_cycles": self.timing.ideal_cycles,
            "utilisation": self.timing.ideal_cycles / self.timing.cycles,
            "counters": self.timing.counters,
            "weight_bytes": self.timing.weight_bytes,
            "act_bytes": self.timing.act_bytes,
            "result_bytes": self.timing.result_bytes,
            "compute_seconds": self.compute_seconds,
            "memory_seconds": self.memory_seconds,
            "bound": self.bound,
        }


@dataclass(frozen=True)
class Total:
    """A phase, or both."""

    tokens: int
    cycles: int
    ideal_cycles: int
    #: Bytes that memory moves, either way.
    bytes: int
    seconds: float
    #: Share of the time in calls that the memory bounds.
    memory_share: float
    #: Kept weights times tokens, and multipliers times the clock ticks of the time.
    useful_macs: float
    possible_macs: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the phase over its time."""
        return self.tokens / self.seconds

    @property
    def utilisation(self) -> float:
        """Lane use of the rows at work in the core's cycles."""
        return self.ideal_cycles / self.cycles

    @property
    def mac_utilisation(self) -> float:
        """Useful multiplications, of all that the multipliers could do in the time."""
        return self.useful_macs / self.possible_macs

    @property
    def bound(self) -> str:
        """What bounds the calls that take most of the time."""
        return "memory" if self.memory_share > 0.5 else "compute"


@dataclass(frozen=True)
class Estimate:
    """One pattern's cycles and times."""

    workload: Workload
    pattern: NMPattern
    layers: tuple[LayerEstimate, ...]

    @property
    def totals(self) -> dict[str, Total]:
        """Totals of each phase that has tokens, and of both under ``total``."""
        tokens = {"prefill": self.workload.prefill, "decode": self.workload.decode}
        phases = {phase: count for phase, count in tokens.items() if count}
        totals = {
            phase: self._total([layer for layer in self.layers if layer.phase == phase], count)
            for phase, count in phases.items()
        }
        return {**totals, "total": self._total(self.layers, sum(phases.values()))}

    def _total(self, layers: Sequence[LayerEstimate], tokens: int) -> Total:
        seconds = sum(layer.seconds for layer in layers)
        memory = sum(layer.seconds for layer in layers if layer.bound == "memory")
        config = self.workload.config
        return Total(
            tokens=tokens,
            cycles=sum(layer.calls * layer.timing.cycles for layer in layers),
            ideal_cycles=sum(layer.calls * layer.timing.ideal_cycles for layer in layers),
            bytes=sum(layer.calls * layer.bytes for layer in layers),
            seconds=seconds,
            memory_share=memory / seconds,
            useful_macs=sum(layer.useful_macs for layer in layers),
            possible_macs=multipliers(config) * seconds * self.workload.clock_mhz * 1e6,
        )

    def summary(self) -> dict[str, Any]:
        """Return the totals of each phase, number by number."""
        totals = self.totals
        names = ("cycles", "bytes", "utilisation", "mac_utilisation", "seconds", "tokens_per_second", "bound")
        return {
            "pattern": pattern_name(self.pattern),
            **{name: {phase: getattr(total, name) for phase, total in totals.items()} for name in names},
        }


@dataclass(frozen=True)
class Estimates:
    """The same work with one pattern or several."""

    core: str
    workload: Workload
    trace: ModelTrace
    estimates: tuple[Estimate, ...]

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the numbers rest on, in full sentences."""
        work = self.workload
        config = work.config
        head = {
            "int4": "The layers outside the blocks (lm_head) are dense INT4 and run on the core;",
            "pruned": "The layers outside the blocks (lm_head) are pruned like those in them;",
            "skip": "The layers outside the blocks (lm_head) are left out.",
        }[work.lm_head]
        if work.lm_head != "skip":
            head += " prefill runs them for its last token only, whose logits alone are needed."
        group = "a whole row" if work.group_size == -1 else f"{work.group_size} weights"
        return (
            "Exact model: cycles, their causes and bytes are those of the RTL when no stream stalls, which a "
            "test shows; utilisation is the lane use of the rows at work in these cycles.",
            f"Estimated: the clock is taken to be {work.clock_mhz:g} MHz; no synthesis result stands behind it.",
            f"Estimated: memory is taken to move {work.bandwidth_gb_s:g} GB/s (1 GB = 10^9 bytes), reading "
            "and writing together, without latency.",
            "Estimated: layers run one after the other, as each needs the results before it; within a layer "
            "memory and core overlap fully, so that its time is the longer one of the two.",
            f"Every linear layer in the blocks has the pattern, INT4 weights with an 8-bit scale for {group}"
            f"{' and zero points' if work.asymmetric else ''}, and {config.act_bits}-bit activations.",
            f"Weights are read once for each block of up to {config.rows * config.subtiles} tokens, fewer "
            "where the activation buffer holds fewer; raw integer results are written.",
            head,
            f"One sequence: prefill is one pass of {work.prefill} tokens, decode {work.decode} passes of one "
            f"token, which uses one of the core's {config.rows} rows; mac_utilisation counts idle rows, padding "
            "and the wait for memory as losses.",
            *(f"Not included: {exclusion}." for exclusion in self.trace.excludes),
            "Not included: what is not a linear layer, such as norms, softmax, activation functions, and the "
            "look-up of embeddings.",
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble estimate``: the first pattern in full, each in short."""
        work, first = self.workload, self.estimates[0]
        return {
            "model": self.trace.model,
            "core": self.core,
            "prefill": work.prefill,
            "decode": work.decode,
            "group_size": work.group_size,
            "asymmetric": work.asymmetric,
            "lm_head": work.lm_head,
            "clock_mhz": work.clock_mhz,
            "bandwidth_gb_s": work.bandwidth_gb_s,
            **first.summary(),
            "layers": [layer.document() for layer in first.layers],
            "comparison": [estimate.summary() for estimate in self.estimates],
            "sources": SOURCES,
            "assumptions": list(self.assumptions),
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


def estimate_model(core: str, workload: Workload, patterns: Sequence[NMPattern]) -> Estimates:
    """Trace a model and estimate it with each of the patterns.

    Raises
    ------
    ValueError
        The workload is no possible one, the model is unknown or made for fewer tokens, or a layer is beyond
        the core's capacity.
    """
    workload.check()
    traces: dict[str, ModelTrace] = {}
    if workload.prefill:
        traces["prefill"] = trace_model(workload.model, workload.prefill)
    if workload.decode:
        # A decode pass has one token, whatever has been cached: the linear layers do not see the cache.
        same = workload.prefill == 1
        traces["decode"] = traces["prefill"] if same else trace_model(workload.model, 1)
    trace = next(iter(traces.values()))
    longest = trace.facts.max_position_embeddings
    tokens = workload.prefill + workload.decode
    if longest is not None and tokens > longest:
        raise ValueError(
            f"prefill and decode are {tokens} tokens together; {trace.model} is made for at most {longest} "
            "(its max_position_embeddings)."
        )
    estimates = tuple(_estimate(workload, traces, pattern) for pattern in patterns)
    return Estimates(core, workload, trace, estimates)


def _estimate(workload: Workload, traces: dict[str, ModelTrace], pattern: NMPattern) -> Estimate:
    layers = []
    for phase, trace in traces.items():
        passes = workload.decode if phase == "decode" else 1
        for shape in trace.distinct():
            if shape.in_blocks:
                tokens, chosen = shape.tokens, pattern
            elif workload.lm_head == "skip":
                continue
            else:
                tokens, chosen = 1, pattern if workload.lm_head == "pruned" else NMPattern(1, 1)
            timing = _timing(
                workload, trace.model, shape.kinds[0], chosen, shape.out_features, shape.in_features, tokens
            )
            layers.append(
                LayerEstimate(
                    phase=phase,
                    kinds=shape.kinds,
                    tokens=tokens,
                    in_features=shape.in_features,
                    out_features=shape.out_features,
                    pattern=chosen,
                    count=shape.count,
                    passes=passes,
                    timing=timing,
                    compute_seconds=timing.cycles / (workload.clock_mhz * 1e6),
                    memory_seconds=_moved(timing) / (workload.bandwidth_gb_s * 1e9),
                )
            )
    if not layers:
        raise ValueError(
            f"{workload.model} has no linear layers in blocks, and lm_head is 'skip'; nothing is left to estimate."
        )
    return Estimate(workload, pattern, tuple(layers))


def _moved(timing: GemmTiming) -> int:
    return timing.weight_bytes + timing.act_bytes + timing.result_bytes


def _timing(
    workload: Workload,
    model: str,
    kind: str,
    pattern: NMPattern,
    out_features: int,
    in_features: int,
    tokens: int,
) -> GemmTiming:
    config = workload.config
    try:
        layout = layout_for(
            config, pattern, out_features, in_features, workload.group_size, asymmetric=workload.asymmetric
        )
    except ConfigError as error:
        raise ConfigError(f"{kind} of {model} does not run on this core: {error}") from None
    return gemm_timing(config, layout, tokens)
