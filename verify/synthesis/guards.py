"""Defects of a netlist that simulation does not show: each guard names what it found and where.

Guards look at the design after yosys has read it and simplified it, so they see the hardware that is built and not
how it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from verify.synthesis.expectations import Expectations
from verify.synthesis.hierarchy import Design, readable
from verify.synthesis.inspection import Cell, Inspection
from verify.synthesis.targets import Target

#: Guards by name, with what each looks for.
GUARDS = {
    "latch": "no latch is inferred",
    "loop": "no combinational loop",
    "drivers": "every net has one driver",
    "constant": "no register and no output is stuck, but for those that the configuration explains",
    "multiplier width": "no multiplier is wider than its operands need",
    "multiplier count": "every lane and every scale unit has its multiplier",
    "block RAM": "large memories are block RAM",
    "lint": "Verilator -Wall is silent, but for waivers with a reason",
}

#: Findings of one guard that are listed in full; the rest is counted.
_LISTED = 20


@dataclass(frozen=True)
class Finding:
    """Something that should not be in the netlist."""

    #: Name in `GUARDS`.
    guard: str
    #: Path in the core and source, such as ``column[0].pe[1].acc (PERTL, accel/pe/PERTL.py:72)``.
    where: str
    #: What is wrong there, as a sentence.
    what: str

    def document(self) -> dict[str, str]:
        """Return the JSON object of the finding."""
        return {"guard": self.guard, "where": self.where, "what": self.what}


def check_design(design: Design, inspection: Inspection, expected: Expectations) -> list[Finding]:
    """Return what the guards find in a design before it is mapped."""
    findings = [
        *_loops_and_drivers(design, inspection.text("check.log")),
        *_latches(design, inspection.cells("latches.il")),
        *_constants(design, inspection, expected),
        *_multipliers(design, inspection.cells("multipliers.il"), expected),
    ]
    return findings


def check_memories(inspection: Inspection, log: str, target: Target, expected: Expectations) -> list[Finding]:
    """Return the memories that should be block RAM and are not: the configuration's, and any other that is as large.

    Parameters
    ----------
    log : what yosys printed when it mapped the flattened design.
    """
    if target.block_ram_from is None:
        return []
    least_words, least_bits = target.block_ram_from
    used = dict(re.findall(r"^mapping memory \w+\.(\S+) via (\S+)", log, re.MULTILINE))
    used.update(dict.fromkeys(re.findall(r"^using FF mapping for memory \w+\.(\S+)", log, re.MULTILINE), "flip-flops"))
    mapped = {readable(path): kind for path, kind in used.items()}
    sizes = {memory.path: (memory.words, memory.width) for memory in expected.memories}
    sizes.update(inspection.memories())
    findings = []
    for path, (words, width) in sizes.items():
        if words < least_words or words * width < least_bits:
            continue
        kind = mapped.get(path, "single registers, for it is no memory of the netlist")
        if not re.fullmatch(target.block_ram, kind):
            what = f"A memory of {words} words of {width} bits was mapped to {kind.strip('$_')}, not to block RAM."
            findings.append(Finding("block RAM", path, what))
    return findings


def listed(findings: Iterable[Finding]) -> tuple[list[Finding], dict[str, int]]:
    """Return at most 20 findings of each guard, and how many there are of each."""
    counts: dict[str, int] = {}
    shown = []
    for finding in findings:
        counts[finding.guard] = counts.get(finding.guard, 0) + 1
        if counts[finding.guard] <= _LISTED:
            shown.append(finding)
    return shown, counts


def _loops_and_drivers(design: Design, log: str) -> list[Finding]:
    findings = []
    bits = _Bits(design)
    for report in re.split(r"^Warning: ", log, flags=re.MULTILINE)[1:]:
        first, *rest = report.splitlines()
        rest = [line.strip() for line in rest if line.startswith("    ")]
        if first.startswith("found logic loop"):
            wires = [line for line in rest if line.startswith("wire ")]
            nets = list(dict.fromkeys(_net(line.split(" source:")[0].removeprefix("wire ")) for line in wires))
            kinds = set(re.findall(r"\(\$(\w+)\)", report))
            # A value that an always_comb block keeps when it is not assigned goes through multiplexers to itself.
            if kinds <= {"mux", "pmux", "buf"} and len(nets) == 1:
                bits.add("latch", nets[0], _line(report), "{} keeps its value where it is not assigned: a latch.")
            else:
                where = _place(design, nets[0] if nets else "an unnamed net", _line(report))
                what = f"A combinational loop goes through {', '.join(nets) or 'unnamed nets'}."
                findings.append(Finding("loop", where, what))
        elif first.startswith("multiple conflicting drivers"):
            net = _net(first.partition(" for ")[2].rstrip(":").partition(".")[2])
            cells = [found[1] for line in rest if (found := re.search(r"of (cell \S+|module input \S+)", line))]
            bits.add(
                "drivers", net, 0, f"{{}} has {len(rest)} drivers: {', '.join(dict.fromkeys(cells)) or 'constants'}."
            )
        elif "has no driver" in first:
            net = _net(first.partition("Wire ")[2].partition(" is used")[0].partition(".")[2])
            bits.add("drivers", net, 0, "{} is used but has no driver.")
        else:
            findings.append(Finding("drivers", design.top, f"yosys says: {first}"))
    return findings + bits.findings()


def _latches(design: Design, cells: list[Cell]) -> list[Finding]:
    bits = _Bits(design)
    for cell in cells:
        bits.add("latch", _net(cell.ports["Q"]), cell.line, "{} is a latch.")
    return bits.findings()


def _constants(design: Design, inspection: Inspection, expected: Expectations) -> list[Finding]:
    bits = _Bits(design)
    for cell in inspection.cells("registers.il"):
        given, net = cell.ports["D"], _net(cell.ports["Q"])
        value = _stuck_at(cell.type, given, given == cell.ports["Q"])
        if value is not None and not expected.may_be_constant(net):
            bits.add("constant", net, cell.line, f"The register {{}} {value}.")
    for cell in inspection.cells("outputs.il"):
        given, net = cell.ports["I"], _net(cell.ports["O"])
        if re.fullmatch(r"1'[01xz]", given) and not expected.may_be_constant(net):
            value = "is not driven" if given[-1] in "xz" else f"is always {given[-1]}"
            bits.add("constant", net, 0, f"The output {{}} {value}.")
    return bits.findings()


class _Bits:
    """Findings on single bits, which become one for each net."""

    def __init__(self, design: Design) -> None:
        self._design = design
        self._bits: dict[tuple[str, str, int, str], list[int]] = {}

    def add(self, guard: str, net: str, line: int, sentence: str) -> None:
        """Take down a bit; the sentence has ``{}`` for the net with all its bits."""
        name, index = _split(net)
        self._bits.setdefault((guard, name, line, sentence), []).append(index)

    def findings(self) -> list[Finding]:
        """Return a finding for each net and sentence."""
        return [
            Finding(guard, _place(self._design, name, line), sentence.format(name + _ranges(indices)))
            for (guard, name, line, sentence), indices in self._bits.items()
        ]


def _split(net: str) -> tuple[str, int]:
    """Return the net of a bit and the bit's index, -1 for a net of one bit."""
    match = re.fullmatch(r"(.*)\[(\d+)\]", net)
    return (match[1], int(match[2])) if match else (net, -1)


