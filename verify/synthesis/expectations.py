"""What a core's configuration says about its netlist: its multipliers, its memories, and what may be constant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from accel.config import CoreConfig
from accel.core.CoreMsg import mk_group_msg, mk_step_msg
from accel.ram.RamRTL import ram_columns


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
class Expectations:
    """What the guards compare a netlist with."""

    #: Multipliers of all lanes, and the widths of the operands of each of a lane's.
    lane_multipliers: int
    lane_widths: tuple[tuple[int, int], ...]
    #: Multipliers of all scale units, and the widths of their operands.
    scale_multipliers: int
    scale_widths: tuple[int, int]
    memories: tuple[ExpectedMemory, ...] = ()
    constants: tuple[ConstantBits, ...] = ()

    @property
    def lane_bits(self) -> int:
        """Widest operand of a lane's multipliers."""
        return max(map(max, self.lane_widths))

    def may_be_constant(self, path: str) -> bool:
        """Whether a bit is constant by design."""
        return any(re.fullmatch(bits.pattern, path) for bits in self.constants)


def expectations(config: CoreConfig) -> Expectations:
    """Return what the netlist of a core must have."""
    return Expectations(
        lane_multipliers=config.rows * config.columns * config.lanes * len(config.multiplier_widths),
        lane_widths=config.multiplier_widths,
        scale_multipliers=config.columns * config.drain_chains,
        scale_widths=(config.partial_bits, config.scale_bits),
        memories=tuple(_memories(config)),
        constants=tuple(_constants(config)),
    )


def _memories(config: CoreConfig) -> list[ExpectedMemory]:
    rows, columns = range(config.rows), range(config.columns)
    found = [
        (f"acts_buffer.{bank}_bank[{row}]", config.act_words // 2, config.act_port_bits)
        for bank in ("even", "odd")
        for row in rows
    ]
    rings = [("values", config.value_words)]
    if config.codes:
        rings.append(("codes", config.code_words))
    for column in columns:
        for ring, words in rings:
            found += [
                (f"column[{column}].buffer.{ring}.{bank}", words // 2, config.slice_bits) for bank in ("even", "odd")
            ]
        found += [
            (f"column[{column}].acc[{chain}].half[{half}]", config.acc_words, config.acc_bits)
            for chain in range(config.drain_chains)
            for half in range(2)
        ]
    return [
        ExpectedMemory(f"{path}.column{number}.words", words, high - low)
        for path, words, width in found
        for number, (low, high) in enumerate(ram_columns(width, words))
    ]


def _constants(config: CoreConfig) -> list[ConstantBits]:
    step = _field_bits(mk_step_msg(config))
    offset_bits, shift_bits = len(step["offset"]) // config.lanes, len(step["shift"]) // config.lanes
    found = [
        _bits("sequencer.step", step["offset"][:offset_bits], "Lane 0 works on the first block of a step."),
    ]
    for lane in range(config.lanes):
        codes = step["shift"][lane * shift_bits : (lane + 1) * shift_bits]
        reached = (lane * config.code_field_bits).bit_length()
        found.append(
            _bits("sequencer.step", codes[reached:], f"Lane {lane}'s code comes after at most {lane} others of a step.")
        )
    pair = "A ring of two words has one in each bank, and no address."
    for words, address in ((config.code_words, "code_even"), (config.value_words, "value_even")):
        if words == 2:
            found.append(_bits("sequencer.step", step[address], pair))
    if config.act_words == 2:
        found.append(ConstantBits(r"acts_buffer\.(raddr_even|raddr_odd|write_addr)\..*", pair))
    if config.slice_bytes == 1:
        reason = "A beat of one byte takes one byte, the last one too."
        found += [_bits(f"unpacker.{name}", range(2), reason) for name in ("section_last", "take_bytes")]
        found += [ConstantBits(rf"unpacker\.{name}", reason) for name in ("section_last", "take_bytes")]
    if config.k_max == 1:
        reason = "With one activation a row there is one group, which is the last one."
        pattern = r"(unpacker|sequencer)\.groups\.(next_last|(two|three)_in_all|three_left)"
        found.append(ConstantBits(pattern, reason))
    # Trailing zeros of the rows of a chain.
    even = (config.chain_rows & -config.chain_rows).bit_length() - 1
    if even:
        reason = f"A subtile's accumulators start at a multiple of {config.chain_rows}, the rows of a drain chain."
        found += [_bits("sequencer.acc_addr", range(even), reason), ConstantBits(r"sequencer\.acc_addr", reason)]
    if config.chain_rows == 1:
        length = _field_bits(mk_group_msg(config))["length"]
        found.append(_bits("sequencer.group", length, "A drain chain of one row has always one partial sum."))
    return found


def _bits(register: str, bits: range, reason: str) -> ConstantBits:
    indices = "|".join(map(str, bits))
    return ConstantBits(rf"{re.escape(register)}\[({indices})\]" if bits else r"(?!)", reason)


def _field_bits(message: Any) -> dict[str, range]:
    """Return the bits of each field of a message in its packed form, the lowest first."""
    bits: dict[str, range] = {}
    low = 0
    # The first field is the highest.
    for name, kind in reversed(message.__bitstruct_fields__.items()):
        bits[name] = range(low, low + kind.nbits)
        low += kind.nbits
    return bits
