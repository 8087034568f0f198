"""Standard cells in a Liberty file: what a core takes of them, in µm² and in NAND2s, and how fast it is.

yosys maps flip-flops to the file's and abc the logic between them; abc states the delay of the slowest way by the
file's tables, without wires. Memories of `MACRO_WORDS` words and more are left for macros: their bits are counted,
and their area is not in the sum.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from verify.synthesis.mapping import Mapped
from verify.synthesis.targets import MACRO_WORDS, Resources, Target

#: What abc does: yosys's own recipe for Liberty files with a constraint, but with no load and no driving cell, whose
#: figures nobody has given. The last command writes the delay to a file, because YoWASP's abc loses what it prints.
_ABC = ";".join(
    (
        *("strash", "&get,-n", "&fraig,-x", "&put", "scorr", "dc2", "dch,-f", "strash", "&get,-n", "&dch,-f", "&nf"),
        *("&put", "buffer", "upsize", "dnsize", "stime,-d"),
    )
)


@dataclass(frozen=True)
class Liberty:
    """A Liberty file that can be mapped to."""

    path: Path
    #: Name of the library in it.
    name: str
    #: Area of each cell, in µm².
    areas: dict[str, float]
    #: Flip-flops among them.
    flip_flops: frozenset[str]
    #: Area of the smallest NAND2, in µm².
    nand2_area: float
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def target(self) -> Target:
        """Return the target that the file makes."""
        return Target(
            name="liberty",
            title=f"the cells of {self.name}",
            steps=(
                "synth -run begin:fine -top {top}",
                "opt -fast -full",
                f"memory_map t:$mem_v2 r:SIZE<{MACRO_WORDS} %i",
                *("opt -full", "techmap", "opt -fast", "dfflibmap -liberty cells.lib", "opt -fast"),
                f"abc -liberty cells.lib -script +{_ABC}",
                "clean",
            ),
            cells=(
                *(
                    (re.escape(cell), Resources(ff=int(cell in self.flip_flops), area_um2=area))
                    for cell, area in self.areas.items()
                ),
                (r"\$mem\w*|\$scopeinfo", Resources()),
            ),
            files={"cells.lib": self.text},
            abc9=False,
        )


def read_liberty(path: Path) -> Liberty:
    """Read a Liberty file.

    Raises
    ------
    ValueError
        It is not a Liberty library, a cell has no area, or it has no NAND2, no inverter or no flip-flop.
    OSError
        It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a Liberty file: byte {error.start} is not part of any UTF-8 text.") from None
    plain = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    library = re.search(r"\blibrary\s*\(\s*\"?([\w.$-]+)\"?\s*\)\s*\{", plain)
    if library is None:
        raise ValueError(f"{path} is not a Liberty file: it has no 'library (name) {{ … }}'.")
    cells = {
        match[1]: _group(plain, match.end(), path)
        for match in re.finditer(r"\bcell\s*\(\s*\"?([\w.$-]+)\"?\s*\)\s*\{", plain)
    }
    areas = {}
    for name, body in cells.items():
        area = re.search(r"\barea\s*:\s*\"?([\d.eE+-]+)\"?\s*;", body)
        if area is None:
            raise ValueError(f"{path}: the cell '{name}' has no area.")
        areas[name] = float(area[1])
    flip_flops = frozenset(name for name, body in cells.items() if re.search(r"\bff\s*\(", body))
    functions = {name: _function(body) for name, body in cells.items() if name not in flip_flops}
    nands = [areas[name] for name, function in functions.items() if function == "nand2"]
    for what, there in (
        ("2-input NAND, whose area is the unit of gate equivalents", bool(nands)),
        ("inverter", "inverter" in functions.values()),
        ("flip-flop", bool(flip_flops)),
    ):
        if not there:
            raise ValueError(f"{path}: the library '{library[1]}' of {len(cells)} cells has no {what}.")
    if min(nands) <= 0:
        raise ValueError(f"{path}: the area of the 2-input NAND is {min(nands):g} µm², which is no unit.")
    return Liberty(path, library[1], areas, flip_flops, min(nands), text)


def delay_ps(mapped: Mapped) -> float:
    """Return the delay of the slowest way between registers of a flattened netlist, in ps.

    It is by the file's tables, without wires, and without a load on outputs.
    """
    # Name, inputs, outputs, cells, area and delay.
    return float((mapped.folder / "stats.txt").read_text(encoding="utf-8").split()[-1])


def _group(text: str, start: int, path: Path) -> str:
    """Return what stands between the brace before `start` and the one that closes it."""
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start : start + match.start()]
    raise ValueError(f"{path} is not a Liberty file: a brace is never closed.")


def _function(body: str) -> str:
    """Return ``nand2`` or ``inverter`` for a cell that is one, else an empty string."""
    functions = re.findall(r"\bfunction\s*:\s*\"([^\"]*)\"", body)
    if len(functions) != 1:
        return ""
    inputs = sorted(set(re.findall(r"[A-Za-z_]\w*", functions[0])))
    if len(inputs) not in (1, 2):
        return ""
    rows = itertools.product((False, True), repeat=len(inputs))
    table = [_value(functions[0], dict(zip(inputs, row, strict=True))) for row in rows]
    return {(True, False): "inverter", (True, True, True, False): "nand2"}.get(tuple(table), "")


def _value(function: str, inputs: dict[str, bool]) -> bool:
    """Return the value of a function of Liberty: ``!``, ``'``, ``*``, ``&``, a blank, ``+``, ``|``, ``^``."""
    tokens = re.findall(r"[A-Za-z_]\w*|[01]|[!'*&+|^()]", function)
    at = 0

    def peek() -> str:
        return tokens[at] if at < len(tokens) else ""

    def take() -> str:
        nonlocal at
        at += 1
        return tokens[at - 1] if at <= len(tokens) else ""

    def atom() -> bool:
        token = take()
        if token == "!":
            return not atom()
        if token == "(":
            value = either()
            take()
        else:
            value = token == "1" or inputs.get(token, False)
        while peek() == "'":
            take()
            value = not value
        return value

    def unequal() -> bool:
        value = atom()
        while peek() == "^":
            take()
            value ^= atom()
        return value

    def both() -> bool:
        value = unequal()
        while peek() and peek() not in "+|)":
            if peek() in "*&":
                take()
            value &= unequal()
        return value

    def either() -> bool:
        value = both()
        while peek() and peek() in "+|":
            take()
            value |= both()
        return value

    return either()
