"""Registers that move into block RAMs and multipliers of ECP5: the netlist does the same, and others stay outside.

Netlists are simulated here cycle by cycle, with models of the cells written from Lattice's descriptions (FPGA-TN-02204
for memories, FPGA-TN-02205 for multipliers), of as much of them as these netlists use.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections import Counter
from typing import Any

import pytest

from verify.synthesis.hierarchy import Design
from verify.synthesis.mapping import NETLIST, Multipliers, map_flat
from verify.synthesis.output_registers import move_registers
from verify.synthesis.targets import TARGETS
from verify.synthesis.tools import Deadline, SynthesisTool

ECP5 = TARGETS["ecp5"]

#: Memories and multipliers, each with a register behind it: plain, or with something that keeps it outside.
DESIGN = """
module ram(input logic clk, input logic wen, input logic [9:0] waddr, raddr, input logic [17:0] wdata,
           output logic [17:0] read);
  logic [17:0] words [1024];
  always_ff @(posedge clk) begin
    read <= words[raddr];
    if (wen) words[waddr] <= wdata;
  end
endmodule

module top(input logic clk, input logic wen, enable, clear, input logic [9:0] waddr, raddr, input logic [17:0] wdata,
           input logic signed [17:0] a, b,
           output logic [17:0] plain, seen, seen_at_once, enabled, cleared, output logic [9:0] some,
           output logic signed [35:0] product, product_at_once, output logic signed [35:0] late);
  logic [17:0] r [5];
  for (genvar i = 0; i < 5; i++)
    ram memory(.clk, .wen, .waddr, .raddr, .wdata(wdata ^ 18'(i)), .read(r[i]));
  assign seen_at_once = r[1];
  wire signed [35:0] ab = a * b;
  wire signed [35:0] aa = a * a;
  assign product_at_once = aa;
  always_ff @(posedge clk) begin
    plain <= r[0];
    seen <= r[1];
    if (enable) enabled <= r[2];
    cleared <= clear ? '0 : r[3];
    some <= r[4][9:0];
    product <= ab;
    late <= aa;
  end
endmodule
"""

#: Flip-flops that move: those of `plain`, of `some` and of `product`.
MOVED = 18 + 10 + 36


def bit(values: dict[Any, int], cell: dict[str, Any], port: str, default: int = 0) -> int:
    bits = cell["connections"].get(port)
    return values[bits[0]] if bits else default


def number(values: dict[Any, int], cell: dict[str, Any], pattern: str, bits: int) -> int:
    return sum(bit(values, cell, pattern.format(i)) << i for i in range(bits))


class Simulation:
    """A netlist of flip-flops, LUTs, block RAMs and multipliers on one clock."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.module = module
        self.cells = module["cells"]
        self.values: dict[Any, int] = {"0": 0, "1": 1, "x": 0}
        for port in module["ports"].values():
            self.values.update(dict.fromkeys(port["bits"], 0))
        self.registers: dict[tuple[str, str], int] = {}
        self.memories: dict[str, dict[int, int]] = {}

    def cycle(self, inputs: dict[str, int]) -> dict[str, int]:
        """Outputs in a cycle; then the clock's edge."""
        values, ports = self.values, self.module["ports"]
        for name, value in inputs.items():
            for i, net in enumerate(ports[name]["bits"]):
                values[net] = value >> i & 1
        for name, cell in self.cells.items():
            for port, nets in cell["connections"].items():
                if cell["port_directions"][port] == "output" and cell["type"] != "LUT4":
                    values[nets[0]] = self.registers.get((name, port), 0)
        for _ in range(3):  # multipliers without a register, and what LUTs make of it
            for name, cell in self.cells.items():
                if cell["type"] == "MULT18X18D" and cell["parameters"].get("REG_OUTPUT_CLK", "NONE") == "NONE":
                    self._put(name, cell, "P{}", 36, self._product(cell), values)
                elif cell["type"] == "LUT4":
                    index = sum(bit(values, cell, port) << i for i, port in enumerate("ABCD"))
                    values[cell["connections"]["Z"][0]] = int(cell["parameters"]["INIT"], 2) >> index & 1
        shown = {
            name: sum(values[net] << i for i, net in enumerate(port["bits"]))
            for name, port in ports.items()
            if port["direction"] == "output"
        }
        self._edge()
        return shown

    def _product(self, cell: dict[str, Any]) -> int:
        factors = [number(self.values, cell, f"{side}{{}}", 18) for side in "AB"]
        for i, side in enumerate("AB"):
            if bit(self.values, cell, f"SIGNED{side}") and factors[i] >> 17:
                factors[i] -= 1 << 18
        return factors[0] * factors[1] & ((1 << 36) - 1)

    def _put(
        self, name: str, cell: dict[str, Any], pattern: str, bits: int, value: int, into: dict[Any, int] | None = None
    ) -> None:
        for i in range(bits):
            port = pattern.format(i)
            if port in cell["connections"]:
                if into is None:
                    self.registers[name, port] = value >> i & 1
                else:
                    into[cell["connections"][port][0]] = value >> i & 1

    def _edge(self) -> None:
        before = dict(self.registers)
        values = self.values
        for name, cell in self.cells.items():
            parameters = {key: str(value).strip() for key, value in cell["parameters"].items()}
            if cell["type"] == "TRELLIS_FF":
                if parameters["CEMUX"] == "CE" and not bit(values, cell, "CE"):
                    continue
                data = bit(values, cell, "DI") if "DI" in cell["connections"] else bit(values, cell, "M")
                self.registers[name, "Q"] = 0 if bit(values, cell, "LSR") else data
            elif cell["type"] == "MULT18X18D" and parameters.get("REG_OUTPUT_CLK", "NONE") != "NONE":
                assert (parameters["REG_OUTPUT_CLK"], parameters["REG_OUTPUT_CE"]) == ("CLK0", "CE0")
                assert (bit(values, cell, "CE0"), bit(values, cell, "RST0")) == (1, 0)
                assert "CLK0" in cell["connections"]
                self._put(name, cell, "P{}", 36, self._product(cell))
            elif cell["type"] == "DP16KD":
                memory = self.memories.setdefault(name, {})
                for port in "AB":
                    address = number(values, cell, f"AD{port}{{}}", 14) >> 4
                    word = memory.get(address, 0)
                    latch = (name, f"latch {port}")
                    if parameters[f"REGMODE_{port}"] == "OUTREG":
                        assert bit(values, cell, f"OCE{port}")
                        self._put(name, cell, f"DO{port}{{}}", 18, before.get(latch, 0))
                    else:
                        self._put(name, cell, f"DO{port}{{}}", 18, word)
                    self.registers[latch] = word
                for port in "AB":
                    if bit(values, cell, f"WE{port}") and bit(values, cell, f"CE{port}"):
                        address = number(values, cell, f"AD{port}{{}}", 14) >> 4
                        memory[address] = number(values, cell, f"DI{port}{{}}", 18)


@pytest.fixture(scope="module")
def netlist(yosys: SynthesisTool) -> dict[str, Any]:
    """The netlist that yosys gives, before anything moves."""
    target = dataclasses.replace(ECP5, output_registers=())
    folder = map_flat(Design(DESIGN, "top"), target, Multipliers(), yosys, Deadline()).folder
    module: dict[str, Any] = json.loads((folder / NETLIST).read_text(encoding="utf-8"))["modules"]["top"]
    return module


def kinds(module: dict[str, Any]) -> Counter[str]:
    return Counter(cell["type"] for cell in module["cells"].values())


def test_the_netlist_does_the_same(netlist: dict[str, Any]) -> None:
    moved = copy.deepcopy(netlist)
    assert move_registers(moved, ECP5.output_registers) == MOVED
    assert kinds(netlist) - kinds(moved) == Counter({"TRELLIS_FF": MOVED})
    simulations = Simulation(netlist), Simulation(moved)
    rng = random.Random(1)
    outputs: Counter[tuple[str, int]] = Counter()
    inputs = {name: port["bits"] for name, port in netlist["ports"].items() if port["direction"] == "input"}
    for cycle in range(400):
        drawn = {name: rng.getrandbits(len(bits)) for name, bits in inputs.items() if name != "clk"}
        drawn["waddr"] %= 8
        drawn["raddr"] %= 8
        shown = [simulation.cycle(drawn) for simulation in simulations]
        assert shown[0] == shown[1], f"cycle {cycle}"
        outputs.update(shown[0].items())
    for name, port in netlist["ports"].items():
        if port["direction"] == "output":
            assert len([value for output, value in outputs if output == name]) > 20, f"{name} hardly ever changes"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("DP16KD", {"DOA": "REGMODE_A", "DOB": "REGMODE_B"}),
        ("MULT18X18D", {"P": "REG_OUTPUT_CLK"}),
    ],
)
def test_only_what_has_all_its_readers_behind_the_register(
    netlist: dict[str, Any], kind: str, change: dict[str, str]
) -> None:
    moved = copy.deepcopy(netlist)
    move_registers(moved, ECP5.output_registers)
    with_register = [
        any(cell["parameters"].get(name, "NOREG") not in ("NOREG", "NONE") for name in change.values())
        for cell in moved["cells"].values()
        if cell["type"] == kind
    ]
    assert (sum(with_register), len(with_register)) == ((2, 5) if kind == "DP16KD" else (1, 2))


def test_another_clock_keeps_a_register_outside(netlist: dict[str, Any]) -> None:
    changed = copy.deepcopy(netlist)
    for cell in changed["cells"].values():
        if cell["type"] == "TRELLIS_FF":
            cell["connections"]["CLK"] = changed["ports"]["enable"]["bits"]
    # Multipliers have had no clock so far.
    assert move_registers(changed, ECP5.output_registers) == 36


def test_a_flat_mapping_counts_what_is_left(yosys: SynthesisTool) -> None:
    mapped = map_flat(Design(DESIGN, "top"), ECP5, Multipliers(), yosys, Deadline())
    module = json.loads((mapped.folder / NETLIST).read_text(encoding="utf-8"))["modules"]["top"]
    assert mapped.statistics.cells["top"]["TRELLIS_FF"] == kinds(module)["TRELLIS_FF"] == 18 * 3 + 36
