"""What `nimble synth` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from flows.synth import CoreSynthesis
from flows.views import table_of
from verify.synthesis.guards import GUARDS, listed
from verify.synthesis.netlist import Block

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Blocks deeper than this are left out of the table; the JSON has all.
_DEPTH = 3

#: Blocks with a smaller share of the LUTs, or of the area, are left out as well.
_SMALLEST_SHARE = 0.01

#: Registers of which the slowest way is shown.
_ARRIVALS = 10

#: Kinds of resources: heading, and name in `Resources`.
_KINDS = (
    ("LUT", "lut"),
    ("carry", "carry"),
    ("FF", "ff"),
    ("DSP", "dsp"),
    ("BRAM", "bram"),
    ("bits", "memory_bits"),
)


def synthesis_view(synthesised: CoreSynthesis) -> list[RenderableType]:
    """What was run, the blocks' cells, the totals, the clock with its critical path, and the findings."""
    done = synthesised.synthesis
    request = done.request
    parts: list[RenderableType] = [_heading(synthesised)]
    if done.blocks:
        parts.append(_blocks_table(synthesised))
    if request.liberty is not None and done.total is not None:
        area = done.total.area_um2
        parts.append(
            f"Area {area:,.1f} µm², {area / request.liberty.nand2_area:,.0f} gate equivalents of a NAND2 of "
            f"{request.liberty.nand2_area:g} µm²; delay {done.delay_ps:,.0f} ps."
        )
    if done.utilisation:
        parts.append("Device: " + ", ".join(_site(kind, *sites) for kind, sites in done.utilisation.items()))
    if done.routed:
        parts += _clock(synthesised)
    parts += synthesised.assumptions()
    if done.unfinished:
        parts.append(f"{done.unfinished} What is above was finished and is kept: the same command goes on from there.")
    parts += _findings(synthesised)
    return parts


def _heading(synthesised: CoreSynthesis) -> str:
    request = synthesised.synthesis.request
    tools = "; ".join(f"{tool.version} ({tool.origin})" for tool in synthesised.synthesis.tools)
    where = request.target.title
    if request.device is not None:
        seeds = ", ".join(map(str, request.seeds))
        where += (
            f" {request.device.name}, speed grade {request.device.speed}, seeds {seeds}, working towards "
            f"{request.device.goal_mhz:g} MHz"
        )
    blocks = f"; multiplier blocks: {request.multipliers.choice}" if request.target.has_dsp else ""
    return f"{synthesised.core} on {where}{blocks}\n{tools}"


def _blocks_table(synthesised: CoreSynthesis) -> Any:
    done = synthesised.synthesis
    by_area = done.request.liberty is not None
    measure = "area_um2" if by_area else "lut"
    whole = getattr(done.blocks[0].each, measure) or 1
    kinds = [
        (heading, name)
        for heading, name in _KINDS
        if getattr(done.blocks[0].each, name) or (done.total is not None and getattr(done.total, name))
    ]
    table = table_of(
        f"{synthesised.core}: cells of its blocks, those below included",
        ["block"],
        ["×", "each", *([] if not by_area else ["µm²"]), *(heading for heading, _ in kinds), "share"],
    )
    for block in _in_order(done.blocks, measure):
        size = getattr(block.total, measure)
        blocks_of_device = block.total.dsp or block.total.bram
        if block.depth > _DEPTH or (size / whole < _SMALLEST_SHARE and not blocks_of_device):
            continue
        name = block.place.rpartition(".")[2].replace("_", " ") or "all, module by module"
        area = [] if not by_area else [f"{block.total.area_um2:,.0f}"]
        counts = [f"{getattr(block.total, kind):,}" for _, kind in kinds]
        # Columns that are empty for a block stay empty.
        table.add_row(
            Text("  " * block.depth + name),
            str(block.count) if block.depth else "",
            f"{getattr(block.each, measure):,.0f}" if block.count > 1 else "",
            *area,
            *("" if count == "0" else count for count in counts),
            f"{100 * size / whole:.1f} %",
        )
    if done.total is not None:
        table.add_section()
        table.add_row(
            Text("mapped as one"),
            "",
            "",
            *([] if not by_area else [f"{done.total.area_um2:,.0f}"]),
            *(f"{getattr(done.total, kind):,}" for _, kind in kinds),
            f"{100 * getattr(done.total, measure) / whole:.1f} %",
        )
    return table


def _in_order(blocks: list[Block], measure: str) -> list[Block]:
    """Return the blocks as a tree, the largest of each level first."""
    size = {block.place: getattr(block.total, measure) for block in blocks}

    def key(block: Block) -> list[tuple[float, str]]:
        names = block.place.split(".") if block.place else []
        places = [".".join(names[: end + 1]) for end in range(len(names))]
        return [(-size.get(place, 0.0), place) for place in places]

    return sorted(blocks, key=key)


def _clock(synthesised: CoreSynthesis) -> list[RenderableType]:
    document = synthesised.document()["routed"]
    runs = synthesised.synthesis.routed
    clocks, path = document["fmax_mhz"], document["critical_path"]
    lines = [
        f"Fmax {clocks['median']:.1f} MHz (median; {clocks['min']:.1f} to {clocks['max']:.1f} MHz over {len(runs)} "
        f"seed{'s' if len(runs) > 1 else ''})"
    ]
    table = table_of(
        f"Critical path of seed {path['seed']}: {path['logic_ns'] + path['routing_ns']:.2f} ns, "
        f"{path['logic_ns']:.2f} in cells and {path['routing_ns']:.2f} on wires",
        ["from the register " + path["from"] + " to"],
        ["cells", "logic ns", "wires ns"],
    )
    for step in path["steps"]:
        table.add_row(Text(step["at"]), str(step["cells"]), f"{step['logic_ns']:.2f}", f"{step['routing_ns']:.2f}")
    arrivals = table_of(
        "Slowest ways into registers, in ns after the clock's edge", ["register, all of its name"], ["ns"]
    )
    for register, ns in list(document["arrivals_ns"].items())[:_ARRIVALS]:
        arrivals.add_row(Text(register), f"{ns:.2f}")
    return [*lines, table, arrivals]


def _site(kind: str, used: int, available: int) -> str:
    return f"{kind} {used:,} of {available:,} ({100 * used / available:.1f} %)"


def _findings(synthesised: CoreSynthesis) -> list[RenderableType]:
    shown, counts = listed(synthesised.synthesis.findings)
    if not shown:
        so_far = "" if synthesised.synthesis.total is not None else " so far"
        return [f"Guards: nothing found{so_far} ({', '.join(GUARDS)})."]
    lines: list[RenderableType] = [
        f"Guards found {sum(counts.values())}: " + ", ".join(f"{count} of {name}" for name, count in counts.items())
    ]
    lines += [f"  {finding.guard}: {finding.where}: {finding.what}" for finding in shown]
    return lines
