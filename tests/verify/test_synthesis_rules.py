"""Our rules for ECP5: what they map computes the same, and takes few LUTs.

yosys puts its own models in the place of the mapped cells and writes them as gates, which are worked out here on many
inputs at once; what is expected is plain arithmetic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verify.synthesis.hierarchy import Design
from verify.synthesis.mapping import Multipliers, map_blocks
from verify.synthesis.targets import TARGETS
from verify.synthesis.tools import Deadline, SynthesisTool, run_tool

ECP5 = TARGETS["ecp5"]
LONG = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)

#: Up to so many input bits, all inputs are tried; beyond, random ones.
ALL_BITS = 13
RANDOM_INPUTS = 1 << 13

Ports = dict[str, np.ndarray]


class Block:
    """A small module: its ports' widths (outputs are `y`), what `y` is, what it computes, and most LUTs."""

    def __init__(
        self, name: str, ports: dict[str, str], y_bits: int, y: str, value: Callable[[Ports], Any], luts: int | None
    ) -> None:
        self.name, self.y_bits, self.value, self.luts = name, y_bits, value, luts
        self._ports = {name: f"input logic {declared}" for name, declared in ports.items()}
        self._ports["y"] = f"output logic [{y_bits - 1}:0] @"
        self.text = f"module {name}({self.ports('')});\n  assign y = {y};\nendmodule\n"
        pins = ", ".join(f".{port}({name}_{port})" for port in self._ports)
        self.instance = f"  {name} {name}_block({pins});\n"

    def ports(self, prefix: str) -> str:
        """Declarations of the ports, with a prefix to their names."""
        return ", ".join(declared.replace("@", prefix + port) for port, declared in self._ports.items())


def signed(values: np.ndarray, bits: int) -> np.ndarray:
    return values - (values >> (bits - 1) << bits)


def product(a_bits: int, b_bits: int, luts: int | None = None) -> Block:
    bits = a_bits + b_bits
    return Block(
        f"mul_{a_bits}x{b_bits}",
        {"a": f"signed [{a_bits - 1}:0] @", "b": f"signed [{b_bits - 1}:0] @"},
        bits,
        f"{bits}'(a) * {bits}'(b)",
        lambda ports: signed(ports["a"], a_bits) * signed(ports["b"], b_bits),
        luts,
    )


def product_of_bits(a_bits: int, b_bits: int, luts: int | None = None) -> Block:
    """As the generator's translation writes it: signs extended by hand, and the product cut off."""
    bits = a_bits + b_bits
    return Block(
        f"bits_{a_bits}x{b_bits}",
        {"a": f"[{a_bits - 1}:0] @", "b": f"[{b_bits - 1}:0] @"},
        bits,
        f"{{{{{b_bits}{{a[{a_bits - 1}]}}}}, a}} * {{{{{a_bits}{{b[{b_bits - 1}]}}}}, b}}",
        lambda ports: signed(ports["a"], a_bits) * signed(ports["b"], b_bits),
        luts,
    )


def unsigned_product(a_bits: int, b_bits: int) -> Block:
    bits = a_bits + b_bits
    return Block(
        f"unsigned_{a_bits}x{b_bits}",
        {"a": f"[{a_bits - 1}:0] @", "b": f"[{b_bits - 1}:0] @"},
        bits,
        f"{bits}'(a) * {bits}'(b)",
        lambda ports: ports["a"] * ports["b"],
        None,
    )


def low_part(a_bits: int, luts: int | None = None) -> Block:
    """A lane's multiplier by the lower two bits of a weight, as the generator's translation writes it."""
    bits = a_bits + 2
    return Block(
        f"low_{a_bits}",
        {"a": f"[{a_bits - 1}:0] @", "b": "[1:0] @"},
        bits,
        f"{{{{2{{a[{a_bits - 1}]}}}}, a}} * {{{a_bits}'d0, b}}",
        lambda ports: signed(ports["a"], a_bits) * ports["b"],
        luts,
    )


def multiplexer(inputs: int, luts: int | None, rising: bool = True, bits: int = 8) -> Block:
    """One of several words, in an array whose first word is its lowest or its highest."""
    select = max(1, (inputs - 1).bit_length())
    words = f"[0:{inputs - 1}]" if rising else f"[{inputs - 1}:0]"

    def value(ports: Ports) -> Any:
        # yosys makes one vector of an array, its first word the highest; there is nothing beyond the last one.
        index = np.minimum(ports["s"], inputs - 1)
        place = inputs - 1 - index if rising else index
        return ports["d"] >> (place * bits).astype(object) & ((1 << bits) - 1)

    return Block(
        f"mux_{inputs}_{bits}_{'up' if rising else 'down'}",
        {"d": f"[{bits - 1}:0] @ {words}", "s": f"[{select - 1}:0] @"},
        bits,
        f"d[s < {inputs} ? s : {inputs - 1}]" if inputs & (inputs - 1) and inputs != 5 else "d[s]",
        value,
        luts,
    )


def total(values: int, bits: int, luts: int | None) -> Block:
    """A sum of signed numbers."""
    y_bits = bits + (values - 1).bit_length()
    names = "abcdefgh"[:values]
    return Block(
        f"sum_{values}_{bits}",
        {name: f"signed [{bits - 1}:0] @" for name in names},
        y_bits,
        " + ".join(f"{y_bits}'({name})" for name in names),
        lambda ports: sum(signed(ports[name], bits) for name in names),
        luts,
    )


