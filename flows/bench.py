"""Speed of the simulations and of the timing model.

Our verilated core stands beside PyMTL3's own Verilator import of the same core, and the cycle level beside RTL, both
in PyMTL3's Python simulation. Timings belong to the machine and its load; results are held against PyTorch's all
the same.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from pymtl3 import DefaultPassGroup
from pymtl3.passes.backends.verilog import (
    VerilogTranslationImportPass,
    VerilogTranslationPass,
)

from accel.config import CoreConfig
from accel.core.CoreRTL import CoreRTL
from accel.memory import Memory
from accel.naming import module_name
from accel.stream import StreamLayout, layout_for, pack
from accel.timing import gemm_timings
from flows.info import FP16_BITS, pattern_name
from flows.memories import CLOCK_MHZ, DEFAULT_MEMORY, MEMORIES
from flows.simulate import LayerGemm, build_model
from flows.terminal import progress
from quant import NMPattern
from verify.gemm import GemmJob, execute
from verify.rtl import LevelRun, drive
from verify.toolchain import activated, find_verilator

#: What our verilated core shall be at least beside the import, and the cycle level beside RTL.
TARGET_RATIO = 10

#: Distinct layer shapes that the timing model is timed on, and how many a second it shall do.
SHAPES = 10_000
TARGET_SHAPES_PER_SECOND = 10_000

#: Patterns that packing is timed with where the core runs them, and how many bytes a second it shall take of weights
#: in FP16.
PACKED_PATTERNS = ("dense", "2:4", "4:8")
TARGET_PACKED_BYTES_PER_SECOND = 100e6

#: Each part runs this often; the median counts.
REPEATS = 3

#: Output tiles of the run that the import and the cycle level take part in, as they are slow.
SHORT_TILES = 4

#: Input features of the run that RTL in Python takes part in, of one output tile: it is slower still.
BRIEF_FEATURES = 512

Result = TypeVar("Result")


@dataclass(frozen=True)
class TimedPart:
    """One part that was timed."""

    part: str
    in_features: int
    out_features: int
    #: Median wall time.
    seconds: float
    #: None for what has no cycles.
    cycles: int | None = None
    #: Whether all results are PyTorch's; None for what has no results, or is PyTorch.
    match: bool | None = None

    @property
    def cycles_per_second(self) -> float | None:
        """Simulated cycles per second of wall time."""
        return None if self.cycles is None else self.cycles / self.seconds

    def document(self) -> dict[str, Any]:
        """Return one entry of ``runs``."""
        return {
            "part": self.part,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "cycles_per_second": self.cycles_per_second,
            "match": self.match,
        }


@dataclass(frozen=True)
class Benchmark:
    """All parts, timed in one process."""

    core: str
    gemm: LayerGemm
    verilated: TimedPart
    imported: TimedPart
    #: The cycle level and RTL, simulated in Python.
    cycle_level: TimedPart
    rtl: TimedPart
    others: tuple[TimedPart, ...]
    #: Wall time of building PyMTL3's import.
    import_build_seconds: float
    #: Wall time of the timing model for `SHAPES` layers: streams that never hold back, and behind a memory.
    timing_seconds: float
    memory_timing_seconds: float
    #: Wall time of packing the layer's weights, by pattern.
    packing_seconds: Mapping[str, float]

    @property
    def packed_bytes_per_second(self) -> dict[str, float]:
        """Bytes of the layer's weights in FP16, pruned ones counted, that packing takes a second, by pattern."""
        size = FP16_BITS // 8 * self.gemm.in_features * self.gemm.out_features
        return {pattern: size / seconds for pattern, seconds in self.packing_seconds.items()}

    @property
    def ratio(self) -> float:
        """How many times faster our verilated core is than PyMTL3's import, in cycles per second."""
        return self.speed(self.verilated) / self.speed(self.imported)

    @property
    def cycle_level_ratio(self) -> float:
        """How many times faster the cycle level is than RTL, in cycles per second of Python simulation."""
        return self.speed(self.cycle_level) / self.speed(self.rtl)

    @property
    def parts(self) -> tuple[TimedPart, ...]:
        """All that ran a GEMM."""
        return (self.verilated, self.imported, self.cycle_level, self.rtl, *self.others)

    @property
    def match(self) -> bool:
        """Whether every result of every part is PyTorch's."""
        return all(part.match is not False for part in self.parts)

    @staticmethod
    def speed(part: TimedPart) -> float:
        """Cycles per second of a part that has cycles."""
        assert part.cycles_per_second is not None
        return part.cycles_per_second

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble bench``."""
        return {
            "core": self.core,
            "pattern": pattern_name(self.gemm.pattern),
            "tokens": self.gemm.tokens,
            "group_size": self.gemm.group_size,
            "match": self.match,
            "cycles_per_second": self.speed(self.verilated),
            "import_cycles_per_second": self.speed(self.imported),
            "ratio": self.ratio,
            "target_ratio": TARGET_RATIO,
            "import_build_seconds": self.import_build_seconds,
            "cycle_level_ratio": self.cycle_level_ratio,
            "timing_shapes": SHAPES,
            "timing_shapes_per_second": SHAPES / self.timing_seconds,
            "timing_shapes_per_second_with_memory": SHAPES / self.memory_timing_seconds,
            "timing_memory": DEFAULT_MEMORY,
            "target_shapes_per_second": TARGET_SHAPES_PER_SECOND,
            "packed_bytes_per_second": self.packed_bytes_per_second,
            "target_packed_bytes_per_second": TARGET_PACKED_BYTES_PER_SECOND,
            "repeats": REPEATS,
            "runs": [part.document() for part in self.parts],
        }


def benchmark(core: str, config: CoreConfig, in_features: int, out_features: int, tokens: int) -> Benchmark:
    """Time a 2:4 GEMM on our verilated core, its first output tiles on PyMTL3's import, and the Python parts.

    Parameters
    ----------
    in_features, out_features, tokens
        Sizes of the GEMM.

    Raises
    ------
    ValueError
        The GEMM does not fit the core.
    ToolError
        A tool that Verilator needs is missing.
    """
    gemm = LayerGemm(config, tokens, in_features, out_features, NMPattern(2, 4))
    short = replace(gemm, out_features=min(out_features, SHORT_TILES * config.columns))
    brief = replace(gemm, in_features=min(in_features, BRIEF_FEATURES), out_features=min(out_features, config.columns))
    for sizes in (gemm, short, brief):
        sizes.check()
    # First, because the simulators' many objects slow down all of Python that comes after them.
    with progress("Timing the timing model"):
        timing_seconds = _time_shapes(config, None)
        memory_timing_seconds = _time_shapes(config, MEMORIES[DEFAULT_MEMORY].at_clock(CLOCK_MHZ))
    with progress("Building our verilated core (the first time takes about a minute)"):
        build_model(config, ["verilog"])
    start = time.perf_counter()
    with progress("Building PyMTL3's Verilator import"):
        imported_core = import_core(config)
    build_seconds = time.perf_counter() - start
    with progress("Timing"):
        job, short_job = gemm.prepare(), short.prepare()
        pack_seconds, _ = _median_of(lambda: pack(job.weight, config))
        packing_seconds = {
            pattern: _time_packing(gemm, NMPattern.parse(pattern))
            for pattern in PACKED_PATTERNS
            if NMPattern.parse(pattern).m <= config.m_max and config.codes_of(NMPattern.parse(pattern))
        }
        golden_seconds, golden = _median_of(lambda: execute(job, "golden"))
        fl_seconds, fl = _median_of(lambda: execute(job, "fl"))
        verilated_seconds, verilated = _median_of(lambda: execute(job, "verilog"))
        imported_seconds, imported = _median_of(lambda: _run_import(imported_core, short_job))
        short_golden = execute(short_job, "golden")
        cycle_level_seconds, cycle_level = _median_of(lambda: execute(short_job, "cl"))
    brief_job = brief.prepare()
    with progress("Timing RTL in Python"):
        build_model(config, ["rtl"])
        start = time.perf_counter()
        rtl = execute(brief_job, "rtl")
        rtl_seconds = time.perf_counter() - start

    def part(name: str, sizes: LayerGemm, seconds: float, **facts: Any) -> TimedPart:
        return TimedPart(name, sizes.in_features, sizes.out_features, seconds, **facts)

    return Benchmark(
        core,
        gemm,
        part(
            "our verilated core",
            gemm,
            verilated_seconds,
            cycles=verilated.cycles,
            match=bool(np.array_equal(verilated.y, golden.y)),
        ),
        part(
            "PyMTL3's import",
            short,
            imported_seconds,
            cycles=imported.cycles,
            match=bool(np.array_equal(short_job.results(imported.image), short_golden.y)),
        ),
        part(
            "cycle level in Python",
            short,
            cycle_level_seconds,
            cycles=cycle_level.cycles,
            match=bool(np.array_equal(cycle_level.y, short_golden.y)),
        ),
        part(
            "RTL in Python",
            brief,
            rtl_seconds,
            cycles=rtl.cycles,
            match=bool(np.array_equal(rtl.y, execute(brief_job, "golden").y)),
        ),
        (
            part("functional level", gemm, fl_seconds, match=bool(np.array_equal(fl.y, golden.y))),
            part("golden (PyTorch)", gemm, golden_seconds),
            part("pack", gemm, pack_seconds),
        ),
        build_seconds,
        timing_seconds,
        memory_timing_seconds,
        packing_seconds,
    )


def _time_packing(gemm: LayerGemm, pattern: NMPattern) -> float:
    weight = replace(gemm, pattern=pattern).prepare().weight
    seconds, _ = _median_of(lambda: pack(weight, gemm.config))
    return seconds


def _time_shapes(config: CoreConfig, memory: Memory | None) -> float:
    """Wall time of the timing model, layouts included, for `SHAPES` distinct layers of all widths."""
    rng = np.random.default_rng(0)
    patterns = [NMPattern.parse(pattern) for pattern in ("dense", "2:4", "4:8", "3:4", "1:4")]
    group = min(128, config.group_max)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < SHAPES:
        size = (int(rng.integers(1, high + 1)) for high in (config.k_max // group * group, 32_000, 300))
        drawn.add((int(rng.integers(len(patterns))), *size))
    start = time.perf_counter()
    gemms: list[tuple[StreamLayout, int]] = [
        (layout_for(config, patterns[pattern], out_features, in_features, group), tokens)
        for pattern, in_features, out_features, tokens in sorted(drawn)
    ]
    gemm_timings(config, gemms, memory=memory)
    return time.perf_counter() - start


def import_core(config: CoreConfig) -> Any:
    """Build the core with PyMTL3's own Verilator import; a component that simulates."""
    core = CoreRTL(config)
    core.elaborate()
    core.set_metadata(VerilogTranslationImportPass.enable, True)
    core.set_metadata(VerilogTranslationPass.explicit_module_name, f"Import_{module_name('CoreRTL', config)}")
    with activated(find_verilator()), _scratch_folder():
        core = VerilogTranslationImportPass()(core)
        core.apply(DefaultPassGroup())
    return core


def _run_import(core: Any, job: GemmJob) -> LevelRun:
    core.sim_reset()
    return drive(core, job.config, job.commands, job.stream.payload, job.acts, job.result_words)


def _median_of(run: Callable[[], Result]) -> tuple[float, Result]:
    """Return the median wall time of `REPEATS` runs, and the last result."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


@contextlib.contextmanager
def _scratch_folder() -> Iterator[None]:
    """Work in a folder of its own: PyMTL3's passes write into the current one."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="nimble-import-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
