"""Energy of a core's GEMM: counted activity times energies that are assumed. Everything that comes out is an estimate.

For each block of the core, with the cells that yosys mapped it to and the toggles that Verilator counted in it:

* clock: flip-flops × cycles × energy of a clock cycle;
* registers: counted changes of its register bits × energy of a net's change;
* logic: LUTs (those of memories not among them) × mean changes of the nets that its logic drives × the same (a test
  holds these changes against those in the mapped netlist, simulated gate by gate);
* multipliers: multiplier blocks × cycles × bit pairs × energy of a bit pair × mean changes of its nets over those of
  random data, which change every other cycle;
* memories: words read and written × their width × energy of a bit.

With a Liberty file, clock, registers and logic are by its cells (`flows.cell_energy`) in place of LUTs and
flip-flops. Bytes that the streams move × energy of a bit of the memory outside the chip are added.

A run is scaled to other sizes by three numbers, from a run of one token and one of several: energy of a cycle
whatever happens in it (clock and reads), of a busy cycle (what the rows share), and of a multiplication (the rest,
which grows with the rows at work). A third run, of half the tokens and twice the outputs, says how well that predicts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from accel.config import CoreConfig
from accel.timing import GemmTiming, gemm_timing
from flows.cell_energy import BlockCells, cell_library
from flows.energy_constants import CELLS, EXTERNAL, FPGA, LIBRARY, Constants, read_constants
from flows.info import pattern_name
from flows.simulate import LayerGemm
from flows.synth import read_target
from flows.terminal import ProgressBar
from quant import NMPattern
from verify.activity import Activity, BlockActivity, core_design, measure_activity
from verify.gemm import GemmJob, prepare
from verify.synthesis.expectations import expectations
from verify.synthesis.liberty import Liberty
from verify.synthesis.mapping import Multipliers, map_blocks
from verify.synthesis.netlist import Block, blocks_of
from verify.synthesis.targets import Target
from verify.synthesis.tools import Deadline, SynthesisTool, find_yosys

SCHEMA = "nimble.energy"
VERSION = 1

#: What energy goes to on the core.
KINDS = ("clock", "registers", "logic", "multipliers", "memories")

#: How activations are drawn.
ACTIVATIONS = ("normal", "uniform", "zero")

#: Range of normal activations in standard deviations, as absmax quantisation of a few thousand values gives it.
_NORMAL_RANGE = 4.0

#: Changes of a bit of random data in a cycle.
_RANDOM_RATE = 0.5


@dataclass(frozen=True)
class MappedCore:
    """A core's blocks as a target has them."""

    config: CoreConfig
    target: Target
    liberty: Liberty | None
    yosys: SynthesisTool
    blocks: tuple[Block, ...]
    #: Energies of a Liberty file's cells, by module.
    cells: Mapping[str, BlockCells]
    #: Memories that are mapped to RAM or left for a macro, and the width of those at a place. Others are flip-flops.
    memories: tuple[str, ...]
    memory_widths: Mapping[str, int]
    #: Bit pairs of a lane's multiplier and of a scale unit's, and the number of lanes' multipliers.
    lane_bit_pairs: int
    scale_bit_pairs: int
    lane_multipliers: int


@dataclass(frozen=True)
class Measured:
    """A GEMM that ran with its activity counted."""

    tokens: int
    activity: Activity
    cycles: int
    busy: int
    #: Multiplications with kept weights, and as if nothing was pruned.
    macs: int
    dense_macs: int
    #: Of weights, activations and results.
    timing: GemmTiming


