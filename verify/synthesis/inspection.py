"""What yosys finds in a design before it is mapped: its loops, latches, drivers, multipliers and stuck registers.

The design is read as one module and simplified without losing a register, so that each finding has a path in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verify.synthesis.hierarchy import Design, readable
from verify.synthesis.mapping import read_flat, without_comments
from verify.synthesis.store import stored
from verify.synthesis.tools import Deadline, SynthesisTool, run_tool

#: Raised when the files that are read change.
_RECIPE = 1

_FILES = ("check.log", "latches.il", "registers.il", "multipliers.il", "memories.il", "outputs.il")


@dataclass(frozen=True)
class Cell:
    """A cell of the simplified design."""

    type: str
    name: str
    #: Line of the design's text, or 0.
    line: int
    parameters: dict[str, str]
    ports: dict[str, str]

    def number(self, parameter: str) -> int:
        """Return the value of a parameter that is a decimal number."""
        return int(self.parameters[parameter])


@dataclass(frozen=True)
class Inspection:
    """Files that yosys wrote about a design."""

    folder: Path

    def text(self, name: str) -> str:
        """Return the text of a file."""
        return (self.folder / name).read_text(encoding="utf-8")

    def cells(self, name: str) -> list[Cell]:
        """Return the cells that a file lists."""
        return list(_cells(self.text(name)))

    def memories(self) -> dict[str, tuple[int, int]]:
        """Return the words and the width of each memory that the frontend has found, by path."""
        found = re.findall(r"^ *memory (?:width (\d+) )?size (\d+) (\S+)$", self.text("memories.il"), re.MULTILINE)
        # What is not written is 1.
        return {readable(path): (int(words), int(width or 1)) for width, words, path in found}


def inspect(design: Design, yosys: SynthesisTool, deadline: Deadline) -> Inspection:
    """Read and simplify a design, and write down what the guards look at.

    Raises
    ------
    SynthesisError
        yosys refused the design.
    TimeLimitError
        The deadline was reached.
    """
    script = [
        read_flat(design),
        "tee -q -o check.log check",
        "dump -o latches.il t:$dlatch t:$adlatch t:$dlatchsr t:$sr",
        # Before memories are collected: each is listed with its name.
        "dump -o memories.il m:*",
        "opt_expr",
        "opt_clean",
        # -keepdc: an undriven bit stays visible instead of becoming what suits best.
        "opt -full -keepdc",
        "wreduce -keepdc t:$mul",
        "opt_clean",
        "dump -o multipliers.il t:$mul t:$macc t:$macc_v2",
        # One cell for each bit of a register, and one for each bit of an output.
        "simplemap t:$dff t:$dffe t:$adff t:$adffe t:$sdff t:$sdffe t:$sdffce",
        "dump -o registers.il t:$_*DFF*_",
        "iopadmap -bits -outpad OUTPUT I:O",
        "opt_clean",
        "dump -o outputs.il t:OUTPUT",
    ]
    text = "\n".join(script) + "\n"
    key = {
        "recipe": _RECIPE,
        "design": without_comments(design.text),
        "script": text,
        "yosys": [yosys.version, yosys.origin],
    }

    def make(folder: Path) -> None:
        (folder / "design.sv").write_text(design.text, encoding="utf-8")
        (folder / "script.ys").write_text(text, encoding="utf-8")
        run_tool(yosys, ["-q", "script.ys"], folder, deadline, doing, f"the module {design.top}")
        for name in _FILES:
            (folder / name).touch()

    doing = "looking for defects"
    return Inspection(stored("inspection", key, make, deadline, doing))


def _cells(text: str) -> Iterator[Cell]:
    line = 0
    pattern = re.compile(r"attribute \\src \"[^\":]*:(\d+)|cell (\S+) (\S+)\n(.*?)\n *end$", re.MULTILINE | re.DOTALL)
    for match in pattern.finditer(text):
        if match[1]:
            line = int(match[1])
            continue
        body = match[4]
        yield Cell(
            match[2],
            match[3],
            line,
            dict(re.findall(r"parameter (?:signed )?\\(\S+) (.*)", body)),
            dict(re.findall(r"connect \\(\S+) (.*)", body)),
        )
        line = 0
