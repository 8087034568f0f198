"""What a design can be mapped to: the script for yosys, and what each cell of the mapped netlist counts as."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from verify.synthesis.output_registers import OutputRegister

#: How multipliers are built: in the device's multiplier blocks, or of LUTs.
DSP_CHOICES = ("all", "scale", "none")


@dataclass(frozen=True)
class Resources:
    """Cells of a netlist, by kind; what a target does not have stays 0."""

    #: Lookup tables: of logic, carry chains and memories together, as the device counts them.
    lut: int = 0
    #: Lookup tables of carry chains alone.
    carry: int = 0
    #: Lookup tables of distributed memories alone.
    lut_ram: int = 0
    #: Flip-flops.
    ff: int = 0
    #: Multiplier blocks.
    dsp: int = 0
    #: Block RAMs.
    bram: int = 0
    #: Bits of memories that are left as they are, for a macro.
    memory_bits: int = 0
    #: Area of standard cells.
    area_um2: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, count: int) -> Resources:
        """Return the resources of ``count`` copies."""
        return Resources(*(getattr(self, f.name) * count for f in fields(self)))

    def document(self) -> dict[str, float]:
        """Return the JSON object of the counts."""
        return {f.name: round(getattr(self, f.name), 4) for f in fields(self)}


@dataclass(frozen=True)
class Target:
    """A family of devices, or of cells, that yosys maps to."""

    name: str
    #: What a person calls it.
    title: str
    #: yosys's commands; ``{top}``, ``{keep}`` and ``{dsp}`` are filled in.
    steps: tuple[str, ...]
    #: Kinds of cells: a pattern for the whole name, and the resources of one cell.
    cells: tuple[tuple[str, Resources], ...]
    #: Argument that keeps the hierarchy.
    keep: str = ""
    #: Arguments that build all multipliers of LUTs, and all in multiplier blocks.
    no_dsp: str = ""
    with_dsp: str = ""
    #: Whether abc9 maps the logic, which takes a clock to work towards.
    abc9: bool = True
    #: Arguments of techmap that put the selection `blocks` into multiplier blocks; empty where only all can be.
    dsp_maps: tuple[str, ...] = ()
    #: Arguments of techmap with rules of our own that come before the target's: for everything, and for multipliers
    #: that are built of LUTs.
    own_maps: tuple[str, ...] = ()
    own_multiplier_map: str = ""
    #: Cells of registers and blocks, which are named after the nets that they drive.
    named: str = ""
    #: Registers that blocks have at their outputs, and yosys does not use.
    output_registers: tuple[OutputRegister, ...] = ()
    #: Words and bits from which on a memory must be block RAM; None if there is none.
    block_ram_from: tuple[int, int] | None = None
    #: Name that yosys's log gives to a block RAM.
    block_ram: str = ""
    #: Speed grades and devices that place and route knows; empty if there is none.
    devices: tuple[str, ...] = ()
    speeds: tuple[int, ...] = ()
    #: Files that the commands read: name and text.
    files: Mapping[str, str] = field(default_factory=dict)
    #: What a field of `Resources` counts, where it is not what its name says.
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_dsp(self) -> bool:
        """Whether there are multiplier blocks."""
        return self.no_dsp != self.with_dsp

    def resources(self, cell: str) -> Resources | None:
        """Return what one cell of a netlist counts as; None for a cell that the target does not know."""
        for pattern, counted in self.cells:
            if re.fullmatch(pattern, cell):
                return counted
        return None


#: Words from which on a memory is left for a macro where a target has no block RAM of its own.
MACRO_WORDS = 64

#: Commands that turn smaller memories into flip-flops.
_SOFT_MEMORIES = ("opt -fast -full", f"memory_map t:$mem_v2 r:SIZE<{MACRO_WORDS} %i", "opt -full")

#: A quarter of the smallest block, and so deep that LUTs would cost more: yosys takes blocks for all such memories,
#: of 8 to 128 bits a word, on ECP5 and Xilinx alike.
_BLOCK_RAM_FROM = (128, 4096)

_LUT = Resources(lut=1)
_FF = Resources(ff=1)
_NOTHING = Resources()
_CARRY = Resources(lut=2, carry=2)

_ECP5_MAP = "ecp5_map.v"

ECP5 = Target(
    name="ecp5",
    title="Lattice ECP5",
    # What follows `:check` only names, checks and prints.
    steps=("synth_ecp5 -no-rw-check {keep} {dsp} -run :check -top {top}",),
    cells=(
        (r"LUT4", _LUT),
        (r"CCU2C", _CARRY),
        # Four LUTs hold the bits, and the write port takes the place of two more.
        (r"TRELLIS_DPR16X4", Resources(lut=6, lut_ram=6)),
        (r"TRELLIS_FF", _FF),
        (r"MULT18X18D", Resources(dsp=1)),
        (r"DP16KD|PDPW16KD", Resources(bram=1)),
        # Multiplexers that join the LUTs of a slice; they are part of it.
        (r"PFUMX|L6MUX21|\$scopeinfo", _NOTHING),
    ),
    keep="-noflatten",
    no_dsp="-nodsp",
    dsp_maps=(
        "-map +/mul2dsp.v -D DSP_A_MAXWIDTH=18 -D DSP_B_MAXWIDTH=18 -D DSP_A_MINWIDTH=2 -D DSP_B_MINWIDTH=2 "
        "-D DSP_NAME=$__MUL18X18 @blocks",
        "-map +/lattice/dsp_map_18x18.v t:$__MUL18X18",
    ),
    own_maps=(f"-map {_ECP5_MAP} t:$add t:$bmux",),
    own_multiplier_map=f"-map {_ECP5_MAP} t:$mul",
    files={_ECP5_MAP: Path(__file__).with_name(_ECP5_MAP).read_text(encoding="utf-8")},
    output_registers=(
        *(
            OutputRegister("DP16KD", rf"DO{port}\d+", f"CLK{port}", {f"REGMODE_{port}": "OUTREG"}, {f"OCE{port}": "1"})
            for port in "AB"
        ),
        OutputRegister(
            "MULT18X18D",
            r"P\d+",
            "CLK0",
            {"REG_OUTPUT_CLK": "CLK0", "REG_OUTPUT_CE": "CE0", "REG_OUTPUT_RST": "RST0"},
            {"CE0": "1", "RST0": "0"},
        ),
    ),
    named="t:TRELLIS_FF t:MULT18X18D t:DP16KD t:PDPW16KD t:TRELLIS_DPR16X4",
    block_ram_from=_BLOCK_RAM_FROM,
    block_ram=r"\$__(DP|PDPW)16KD_",
    devices=("12k", "25k", "45k", "85k"),
    speeds=(6, 7, 8),
)

ICE40 = Target(
    name="ice40",
    title="Lattice iCE40 UltraPlus",
    steps=("synth_ice40 -no-rw-check -device u {keep} {dsp} -run :check -top {top}",),
    cells=(
        (r"SB_LUT4", _LUT),
        # A carry is part of a logic cell, beside its LUT.
        (r"SB_CARRY", Resources(carry=1)),
        (r"SB_DFF\w*", _FF),
        (r"SB_MAC16", Resources(dsp=1)),
        (r"SB_RAM40_4K\w*", Resources(bram=1)),
        (r"SB_SPRAM256KA|\$scopeinfo", _NOTHING),
    ),
    keep="-noflatten",
    with_dsp="-dsp",
    named="t:SB_DFF* t:SB_MAC16 t:SB_RAM40_4K*",
    # It has no other memory than flip-flops.
    block_ram_from=(16, 128),
    block_ram=r"\$__ICE40_RAM4K_",
)


def _xilinx(name: str, title: str, family: str) -> Target:
    return Target(
        name=name,
        title=title,
        steps=(f"synth_xilinx -family {family} -noiopad -noclkbuf {{dsp}} -run :check -top {{top}}",),
        cells=(
            (r"LUT[1-6]|INV", _LUT),
            # A carry chain's cells take their inputs from LUTs, which are counted by themselves.
            (r"CARRY4", Resources(carry=4)),
            (r"CARRY8", Resources(carry=8)),
            (r"FD[RSCP]E(_1)?", _FF),
            (r"DSP48E[12]", Resources(dsp=1)),
            (r"RAMB18E[12]", Resources(bram=1)),
            (r"RAMB36E[12]", Resources(bram=2)),
            (r"RAM32M", Resources(lut=4, lut_ram=4)),
            (r"RAM64M", Resources(lut=4, lut_ram=4)),
            (r"RAM32M16|RAM64M8", Resources(lut=8, lut_ram=8)),
            (r"RAM(32|64)X1D", Resources(lut=2, lut_ram=2)),
            (r"RAM128X1D", Resources(lut=4, lut_ram=4)),
            (r"RAM256X1D", Resources(lut=8, lut_ram=8)),
            (r"RAM512X1S", Resources(lut=8, lut_ram=8)),
            (r"RAM(32|64)X1S", _LUT),
            (r"SRL16E|SRLC32E|SRLC16E", Resources(lut=1, lut_ram=1)),
            (r"MUXF[789]|VCC|GND|\$scopeinfo", _NOTHING),
        ),
        no_dsp="-nodsp",
        named="t:FD*E t:DSP48E* t:RAMB*",
        block_ram_from=_BLOCK_RAM_FROM,
        block_ram=r"\$__XILINX_BLOCKRAM_\w*",
        notes={"bram": "halves of a 36-Kbit block"},
    )


XILINX7 = _xilinx("xilinx7", "AMD 7 series", "xc7")
XILINX_US = _xilinx("xilinx-us", "AMD UltraScale+", "xcup")

GENERIC = Target(
    name="generic",
    title="4-input LUTs of no vendor",
    steps=(
        "synth -lut 4 -run begin:fine -top {top}",
        *_SOFT_MEMORIES,
        *("techmap", "opt -fast", "abc -lut 4", "opt -fast", "clean"),
    ),
    cells=(
        (r"\$lut", _LUT),
        (r"\$_\w*DFF\w*_", _FF),
        (r"\$mem\w*|\$scopeinfo", _NOTHING),
    ),
    named="t:$_*DFF*_",
    abc9=False,
)

TARGETS = {target.name: target for target in (ECP5, ICE40, XILINX7, XILINX_US, GENERIC)}
