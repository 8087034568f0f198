"""Switching activity of a core: how often each register and each net of its logic changes while it runs a GEMM.

Verilator counts the toggles of every bit itself and writes one line for each of them (SAIF, IEEE 1801 annex I), so
that the file's size follows from the design and not from the run's length. Nets are sampled once a cycle, after they
have settled: what a net does within a cycle (glitches) is not in the counts.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from accel.config import CoreConfig
from accel.naming import module_name
from accel.verilog import core_verilog
from verify.gemm import GemmJob
from verify.rtl import LevelRun
from verify.synthesis.hierarchy import Design, readable
from verify.verilated import open_library, run_verilated, testbench_source
from verify.verilator_build import FAST_VERILATOR_FLAGS, build_library

_COUNTED_TOP = Path(__file__).with_name("activity.cpp")

#: Widths of all nets, and arrays of nets, but no large memories: accesses of these are counted, not their bits.
_FLAGS = (*FAST_VERILATOR_FLAGS, "--trace-saif", "--trace-max-width", "1000000", "--trace-max-array", "64")

#: Ports of a memory whose high cycles are its accesses. A memory without the one for reads reads in every cycle.
_WRITE, _READ = "wen", "ren"


@dataclass(frozen=True)
class NetBit:
    """One bit of a net in a SAIF file."""

    #: Path of the instance in the generator's own names, such as ``column[0].pe[1]``; the top is ``""``.
    instance: str
    #: Name of the net, with the number of the element where it is one of an array.
    net: str
    bit: int
    #: Cycles in which it was 1.
    high: int
    #: Changes, up and down.
    toggles: int

    @property
    def variable(self) -> str:
        """Name of the net without the number of an element."""
        return self.net.partition("[")[0]


@dataclass(frozen=True)
class BlockActivity:
    """Toggles of the instances of one module at one place; what lies below them is not in it."""

    place: str
    module: str
    #: Bits of registers, and how often they changed, all together. Memories are not in it.
    register_bits: int = 0
    register_toggles: int = 0
    #: Bits of nets that logic drives, and how often they changed.
    logic_bits: int = 0
    logic_toggles: int = 0
    #: Words read from memories and written to them.
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True)
class Activity:
    """What a run's nets did."""

    #: Cycles counted, from the first one after reset to the last result.
    cycles: int
    #: By place and module.
    blocks: dict[tuple[str, str], BlockActivity]

    @property
    def register_toggles(self) -> int:
        """Changes of all registers."""
        return sum(block.register_toggles for block in self.blocks.values())

    @property
    def logic_toggles(self) -> int:
        """Changes of all nets that logic drives."""
        return sum(block.logic_toggles for block in self.blocks.values())


@dataclass(frozen=True)
class Drivers:
    """Variables of a module by what drives them. Ports in and wires are neither: others drive them."""

    registers: frozenset[str]
    logic: frozenset[str]


def measure_activity(job: GemmJob, memories: Collection[str] = ()) -> tuple[LevelRun, Activity]:
    """Run a GEMM on the verilated core and count what its nets do.

    Parameters
    ----------
    memories : paths of memories, such as ``acts_buffer.even_bank[0].words``: their accesses are counted instead of
        their bits.
    """
    with tempfile.TemporaryDirectory(prefix="nimble-activity-") as folder:
        file = Path(folder) / "activity.saif"
        run = run_counted(job, file)
        return run, read_activity(file, core_design(job.config), memories)


def run_counted(job: GemmJob, file: Path, core: ctypes.CDLL | None = None) -> LevelRun:
    """Run a GEMM on the verilated core and write its nets' toggles to a SAIF file, and another of its first sample.

    Parameters
    ----------
    core : another model, from `build_counting_core`, such as that of a netlist.
    """
    core = core or _counting_core(job.config)
    core.nimble_activity_file(os.fsencode(file))
    return run_verilated(job.config, job.commands, job.stream.payload, job.acts, job.result_words, core=core)


@lru_cache(maxsize=16)
def _counting_core(config: CoreConfig) -> ctypes.CDLL:
    return build_counting_core(config, core_verilog(config), module_name("CoreRTL", config))


