"""Counts the cells of a mapped netlist, for each module and for the whole tree."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from verify.synthesis.hierarchy import Design
from verify.synthesis.targets import Resources, Target


@dataclass(frozen=True)
class Block:
    """Instances of one module at one place of the tree, such as the PEs of all columns."""

    #: Place without numbers, such as ``column.pe``; the top is ``""``.
    place: str
    #: Name of the module.
    module: str
    #: Instances of it at that place.
    count: int
    #: One instance, with everything below it.
    each: Resources
    #: One instance, without what is below it.
    own: Resources

    @property
    def total(self) -> Resources:
        """All instances together."""
        return self.each.times(self.count)

    @property
    def depth(self) -> int:
        """How far below the top it lies."""
        return self.place.count(".") + 1 if self.place else 0


@dataclass(frozen=True)
class Statistics:
    """What yosys's ``stat -json`` says about each module."""

    #: Cells of each module by type, instances of other modules included.
    cells: Mapping[str, Mapping[str, int]]
    #: Bits of memories left in each module.
    memory_bits: Mapping[str, int]

    @classmethod
    def parse(cls, text: str) -> Statistics:
        """Read the text that ``stat -json`` has written."""
        modules = {name.lstrip("\\"): values for name, values in json.loads(text)["modules"].items()}
        return cls(
            {name: values["num_cells_by_type"] for name, values in modules.items()},
            {name: values["num_memory_bits"] for name, values in modules.items()},
        )

    def own(self, module: str, target: Target) -> Resources:
        """Return the resources of a module's own cells.

        Raises
        ------
        ValueError
            The netlist has a cell that the target does not know, so that a sum would be too small.
        """
        total = Resources(memory_bits=self.memory_bits[module])
        for cell, count in self.cells[module].items():
            if cell in self.cells:
                continue
            counted = target.resources(cell)
            if counted is None:
                raise ValueError(
                    f"yosys has mapped '{module}' to {count} cells '{cell}', of which it is not known what they "
                    f"take on {target.title}."
                )
            total += counted.times(count)
        return total

    def whole(self, module: str, target: Target) -> Resources:
        """Return the resources of a module with everything below it."""
        total = self.own(module, target)
        for cell, count in self.cells[module].items():
            if cell in self.cells:
                total += self.whole(cell, target).times(count)
        return total


def blocks_of(design: Design, statistics: Statistics, target: Target) -> list[Block]:
    """Return the blocks of a design in the order of its tree, from a netlist that has kept its hierarchy."""
    counts: dict[tuple[str, str], int] = {("", design.top): 1}
    for path, module in design.instances().items():
        place = re.sub(r"(\[\d+\])+", "", path)
        counts[place, module] = counts.get((place, module), 0) + 1
    for (place, module), count in list(counts.items()):
        # Parts of a module that were made modules of their own.
        for cell in statistics.cells.get(module, ()):
            if cell in statistics.cells and cell not in design.modules:
                counts[f"{place}.{cell.removeprefix(module + '_')}".lstrip("."), cell] = count
    return [
        Block(
            place,
            module,
            count,
            statistics.whole(module, target),
            statistics.own(module, target),
        )
        for (place, module), count in sorted(counts.items(), key=lambda item: item[0][0].split("."))
        # A module that optimisation has emptied may be gone.
        if module in statistics.cells
    ]