def _ranges(bits: list[int]) -> str:
    """Return indices as Verilog writes them, neighbours joined: ``[43:41,5]``."""
    if bits == [-1]:
        return ""
    parts: list[list[int]] = []
    for bit in sorted(bits, reverse=True):
        if parts and parts[-1][-1] == bit + 1:
            parts[-1][1:] = [bit]
        else:
            parts.append([bit])
    return "[" + ",".join(":".join(map(str, part)) for part in parts) + "]"


def _stuck_at(kind: str, given: str, keeps: bool) -> str | None:
    """Say at what a bit of a register is stuck, or return None if it is not.

    A register that resets to another value than the constant that it takes is a flag, and not stuck.
    """
    # $_SDFFE_PP0P_: the third of the letters after the type is the value that reset gives.
    match = re.fullmatch(r"\$_(S?A?L?DFFC?E?)_(\w+)_", kind)
    assert match is not None, kind
    letters = match[2]
    reset = next((letter for letter in letters if letter in "01"), None)
    if keeps:
        return "is never written" if reset is None else f"is always {reset}"
    constant = re.fullmatch(r"1'([01xz])", given)
    if constant is None or (reset is not None and reset != constant[1]):
        return None
    return "takes an undefined value" if constant[1] in "xz" else f"is always {constant[1]}"


def _multipliers(design: Design, cells: list[Cell], expected: Expectations) -> list[Finding]:
    findings = []
    lanes = scales = 0
    for cell in cells:
        if cell.type != "$mul":
            continue
        widths = sorted((cell.number("A_WIDTH"), cell.number("B_WIDTH")))
        if any(_fits(widths, lane) for lane in expected.lane_widths):
            lanes += 1
        else:
            scales += 1
            if not _fits(widths, expected.scale_widths):
                net = _net(cell.ports["Y"].strip("{ ").partition(" ")[0])
                what = (
                    f"A multiplier of {cell.number('A_WIDTH')} × {cell.number('B_WIDTH')} bits feeds {net}; a lane "
                    f"needs {_lane(expected)} and a scale unit {_times(expected.scale_widths)}."
                )
                findings.append(Finding("multiplier width", _place(design, net, cell.line), what))
    for name, found, needed, operands in (
        ("of the lanes", lanes, expected.lane_multipliers, _lane(expected)),
        ("of the scale units", scales, expected.scale_multipliers, _times(expected.scale_widths)),
    ):
        if found < needed:
            what = (
                f"There are {needed} multipliers {name} to be found, of {operands} bits, but the netlist has {found}."
            )
            findings.append(Finding("multiplier count", design.top, what))
    return findings


def _fits(widths: list[int], needed: tuple[int, int]) -> bool:
    low, high = sorted(needed)
    return widths[0] <= low and widths[1] <= high


def _lane(expected: Expectations) -> str:
    return " and ".join(map(_times, expected.lane_widths))


def _times(widths: tuple[int, int]) -> str:
    return f"{widths[0]} × {widths[1]}"


def _net(text: str) -> str:
    """Return a net of RTLIL in the generator's own names: ``\\column__0.pe__1.acc [3]`` is column[0].pe[1].acc[3]."""
    name, _, index = text.strip().partition(" ")
    return readable(name) + index


def _line(text: str) -> int:
    """Return the first line of the design that a report of yosys names, or 0."""
    match = re.search(r"design\.sv:(\d+)", text)
    return int(match[1]) if match else 0


def _place(design: Design, net: str, line: int) -> str:
    return f"{net} ({design.source(line)})" if line else net
