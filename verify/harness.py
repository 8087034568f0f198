"""Differential harness: one case through several levels, and random cases until one of them disagrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from accel.config import CoreConfig
from verify.cases import Case
from verify.gemm import TIMED_LEVELS, GemmJob, GemmRun, check_level, execute, prepare
from verify.stimulus import NO_STALLS, RANDOM_LENGTHS, STREAMS
from verify.strategies import cases


class MismatchError(AssertionError):
    """Two levels disagree; the message says where."""


def compare(case: Case, levels: Sequence[str]) -> tuple[GemmJob, dict[str, GemmRun]]:
    """Run a case at each level; all must agree.

    Results must equal those of the first level, number by number. Timed levels must agree in cycles, in every
    counter, in the cycle of every result word and in the cycle after which all are in memory; the counters must
    sum to the cycles.

    Raises
    ------
    MismatchError
        Naming the first difference.
    """
    x, weight = case.build()
    job = prepare(case.config, x, weight, code=case.code)
    runs = {level: execute(job, level, stalls=case.stalls, memory=case.memory) for level in levels}
    reference = runs[levels[0]]
    for run in runs.values():
        different = np.argwhere(run.y != reference.y)
        if len(different):
            token, output = different[0]
            raise MismatchError(
                f"{run.level} disagrees with {reference.level} in {len(different)} of {run.y.size} results; the first "
                f"is token {token}, output {output}: {run.y[token, output]} instead of {reference.y[token, output]}."
            )
        if run.cycles is not None and sum(run.counters.values()) != run.cycles:
            raise MismatchError(f"The counters of {run.level} sum to {sum(run.counters.values())}, not {run.cycles}.")
    timed = [runs[level] for level in levels if level in TIMED_LEVELS]
    for run in timed[1:]:
        _require_same_time(run, timed[0])
    return job, runs


def _require_same_time(run: GemmRun, reference: GemmRun) -> None:
    for word, (cycle, expected) in enumerate(zip(run.word_cycles, reference.word_cycles, strict=True)):
        if cycle != expected:
            raise MismatchError(
                f"Result word {word} of {run.level} leaves in cycle {cycle}, but in cycle {expected} at level "
                f"{reference.level}."
            )
    if (run.cycles, run.counters) != (reference.cycles, reference.counters):
        raise MismatchError(
            f"{run.level} takes {run.cycles} cycles {run.counters}, but {reference.level} takes {reference.cycles} "
            f"{reference.counters}."
        )
    if run.written != reference.written:
        raise MismatchError(
            f"The results of {run.level} are in memory after {run.written} cycles, but those of {reference.level} "
            f"after {reference.written}."
        )


#: What a campaign of random cases must have met, as predicates of the case, its job and its runs.
EXTREMES: dict[str, Callable[[Case, GemmJob, dict[str, GemmRun]], bool]] = {
    "weight −8 kept": lambda c, j, r: c.symmetric and bool((j.weight.values[j.weight.mask] == -8).any()),
    "weight 15 with zero point 0": lambda c, j, r: (
        j.weight.zero_point is not None
        and bool((j.weight.values[j.weight.mask] == 15).any() and (j.weight.zero_point == 0).any())
    ),
    "weight 0 with zero point 15": lambda c, j, r: (
        j.weight.zero_point is not None
        and bool((j.weight.values[j.weight.mask] == 0).any() and (j.weight.zero_point == 15).any())
    ),
    "smallest activation": lambda c, j, r: bool((j.x == c.config.act_range[0]).any()),
    "largest activation": lambda c, j, r: bool((j.x == c.config.act_range[1]).any()),
    "kept zero": lambda c, j, r: c.symmetric and bool((j.weight.values[j.weight.mask] == 0).any()),
    "block with fewer kept than n": lambda c, j, r: bool((_kept_per_block(j) < c.pattern.n).any()),
    "all-zero row": lambda c, j, r: bool((~j.weight.integers().any(axis=1)).any()),
    "negative scale": lambda c, j, r: bool((j.weight.group_scale < 0).any()),
    "smallest scale": lambda c, j, r: bool((j.weight.group_scale == c.config.scale_range[0]).any()),
    "largest scale": lambda c, j, r: bool((j.weight.group_scale == c.config.scale_range[1]).any()),
    "smallest 16-bit scale": lambda c, j, r: bool((j.weight.group_scale == -(1 << 15)).any()),
    "largest 16-bit scale": lambda c, j, r: bool((j.weight.group_scale == (1 << 15) - 1).any()),
    "zero scale": lambda c, j, r: bool((j.weight.group_scale == 0).any()),
    "one token": lambda c, j, r: c.tokens == 1,
    "several token subtiles": lambda c, j, r: any(command.subtiles > 1 for command in j.commands),
    "several token blocks": lambda c, j, r: len(j.commands) > 1,
    "token tail": lambda c, j, r: any(command.last_rows < c.config.rows for command in j.commands),
    "fewer outputs than columns": lambda c, j, r: c.out_features < c.config.columns,
    "output tail": lambda c, j, r: c.out_features % c.config.columns != 0,
    "K tail of a block": lambda c, j, r: c.in_features % c.pattern.m != 0,
    "K tail of a group": lambda c, j, r: j.stream.layout.k_padded != c.in_features,
    "one group": lambda c, j, r: j.stream.layout.groups == 1,
    "group cut into chunks": lambda c, j, r: (
        j.stream.layout.group < (c.group_size if c.group_size > 0 else c.in_features)
    ),
    "dense": lambda c, j, r: c.pattern.is_dense,
    "rank code": lambda c, j, r: j.stream.layout.code == "rank",
    "index code": lambda c, j, r: j.stream.layout.code == "index",
    "bitmask code": lambda c, j, r: j.stream.layout.code == "bitmask",
    "wait_acts": lambda c, j, r: _waited(r, "wait_acts"),
    "wait_weights": lambda c, j, r: _waited(r, "wait_weights"),
    "wait_write": lambda c, j, r: _waited(r, "wait_write"),
    "wait_drain": lambda c, j, r: _waited(r, "wait_drain"),
    "no room for the next token block": lambda c, j, r: any(
        block.block_words + following.block_words > c.config.act_words for block, following in pairwise(j.commands)
    ),
    "no room for the next weight tile": lambda c, j, r: _tiles(j) * j.commands[0].value_words > c.config.value_words,
    "no room for the next tile's header": lambda c, j, r: (
        _tiles(j) > c.config.header_slots
        and c.config.header_slots * j.commands[0].code_words <= c.config.code_words
        and c.config.header_slots * j.commands[0].value_words <= c.config.value_words
    ),
    "no stalls": lambda c, j, r: c.stalls == NO_STALLS,
    "stalls from a seed": lambda c, j, r: any(len(getattr(c.stalls, name)) in RANDOM_LENGTHS for name in STREAMS),
    "no memory port": lambda c, j, r: c.memory is None,
    "memory latency": lambda c, j, r: c.memory is not None and c.memory.latency > 0,
    "memory without latency": lambda c, j, r: c.memory is not None and c.memory.latency == 0,
    "memory slower than weight words": lambda c, j, r: _word_cycles(c, c.config.word_bytes) > 1,
    "memory as fast as the port is wide": lambda c, j, r: _word_cycles(c, c.config.word_bytes) == 1,
    "memory time in fractions": lambda c, j, r: _word_cycles(c, c.config.word_bytes) % 1 != 0,
    "two weight tiles in flight": lambda c, j, r: _depth(c, j) == 2,
    "slow memory, no stalls": lambda c, j, r: c.stalls == NO_STALLS and _word_cycles(c, c.config.word_bytes) > 1,
    "wait_weights from memory": lambda c, j, r: (
        c.memory is not None and not c.stalls.weights and _waited(r, "wait_weights")
    ),
    "wait_acts from memory": lambda c, j, r: c.memory is not None and not c.stalls.acts and _waited(r, "wait_acts"),
    "writes between reads": lambda c, j, r: c.memory is not None and len(j.commands) * j.stream.layout.out_tiles > 1,
}

#: Extremes that only levels with time reach, and those that only cores with 16-bit scales do.
WAITING = tuple(name for name in EXTREMES if name.startswith("wait_"))
SCALES_OF_16_BITS = ("smallest 16-bit scale", "largest 16-bit scale")


def _tiles(job: GemmJob) -> int:
    """Weight tiles that the core reads, over all token blocks."""
    return len(job.commands) * job.stream.layout.out_tiles * job.stream.layout.groups


def _word_cycles(case: Case, word_bytes: int) -> Fraction:
    """Cycles of the port for a word; 0 without a port."""
    return Fraction(0) if case.memory is None else case.memory.word_cycles(word_bytes)


def _depth(case: Case, job: GemmJob) -> int:
    return 0 if case.memory is None else case.memory.depth(case.config.columns * job.stream.layout.tile_bytes)


def _kept_per_block(job: GemmJob) -> np.ndarray:
    m = job.weight.pattern.m
    whole = job.weight.in_features // m * m
    if not whole:
        return np.array([m])
    return job.weight.mask[:, :whole].reshape(job.weight.out_features, -1, m).sum(axis=-1)


def _waited(runs: dict[str, GemmRun], cause: str) -> bool:
    return any(run.counters.get(cause, 0) for run in runs.values())


@dataclass
class Campaign:
    """What random cases have shown."""

    seed: int
    levels: tuple[str, ...]
    cases: int = 0
    #: Bits of the widest scale of a core that a case ran on.
    scale_bits: int = 0
    #: Cases that ran for each pattern n:m.
    patterns: Counter[str] = field(default_factory=Counter)
    #: Cases that reached each of `EXTREMES`.
    reached: Counter[str] = field(default_factory=Counter)
    #: The shrunk failing case and what went wrong, if any did.
    failure: Case | None = None
    complaint: str = ""

    def count(self, case: Case, job: GemmJob, runs: dict[str, GemmRun]) -> None:
        """Enter a case that agreed."""
        self.cases += 1
        self.scale_bits = max(self.scale_bits, case.config.scale_bits)
        self.patterns[str(case.pattern)] += 1
        for name, reached in EXTREMES.items():
            self.reached[name] += bool(reached(case, job, runs))

    @property
    def missed(self) -> list[str]:
        """Extremes that no case has reached.

        Waiting counts only where a level takes time, and 16-bit scales only where a core has them.
        """
        beyond: tuple[str, ...] = ()
        if not any(level in TIMED_LEVELS for level in self.levels):
            beyond += WAITING
        if self.scale_bits < 16:
            beyond += SCALES_OF_16_BITS
        return [name for name in EXTREMES if not self.reached[name] and name not in beyond]


def run_campaign(
    configs: st.SearchStrategy[CoreConfig],
    levels: Sequence[str],
    examples: int,
    seed_value: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Campaign:
    """Random cases through the levels; deterministic for a seed.

    Parameters
    ----------
    configs
        Cores to draw from, such as ``st.just(load_preset("tiny"))``.
    levels
        At least two levels; the first is the reference.
    examples
        Cases to run, if none fails.
    progress
        Called with the number of cases so far.

    Returns
    -------
    Campaign
        With ``failure`` set to the shrunk case when levels disagree or the simulation breaks.
    """
    for level in levels:
        check_level(level)
    if len(set(levels)) < 2:
        raise ValueError(
            f"A comparison needs at least two different levels, but {', '.join(levels) or 'none'} was given."
        )
    if examples < 1:
        raise ValueError(f"A campaign needs at least one example, but {examples} were asked for.")
    campaign = Campaign(seed_value, tuple(levels))

    @seed(seed_value)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(configs))
    def one_case(case: Case) -> None:
        try:
            job, runs = compare(case, levels)
        except Exception as error:
            # Hypothesis runs the smallest failing case last, so what stays here is that one.
            campaign.failure, campaign.complaint = case, str(error)
            raise
        if campaign.failure is None:
            campaign.count(case, job, runs)
            if progress is not None:
                progress(campaign.cases)

    try:
        one_case()
    except Exception:
        if campaign.failure is None:
            raise
    return campaign
