"""Energies of standard cells, from what a Liberty file states: capacitances of pins, voltage, internal energies.

A change of a cell's output takes the mean of its internal energies, and half of C·V² of the pins behind it. Which
pins these are is not looked up: each output of a block drives the mean input capacitance of the block's outputs. A
clock pin takes C·V² in every cycle, and its internal energies of both edges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from verify.synthesis.liberty import Liberty

_PICOFARADS = {"ff": 1e-3, "pf": 1.0, "nf": 1e3}


@dataclass(frozen=True)
class CellEnergy:
    """One cell, in pJ and pF."""

    #: Internal energy of one change of all its outputs; 0 where the file states none.
    internal_pj: float
    #: Of its clock pin, in one cycle; 0 for a cell without.
    clock_pj: float
    #: Capacitance of its inputs, the clock not among them.
    input_pf: float
    outputs: int


@dataclass(frozen=True)
class BlockCells:
    """The cells of one instance of a block, in pJ."""

    #: Of one cycle's clock.
    clock_pj: float = 0.0
    #: Of one change of every flip-flop's output, and of one change of every other cell's.
    register_toggle_pj: float = 0.0
    logic_toggle_pj: float = 0.0


@dataclass(frozen=True)
class CellLibrary:
    """A Liberty file's energies."""

    volts: float
    cells: Mapping[str, CellEnergy]
    flip_flops: frozenset[str]

    def block(self, counts: Mapping[str, int]) -> BlockCells:
        """Return the energies of a block's own cells; what the library lacks are instances of other blocks."""
        known = {name: count for name, count in counts.items() if name in self.cells}
        outputs = sum(count * self.cells[name].outputs for name, count in known.items())
        inputs = sum(count * self.cells[name].input_pf for name, count in known.items())
        load = 0.5 * self.volts**2 * inputs / outputs if outputs else 0.0
        toggle = {name: cell.internal_pj + load * cell.outputs for name, cell in self.cells.items()}
        return BlockCells(
            clock_pj=sum(count * self.cells[name].clock_pj for name, count in known.items()),
            register_toggle_pj=sum(count * toggle[name] for name, count in known.items() if name in self.flip_flops),
            logic_toggle_pj=sum(count * toggle[name] for name, count in known.items() if name not in self.flip_flops),
        )


def cell_library(library: Liberty) -> CellLibrary:
    """Read the energies of a Liberty file's cells.

    Raises
    ------
    ValueError
        The file states no nominal voltage or no unit of capacitance, without which nothing has an energy.
    """
    text = re.sub(r"/\*.*?\*/", " ", library.text, flags=re.DOTALL)
    voltage = re.search(r"\bnom_voltage\s*:\s*([\d.eE+-]+)", text)
    unit = re.search(r"\bcapacitive_load_unit\s*\(\s*([\d.eE+-]+)\s*,\s*\"?([fpn]f)\"?\s*\)", text, re.IGNORECASE)
    if voltage is None or unit is None:
        missing = "nom_voltage" if voltage is None else "capacitive_load_unit"
        raise ValueError(f"{library.path}: the library '{library.name}' has no {missing}; no energy follows from it.")
    volts = float(voltage[1])
    picofarads = float(unit[1]) * _PICOFARADS[unit[2].lower()]
    # The unit of internal energy is that of capacitance times that of voltage squared.
    step = re.search(r"\bvoltage_unit\s*:\s*\"?\s*([\d.]+)\s*(m?)V", text)
    volt_unit = float(step[1]) * (1e-3 if step[2] else 1.0) if step else 1.0
    cells = {
        match[1]: _cell(_body(text, match.end()), volts, picofarads, picofarads * volt_unit**2)
        for match in re.finditer(r"\bcell\s*\(\s*\"?([\w.$-]+)\"?\s*\)\s*\{", text)
    }
    return CellLibrary(volts, cells, library.flip_flops)


def _cell(body: str, volts: float, picofarads: float, picojoules: float) -> CellEnergy:
    clocked = re.search(r"\bclocked_on\s*:\s*\"([^\"]*)\"", body)
    clock = re.sub(r"\W", "", clocked[1]) if clocked else ""
    clock_pj = internal_pj = input_pf = 0.0
    outputs = 0
    for match in re.finditer(r"\bpin\s*\(\s*\"?(\w+)\"?\s*\)\s*\{", body):
        pin = _body(body, match.end())
        internal = _mean_internal(pin) * picojoules
        if re.search(r"\bdirection\s*:\s*\"?output", pin):
            outputs += 1
            internal_pj += internal
            continue
        found = re.search(r"\bcapacitance\s*:\s*([\d.eE+-]+)", pin)
        capacitance = float(found[1]) * picofarads if found else 0.0
        if match[1] == clock:
            clock_pj += capacitance * volts**2 + 2 * internal
        else:
            input_pf += capacitance
    return CellEnergy(internal_pj, clock_pj, input_pf, outputs)


def _mean_internal(pin: str) -> float:
    """Return the mean of all internal energies of a pin, in the library's unit; 0 if there are none."""
    values = [
        float(value)
        for match in re.finditer(r"\binternal_power\s*\([^)]*\)\s*\{", pin)
        for table in re.findall(r"\bvalues\s*\(([^)]*)\)", _body(pin, match.end()))
        for value in re.findall(r"[-+]?\d[\d.]*(?:[eE][-+]?\d+)?", table)
    ]
    return sum(values) / len(values) if values else 0.0


def _body(text: str, start: int) -> str:
    """Return what stands between the brace before `start` and the one that closes it."""
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            break
    return text[start : start + match.start()]
