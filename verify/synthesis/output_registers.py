"""Moves registers behind memories and multipliers into those blocks, which have output registers of their own.

yosys leaves them outside. On ECP5, speed grade 6, a block RAM gives its word 5.8 ns after the clock, and 1.0 ns
with its output register (nextpnr's figures); so what comes next is a wire from that register, not to it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OutputRegister:
    """Output registers that a kind of block has."""

    #: Kind of the block.
    cell: str
    #: Pattern for its outputs, which have them all or none.
    outputs: str
    #: Its clock; also where it goes, if the block has had none.
    clock: str
    #: Parameters that put the registers in.
    parameters: Mapping[str, str]
    #: Inputs that the registers have, and the constant that each gets.
    constants: Mapping[str, str] = field(default_factory=dict)


#: Kind of a flip-flop on ECP5.
FLIP_FLOP = "TRELLIS_FF"


def move_registers(module: dict[str, Any], blocks: tuple[OutputRegister, ...]) -> int:
    """Move registers into the blocks of a mapped module, in place; returns how many flip-flops are gone.

    Only where every output of a block that is used feeds one flip-flop and nothing else, and these have the block's
    clock, no enable and no reset. A block that yosys has named itself takes the name of one of them.

    Parameters
    ----------
    module : a module of the JSON object that yosys's ``write_json`` writes.
    """
    cells = module["cells"]
    readers = _readers(module)
    gone = 0
    for block_name, cell in list(cells.items()):
        for block in blocks:
            if cell["type"] != block.cell:
                continue
            found = _flip_flops(cell, block, cells, readers)
            if not found:
                continue
            clock = cells[found[0][1]]["connections"]["CLK"]
            if cell["connections"].get(block.clock, clock) != clock:
                continue
            for port, name in found:
                cell["connections"][port] = cells.pop(name)["connections"]["Q"]
            cell["parameters"].update(block.parameters)
            for port, value in {block.clock: clock, **{p: [v] for p, v in block.constants.items()}}.items():
                cell["connections"][port] = value
                cell["port_directions"][port] = "input"
            if block_name.startswith("$"):
                cells[found[0][1]] = cells.pop(block_name)
            gone += len(found)
    return gone


def _readers(module: dict[str, Any]) -> dict[int | str, list[tuple[str, str]]]:
    """Cells and ports that each net goes to; outputs of the module have the cell ''."""
    readers: dict[int | str, list[tuple[str, str]]] = defaultdict(list)
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    readers[bit].append((name, port))
    for port in module["ports"].values():
        if port["direction"] != "input":
            for bit in port["bits"]:
                readers[bit].append(("", ""))
    return readers


def _flip_flops(
    cell: dict[str, Any],
    block: OutputRegister,
    cells: dict[str, Any],
    readers: Mapping[int | str, list[tuple[str, str]]],
) -> list[tuple[str, str]]:
    """Outputs in use and the flip-flop behind each; nothing unless all can move."""
    found = []
    for port, bits in cell["connections"].items():
        if not re.fullmatch(block.outputs, port) or not readers.get(bits[0]):
            continue
        if len(readers[bits[0]]) > 1:
            return []
        ((name, to),) = readers[bits[0]]
        if not name or to not in ("DI", "M") or not _plain(cells[name]):
            return []
        found.append((port, name))
    clocks = {cells[name]["connections"]["CLK"][0] for _, name in found}
    return found if len(clocks) == 1 else []


def _plain(cell: dict[str, Any]) -> bool:
    """Whether a cell is a flip-flop that always takes its input at the rising edge, and is not reset."""
    parameters = {name: value.strip() for name, value in cell["parameters"].items()}
    return (
        cell["type"] == FLIP_FLOP
        and parameters.get("CEMUX") == "1"
        and parameters.get("CLKMUX", "CLK") == "CLK"
        and cell["connections"].get("LSR", ["0"]) in ([], ["0"])
    )
