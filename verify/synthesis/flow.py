"""From a design to its report: guards, cells of each block, totals, and the routed clock.

Every part is kept in the cache as soon as it is finished, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from verify.synthesis.expectations import Expectations
from verify.synthesis.guards import Finding, check_design, check_memories
from verify.synthesis.hierarchy import Design
from verify.synthesis.inspection import inspect
from verify.synthesis.liberty import Liberty, delay_ps
from verify.synthesis.lint import lint
from verify.synthesis.mapping import Mapped, Multipliers, map_blocks, map_flat
from verify.synthesis.netlist import Block, blocks_of
from verify.synthesis.routing import Device, Routed, pack, route
from verify.synthesis.targets import Resources, Target
from verify.synthesis.tools import Deadline, SynthesisTool, TimeLimitError, find_nextpnr, find_yosys


@dataclass(frozen=True)
class Request:
    """What is asked of a synthesis."""

    design: Design
    expected: Expectations
    target: Target
    multipliers: Multipliers
    #: Clock to work towards.
    goal_mhz: float
    #: Where and how to route; None for none.
    device: Device | None = None
    #: Seeds of place and route.
    seeds: tuple[int, ...] = ()
    #: The library that the target is made of, if it is one of standard cells.
    liberty: Liberty | None = None


@dataclass
class Synthesis:
    """What was found out, as far as it is finished."""

    request: Request
    tools: list[SynthesisTool] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    #: Of the flattened netlist.
    total: Resources | None = None
    #: Slowest way between registers of standard cells.
    delay_ps: float | None = None
    #: Sites of the device that are used, and all of them, of each kind that is used.
    utilisation: dict[str, tuple[int, int]] = field(default_factory=dict)
    routed: list[Routed] = field(default_factory=list)
    #: Why it is not finished, as a sentence; empty if it is.
    unfinished: str = ""

    @property
    def fmax_mhz(self) -> float | None:
        """Median of the seeds' highest frequencies; None before one is routed.

        A delay of standard cells gives none: wires and flip-flops are not in it.
        """
        return round(statistics.median(run.fmax_mhz for run in self.routed), 2) if self.routed else None


def synthesize(request: Request, deadline: Deadline, progress: Callable[[str], None]) -> Synthesis:
    """Run everything that a request asks for, in the order of its cost.

    Parameters
    ----------
    deadline : when it is reached, what is finished is returned, and the sentence that says what is not.
    progress : is called with what goes on next.

    Raises
    ------
    ToolError
        A tool is missing.
    SynthesisError
        A tool refused the design.
    DeviceTooSmallError
        It is to be routed and does not fit.
    TimeLimitError
        Nothing was finished.
    """
    done = Synthesis(request)
    progress("Starting yosys; YoWASP's compiles itself on its first call, within a minute")
    yosys = find_yosys()
    done.tools.append(yosys)
    if request.device is not None:
        progress("Starting nextpnr; YoWASP's compiles itself on its first call, within a minute")
        done.tools.append(find_nextpnr())
    try:
        _run(request, done, deadline, progress)
    except TimeLimitError as error:
        if done.total is None and not done.blocks:
            raise
        done.unfinished = str(error)
    return done


def _run(request: Request, done: Synthesis, deadline: Deadline, progress: Callable[[str], None]) -> None:
    design, target, yosys = request.design, request.target, done.tools[0]
    progress("Looking for defects")
    done.findings += lint(design, deadline)
    inspection = inspect(design, yosys, deadline)
    done.findings += check_design(design, inspection, request.expected)
    progress("Mapping each module")
    blocks = map_blocks(design, target, request.multipliers, yosys, deadline, request.goal_mhz)
    done.blocks = blocks_of(design, blocks.statistics, target)
    progress("Mapping the flattened core")
    flat = map_flat(design, target, request.multipliers, yosys, deadline)
    done.total = flat.statistics.whole(design.top, target)
    done.findings += check_memories(inspection, flat.log, target, request.expected)
    if request.liberty is not None:
        done.delay_ps = delay_ps(flat)
    if request.device is not None:
        _route(request, flat, request.device, done, deadline, progress)


def _route(
    request: Request,
    flat: Mapped,
    device: Device,
    done: Synthesis,
    deadline: Deadline,
    progress: Callable[[str], None],
) -> None:
    progress(f"Packing for {device.name}")
    done.utilisation = pack(request.design, flat, device, done.tools[1], deadline)
    for number, seed in enumerate(request.seeds, start=1):
        progress(f"Placing and routing on {device.name}, seed {number} of {len(request.seeds)}")
        done.routed.append(route(request.design, flat, device, seed, done.tools[1], deadline))
