"""Signal-level tests through pyverilator: our wrapper, PyMTL3's translation and pyverilator fit together."""

from __future__ import annotations

from pathlib import Path

import pytest
from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, sext, update, update_ff
from pymtl3.stdlib.stream.ifcs import RecvIfcRTL

from verify.signal_level import open_block, translate_and_open, translate_block
from verify.verilator_build import BuildError


class SaturatingAccumulator(Component):
    """Adds signed bytes and stays at the ends of its range; small, but signed, wide and registered."""

    def construct(s, width: int = 12) -> None:
        T = mk_bits(width)
        W = mk_bits(width + 1)
        s.clear = InPort()
        s.recv = RecvIfcRTL(mk_bits(8))
        s.total = OutPort(T)
        s.wide = OutPort(72)
        s.register = Wire(T)
        s.sum = Wire(W)
        s.next_total = Wire(T)
        largest = (1 << (width - 1)) - 1
        smallest = 1 << (width - 1)
        s.largest = Wire(T)
        s.smallest = Wire(T)
        s.largest //= largest
        s.smallest //= smallest
        s.total //= s.register
        top_bit = width - 1
        sum_bit = width

        @update
        def up_sum():
            s.recv.rdy @= ~s.clear
            s.sum @= sext(s.register, W) + sext(s.recv.msg, W)
            s.next_total @= s.sum[0:width]
            if s.sum[sum_bit] != s.sum[top_bit]:
                s.next_total @= s.smallest if s.sum[sum_bit] else s.largest
            s.wide @= sext(s.register, 72)

        @update_ff
        def up_register():
            if s.reset | s.clear:
                s.register <<= 0
            elif s.recv.val:
                s.register <<= s.next_total


class TwoListedInputs(Component):
    def construct(s) -> None:
        s.values = [InPort(4) for _ in range(2)]
        s.total = OutPort(4)

        @update
        def up_total():
            s.total @= s.values[0] + s.values[1]


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def test_a_translated_block_answers_at_its_pins(tmp_path: Path) -> None:
    simulation = translate_and_open(SaturatingAccumulator(12), "SaturatingAccumulator12", tmp_path)
    assert simulation.io.recv__rdy == 1
    simulation.io.clear = 1
    assert simulation.io.recv__rdy == 0, "rdy must follow clear without a clock edge"
    simulation.io.clear = 0
    expected = 0
    simulation.io.recv__val = 1
    for step in range(120):
        message = -128 if step < 40 else (127 if step < 100 else (37 * step) % 256 - 128)
        simulation.io.recv__msg = message & 0xFF
        simulation.clock.tick()
        expected = max(-2048, min(2047, expected + message))
        assert signed(int(simulation.io.total), 12) == expected
        assert signed(int(simulation.io.wide), 72) == expected
    simulation.io.recv__val = 0
    simulation.clock.tick()
    assert signed(int(simulation.io.total), 12) == expected, "without val nothing may be added"


def test_list_ports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'TwoListedInputs' has list ports \(values\), which pyverilator"):
        translate_and_open(TwoListedInputs(), "TwoListedInputs", tmp_path)


def test_a_double_underscore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="module name 'Total__4' must be an identifier without"):
        translate_block(TwoListedInputs(), "Total__4", tmp_path)


def test_a_combinational_loop_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verilog = tmp_path / "Loop.sv"
    verilog.write_text(
        "module Loop(input logic clk, input logic [3:0] a, output logic [3:0] q);\n"
        "  logic [3:0] t;\n"
        "  always_comb t = q ^ a;\n"
        "  always_comb q = t + 4'd1;\n"
        "endmodule\n"
    )
    with pytest.raises(BuildError, match=r"could not build the module 'Loop' \(exit status 1\)"):
        open_block(verilog, tmp_path / "build")
    assert "%Error-UNOPTFLAT" in capfd.readouterr().err
