"""Netlists: modules and names, cells counted by block, standard cells, place and route."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verify.synthesis.hierarchy import Design, readable
from verify.synthesis.liberty import delay_ps, read_liberty
from verify.synthesis.mapping import Multipliers, map_blocks, map_flat, without_comments
from verify.synthesis.netlist import Statistics, blocks_of
from verify.synthesis.routing import Device, DeviceTooSmallError, pack, route
from verify.synthesis.targets import TARGETS, Resources
from verify.synthesis.tools import Deadline, SynthesisTool

LIBRARY = Path(__file__).with_name("small.lib")

DESIGN = """
// At accel/one.py
module lane(input logic clk, input logic [7:0] a, input logic [4:0] w, output logic [12:0] y);
  localparam logic [3:0] unused_constant = 4'd3;
  // At accel/lane.py:12
  always_ff @(posedge clk) y <= $signed(a) * $signed(w);
endmodule

module pair(input logic clk, input logic [7:0] a, input logic [4:0] w, input logic s, output logic [12:0] y);
  logic [12:0] y__0; logic [12:0] y__1;
  lane lane__0(.clk(clk), .a(a), .w(w), .y(y__0));
  lane lane__1(.clk(clk), .a(~a), .w(w), .y(y__1));
  // At accel/pair.py:34
  always_ff @(posedge clk) y <= s ? y__0 : y__1;
endmodule

