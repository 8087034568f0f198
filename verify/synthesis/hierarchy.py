"""Modules of a SystemVerilog file: which instantiates which, and where a line of it comes from.

Only the plain subset that the translation writes is understood: instances without parameters, one module after
the other. yosys reads the text itself; this is for its order and for names in reports.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Module:
    """One module of the file."""

    name: str
    #: First line of the file that belongs to it, from 1.
    line: int
    #: Instances in order: their names and their modules.
    instances: tuple[tuple[str, str], ...]
    #: Constants, which yosys takes for parameters of a module that it has already read.
    constants: tuple[str, ...]


@dataclass(frozen=True)
class Design:
    """A SystemVerilog text and its top module.

    Raises
    ------
    ValueError
        The top is not the name of a module in the text.
    """

    text: str
    top: str

    def __post_init__(self) -> None:
        if self.top not in self.modules:
            raise ValueError(
                f"There is no module '{self.top}' in the design; it has {', '.join(self.modules) or 'none'}."
            )

    @cached_property
    def modules(self) -> dict[str, Module]:
        """Modules by name, in the order of the text."""
        found = list(re.finditer(r"^\s*module\s+(\w+)\b(.*?)\bendmodule\b", self.text, re.MULTILINE | re.DOTALL))
        names = {match[1] for match in found}
        modules = {}
        for match in found:
            body = re.sub(r"//.*", "", match[2])
            instances = re.findall(r"(?:^|;)\s*(\w+)\s+(\w+)\s*\(", body, re.MULTILINE)
            modules[match[1]] = Module(
                match[1],
                self.text.count("\n", 0, match.start(1)) + 1,
                tuple((name, module) for module, name in instances if module in names),
                tuple(re.findall(r"\blocalparam\b[^=;]*?(\w+)\s*=", body)),
            )
        return modules

    def bottom_up(self) -> list[Module]:
        """Return the modules that the top needs, each after those that it instantiates."""
        order: dict[str, Module] = {}

        def visit(name: str) -> None:
            if name not in order:
                for _, child in self.modules[name].instances:
                    visit(child)
                order[name] = self.modules[name]

        visit(self.top)
        return list(order.values())

    def instances(self) -> dict[str, str]:
        """Return the module of every instance below the top, by its path such as ``column[0].pe[1]``."""
        paths: dict[str, str] = {}

        def visit(prefix: str, name: str) -> None:
            for instance, child in self.modules[name].instances:
                path = f"{prefix}{instance}"
                paths[readable(path)] = child
                visit(path + ".", child)

        visit("", self.top)
        return paths

    def source(self, line: int) -> str:
        """Return where a line of the text comes from, such as ``PERTL, accel/pe/PERTL.py:45``.

        It is the module's name without its parameters, and the file and line of the update block if the
        translation has written one above it.
        """
        starts = [(module.line, module.name) for module in self.modules.values()]
        place = bisect.bisect_right(starts, (line, "\uffff")) - 1
        if place < 0:
            return f"line {line}"
        start, name = starts[place]
        blocks = [at for at in self._blocks if start <= at[0] <= line]
        block = blocks[-1][1] if blocks else ""
        name = name.partition("__")[0]
        return f"{name}, {block}" if block else f"{name}, line {line}"

    @cached_property
    def _blocks(self) -> list[tuple[int, str]]:
        lines = self.text.splitlines()
        return [
            (number, found[1])
            for number, line in enumerate(lines, start=1)
            if (found := re.match(r"\s*// At (\S+\.py:\d+)\s*$", line))
        ]


def readable(path: str) -> str:
    """Return a path of the netlist in the generator's own names: ``column__0.pe__1`` is ``column[0].pe[1]``.

    A variable of an update block is called after both: ``up_total_product`` is ``product`` in ``up_total``.
    """
    path = path.replace("\\", "").replace("__tmpvar__", "")
    return re.sub(r"__(\d+)(?=\.|\[|$|__\d)", r"[\1]", path)
