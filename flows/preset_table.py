"""The README's table of presets, from synthesis runs: ``python -m flows.preset_table``.

Every preset is mapped block by block. One that can be on the device is then mapped as one, placed and routed; of one
that cannot, the table has the blocks' sums and says what is missing. All runs are `nimble synth`'s and come from its
cache, so that the table is made again in seconds until the generator or a tool changes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accel.config import CoreConfig, load_preset, preset_names
from accel.naming import module_name
from accel.verilog import core_verilog
from flows.area_points import SHIPPED, read_points
from flows.core_choice import read_core
from flows.info import multipliers, pattern_facts
from flows.synth import read_target, synthesize_core
from flows.terminal import EXIT_BAD_INPUT, EXIT_MISMATCH, EXIT_OK, ProgressBar, progress
from quant import NMPattern
from quant.atomic_file import write_text
from verify.synthesis.expectations import expectations
from verify.synthesis.hierarchy import Design
from verify.synthesis.mapping import Multipliers, map_blocks
from verify.synthesis.netlist import blocks_of
from verify.synthesis.routing import TIMING_WEIGHT, DeviceTooSmallError
from verify.synthesis.targets import Resources, Target
from verify.synthesis.tools import Deadline, SynthesisTool, TimeLimitError, find_yosys
from verify.toolchain import ToolError

BEGIN = "<!-- preset table: python -m flows.preset_table -->"
END = "<!-- end of the preset table -->"

#: Patterns whose dense-equivalent throughput the table has.
PATTERNS = ("1:1", "2:4", "1:4")

#: What devices have, by `Resources` (Lattice FPGA-DS-02012). nextpnr's 12k is the 25k's die.
CAPACITIES = {
    "12k": Resources(lut=24_288, ff=24_288, dsp=28, bram=56),
    "25k": Resources(lut=24_288, ff=24_288, dsp=28, bram=56),
    "45k": Resources(lut=43_848, ff=43_848, dsp=72, bram=108),
    "85k": Resources(lut=83_640, ff=83_640, dsp=156, bram=208),
}

#: By how much the sum of the blocks may be larger than the core mapped as one: what is surely too large is not tried.
_BLOCKS_OVER_WHOLE = 1.15

_KINDS = (("lut", "LUTs"), ("ff", "flip-flops"), ("dsp", "multiplier blocks"), ("bram", "block RAMs"))


@dataclass(frozen=True)
class Choices:
    """What all rows have in common."""

    target: str = "ecp5"
    device: str = "85k"
    speed: int = 6
    seeds: int = 3
    goal_mhz: float = 120.0
    #: Presets that are not placed and routed, whatever their size.
    blocks_only: tuple[str, ...] = ()
    time_limit: float | None = None


@dataclass(frozen=True)
class Row:
    """One preset."""

    name: str
    config: CoreConfig
    cells: Resources
    #: Lowest, median and highest clock of the seeds; None where nothing was routed.
    fmax_mhz: tuple[float, float, float] | None
    #: Why not, as a sentence; empty where it was.
    reason: str
    tools: tuple[SynthesisTool, ...]
    findings: int = 0

    def throughputs(self) -> list[float | None]:
        """Return GMAC/s of the unpruned product at the median clock, for each of `PATTERNS`; None if there is none."""
        found: list[float | None] = []
        for text in PATTERNS:
            try:
                facts = pattern_facts(self.config, NMPattern.parse(text))
            except ValueError:  # not one of the core's
                found.append(None)
                continue
            found.append(None if self.fmax_mhz is None else facts.dense_macs_per_cycle * self.fmax_mhz[1] / 1e3)
        return found


def preset_row(name: str, config: CoreConfig, choices: Choices, bar: ProgressBar) -> Row:
    """Synthesise a preset as far as that makes sense.

    Raises
    ------
    ValueError
        The target or the device does not exist, or a tool refused the design.
    ToolError
        A tool is missing.
    TimeLimitError
        The time limit was reached.
    """
    target, liberty = read_target(choices.target)
    if liberty is not None:
        raise ValueError("The table of presets is of LUTs and flip-flops; a Liberty file has none.")
    capacity = CAPACITIES[choices.device] if target.devices else None
    expected = expectations(config)
    wanted = expected.lane_multipliers + expected.scale_multipliers
    dsp = "all" if capacity is None or wanted <= capacity.dsp else "scale"
    bar.describe(f"Mapping the blocks of {name}")
    yosys = find_yosys()
    sums = _blocks(config, target, dsp, yosys, choices)
    if capacity is None:
        return Row(name, config, sums, None, f"{target.title} is not placed and routed here.", (yosys,))
    lacking = _lacking(sums, capacity, choices.device)
    if name in choices.blocks_only or lacking:
        return Row(name, config, sums, None, lacking or "Not placed and routed.", (yosys,))
    try:
        done = synthesize_core(
            name,
            config,
            target=choices.target,
            device=choices.device,
            speed=choices.speed,
            seeds=choices.seeds,
            route=True,
            dsp=dsp,
            goal_mhz=choices.goal_mhz,
            time_limit=choices.time_limit,
            bar=bar,
        ).synthesis
    except DeviceTooSmallError as error:
        return Row(name, config, sums, None, str(error).partition(" Take ")[0], (yosys,))
    if done.unfinished or done.total is None or done.fmax_mhz is None:
        raise TimeLimitError(f"{name}: {done.unfinished}")
    clocks = [run.fmax_mhz for run in done.routed]
    return Row(
        name,
        config,
        done.total,
        (min(clocks), done.fmax_mhz, max(clocks)),
        "",
        tuple(done.tools),
        len(done.findings),
    )


def _blocks(config: CoreConfig, target: Target, dsp: str, yosys: SynthesisTool, choices: Choices) -> Resources:
    """Return the sum of a core's blocks, each mapped by itself."""
    expected = expectations(config)
    design = Design(core_verilog(config), module_name("CoreRTL", config))
    shared = Multipliers.parse(
        dsp if target.dsp_maps or dsp in ("all", "none") else "all",
        target,
        expected.lane_bits,
        expected.scale_multipliers,
    )
    deadline = Deadline(choices.time_limit)
    statistics = map_blocks(design, target, shared, yosys, deadline, choices.goal_mhz).statistics
    return blocks_of(design, statistics, target)[0].each


