"""Places and routes a mapped netlist on an ECP5 with nextpnr, and says where the critical path runs.

The core has more ports than the device has pins, so it is placed out of context: no pins, no buffers, and the
clock on ordinary wires' model of the global net. Timing between registers is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.synthesis.hierarchy import Design, readable
from verify.synthesis.mapping import NETLIST, Mapped
from verify.synthesis.store import stored
from verify.synthesis.targets import Target
from verify.synthesis.tools import Deadline, SynthesisError, SynthesisTool, run_tool

#: Raised when the files of an entry change.
_RECIPE = 1

#: What timing counts for nextpnr's placer; 10 is its own. With that, carry chains end up as far as 100 tiles from the
#: logic that steps them: see docs/synthesis.md, *Placement*.
TIMING_WEIGHT = 30

_REPORT = "report.json"
_LOG = "nextpnr.log"

#: What the cells of a carry chain have in their names, without which a chain counts as one cell.
_CARRY_CELL = r"(\.slice\[\d+\]\.ccu2c_i)?\$CCU2_COMB\d$|^\$nextpnr_CCU2C_\d+\$CCU2_COMB\d$"


class DeviceTooSmallError(ValueError):
    """The netlist does not fit the device; the message says by how much."""


@dataclass(frozen=True)
class Device:
    """A device of a target, and what nextpnr is asked for.

    Raises
    ------
    ValueError
        The target has no such device or speed grade.
    """

    target: Target
    name: str
    speed: int
    #: Clock that nextpnr works towards, in MHz.
    goal_mhz: float

    def __post_init__(self) -> None:
        if self.name not in self.target.devices:
            raise ValueError(
                f"There is no {self.target.title} named '{self.name}'; the devices are "
                f"{', '.join(self.target.devices)}."
            )
        if self.speed not in self.target.speeds:
            grades = ", ".join(map(str, self.target.speeds))
            raise ValueError(f"{self.target.title} has no speed grade {self.speed}; it has {grades}.")

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the device."""
        return {"name": self.name, "speed": self.speed}


@dataclass(frozen=True)
class PathStep:
    """Part of a critical path: up to the next net that has a name in the design, or a source."""

    #: Net or source that it ends at, in the generator's own names.
    at: str
    logic_ns: float
    routing_ns: float
    #: LUTs, multiplexers, carry cells and blocks that it goes through.
    cells: int

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the step."""
        return {"at": self.at, "logic_ns": self.logic_ns, "routing_ns": self.routing_ns, "cells": self.cells}


@dataclass(frozen=True)
class CriticalPath:
    """The slowest way from a register to a register."""

    start: str
    end: str
    steps: tuple[PathStep, ...]

    @property
    def logic_ns(self) -> float:
        """Delay of cells, clock-to-output and setup included."""
        return sum(step.logic_ns for step in self.steps)

    @property
    def routing_ns(self) -> float:
        """Delay of wires."""
        return sum(step.routing_ns for step in self.steps)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the path."""
        return {
            "from": self.start,
            "to": self.end,
            "logic_ns": round(self.logic_ns, 3),
            "routing_ns": round(self.routing_ns, 3),
            "steps": [step.document() for step in self.steps],
        }


@dataclass(frozen=True)
class Routed:
    """Result of one seed."""

    seed: int
    fmax_mhz: float
    path: CriticalPath
    #: Slowest way into each register, all elements of a list together: the register without indices, such as
    #: ``column.pe.acc``, and ns from the clock's edge to its input, setup not included; the slowest first.
    arrivals: tuple[tuple[str, float], ...]


def pack(
    design: Design, mapped: Mapped, device: Device, nextpnr: SynthesisTool, deadline: Deadline
) -> dict[str, tuple[int, int]]:
    """Put a netlist's cells together as the device has them, and return how many of each kind there are.

    Returns
    -------
    Sites that are used, and sites that there are, of each kind.

    Raises
    ------
    DeviceTooSmallError
        The netlist does not fit. Without this step, nextpnr would look for places for a long time.
    SynthesisError, TimeLimitError
        As `route`.
    """
    arguments = [f"--{device.name}", "--speed", str(device.speed), "--out-of-context", "--pack-only"]
    folder = _run("packed", "packing", design, mapped, arguments, nextpnr, deadline)
    log = (folder / _LOG).read_text(encoding="utf-8")
    # Sums of logic that come before have a blank or a small letter in their names.
    sites = re.findall(r"^Info:\s+([A-Z][A-Z0-9_]+):\s*(\d+)/\s*(\d+)\s+\d+%", log, re.MULTILINE)
    utilisation = {kind: (int(used), int(available)) for kind, used, available in sites if int(used)}
    over = [
        f"{used:,} {kind} of {available:,} ({100 * (used - available) / available:.0f} % too many)"
        for kind, (used, available) in utilisation.items()
        if used > available
    ]
    if over:
        raise DeviceTooSmallError(
            f"The core does not fit the {device.target.title} {device.name}: it takes {', '.join(over)}. Take a larger "
            "device or a smaller core, move multipliers between blocks and LUTs with --dsp, or see where it goes with "
            "--no-route."
        )
    return utilisation


