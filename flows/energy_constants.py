"""The stated constants of the energy model, from energy.toml, each with its source and what it assumes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("energy.toml")

#: Where a constant belongs to in energy.toml.
FPGA, CELLS, EXTERNAL = "fpga", "cells", "external"

#: Everything that a Liberty file states, as one constant of `doubled`.
LIBRARY = "library"


@dataclass(frozen=True)
class Constant:
    """An energy that was not measured."""

    #: Such as ``fpga.net_toggle``.
    name: str
    pj: float
    source: str
    assumption: str

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the constant."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Constants:
    """Those that a model uses, by name."""

    values: Mapping[str, Constant]
    #: What the energies of a Liberty file's cells are multiplied with.
    library_factor: float = 1.0

    def pj(self, name: str) -> float:
        """Return a constant's energy."""
        return self.values[name].pj

    def doubled(self, name: str) -> Constants:
        """Return the same constants with one of them twice as large."""
        if name == LIBRARY:
            return dataclasses.replace(self, library_factor=2 * self.library_factor)
        twice = dataclasses.replace(self.values[name], pj=2 * self.values[name].pj)
        return dataclasses.replace(self, values={**self.values, name: twice})

    def of(self, memory: str, *, cells: bool) -> Constants:
        """Return those of a memory outside the chip, and of standard cells or of an FPGA.

        Raises
        ------
        ValueError
            There is no constant of that memory.
        """
        outside = f"{EXTERNAL}.{memory}"
        if outside not in self.values:
            known = [name.partition(".")[2] for name in self.values if name.startswith(EXTERNAL)]
            raise ValueError(f"There is no energy of a memory named {memory!r}; there are {', '.join(known)}.")
        kind = CELLS if cells else FPGA
        return Constants(
            {name: value for name, value in self.values.items() if name.partition(".")[0] == kind or name == outside}
        )


@cache
def read_constants() -> Constants:
    """Read energy.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    document = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return Constants(
        {
            f"{kind}.{name}": Constant(f"{kind}.{name}", **fields)
            for kind, constants in document.items()
            for name, fields in constants.items()
        }
    )