def _lacking(sums: Resources, capacity: Resources, device: str) -> str:
    """Return what a device is short of for the sums of a core's blocks, as a sentence; empty if it may fit."""
    over = [
        f"{used:,} {name} of {there:,} ({100 * (used - there) / there:.0f} % too many)"
        for kind, name in _KINDS
        if (used := getattr(sums, kind)) > (there := getattr(capacity, kind)) * _BLOCKS_OVER_WHOLE
    ]
    return f"It does not fit the {device}: block by block it takes {', '.join(over)}." if over else ""


def table_text(rows: Sequence[Row], choices: Choices) -> str:
    """Return the block of Markdown between `BEGIN` and `END`, both included."""
    return "\n".join([BEGIN, _heading(rows, choices), "", *_table(rows), *_notes(rows), END]) + "\n"


def _heading(rows: Sequence[Row], choices: Choices) -> str:
    tools = {tool.name: f"{tool.version} ({tool.origin})" for row in rows for tool in row.tools}
    where = f"target {choices.target}"
    if any(row.fmax_mhz for row in rows):
        seeds = ", ".join(map(str, range(1, choices.seeds + 1)))
        where += (
            f", device {choices.device}, speed grade {choices.speed}, seeds {seeds}; nextpnr works towards "
            f"{choices.goal_mhz:g} MHz, which is no limit, timing weighs {TIMING_WEIGHT} in placement, and no port is "
            "on a pin"
        )
    return f"{'; '.join(tools.values())}; {where}. Multiplier blocks: all multipliers, or the scale units' alone."


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| preset | multipliers | window | LUT | FF | DSP | BRAM | Fmax, MHz | GMAC/s dense, 2:4, 1:4 | a 1,000 LUTs |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    for row in rows:
        clock = "–"
        if row.fmax_mhz is not None:
            low, median, high = row.fmax_mhz
            clock = f"{median:.1f} ({low:.1f} to {high:.1f})"
        speeds = row.throughputs()
        each = [None if speed is None else 1e3 * speed / row.cells.lut for speed in speeds]
        sums = "" if row.fmax_mhz is not None else " ¹"
        cells = [f"{getattr(row.cells, kind):,}{sums}" for kind, _ in _KINDS]
        values = [
            row.name,
            f"{multipliers(row.config):,}",
            f"{row.config.window}",
            *cells,
            clock,
            *(_numbers(figures) for figures in (speeds, each)),
        ]
        lines.append("| " + " | ".join(values) + " |")
    return lines


