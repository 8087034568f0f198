"""What a core's configuration says about its netlist: its multipliers, its memories, and what may be constant."""

from __future__ import annotations

import re
from dataclasses import dataclass

from accel.config import CoreConfig


@dataclass(frozen=True)
class ExpectedMemory:
    """A memory of the core."""

    #: Path such as ``acts_buffer.even_bank[0].words``.
    path: str
    words: int
    width: int

    @property
    def bits(self) -> int:
        """Bits that it holds."""
        return self.words * self.width


@dataclass(frozen=True)
class ConstantBits:
    """Register bits or outputs that are constant by design."""

    #: Pattern for the whole path of a bit.
    pattern: str
    #: Why, as a sentence.
    reason: str


@dataclass(frozen=True)
class Part:
    """Cells of a module that are counted apart from the rest of it."""

    #: What the module's name begins with.
    module: str
    #: Name of the part; an identifier.
    name: str
    #: Types of its cells before they are mapped.
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Expectations:
    """What the guards compare a netlist with."""

    #: Multipliers of all lanes, and the widths of their operands.
    lane_multipliers: int
    lane_widths: tuple[int, int]
    #: Multipliers of all scale units, and the widths of their operands.
    scale_multipliers: int
    scale_widths: tuple[int, int]
    memories: tuple[ExpectedMemory, ...] = ()
    constants: tuple[ConstantBits, ...] = ()
    #: Parts of modules that the table of blocks shows.
    parts: tuple[Part, ...] = ()

    def may_be_constant(self, path: str) -> bool:
        """Whether a bit is constant by design."""
        return any(re.fullmatch(bits.pattern, path) for bits in self.constants)


def expectations(config: CoreConfig) -> Expectations:
    """Return what the netlist of a core must have."""
    return Expectations(
        lane_multipliers=config.rows * config.columns * config.lanes,
        lane_widths=(config.act_bits, config.weight_bits),
        scale_multipliers=config.columns * config.drain_chains,
        scale_widths=(config.partial_bits, config.scale_bits),
        memories=tuple(_memories(config)),
        constants=tuple(_constants(config)),
        # An activation selected by an index is a $bmux or, read by another frontend, a $shiftx.
        parts=(Part("PERTL_", "window_multiplexers", ("$bmux", "$shiftx")),),
    )


def _memories(config: CoreConfig) -> list[ExpectedMemory]:
    rows, columns = range(config.rows), range(config.columns)
    found = [
        ExpectedMemory(f"acts_buffer.{bank}_bank[{row}].words", config.act_words // 2, config.act_port_bits)
        for bank in ("even", "odd")
        for row in rows
    ]
    for column in columns:
        for ring, words in (("codes", config.code_words), ("values", config.value_words)):
            found += [
                ExpectedMemory(f"column[{column}].buffer.{ring}.{bank}.words", words // 2, config.slice_bits)
                for bank in ("even", "odd")
            ]
        found += [
            ExpectedMemory(f"column[{column}].acc[{chain}].half[{half}].words", config.acc_words, config.acc_bits)
            for chain in range(config.drain_chains)
            for half in range(2)
        ]
    return found


def _constants(config: CoreConfig) -> list[ConstantBits]:
    return [
        ConstantBits(
            r"sequencer\.step\[\d+\]",
            "Lane 0 starts at a step's first block and first code: its offset and shift are 0.",
        )
    ]