@dataclass(frozen=True)
class RunEnergy:
    """What a run takes, in pJ."""

    measured: Measured
    #: By place, and there by `KINDS`.
    blocks: Mapping[str, Mapping[str, float]]
    #: Of reads from memories on the chip, which is part of ``memories``.
    reads_pj: float
    external_pj: float

    @cached_property
    def kinds(self) -> dict[str, float]:
        """Energy by `KINDS`."""
        return {kind: sum(block[kind] for block in self.blocks.values()) for kind in KINDS}

    @property
    def core_pj(self) -> float:
        """All of the core."""
        return sum(self.kinds.values())

    @property
    def total_pj(self) -> float:
        """Core and memory outside the chip."""
        return self.core_pj + self.external_pj

    @property
    def steady_pj(self) -> float:
        """What is taken in every cycle whatever happens in it."""
        return self.kinds["clock"] + self.reads_pj

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the run."""
        run = self.measured
        return {
            "tokens": run.tokens,
            "cycles": run.cycles,
            "busy_cycles": run.busy,
            "counted_cycles": run.activity.cycles,
            "register_toggles": run.activity.register_toggles,
            "logic_toggles": run.activity.logic_toggles,
            "macs": run.macs,
            "dense_macs": run.dense_macs,
            "bytes": run.timing.bytes,
            "pj": {**self.kinds, "core": self.core_pj, "external": self.external_pj, "total": self.total_pj},
            "core_pj_per_mac": self.core_pj / run.macs,
            "core_pj_per_dense_mac": self.core_pj / run.dense_macs,
            "pj_per_mac": self.total_pj / run.macs,
            "pj_per_dense_mac": self.total_pj / run.dense_macs,
            "blocks": [{"place": place, **kinds} for place, kinds in self.blocks.items()],
        }


@dataclass(frozen=True)
class Scaling:
    """Energy of the core as a function of cycles, busy cycles and multiplications, in pJ each."""

    cycle_pj: float
    busy_cycle_pj: float
    mac_pj: float

    def core_pj(self, cycles: float, busy: float, macs: float) -> float:
        """Return the core's energy."""
        return self.cycle_pj * cycles + self.busy_cycle_pj * busy + self.mac_pj * macs


def scaling(few: RunEnergy, many: RunEnergy) -> Scaling:
    """Return what two runs of different rows at work say; of one run, or where no positive pair fits, one number."""
    cycle = many.steady_pj / many.measured.activity.cycles
    switched = [run.core_pj - run.steady_pj for run in (few, many)]
    matrix = np.array([[run.measured.busy, run.measured.macs] for run in (few, many)], float)
    # One number for both would be a matrix of rank 1: rows are then always at work together.
    if abs(np.linalg.det(matrix / matrix.max(axis=0))) > 1e-3:
        busy, mac = np.linalg.solve(matrix, switched)
        if busy >= 0 and mac >= 0:
            return Scaling(cycle, float(busy), float(mac))
    return Scaling(cycle, 0.0, switched[1] / many.measured.macs)


@dataclass(frozen=True)
class PatternEnergy:
    """Runs of one pattern: of one token, of several, and of half as many with twice the outputs, which is a check."""

    pattern: NMPattern
    few: RunEnergy
    many: RunEnergy
    check: RunEnergy

    @property
    def scaling(self) -> Scaling:
        """What scales the runs."""
        return scaling(self.few, self.many)

    @property
    def check_error(self) -> float:
        """By how much the core's energy of the check run is predicted too high, as a share of it."""
        run = self.check.measured
        return self.scaling.core_pj(run.activity.cycles, run.busy, run.macs) / self.check.core_pj - 1

    def document(self) -> dict[str, Any]:
        """Return one entry of ``patterns``."""
        scaled = self.scaling
        return {
            "pattern": pattern_name(self.pattern),
            **self.many.document(),
            "scaling": {
                "cycle_pj": scaled.cycle_pj,
                "busy_cycle_pj": scaled.busy_cycle_pj,
                "mac_pj": scaled.mac_pj,
                "check_tokens": self.check.measured.tokens,
                "check_error": self.check_error,
            },
        }


