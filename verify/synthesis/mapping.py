"""Runs yosys on a design: maps it to a target, once with its hierarchy kept and once flattened.

With the hierarchy kept, each module is mapped once however often it is instantiated, and every cell belongs to
a block; but nothing is optimised across modules. Flattened, the netlist is the one that is placed and routed.
Totals are the flattened netlist's, shares of blocks the other's.

abc9 makes the slowest way as fast as it can and everything else small. By itself, each module has a slowest way, and
would be mapped larger than as part of a core whose slowest way is elsewhere: on ECP5, a 4×4×4 core of window 16 took
36,208 LUTs module by module, and 26,600 as one. So modules are mapped as small as the clock to work towards allows.
Then it is 28,260, 6 % more; with a window of 8 it is 5 % more, and 10 % for the tiny core.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from verify.synthesis.hierarchy import Design
from verify.synthesis.netlist import Statistics
from verify.synthesis.output_registers import FLIP_FLOP, move_registers
from verify.synthesis.store import stored
from verify.synthesis.targets import DSP_CHOICES, Target
from verify.synthesis.tools import Deadline, SynthesisTool, run_tool

#: Raised when the scripts change in a way that their text does not show.
_RECIPE = 2

#: Keeps yosys from merging registers that are copies of each other for the sake of their wires; see `CopyRTL`.
_KEEP_COPIES = "setattr -set keep 1 w:*.copied %ci1:+$dff[Q] t:$dff %i"

NETLIST = "netlist.json"
STATISTICS = "statistics.json"
LOG = "yosys.log"


@dataclass(frozen=True)
class Mapped:
    """One netlist."""

    #: Folder with `NETLIST` (of a flattened design), `STATISTICS` and `LOG`.
    folder: Path

    @property
    def statistics(self) -> Statistics:
        """Cells of each module."""
        return Statistics.parse((self.folder / STATISTICS).read_text(encoding="utf-8"))

    @property
    def log(self) -> str:
        """What yosys printed."""
        return (self.folder / LOG).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Multipliers:
    """Which multipliers go to multiplier blocks, where a target has them."""

    #: ``all``, ``scale`` (those with an operand wider than `lane_bits`), ``none``, or a number: the scale units'
    #: first, then as many of the lanes.
    choice: str | int = "all"
    #: Widest operand of a lane's multiplier.
    lane_bits: int = 0
    #: Multipliers with a wider operand.
    scale_units: int = 0

    def commands(self, target: Target) -> list[str]:
        """Return the commands that put multipliers into blocks, where those are neither all nor none of them."""
        if self.choice in ("all", "none"):
            return []
        lanes = max(0, self.choice - self.scale_units) if isinstance(self.choice, int) else 0
        wide = f"t:$mul r:A_WIDTH>{self.lane_bits} r:B_WIDTH>{self.lane_bits} %u %i"
        return [
            *("opt_expr", "opt_clean", "wreduce t:$mul"),
            f"select -set blocks {wide}" + (f" %R{self.choice}" if self.choice in range(self.scale_units) else ""),
            *([f"select -set blocks @blocks t:$mul {wide} %d %R{lanes} %u"] if lanes else []),
            *(f"techmap {step}" for step in target.dsp_maps),
            *("chtype -set $mul t:$__soft_mul", "opt_clean"),
        ]

    def of_modules(self) -> Multipliers:
        """Return the choice for a netlist in which all instances of a module are alike."""
        return dataclasses.replace(self, choice="scale") if isinstance(self.choice, int) else self

    @classmethod
    def parse(cls, text: str, target: Target, lane_bits: int, scale_units: int) -> Multipliers:
        """Read a user's choice.

        Raises
        ------
        ValueError
            It is none of `DSP_CHOICES` and no number, or the target's blocks cannot be shared out.
        """
        if text in DSP_CHOICES and (text in ("all", "none") or target.dsp_maps):
            return cls(text, lane_bits, scale_units)
        if text not in DSP_CHOICES and not text.isdecimal():
            raise ValueError(
                f"Multiplier blocks are for {', '.join(DSP_CHOICES)} or a number of multipliers, but '{text}' was "
                "given."
            )
        if not target.dsp_maps:
            raise ValueError(f"On {target.name}, multiplier blocks are for all or none, but '{text}' was given.")
        return cls(int(text) or "none", lane_bits, scale_units)


def map_flat(
    design: Design, target: Target, multipliers: Multipliers, yosys: SynthesisTool, deadline: Deadline
) -> Mapped:
    """Map a design as one module.

    Raises
    ------
    SynthesisError
        yosys refused it.
    TimeLimitError
        The deadline was reached.
    """
    script = [
        read_flat(design),
        _KEEP_COPIES,
        *_map_commands(design.top, target, multipliers, ""),
        *([f"rename -wire {target.named}"] if target.named else []),
        "blackbox =A:whitebox",
        f"write_json {NETLIST}",
    ]
    return _run("flat", design, target, script, yosys, deadline, "mapping the flattened core")


def map_blocks(
    design: Design,
    target: Target,
    multipliers: Multipliers,
    yosys: SynthesisTool,
    deadline: Deadline,
    goal_mhz: float,
) -> Mapped:
    """Map each module of a design by itself.

    Parameters
    ----------
    goal_mhz : clock that each module must allow, by abc9's estimate, where it maps the target.

    Raises
    ------
    What `map_flat` raises.
    """
    script = [
        *read_modules(design),
        *([f"scratchpad -set abc9.D {round(1e6 / goal_mhz)}"] if target.abc9 else []),
        *_map_commands(design.top, target, multipliers.of_modules(), target.keep),
    ]
    return _run("blocks", design, target, script, yosys, deadline, "mapping each module")


def read_flat(design: Design) -> str:
    """Return the command that reads a design as one module."""
    return f"read_slang --threads 1 design.sv --top {design.top}"


def read_modules(design: Design) -> list[str]:
    """Return the commands that read each module of a design once.

    slang makes a module of its own of each instance, and 256 of them of a PE that is there 256 times. So modules
    are read one by one from below, with those that they instantiate as black boxes. yosys then takes constants
    of a module for its parameters, which are taken away.
    """
    order = design.bottom_up()
    commands = []
    for module in order:
        children = sorted({child for _, child in module.instances})
        boxes = "".join(f" --blackboxed-module {child}" for child in children)
        commands.append(f"read_slang --threads 1 --keep-hierarchy design.sv --top {module.name}{boxes}")
    for module in order:
        unset = "".join(f" -unset {constant}" for constant in module.constants)
        if unset:
            commands.append(f"setparam{unset} t:{module.name}")
    return commands


def _map_commands(top: str, target: Target, multipliers: Multipliers, keep: str) -> list[str]:
    mostly = target.with_dsp if multipliers.choice == "all" else target.no_dsp
    return [
        *multipliers.commands(target),
        *_own_maps(target, multipliers),
        *(" ".join(step.format(top=top, keep=keep, dsp=mostly).split()) for step in target.steps),
        f"tee -q -o {STATISTICS} stat -json",
    ]


def _own_maps(target: Target, multipliers: Multipliers) -> list[str]:
    soft = [target.own_multiplier_map] if target.own_multiplier_map and multipliers.choice != "all" else []
    maps = [*soft, *target.own_maps]
    return ["opt_expr", "opt_clean", "wreduce", "opt_clean", *(f"techmap {step}" for step in maps)] if maps else []


def _run(
    kind: str, design: Design, target: Target, script: list[str], yosys: SynthesisTool, deadline: Deadline, doing: str
) -> Mapped:
    text = "\n".join(script) + "\n"
    key = {
        "recipe": _RECIPE,
        "design": without_comments(design.text),
        "script": text,
        "files": dict(target.files),
        "output_registers": [dataclasses.asdict(block) for block in target.output_registers],
        "yosys": [yosys.version, yosys.origin],
    }

    def make(folder: Path) -> None:
        (folder / "design.sv").write_text(design.text, encoding="utf-8")
        (folder / "script.ys").write_text(text, encoding="utf-8")
        for name, content in target.files.items():
            (folder / name).write_text(content, encoding="utf-8")
        run_tool(yosys, ["-q", "-l", LOG, "script.ys"], folder, deadline, doing, f"the module {design.top}")
        if target.output_registers and (folder / NETLIST).exists():
            _move_registers(folder, design.top, target)

    return Mapped(stored(kind, key, make, deadline, doing))


def _move_registers(folder: Path, top: str, target: Target) -> None:
    """Put registers into the blocks of a netlist, and take them out of its count."""
    netlist = json.loads((folder / NETLIST).read_text(encoding="utf-8"))
    gone = move_registers(netlist["modules"][top], target.output_registers)
    (folder / NETLIST).write_text(json.dumps(netlist), encoding="utf-8")
    statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
    for counts in (*statistics["modules"].values(), statistics.get("design", {})):
        if gone and FLIP_FLOP in counts.get("num_cells_by_type", {}):
            counts["num_cells_by_type"][FLIP_FLOP] -= gone
            counts["num_cells"] -= gone
    (folder / STATISTICS).write_text(json.dumps(statistics), encoding="utf-8")


def without_comments(text: str) -> str:
    """Return a SystemVerilog text without the lines that are only a comment.

    They hold line numbers of the generator's sources, which change without changing the hardware. Line numbers of
    the text itself are kept.
    """
    return re.sub(r"^[ \t]*//.*$", "", text, flags=re.MULTILINE)