module top(input logic clk, input logic [7:0] a, input logic [4:0] w, input logic s, output logic [38:0] y);
  pair pair__0(.clk(clk), .a(a), .w(w), .s(s), .y(y[12:0]));
  pair pair__1(.clk(clk), .a(a), .w(~w), .s(s), .y(y[25:13]));
  lane spare(.clk(clk), .a(a ^ 8'h55), .w(w), .y(y[38:26]));
endmodule
"""
TOP = Design(DESIGN, "top")
ECP5 = TARGETS["ecp5"]

LONG = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)


# -- modules and names -------------------------------------------------------------------------------


def test_modules_from_below() -> None:
    assert [module.name for module in TOP.bottom_up()] == ["lane", "pair", "top"]
    assert TOP.modules["lane"].constants == ("unused_constant",)
    assert TOP.instances() == {
        "pair[0]": "pair",
        "pair[0].lane[0]": "lane",
        "pair[0].lane[1]": "lane",
        "pair[1]": "pair",
        "pair[1].lane[0]": "lane",
        "pair[1].lane[1]": "lane",
        "spare": "lane",
    }


def test_an_unknown_top() -> None:
    with pytest.raises(ValueError, match=r"^There is no module 'core' in the design; it has lane, pair, top\.$"):
        Design(DESIGN, "core")


def test_sources_of_lines() -> None:
    lines = DESIGN.splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("  always_ff"):
            module = "lane" if "signed" in line else "pair"
            assert TOP.source(number) == f"{module}, accel/{module}.py:{ {'lane': 12, 'pair': 34}[module] }"
        elif "lane spare" in line:
            assert TOP.source(number) == f"top, line {number}"
    assert Design("module a__32(); endmodule", "a__32").source(1) == "a, line 1"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 20), max_size=2)), min_size=1, max_size=4))
def test_names_of_lists(parts: list[tuple[str, list[int]]]) -> None:
    """PyMTL3 writes an element of a list as name__0__1."""
    verilog = ".".join(name + "".join(f"__{i}" for i in indices) for name, indices in parts)
    python = ".".join(name + "".join(f"[{i}]" for i in indices) for name, indices in parts)
    assert readable("\\" + verilog) == python


def test_comments_do_not_count_for_the_cache_but_their_lines_do() -> None:
    plain = without_comments(DESIGN)
    assert "At accel" not in plain
    assert plain.count("\n") == DESIGN.count("\n")
    assert without_comments(DESIGN.replace("lane.py:12", "lane.py:13")) == plain
    assert without_comments(DESIGN.replace("4'd3", "4'd4")) != plain


# -- cells -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=16, max_size=16), st.integers(0, 9))
def test_resources_add_up(values: list[int], count: int) -> None:
    one, two = Resources(*values[:8]), Resources(*values[8:])
    assert (one + two).document() == {k: a + b for (k, a), b in zip(one.document().items(), values[8:], strict=True)}
    total = Resources()
    for _ in range(count):
        total += one
    assert one.times(count) == total


def test_an_unknown_cell_is_not_left_out() -> None:
    text = json.dumps({"modules": {"\\top": {"num_cells_by_type": {"LUT4": 2, "NEW7": 3}, "num_memory_bits": 0}}})
    statistics = Statistics.parse(text)
    with pytest.raises(ValueError, match=r"^yosys has mapped 'top' to 3 cells 'NEW7', of which it is not known"):
        statistics.own("top", ECP5)


@pytest.mark.parametrize("name", ["ecp5", pytest.param("xilinx7", marks=LONG), "generic"])
def test_cells_of_blocks(name: str, yosys: SynthesisTool) -> None:
    """Registers are known by hand: 13 bits in each of five lanes and two pairs."""
    target = TARGETS[name]
    multipliers = Multipliers.parse("all", target, 8, 0)
    mapped = map_blocks(TOP, target, multipliers, yosys, Deadline(), 120.0)
    blocks = {block.place: block for block in blocks_of(TOP, mapped.statistics, target)}
    assert {place: (block.module, block.count, block.depth) for place, block in blocks.items()} == {
        "": ("top", 1, 0),
        "pair": ("pair", 2, 1),
        "pair.lane": ("lane", 4, 2),
        "spare": ("lane", 1, 1),
    }
    # Xilinx's multipliers have an output register of their own.
    ff = {"": 7 * 13, "pair": 6 * 13, "pair.lane": 4 * 13, "spare": 13}
    if name == "xilinx7":
        ff = {"": 2 * 13, "pair": 2 * 13, "pair.lane": 0, "spare": 0}
    assert {place: block.total.ff for place, block in blocks.items()} == ff
    assert blocks["pair"].own.ff == 13
    dsp = 0 if name == "generic" else 5
    assert blocks[""].total.dsp == dsp
    assert blocks[""].each == blocks[""].own + blocks["pair"].total + blocks["spare"].total
    flat = map_flat(TOP, target, multipliers, yosys, Deadline()).statistics.whole("top", target)
    assert flat.dsp == dsp
    # Mapped as one, the lowest bits of two products with the same operands may become one.
    # On ECP5, those of the lanes move into their multipliers then.
    left = 2 * 13 if name == "ecp5" else ff[""]
    assert left - 1 <= flat.ff <= left
    assert 0 < flat.lut <= blocks[""].total.lut


@pytest.mark.parametrize(("choice", "dsp"), [("none", 0), ("2", 2)])
def test_multipliers_in_blocks_or_not(choice: str, dsp: int, yosys: SynthesisTool) -> None:
    multipliers = Multipliers.parse(choice, ECP5, 8, 0)
    total = map_flat(TOP, ECP5, multipliers, yosys, Deadline()).statistics.whole("top", ECP5)
    assert total.dsp == dsp
    # A multiplier of LUTs takes a good many of them.
    assert total.lut > 25 * (5 - dsp)


def test_the_scale_units_come_first(yosys: SynthesisTool) -> None:
    text = (
        DESIGN
        + """
module core(input logic clk, input logic [7:0] a, input logic [15:0] b, output logic [63:0] y);
  top t(.clk(clk), .a(a), .w(b[4:0]), .s(b[5]), .y(y[38:0]));
  logic [23:0] p;
  always_ff @(posedge clk) p <= $signed(a) * $signed(b);
  assign y[63:39] = {p[23], p};
endmodule
"""
    )
    design = Design(text, "core")
    for choice, dsp in (("scale", 1), ("3", 3)):
        multipliers = Multipliers.parse(choice, ECP5, 8, 1)
        netlist = map_flat(design, ECP5, multipliers, yosys, Deadline())
        assert netlist.statistics.whole("core", ECP5).dsp == dsp
        # The wide one is among them: only there goes the highest bit of b.
        module = json.loads((netlist.folder / "netlist.json").read_text())["modules"]["core"]
        bit = module["ports"]["b"]["bits"][15]
        users = {cell["type"] for cell in module["cells"].values() if [bit] in cell["connections"].values()}
        assert users == {"MULT18X18D"}
        blocks = map_blocks(design, ECP5, multipliers, yosys, Deadline(), 120.0)
        assert blocks.statistics.whole("core", ECP5).dsp == 1


@pytest.mark.parametrize(
    ("choice", "target", "says"),
    [
        (
            "some",
            "ecp5",
            "Multiplier blocks are for all, scale, none or a number of multipliers, but 'some' was given.",
        ),
        ("-1", "ecp5", "Multiplier blocks are for all, scale, none or a number of multipliers, but '-1' was given."),
        ("scale", "ice40", "On ice40, multiplier blocks are for all or none, but 'scale' was given."),
        ("7", "generic", "On generic, multiplier blocks are for all or none, but '7' was given."),
    ],
)
def test_choices_of_multipliers_that_are_none(choice: str, target: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        Multipliers.parse(choice, TARGETS[target], 8, 1)


# -- standard cells ----------------------------------------------------------------------------------

#: Functions of Liberty beside the same ones of Python.
_LEAF = st.sampled_from([("A", "a"), ("B", "b"), ("1", "True"), ("0", "False")])
FUNCTIONS = st.recursive(
    _LEAF,
    lambda inner: st.one_of(
        inner.map(lambda f: (f"!{f[0]}" if len(f[0]) == 1 else f"!({f[0]})", f"(not {f[1]})")),
        inner.map(lambda f: (f"({f[0]})'", f"(not {f[1]})")),
        st.tuples(inner, inner, st.sampled_from(["*", " * ", "&", " "])).map(
            lambda f: (f"(({f[0][0]}){f[2]}({f[1][0]}))", f"({f[0][1]} and {f[1][1]})")
        ),
        st.tuples(inner, inner, st.sampled_from(["+", " | "])).map(
            lambda f: (f"(({f[0][0]}){f[2]}({f[1][0]}))", f"({f[0][1]} or {f[1][1]})")
        ),
        st.tuples(inner, inner).map(lambda f: (f"(({f[0][0]})^({f[1][0]}))", f"({f[0][1]} != {f[1][1]})")),
    ),
    max_leaves=6,
)


@given(FUNCTIONS)
def test_functions_of_liberty(function: tuple[str, str]) -> None:
    from verify.synthesis.liberty import _value

    for a in (False, True):
        for b in (False, True):
            expected = eval(function[1], {"a": a, "b": b})
            assert _value(function[0], {"A": a, "B": b}) == expected


def test_a_library() -> None:
    library = read_liberty(LIBRARY)
    assert library.name == "small"
    assert library.areas["NAND2"] == library.nand2_area == 2.0
    assert library.flip_flops == {"DFF"}
    assert set(library.areas) == {"INV", "BUF", "NAND2", "NOR2", "AND2", "XOR2", "DFF"}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("library (small)", "libary (small)", "is not a Liberty file: it has no 'library (name) { … }'."),
        ('"!(A * B)"', '"A * B"', "the library 'small' of 7 cells has no 2-input NAND, whose area is the unit"),
        ('"!A"', '"A"', "the library 'small' of 7 cells has no inverter."),
        ("ff (", "latch (", "the library 'small' of 7 cells has no flip-flop."),
        ("area : 5.0;", "", "the cell 'XOR2' has no area."),
        ("area : 2.0;", "area : 0;", "the area of the 2-input NAND is 0 µm², which is no unit."),
    ],
)
def test_libraries_that_cannot_be_mapped_to(old: str, new: str, says: str, tmp_path: Path) -> None:
    text = LIBRARY.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "cells.lib").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(says)):
        read_liberty(tmp_path / "cells.lib")


def test_a_library_that_ends_early(tmp_path: Path) -> None:
    text = LIBRARY.read_text(encoding="utf-8")
    (tmp_path / "cells.lib").write_text(text[: text.index("cell (XOR2)") + 400], encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not a Liberty file: a brace is never closed\.$"):
        read_liberty(tmp_path / "cells.lib")
    (tmp_path / "cells.lib").write_bytes(b"\xff\xfe library")
    with pytest.raises(ValueError, match=r"is not a Liberty file: byte 0 is not part of any UTF-8 text\.$"):
        read_liberty(tmp_path / "cells.lib")


def test_area_and_delay(yosys: SynthesisTool) -> None:
    """Areas are known by hand: an inverter, a NAND2 and one flip-flop; a longer way takes longer."""
    library = read_liberty(LIBRARY)
    target = library.target()

    def mapped(logic: str, bits: int = 3) -> tuple[Resources, float]:
        text = f"""module top(input logic clk, input logic [{bits - 1}:0] a, output logic q);
          always_ff @(posedge clk) q <= {logic}; endmodule"""
        netlist = map_flat(Design(text, "top"), target, Multipliers("none"), yosys, Deadline())
        return netlist.statistics.whole("top", target), delay_ps(netlist)

    area = library.areas
    nand, nand_delay = mapped("~(a[0] & a[1])")
    assert nand.area_um2 == area["NAND2"] + area["DFF"]
    assert nand.ff == 1
    xor, xor_delay = mapped("^a", 16)
    assert xor.area_um2 == pytest.approx(15 * area["XOR2"] + area["DFF"], rel=0.5)
    # A NAND2 has 14 ps at the lowest load and slope of its tables, and less without any; four XOR2s are in a row.
    assert 8 <= nand_delay <= 14
    assert 4 * 25 <= xor_delay <= 4 * 100


# -- place and route ---------------------------------------------------------------------------------


def test_a_device_that_is_too_small(yosys: SynthesisTool, nextpnr: SynthesisTool) -> None:
    text = """module top(input logic clk, input logic [35:0] a, output logic [35:0] y);
      logic [35:0] s[0:30];
      always_ff @(posedge clk) begin
        s[0] <= a;
        for (int i = 0; i < 30; i++) s[i + 1] <= s[i][17:0] * s[i][35:18];
        y <= s[30];
      end
    endmodule"""
    design = Design(text, "top")
    mapped = map_flat(design, ECP5, Multipliers(), yosys, Deadline())
    with pytest.raises(DeviceTooSmallError) as caught:
        pack(design, mapped, Device(ECP5, "12k", 6, 100.0), nextpnr, Deadline())
    assert str(caught.value) == (
        "The core does not fit the Lattice ECP5 12k: it takes 30 MULT18X18D of 28 (7 % too many). Take a larger device "
        "or a smaller core, move multipliers between blocks and LUTs with --dsp, or see where it goes with --no-route."
    )


def test_the_critical_path_has_the_generators_names(yosys: SynthesisTool, nextpnr: SynthesisTool) -> None:
    mapped = map_flat(TOP, ECP5, Multipliers(), yosys, Deadline())
    routed = route(TOP, mapped, Device(ECP5, "12k", 6, 100.0), 1, nextpnr, Deadline())
    utilisation = pack(TOP, mapped, Device(ECP5, "12k", 6, 100.0), nextpnr, Deadline())
    assert utilisation["MULT18X18D"] == (5, 28)
    # The lanes' registers are in their multipliers.
    assert utilisation["TRELLIS_FF"] == (2 * 13, 24288)
    # From a lane's register through the multiplexer of its pair, or to a multiplier.
    assert re.fullmatch(r"pair\[[01]\]\.(lane\[[01]\]\.y|y__[01]|y\[[01]\])", routed.path.start)
    assert 1e3 / routed.fmax_mhz == pytest.approx(routed.path.logic_ns + routed.path.routing_ns, rel=0.02)
    assert routed.path.steps[-1].at == routed.path.end
    arrivals = dict(routed.arrivals)
    assert set(arrivals) <= {"pair.lane.y", "spare.y", "pair.y", "y", "a register that yosys made"} | {"pair.y__"}
    # Setup is not in them.
    assert max(arrivals.values()) == pytest.approx(1e3 / routed.fmax_mhz, abs=0.5)
    other = route(TOP, mapped, Device(ECP5, "12k", 8, 100.0), 1, nextpnr, Deadline())
    assert other.fmax_mhz > routed.fmax_mhz


@pytest.mark.parametrize(
    ("device", "speed", "says"),
    [
        ("100k", 6, "There is no Lattice ECP5 named '100k'; the devices are 12k, 25k, 45k, 85k."),
        ("85k", 5, "Lattice ECP5 has no speed grade 5; it has 6, 7, 8."),
    ],
)
def test_devices_that_do_not_exist(device: str, speed: int, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Device(ECP5, device, speed, 100.0)