@dataclass(frozen=True)
class CoreEnergy:
    """Energy of a core with several patterns."""

    core: str
    mapped: MappedCore
    constants: Constants
    memory: str
    gemm: LayerGemm
    activations: str
    patterns: tuple[PatternEnergy, ...]

    @property
    def sensitivity(self) -> dict[str, dict[str, float]]:
        """By how much doubling a constant raises a pattern's energy, memory included, as a share of it."""
        names = [*self.constants.values, *([LIBRARY] if self.mapped.liberty is not None else [])]
        return {
            name: {
                pattern_name(pattern.pattern): run_energy(
                    self.mapped, pattern.many.measured, self.constants.doubled(name)
                ).total_pj
                / pattern.many.total_pj
                - 1
                for pattern in self.patterns
            }
            for name in names
        }

    def assumptions(self) -> list[str]:
        """Return what the figures rest on, as sentences."""
        gemm = self.gemm
        drawn = {
            "normal": f"normal ({_NORMAL_RANGE:g} standard deviations are the range of {gemm.config.act_bits} bits)",
            "uniform": f"uniform over {gemm.config.act_bits} bits",
            "zero": "all zero",
        }[self.activations]
        said = [
            "Estimate: no energy in it was measured. Counted: changes of registers and nets, accesses, cycles, bytes.",
            f"The GEMM has {gemm.in_features} inputs and {gemm.out_features} outputs; its weights are normal, "
            f"pruned by magnitude and quantised to INT4, its activations {drawn}, seed {gemm.seed}.",
            "Nets count as they settle in each cycle; glitches, which add to logic above all, are not in it.",
            "A block's LUTs or cells change as often as the nets that its description has for its logic do on average.",
            "Cells of a block are those of its module mapped by itself; what mapping the whole would save is not taken "
            "off.",
            "A memory without a read enable is read in every cycle, used or not.",
            "Whether the core fits a device is not looked at.",
            "Not included: static power, pins, the clock's tree above flip-flops"
            + (" and wires." if self.mapped.liberty is not None else "."),
        ]
        if self.mapped.liberty is None and self.mapped.target.name != "ecp5":
            said.append(f"The constants are ECP5's, and stand in for those of {self.mapped.target.title}.")
        return said

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble energy``."""
        mapped, gemm = self.mapped, self.gemm
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": "estimate",
            "core": self.core,
            "parameters": gemm.config.as_dict(),
            "target": mapped.target.name,
            "tools": [mapped.yosys.document()],
            "library": None
            if mapped.liberty is None
            else {"name": mapped.liberty.name, "sha256": mapped.liberty.digest},
            "memory": self.memory,
            "external_pj_per_bit": self.constants.pj(f"{EXTERNAL}.{self.memory}"),
            "gemm": {
                "in_features": gemm.in_features,
                "out_features": gemm.out_features,
                "group_size": gemm.group_size,
                "asymmetric": not gemm.symmetric,
                "activations": self.activations,
                "seed": gemm.seed,
            },
            "constants": [constant.document() for constant in self.constants.values.values()],
            "patterns": [pattern.document() for pattern in self.patterns],
            "sensitivity": self.sensitivity,
            "assumptions": self.assumptions(),
        }


def map_core(config: CoreConfig, target: str, *, dsp: str, goal_mhz: float, deadline: Deadline) -> MappedCore:
    """Map each block of a core; finished ones come from the cache.

    Raises
    ------
    ValueError
        The target or the choice of multipliers does not exist, or a Liberty file cannot be read.
    ToolError
        yosys is missing.
    """
    chosen, liberty = read_target(target)
    expected = expectations(config)
    multipliers = Multipliers.parse(dsp, chosen, expected.lane_bits, expected.scale_multipliers)
    design = core_design(config)
    yosys = find_yosys()
    statistics = map_blocks(design, chosen, multipliers, yosys, deadline, goal_mhz).statistics
    library = None if liberty is None else cell_library(liberty)
    blocks = tuple(blocks_of(design, statistics, chosen))
    in_ram = {block.place for block in blocks if block.own.bram or block.own.lut_ram or block.own.memory_bits}
    memories = [memory for memory in expected.memories if _place(memory.path) in in_ram]
    return MappedCore(
        config,
        chosen,
        liberty,
        yosys,
        blocks,
        {} if library is None else {name: library.block(cells) for name, cells in statistics.cells.items()},
        tuple(memory.path for memory in memories),
        {_place(memory.path): memory.width for memory in memories},
        max(act * weight for act, weight in expected.lane_widths),
        expected.scale_widths[0] * expected.scale_widths[1],
        expected.lane_multipliers,
    )


def _place(memory: str) -> str:
    return re.sub(r"(\[\d+\])+", "", memory.rpartition(".")[0])


def run_energy(mapped: MappedCore, measured: Measured, constants: Constants) -> RunEnergy:
    """Return what a run takes on the blocks of a core."""
    external = next(value.pj for name, value in constants.values.items() if name.startswith(EXTERNAL))
    blocks: dict[str, dict[str, float]] = {}
    reads = 0.0
    for block in mapped.blocks:
        activity = _activity_of(measured.activity, block)
        energies = _block_energy(mapped, block, activity, measured.activity, constants)
        kinds = blocks.setdefault(block.place, dict.fromkeys(KINDS, 0.0))
        for kind, pj in energies.items():
            kinds[kind] += pj
        reads += activity.reads * _bit_pj(mapped, block, constants)
    return RunEnergy(measured, blocks, reads, 8 * measured.timing.bytes * external)


def _activity_of(activity: Activity, block: Block) -> BlockActivity:
    """Return a block's counts; a part of a module has none of its own but for the rate of its module."""
    return activity.blocks.get((block.place, block.module)) or BlockActivity(block.place, block.module)


def _bit_pj(mapped: MappedCore, block: Block, constants: Constants) -> float:
    """Energy of a word of the memory in a block."""
    kind = FPGA if mapped.liberty is None else CELLS
    return mapped.memory_widths.get(block.place, 0) * constants.pj(f"{kind}.memory_bit")