def build_counting_core(config: CoreConfig, verilog: str, top: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile SystemVerilog with a core's ports, with counters; it is kept in the build cache."""
    testbench = _COUNTED_TOP.read_text("utf-8") + testbench_source(config)
    core = open_library(build_library(verilog, top, testbench, verilator_flags=(*_FLAGS, *flags)))
    core.nimble_activity_file.argtypes = [ctypes.c_char_p]
    core.nimble_activity_file.restype = None
    return core


def core_design(config: CoreConfig) -> Design:
    """Return a core's SystemVerilog with its modules."""
    return Design(core_verilog(config), module_name("CoreRTL", config))


def read_activity(file: Path, design: Design, memories: Collection[str] = ()) -> Activity:
    """Sum up a SAIF file of a design, for each module at each place."""
    drivers = {name: drivers_of(design, name) for name in design.modules}
    modules = {"": design.top, **design.instances()}
    cycles = duration(file)
    held = {tuple(path.rpartition(".")[::2]) for path in memories}
    holders = {instance for instance, _ in held}
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for instance, module in modules.items():
        block = counts.setdefault((_place(instance), module), dict.fromkeys(_COUNTS, 0))
        if instance in holders:
            block["reads"] += cycles
    for bit in read_saif(file):
        module = modules[bit.instance]
        block = counts[_place(bit.instance), module]
        if bit.instance in holders:
            if bit.net == _WRITE:
                block["writes"] += bit.high
            elif bit.net == _READ:
                block["reads"] += bit.high - cycles
        if bit.variable in drivers[module].registers:
            if (bit.instance, bit.variable) not in held:
                block["register_bits"] += 1
                block["register_toggles"] += bit.toggles
        elif bit.variable in drivers[module].logic:
            block["logic_bits"] += 1
            block["logic_toggles"] += bit.toggles
    return Activity(
        cycles,
        {
            (place, module): BlockActivity(place, module, *(block[name] for name in _COUNTS))
            for (place, module), block in counts.items()
        },
    )


_COUNTS = ("register_bits", "register_toggles", "logic_bits", "logic_toggles", "reads", "writes")


def _place(instance: str) -> str:
    return re.sub(r"(\[\d+\])+", "", instance)


def duration(file: Path) -> int:
    """Return the cycles that a SAIF file of `run_counted` covers."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("(DURATION "):
                return int(line.removeprefix("(DURATION ").rstrip(")\n"))
    raise ValueError(f"{file} is not a SAIF file: it has no DURATION.")


_BIT = re.compile(r"\s*\((\S+?)(?:\\\[(\d+)\\\])? \(T0 \d+\) \(T1 (\d+)\) .*\(TC (\d+)\)")


def read_saif(file: Path) -> Iterator[NetBit]:
    """Return the bits that a SAIF file of `run_counted` lists, one after the other."""
    # Verilator's own TOP repeats the ports of the design's top below it.
    path: list[str] = []
    groups: list[bool] = []
    instance = ""
    start = file.with_name(file.name + ".start")
    with open(file, encoding="utf-8") as lines, open(start, encoding="utf-8") as first_lines:
        for line, first in zip(lines, first_lines, strict=True):
            if found := _BIT.match(line):
                if len(path) > 1:
                    # A bit that is 1 at first is counted as one that has become so.
                    toggles = int(found[4]) - first.endswith("(TC 1))\n")
                    yield NetBit(instance, readable(found[1]), int(found[2] or 0), int(found[3]), toggles)
                continue
            text = line.strip()
            if text.startswith("(INSTANCE "):
                path.append(text.removeprefix("(INSTANCE "))
                instance = readable(".".join(path[2:]))
                groups.append(True)
            elif text == "(NET":
                groups.append(False)
            elif text == ")" and groups and groups.pop():
                path.pop()
                instance = readable(".".join(path[2:]))


def drivers_of(design: Design, name: str) -> Drivers:
    """Return which variables of a module its registers and its logic drive.

    The translation writes one assignment a line: ``x <= …`` in always_ff, ``x = …`` in always_comb. Its ``assign``
    statements only connect.
    """
    module = design.modules[name]
    lines = design.text.splitlines()[module.line - 1 :]
    found: dict[str, set[str]] = {"ff": set(), "comb": set()}
    block = ""
    for line in lines:
        text = line.strip()
        if text.startswith("endmodule"):
            break
        if text.startswith("//"):
            continue
        if started := re.match(r"always_(ff|comb)\b|assign\b|localparam\b", text):
            block = started[1] or ""
            continue
        operator = {"ff": "<=", "comb": "=(?!=)"}.get(block)
        if operator and (target := re.match(rf"(?:end )?(?:else )?(\w+)(?:\[.*?\]|\.\w+)*\s*{operator}", text)):
            found[block].add(target[1])
    temporary = {variable for variable in found["comb"] if variable.startswith("__tmpvar__")}
    return Drivers(frozenset(found["ff"]), frozenset(found["comb"] - found["ff"] - temporary))
