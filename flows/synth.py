"""`nimble synth`: a core's cells, block by block, its clock after place and route, and the guards' findings."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.config import CoreConfig
from accel.naming import module_name
from accel.verilog import core_verilog
from flows.terminal import ProgressBar
from verify.synthesis.expectations import expectations
from verify.synthesis.flow import Request, Synthesis, synthesize
from verify.synthesis.guards import GUARDS, listed
from verify.synthesis.hierarchy import Design
from verify.synthesis.liberty import Liberty, read_liberty
from verify.synthesis.mapping import Multipliers
from verify.synthesis.routing import TIMING_WEIGHT, Device
from verify.synthesis.targets import MACRO_WORDS, TARGETS, Target
from verify.synthesis.tools import Deadline

SCHEMA = "nimble.synthesis"
VERSION = 1

#: Prefix of a target that is a Liberty file.
LIBERTY = "liberty:"


@dataclass(frozen=True)
class CoreSynthesis:
    """A core and what its synthesis found."""

    core: str
    config: CoreConfig
    synthesis: Synthesis

    @property
    def failed(self) -> bool:
        """Whether a guard found something."""
        return bool(self.synthesis.findings)

    def assumptions(self) -> list[str]:
        """Return what the figures rest on, as sentences."""
        request = self.synthesis.request
        small = f" and as small as {request.goal_mhz:g} MHz allow" if request.target.abc9 else ""
        said = [
            f"Cells of a block are those of its modules, mapped one by one{small}; totals and timing are of the core "
            "mapped as one: logic is optimised across modules, and what is constant goes away."
        ]
        if isinstance(request.multipliers.choice, int):
            said.append(
                "In the blocks, multipliers of all lanes are of LUTs: all instances of a module are alike there."
            )
        if request.device is not None:
            said.append(
                "Placed out of context: ports are not on pins, and paths from and to ports do not count. The clock to "
                f"work towards is no constraint that must be met. Timing weighs {TIMING_WEIGHT} in placement."
            )
        if request.liberty is not None:
            said.append(
                "Delay is abc's, by the tables of the library's one corner, without wires and without load on outputs; "
                "setup and clock-to-output of flip-flops are not in it."
            )
        said += [f"{name.upper()} counts {what}." for name, what in request.target.notes.items()]
        if request.target.block_ram_from is None:
            said.append(f"Memories of {MACRO_WORDS} words and more are left for macros: only their bits are counted.")
        return said

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble synth``."""
        done = self.synthesis
        request = done.request
        findings, counts = listed(done.findings)
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "version": VERSION,
            "core": self.core,
            "parameters": self.config.as_dict(),
            "top": request.design.top,
            "tools": [tool.document() for tool in done.tools],
            "target": request.target.name,
            "multiplier_blocks": request.multipliers.choice,
            "goal_mhz": request.goal_mhz,
            "device": None if request.device is None else request.device.document(),
            "seeds": list(request.seeds),
            "complete": not done.unfinished,
            "unfinished": done.unfinished,
            "assumptions": self.assumptions(),
            "guards": {name: {"checks": checks, "findings": counts.get(name, 0)} for name, checks in GUARDS.items()},
            "findings": [finding.document() for finding in findings],
            "total": None if done.total is None else done.total.document(),
            "blocks": [
                {
                    "place": block.place,
                    "module": block.module,
                    "count": block.count,
                    "each": block.each.document(),
                    "own": block.own.document(),
                }
                for block in done.blocks
            ],
        }
        if request.liberty is not None:
            document["library"] = _library(request.liberty, done)
        if done.utilisation:
            document["utilisation"] = {
                kind: {"used": used, "available": available} for kind, (used, available) in done.utilisation.items()
            }
        if done.routed:
            document["routed"] = self._routed()
        # Absent where no clock is known: readers refuse a report without it.
        if done.fmax_mhz is not None:
            document["fmax_mhz"] = done.fmax_mhz
        return document

    def _routed(self) -> dict[str, Any]:
        runs = self.synthesis.routed
        clocks = [run.fmax_mhz for run in runs]
        median = min(runs, key=lambda run: abs(run.fmax_mhz - statistics.median(clocks)))
        return {
            "fmax_mhz": {"median": self.synthesis.fmax_mhz, "min": min(clocks), "max": max(clocks)},
            "seeds": {str(run.seed): run.fmax_mhz for run in runs},
            "critical_path": {"seed": median.seed, **median.path.document()},
            "arrivals_ns": dict(median.arrivals),
        }