def _block_energy(
    mapped: MappedCore, block: Block, counts: BlockActivity, activity: Activity, constants: Constants
) -> dict[str, float]:
    cycles, own = activity.cycles, block.own
    changes = changes_of_logic(activity, block)
    memories = (counts.reads + counts.writes) * _bit_pj(mapped, block, constants)
    if mapped.liberty is not None:
        cells, factor = mapped.cells[block.module], constants.library_factor * block.count
        registers = counts.register_toggles / counts.register_bits if counts.register_bits else 0.0
        return {
            "clock": factor * cells.clock_pj * cycles,
            "registers": factor * cells.register_toggle_pj * registers,
            "logic": factor * cells.logic_toggle_pj * changes,
            "multipliers": 0.0,
            "memories": memories,
        }
    toggle = constants.pj(f"{FPGA}.net_toggle")
    pairs = mapped.lane_bit_pairs if block.total.dsp >= mapped.lane_multipliers else mapped.scale_bit_pairs
    multiply = own.dsp * block.count * pairs * changes / _RANDOM_RATE
    return {
        "clock": own.ff * block.count * cycles * constants.pj(f"{FPGA}.clock_cycle"),
        "registers": counts.register_toggles * toggle,
        "logic": (own.lut - own.lut_ram) * block.count * changes * toggle,
        "multipliers": multiply * constants.pj(f"{FPGA}.multiply_bit_pair"),
        "memories": memories,
    }


def changes_of_logic(activity: Activity, block: Block) -> float:
    """Return the mean changes of a net that a block's logic drives, or of its registers, or of what is above it."""
    place, module = block.place, block.module
    while True:
        there = {key[1]: counts for key, counts in activity.blocks.items() if key[0] == place}
        here = [there[module]] if module in there else list(there.values())
        for bits, toggles in (("logic_bits", "logic_toggles"), ("register_bits", "register_toggles")):
            total = sum(getattr(counts, bits) for counts in here)
            if total:
                return float(sum(getattr(counts, toggles) for counts in here) / total)
        if not place:
            return 0.0
        place = place.rpartition(".")[0]


def measure_energy(
    name: str,
    gemm: LayerGemm,
    patterns: Sequence[NMPattern],
    mapped: MappedCore,
    *,
    activations: str,
    memory: str,
    bar: ProgressBar,
) -> CoreEnergy:
    """Run a GEMM with each pattern and estimate what it takes.

    Parameters
    ----------
    gemm : sizes, seed and tokens of the largest run; its pattern does not count.
    memory : outside the chip, a name of `flows.memories`.

    Raises
    ------
    ValueError
        The GEMM does not fit the core, or a choice does not exist.
    """
    if activations not in ACTIVATIONS:
        raise ValueError(f"Activations are {', '.join(ACTIVATIONS)}, but {activations!r} was given.")
    constants = read_constants().of(memory, cells=mapped.liberty is not None)
    found = []
    for pattern in patterns:
        runs = []
        for tokens, outputs in (
            (1, gemm.out_features),
            (gemm.tokens, gemm.out_features),
            (-(-gemm.tokens // 2), 2 * gemm.out_features),
        ):
            bar.describe(f"Counting changes: {pattern_name(pattern)}, {tokens} tokens")
            sized = replace(gemm, pattern=pattern, tokens=tokens, out_features=outputs)
            runs.append(run_energy(mapped, measure(sized, activations, mapped.memories), constants))
        found.append(PatternEnergy(pattern, *runs))
    return CoreEnergy(name, mapped, constants, memory, gemm, activations, tuple(found))


def measure(gemm: LayerGemm, activations: str, memories: Sequence[str]) -> Measured:
    """Run a GEMM on the verilated core with its activity counted; of the memories, accesses in place of changes."""
    job = drawn_job(gemm, activations)
    run, activity = measure_activity(job, memories)
    macs = int(job.weight.mask.sum()) * gemm.tokens
    dense = gemm.in_features * gemm.out_features * gemm.tokens
    timing = gemm_timing(gemm.config, job.stream.layout, gemm.tokens)
    return Measured(gemm.tokens, activity, run.cycles, run.counters["busy"], macs, dense, timing)


def drawn_job(gemm: LayerGemm, activations: str) -> GemmJob:
    """Return the GEMM with activations of one of `ACTIVATIONS`."""
    job = gemm.prepare()
    if activations == "uniform":
        return job
    low, high = gemm.config.act_range
    x = np.random.default_rng(gemm.seed).standard_normal(job.x.shape) * (high / _NORMAL_RANGE)
    drawn = np.clip(np.rint(x), low, high).astype(np.int64) * (activations == "normal")
    return prepare(gemm.config, drawn, job.stream)