COUNTED = [
    product(8, 4, 32),
    product(8, 5, 42),
    product(4, 8, 32),
    product_of_bits(8, 5, 42),
    low_part(8, 10),
    product_of_bits(8, 3, 22),
    product_of_bits(8, 2, 10),
    product(4, 4),
    product(16, 5),
    product(5, 7),
    unsigned_product(8, 4),
    unsigned_product(5, 6),
    multiplexer(4, 20),
    multiplexer(5, 28),
    multiplexer(5, 28, rising=False),
    multiplexer(8, 36),
    multiplexer(16, 72),
    multiplexer(4, None, bits=4, rising=False),
    total(2, 13, 16),
    total(4, 13, 48),
]
WIDTHS = [
    *(product(*widths) for a in range(4, 17) for b in (4, 5) for widths in {(a, b), (b, a)}),
    *(product_of_bits(*widths) for a in range(4, 17) for b in (4, 5) for widths in {(a, b), (b, a)}),
    *(product_of_bits(a, b) for a in (4, 7, 16) for b in (2, 3)),
    *(low_part(a) for a in (4, 7, 16)),
    *(unsigned_product(a, b) for a in (4, 7) for b in (2, 3, 4, 5)),
    *(multiplexer(n, None, rising, bits) for n in (2, 4, 5, 8, 16) for rising in (True, False) for bits in (1, 4, 16)),
    *(total(values, bits, None) for values in (2, 3, 4, 8) for bits in (4, 9, 20)),
]


def check(blocks: list[Block], yosys: SynthesisTool, folder: Path) -> None:
    unique = {block.name: block for block in blocks}
    ports = ", ".join(block.ports(f"{block.name}_") for block in unique.values())
    top = f"module top({ports});\n" + "".join(block.instance for block in unique.values()) + "endmodule\n"
    design = Design("\n".join([block.text for block in unique.values()] + [top]), "top")
    mapped = map_blocks(design, ECP5, Multipliers("none"), yosys, Deadline(), 120.0)
    for block in unique.values():
        if block.luts is not None:
            luts = mapped.statistics.own(block.name, ECP5).lut
            assert luts <= block.luts, f"{block.name} takes {luts} LUTs"
    for name in ("design.sv", *ECP5.files):
        (folder / name).write_bytes((mapped.folder / name).read_bytes())
    script = (mapped.folder / "script.ys").read_text(encoding="utf-8")
    script += "techmap -map +/ecp5/cells_sim.v\ntechmap\nopt_clean\nblackbox =A:whitebox\nwrite_json gates.json\n"
    (folder / "gates.ys").write_text(script, encoding="utf-8")
    run_tool(yosys, ["-q", "gates.ys"], folder, Deadline(), "writing gates", "the module top")
    modules = json.loads((folder / "gates.json").read_text(encoding="utf-8"))["modules"]
    for block in unique.values():
        inputs, found = outputs(modules[block.name])
        assert (found == np.asarray(block.value(inputs)) % (1 << block.y_bits)).all(), block.name


GATES: dict[str, Callable[..., np.ndarray]] = {
    "$_NOT_": lambda A: ~A,
    "$_AND_": lambda A, B: A & B,
    "$_OR_": lambda A, B: A | B,
    "$_XOR_": lambda A, B: A ^ B,
    "$_MUX_": lambda A, B, S: (A & ~S) | (B & S),
}


def outputs(module: dict[str, Any]) -> tuple[Ports, np.ndarray]:
    """Inputs of a module of gates and its `y`, for all or many inputs."""
    ports = module["ports"]
    rng = np.random.default_rng(1)
    input_bits = [bit for port in ports.values() if port["direction"] == "input" for bit in port["bits"]]
    count = 1 << len(input_bits) if len(input_bits) <= ALL_BITS else RANDOM_INPUTS
    constant = np.zeros(count, bool)
    values = {"0": constant, "1": ~constant, "x": constant}
    for place, bit in enumerate(input_bits):
        if len(input_bits) <= ALL_BITS:
            values[bit] = (np.arange(count) >> place & 1).astype(bool)
        else:
            values[bit] = rng.integers(0, 2, count).astype(bool)
    waiting = list(module["cells"].values())
    while waiting:
        later = []
        for cell in waiting:
            pins = {name: bits[0] for name, bits in cell["connections"].items()}
            y = pins.pop("Y")
            if all(bit in values for bit in pins.values()):
                values[y] = GATES[cell["type"]](**{name: values[bit] for name, bit in pins.items()})
            else:
                later.append(cell)
        assert len(later) < len(waiting), "the gates form a loop"
        waiting = later

    def number(bits: list[Any]) -> np.ndarray:
        kind = object if len(bits) > 60 else np.int64
        return sum(values[bit].astype(kind) << place for place, bit in enumerate(bits))

    return {name: number(port["bits"]) for name, port in ports.items() if name != "y"}, number(ports["y"]["bits"])


def test_lanes_are_small_and_exact(yosys: SynthesisTool, tmp_path: Path) -> None:
    check(COUNTED, yosys, tmp_path)


@LONG
def test_every_width(yosys: SynthesisTool, tmp_path: Path) -> None:
    check(WIDTHS, yosys, tmp_path)