def synthesize_core(
    name: str,
    config: CoreConfig,
    *,
    target: str,
    device: str | None,
    speed: int | None,
    seeds: int,
    route: bool,
    dsp: str,
    goal_mhz: float,
    time_limit: float | None,
    bar: ProgressBar,
) -> CoreSynthesis:
    """Synthesise a core.

    Parameters
    ----------
    target : a name in `TARGETS`, or ``liberty:`` and the path of a Liberty file.
    device, speed : of the target; None for its largest device and slowest grade.
    seeds : how often to place and route: with seeds 1, 2, ….
    route : whether to place and route at all, where that is possible.
    dsp : ``all``, ``scale``, ``none`` or a number, as `Multipliers`.

    Raises
    ------
    ValueError
        A choice does not exist or does not go with the target, or the core does not fit the device.
    ToolError
        A tool is missing.
    """
    deadline = Deadline(time_limit)
    if seeds < 1:
        raise ValueError(f"Place and route needs at least one seed, but {seeds} were asked for; see also --no-route.")
    if not 0 < goal_mhz < 1e5:
        raise ValueError(f"The clock to work towards must be between 0 and 100,000 MHz, but {goal_mhz} was given.")
    chosen, liberty = read_target(target)
    routed = route and bool(chosen.devices)
    if not chosen.devices and (device is not None or speed is not None):
        raise ValueError(
            f"Only {', '.join(name for name, t in TARGETS.items() if t.devices)} is placed and routed, so "
            f"--device and --speed mean nothing for {target}."
        )
    place = (
        Device(chosen, device or chosen.devices[-1], speed or chosen.speeds[0], goal_mhz) if chosen.devices else None
    )
    expected = expectations(config)
    request = Request(
        design=Design(core_verilog(config), module_name("CoreRTL", config)),
        expected=expected,
        target=chosen,
        multipliers=Multipliers.parse(dsp, chosen, expected.lane_bits, expected.scale_multipliers),
        goal_mhz=goal_mhz,
        device=place if routed else None,
        seeds=tuple(range(1, seeds + 1)) if routed else (),
        liberty=liberty,
    )
    return CoreSynthesis(name, config, synthesize(request, deadline, bar.describe))


def read_target(text: str) -> tuple[Target, Liberty | None]:
    """Return the target that a user names, and its library if it is ``liberty:FILE``.

    Raises
    ------
    ValueError
        There is no such target, or the file is no Liberty file that can be mapped to.
    OSError
        The file cannot be read.
    """
    if text.startswith(LIBERTY):
        liberty = read_liberty(Path(text.removeprefix(LIBERTY)))
        return liberty.target(), liberty
    if text not in TARGETS:
        raise ValueError(f"There is no target {text!r}; the targets are {', '.join(TARGETS)} and {LIBERTY}FILE.")
    return TARGETS[text], None


def _library(liberty: Liberty, done: Synthesis) -> dict[str, Any]:
    library: dict[str, Any] = {
        "file": liberty.path,
        "name": liberty.name,
        "sha256": liberty.digest,
        "nand2_area_um2": liberty.nand2_area,
    }
    if done.total is not None:
        library["gate_equivalents"] = round(done.total.area_um2 / liberty.nand2_area, 1)
    if done.delay_ps is not None:
        library["delay_ps"] = done.delay_ps
    return library
