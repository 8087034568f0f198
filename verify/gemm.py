"""One GEMM at any level: the same images in, the same image out.

`run_gemm` is the call for users; `prepare` and `execute` are its two halves, for harnesses that run one
GEMM at several levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accel.command import Command, commands_for, ideal_cycles
from accel.config import CoreConfig
from accel.image import check_activations, pack_activations, result_words, unpack_results
from accel.memory import Memory
from accel.stream import PackedStream, pack, unpack
from quant import NMWeight
from verify.stimulus import NO_STALLS, Stalls

LEVELS = ("golden", "fl", "cl", "rtl", "verilog")
TIMED_LEVELS = ("cl", "rtl", "verilog")


@dataclass(frozen=True)
class GemmRun:
    """Result of one GEMM at one level."""

    #: Level that computed it.
    level: str
    #: Exact accumulators, int64 [T, O].
    y: np.ndarray
    #: Cycles from the first command's acceptance to the last result word; None at levels without time.
    cycles: int | None = None
    #: Cycles by cause; they sum to ``cycles``. Empty at levels without time.
    counters: dict[str, int] = field(default_factory=dict)
    #: Cycle in which each result word left the core; cycle 0 is the first in which a command may be offered.
    word_cycles: tuple[int, ...] = ()
    #: Cycles from cycle 0 until all results are in memory; without a memory port, until the last word has left.
    written: int | None = None


@dataclass(frozen=True)
class GemmJob:
    """A GEMM ready to run: operands and the memory images made from them."""

    config: CoreConfig
    x: np.ndarray
    weight: NMWeight
    stream: PackedStream
    acts: bytes
    commands: list[Command]

    @property
    def tokens(self) -> int:
        """Rows of the activations."""
        return self.x.shape[0]

    @property
    def result_words(self) -> int:
        """Result words that the core sends."""
        return result_words(self.config, self.stream.layout, self.tokens)

    def results(self, image: bytes) -> np.ndarray:
        """Accumulators int64 [T, O] of a result image."""
        wide = bool(self.commands[0].wide)
        return unpack_results(self.config, self.stream.layout, self.tokens, image, wide=wide)

    @property
    def ideal_cycles(self) -> int:
        """Cycles if every lane of a PE worked in every cycle."""
        return ideal_cycles(self.config, self.stream.layout, self.commands)


def prepare(config: CoreConfig, x: Any, weight: NMWeight | PackedStream, *, code: str | None = None) -> GemmJob:
    """Check the operands and make their memory images.

    Parameters
    ----------
    x
        Activations, integers [T, K] in the range of the core's ``act_bits``; NumPy or torch.
    weight
        N:M weights [O, K], or a stream packed for this core, which is executed as it is.
    code
        Block code to pack with; by default the one with the fewest bits. Not with a stream, which has its own.

    Raises
    ------
    ValueError, TypeError
        In a full sentence, for operands that do not fit each other or the core.
    """
    if not isinstance(config, CoreConfig):
        raise TypeError(f"The first argument must be a CoreConfig, but a {type(config).__name__} was given.")
    if not isinstance(weight, (NMWeight, PackedStream)):
        raise TypeError(
            f"The weights must be an NMWeight (see quant.quantize_rtn) or a PackedStream, but a "
            f"{type(weight).__name__} was given."
        )
    x = np.asarray(x)
    if isinstance(weight, PackedStream):
        stream = weight
        if code not in (None, stream.layout.code):
            raise ValueError(f"The stream is packed with code {stream.layout.code!r} and cannot be read as {code!r}.")
        stream.require_core(config)
        weight = unpack(stream)
        check_activations(x, weight.in_features, config.act_bits)
    else:
        check_activations(x, weight.in_features, config.act_bits)
        stream = pack(weight, config, code)
    acts = pack_activations(config, stream.layout, x)
    return GemmJob(config, x, weight, stream, acts, commands_for(config, stream.layout, x.shape[0]))


def check_level(level: str) -> None:
    """Raise ValueError for a level that does not exist."""
    if level not in LEVELS:
        raise ValueError(f"There is no level named {level!r}; the levels are {', '.join(LEVELS)}.")


def execute(
    job: GemmJob,
    level: str,
    *,
    stalls: Stalls = NO_STALLS,
    memory: Memory | None = None,
    progress: Callable[[int], None] | None = None,
) -> GemmRun:
    """Run a prepared GEMM at one level.

    Parameters
    ----------
    stalls
        Back-pressure of the streams, at the timed levels.
    memory
        Memory port behind the streams, at the timed levels; by default words are always there.
    progress
        Called with the result words so far, at the Verilog level.
    """
    check_level(level)
    if level == "golden":
        from golden import integer_gemm

        return GemmRun(level, integer_gemm(job.x, job.weight, job.config.act_bits).numpy())
    if level == "fl":
        from accel.core.CoreFL import run_fl

        return GemmRun(level, job.results(run_fl(job.config, job.stream, job.acts, job.tokens)))
    arguments = (job.config, job.commands, job.stream.payload, job.acts, job.result_words, stalls, memory)
    if level == "verilog":
        from verify.verilated import run_verilated

        run = run_verilated(*arguments, progress)
    else:
        from verify.rtl import run_simulated

        run = run_simulated(level, *arguments)
    return GemmRun(level, job.results(run.image), run.cycles, run.counters, run.word_cycles, run.written)


def run_gemm(
    config: CoreConfig,
    x: Any,
    weight: NMWeight | PackedStream,
    level: str = "fl",
    *,
    code: str | None = None,
    stalls: Stalls = NO_STALLS,
    memory: Memory | None = None,
    progress: Callable[[int], None] | None = None,
) -> GemmRun:
    """``x · Wᵀ`` in exact integers on the core, at the level asked for.

    Parameters
    ----------
    config
        The core, such as ``load_preset("edge")``.
    x
        Activations, integers [T, K].
    weight
        N:M weights [O, K], or a stream packed for this core (``PackedStream.from_bytes`` of a stored one).
    level
        ``golden`` (PyTorch), ``fl`` (packed stream, no time), ``cl`` (cycle-level model), ``rtl`` (PyMTL3) or
        ``verilog`` (Verilator).
    code, stalls, memory, progress
        As for `prepare` and `execute`.

    Returns
    -------
    GemmRun
        ``y`` int64 [T, O] without scaling by channel, and at the timed levels ``cycles``, ``counters``,
        ``word_cycles`` and ``written``.

    Raises
    ------
    ValueError, TypeError
        Before anything runs, in a full sentence.
    """
    check_level(level)
    return execute(prepare(config, x, weight, code=code), level, stalls=stalls, memory=memory, progress=progress)