def route(
    design: Design, mapped: Mapped, device: Device, seed: int, nextpnr: SynthesisTool, deadline: Deadline
) -> Routed:
    """Place and route a netlist that fits with one seed.

    Raises
    ------
    SynthesisError
        nextpnr refused the netlist.
    TimeLimitError
        The deadline was reached.
    """
    arguments = [
        *(f"--{device.name}", "--speed", str(device.speed), "--seed", str(seed), "--freq", f"{device.goal_mhz:g}"),
        *("--placer-heap-timingweight", str(TIMING_WEIGHT), "--out-of-context", "--timing-allow-fail"),
        *("--report", _REPORT, "--detailed-timing-report"),
    ]
    doing = f"placing and routing with seed {seed}"
    folder = _run("routed", doing, design, mapped, arguments, nextpnr, deadline)
    report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    return _read_report(design, report, seed)


def _run(
    kind: str,
    doing: str,
    design: Design,
    mapped: Mapped,
    arguments: list[str],
    nextpnr: SynthesisTool,
    deadline: Deadline,
) -> Path:
    """Run nextpnr on a netlist and return the folder of the cache with what it wrote."""
    key = {
        "recipe": _RECIPE,
        # The entry's name is a digest of all that the netlist depends on.
        "netlist": mapped.folder.name,
        "arguments": arguments,
        "nextpnr": [nextpnr.version, nextpnr.origin],
    }
    # What ran before may have taken long: the netlist is still in use.
    with contextlib.suppress(PermissionError):
        os.utime(mapped.folder)

    def make(folder: Path) -> None:
        # YoWASP's tools see neither absolute paths under /tmp nor what a link to there points to.
        netlist = folder / NETLIST
        try:
            netlist.hardlink_to(mapped.folder / NETLIST)
        except OSError:
            netlist.write_bytes((mapped.folder / NETLIST).read_bytes())
        log = run_tool(
            nextpnr, [*arguments, "--json", NETLIST], folder, deadline, doing, f"the netlist of {design.top}"
        )
        (folder / _LOG).write_text(log, encoding="utf-8")
        netlist.unlink()

    return stored(kind, key, make, deadline, doing)


def _read_report(design: Design, report: dict[str, Any], seed: int) -> Routed:
    clocks = report["fmax"]
    if not clocks:
        raise SynthesisError(f"nextpnr found no clock in the netlist of {design.top}, so it has no highest frequency.")
    name, slowest = min(clocks.items(), key=lambda item: item[1]["achieved"])
    inside = [
        path
        for path in report["critical_paths"]
        if path["from"].split()[-1] == path["to"].split()[-1] == name and path["from"].startswith("posedge")
    ]
    return Routed(
        seed,
        round(slowest["achieved"], 2),
        _critical_path(design, inside[0]["path"]),
        _arrivals(report["detailed_net_timings"]),
    )


def _critical_path(design: Design, path: list[dict[str, Any]]) -> CriticalPath:
    start = _register(path[0]["from"]["cell"])
    end = _register(path[-1]["to"]["cell"])
    steps: list[PathStep] = []
    logic = routing = 0.0
    cells: set[str] = set()
    for number, hop in enumerate(path):
        if hop["type"] == "routing":
            routing += hop["delay"]
        else:
            logic += hop["delay"]
        if hop["type"] == "logic":
            cells.add(re.sub(_CARRY_CELL, "", hop["from"]["cell"]))
        last = number == len(path) - 1
        place = end if last else _place(design, hop)
        if not place:
            continue
        if steps and steps[-1].at == place:
            before = steps.pop()
            logic, routing = logic + before.logic_ns, routing + before.routing_ns
            passed = len(cells) + before.cells
        else:
            passed = len(cells)
        steps.append(PathStep(place, round(logic, 3), round(routing, 3), passed))
        logic = routing = 0.0
        cells = set()
    return CriticalPath(start, end, tuple(steps))


def _arrivals(nets: list[dict[str, Any]]) -> tuple[tuple[str, float], ...]:
    slowest: dict[str, float] = {}
    for net in nets:
        for end in net["endpoints"]:
            register = re.sub(r"\[\d+\]", "", _register(end["cell"]))
            # Earliest and latest.
            slowest[register] = max(slowest.get(register, 0.0), end["delay"][1])
    return tuple((name, round(ns, 3)) for name, ns in sorted(slowest.items(), key=lambda item: -item[1]))


def _place(design: Design, hop: dict[str, Any]) -> str:
    """Return where a wire of the path lies: the block and net of its name, or the source of what drives it."""
    net = hop.get("net", "")
    if net and "$" not in net and not net.startswith("nextpnr"):
        return _word(net)
    for source in hop.get("sources", ()):
        match = re.match(r"design\.sv:(\d+)", source)
        if match:
            return design.source(int(match[1]))
    return ""


def _register(cell: str) -> str:
    """Return the net that a register drives, after which yosys has named it."""
    if "$" in cell.partition("\\")[0]:
        return "a register that yosys made"
    return _word(cell.partition("\\")[0])


def _word(net: str) -> str:
    """Return a net without the index of its bit: all bits of a word have nearly the same path."""
    return readable(re.sub(r"\[\d+\]$", "", net))