def _numbers(values: Sequence[float | None]) -> str:
    return "–" if not any(values) else ", ".join("–" if value is None else f"{value:.3g}" for value in values)


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    if any(row.fmax_mhz is None for row in rows):
        cores = read_points(SHIPPED).in_order
        more = [100 * (sum(core.blocks.values()) / core.total.lut - 1) for core in cores]
        sums = (
            f"¹ Sum of the blocks, each mapped by itself. In the {len(cores)} synthesised cores of `nimble explore` "
            f"that is {min(more):.0f} to {max(more):.0f} % more LUTs than mapped as one."
        )
        notes.insert(0, sums)
    notes += [f"{row.name}: guards found {row.findings}." for row in rows if row.findings]
    return ["", *(f"{note}  " for note in notes)] if notes else []


def replace_block(text: str, block: str, file: Path) -> str:
    """Return a README's text with the block between the two comments replaced.

    Raises
    ------
    ValueError
        The comments are not there, each once and in order.
    """
    found = re.findall(re.escape(BEGIN) + r"\n.*?" + re.escape(END) + r"\n", text, re.DOTALL)
    if len(found) != 1 or text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{file} must have the lines '{BEGIN}' and '{END}' once each, in this order.")
    return text.replace(found[0], block)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the table and write it into the README, or compare it with the one that is there."""
    parser = argparse.ArgumentParser("python -m flows.preset_table", description=__doc__.partition("\n")[0])
    parser.add_argument("--presets", metavar="NAME,...", help="by default all, in the order of their file")
    parser.add_argument("--config", metavar="FILE", action="append", type=Path, default=[], help="another core's TOML")
    parser.add_argument("--blocks", metavar="NAME,...", default="", help="not to be placed and routed in any case")
    parser.add_argument("--target", default=Choices.target)
    parser.add_argument("--device", default=Choices.device, choices=CAPACITIES)
    parser.add_argument("--speed", type=int, default=Choices.speed)
    parser.add_argument("--seeds", type=int, default=Choices.seeds)
    parser.add_argument("--goal", type=float, default=Choices.goal_mhz, metavar="MHZ")
    parser.add_argument("--time-limit", type=float, metavar="S", help="for each step of a preset")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if FILE has another table")
    parser.add_argument("--print", action="store_true", help="write nothing; print the table")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except TimeLimitError as error:
        print(f"preset_table: {error}", file=sys.stderr)
        return EXIT_MISMATCH if given.check else EXIT_BAD_INPUT
    except (ValueError, OSError, ToolError) as error:
        print(f"preset_table: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _run(given: argparse.Namespace) -> int:
    names = preset_names() if given.presets is None else [name for name in given.presets.split(",") if name]
    cores = {name: load_preset(name) for name in names} | {file.stem: read_core(file) for file in given.config}
    choices = Choices(
        given.target,
        given.device,
        given.speed,
        given.seeds,
        given.goal,
        tuple(given.blocks.split(",")),
        given.time_limit,
    )
    text = "" if given.print else given.readme.read_text(encoding="utf-8")
    if text:
        replace_block(text, "", given.readme)  # before hours of work
    with progress("Synthesising the presets") as bar:
        rows = [preset_row(name, config, choices, bar) for name, config in cores.items()]
    block = table_text(rows, choices)
    code = EXIT_MISMATCH if any(row.findings for row in rows) else EXIT_OK
    if given.print:
        print(block, end="")
        return code
    changed = replace_block(text, block, given.readme)
    if given.check:
        same = changed == text
        print(f"The table of presets in {given.readme} is {'what the runs give' if same else 'another one'}.")
        return code if same else EXIT_MISMATCH
    write_text(given.readme, changed)
    print(f"Wrote the table of presets into {given.readme}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
