"""The generator's parameters, and every width that follows from them.

Source: sections 3 to 7 of the design; bit widths are derived from value ranges in one place, here,
and nothing in the RTL states a width of its own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from math import gcd
from operator import and_, or_
from pathlib import Path
from typing import Any

from accel.codes import CODES, code_bits, codes_for
from accel.schedule import blocks_in_step, lane_reach, step_shapes
from quant import NMPattern

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS_FILE = Path(__file__).with_name("presets.toml")

ACT_BITS = (4, 8, 16)
SLICE_BYTES = (1, 2, 4, 8)
RESULT_BITS = 64  # of one lane of a result word; a GEMM may ask for the packed 32-bit form instead
RANK_M_MAX = 8  # largest block that the enumerative code is generated for
ANY_PATTERN = ("any",)
#: Where the way of the data may have registers, in its order.
REGISTERS = ("read", "multiplexer", "parts", "multiplier", "adders", "scale", "weights", "acts", "window", "results")
#: Bits of a weight in the lower part of a multiplier of two.
LOW_BITS = 2


class ConfigError(ValueError):
    """A configuration that cannot be built, or a GEMM that does not fit one."""


def signed_bits(low: int, high: int) -> int:
    """Smallest two's-complement width that holds every integer in ``low..high``."""
    bits = 1
    while low < -(1 << (bits - 1)) or high > (1 << (bits - 1)) - 1:
        bits += 1
    return bits


#: Parameters that are lists of names.
_LISTS = ("patterns", "codes", "registers")


def count_bits(largest: int) -> int:
    """Smallest unsigned width that holds 0..``largest`` (at least one bit)."""
    return max(1, largest.bit_length())


def two_in(nbits: int) -> int:
    """2 as a number of so many bits, for a count that is compared with it: 0, which no running count is, in one bit."""
    return 2 % (1 << nbits)


def three_in(nbits: int) -> int:
    """3 in the same way."""
    return 3 if nbits > 1 else 0


@dataclass(frozen=True)
class CoreConfig:
    """Parameters of one tensor core. Pattern and group size are run-time inputs; `patterns` says which may come.

    Raises
    ------
    ConfigError
        When a value is out of range or two values contradict each other.
    """

    #: PE rows; each works on one token (1..64).
    rows: int
    #: PE columns; each works on one output feature (1..64).
    columns: int
    #: Multipliers per PE (1..16).
    lanes: int
    #: Activations that a PE sees in one step; also the largest block m of a pattern (1..32).
    window: int
    #: Patterns n:m that the core runs, such as "2:4", each once, or "any" alone for all with m ≤ `window`. Lanes
    #: have no multiplexer inputs, and decoders no tables, beyond what these need. Dense weights are "1:1".
    patterns: tuple[str, ...]
    #: Bits of a signed activation: 4, 8 or 16.
    act_bits: int
    #: Whether the column feeders subtract per-group zero points; without it only symmetric weights run.
    asymmetric: bool
    #: Block codes whose decoders are generated, out of "rank", "index" and "bitmask"; none for dense weights only.
    codes: tuple[str, ...]
    #: Bits of the signed integer group scale (2..16; in the stream a scale takes one byte, or two from 9 bits on).
    scale_bits: int
    #: Largest number of input features of a GEMM, after padding to whole groups.
    k_max: int
    #: Largest group that the core handles as one tile; longer groups are cut into equal chunks.
    group_max: int
    #: Token subtiles, each of up to `rows` tokens, that share one pass over the weights (1..64).
    subtiles: int
    #: Shift chains per column that carry group partials to a scale unit of their own (1..rows).
    drain_chains: int
    #: Bytes of a weight word that belong to one column: 1, 2, 4 or 8.
    slice_bytes: int
    #: Largest weight tiles that the weight buffer holds (2 = double-buffered).
    weight_tiles: int
    #: Windows of activations that the activation buffer holds per row (even).
    act_words: int
    #: PE rows that one activation word feeds (1..rows).
    act_ports: int
    #: Results in one result word (1..15, at most `columns`).
    result_lanes: int
    #: Registers on the way of the data, each a cycle of latency: after "read" (of weights and activations), a lane's
    #: "multiplexer" and "multiplier", the PE's "adders", and within the "scale" unit; within the multiplier, which then
    #: is made of two "parts", for the weight's lower two bits and the others. And on long ways: "weights" pass from
    #: column to column on their way to the weight buffers, "acts" have a register more before the activation buffer, a
    #: "window" one within the row feeder, and "results" one before they are read and one after.
    registers: tuple[str, ...]
    #: Registers in the decoding of block codes (0..8), each a cycle of latency: the first after a lane's code field
    #: is cut out, others spread over the positions that the rank decoder goes through.
    decode_registers: int
    #: PE rows that share a register of what goes to all rows of a column or of the activation buffer: there is one
    #: for so many rows (1..64). It changes no cycle.
    fanout_rows: int

    def __post_init__(self) -> None:
        for name in _LISTS:
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise ConfigError(f"{name} must be a list of names, but {value!r} was given.")
            object.__setattr__(self, name, tuple(value))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _LISTS:
                continue
            if field.name == "asymmetric":
                if not isinstance(value, bool):
                    raise ConfigError(f"asymmetric must be true or false, but {value!r} was given.")
            elif isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{field.name} must be an integer, but {value!r} was given.")
        self._require_range("rows", 1, 64)
        self._require_range("columns", 1, 64)
        self._require_range("lanes", 1, 16)
        self._require_range("window", 1, 32)
        self._require_member("act_bits", ACT_BITS)
        self._require_member("slice_bytes", SLICE_BYTES)
        self._require_range("scale_bits", 2, 16)
        self._require_range("group_max", 1, 4096)
        self._require_range("k_max", self.group_max, 1 << 20)
        self._require_range("subtiles", 1, 64)
        self._require_range("drain_chains", 1, self.rows)
        self._require_range("weight_tiles", 2, 64)
        self._require_range("act_words", 2, 1 << 16)
        self._require_range("act_ports", 1, self.rows)
        self._require_range("result_lanes", 1, min(15, self.columns))
        self._require_range("decode_registers", 0, 8)
        self._require_range("fanout_rows", 1, 64)
        self._require_names("registers", REGISTERS)
        self._require_patterns()
        self._require_names("codes", CODES)
        if not self.codes and self.m_max > 1:
            raise ConfigError(
                f"codes must name each of some of {', '.join(CODES)} once, but {list(self.codes)} was given."
            )
        if self.m_max > RANK_M_MAX and self.codes == ("rank",):
            raise ConfigError(
                f"codes = ['rank'] covers blocks of at most {RANK_M_MAX}, but patterns reach m = {self.m_max}; "
                f"add 'index' or 'bitmask'."
            )
        if self.decode_registers and not self.codes:
            raise ConfigError(
                f"decode_registers must be 0 where there are no codes to decode, but {self.decode_registers} was given."
            )
        if self.lanes > self.window:
            raise ConfigError(
                f"lanes = {self.lanes} is more than window = {self.window}: a lane beyond the window could "
                f"never work. Lower lanes or raise window."
            )
        if self.window > self.group_max:
            raise ConfigError(
                f"window = {self.window} is more than group_max = {self.group_max}: a block of that size would "
                f"fit no tile. Raise group_max or lower window."
            )
        if self.act_words % 2:
            raise ConfigError(f"act_words must be even (two banks), but {self.act_words} was given.")
        if self.act_words < self.k_words(self.k_max):
            raise ConfigError(
                f"act_words = {self.act_words} does not hold one row of k_max = {self.k_max} activations, "
                f"which takes {self.k_words(self.k_max)} windows of {self.window}."
            )
        if self.slice_bits < max(4 * self.lanes, self.code_window_bits):
            raise ConfigError(
                f"slice_bytes = {self.slice_bytes} gives a column {self.slice_bits} bits per weight word, but a "
                f"step of {self.lanes} lanes reads up to {4 * self.lanes} bits of values and "
                f"{self.code_window_bits} bits of block codes. Raise slice_bytes or lower lanes."
            )

    def _require_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high:
            raise ConfigError(f"{name} must be between {low} and {high}, but {value} was given.")

    def _require_member(self, name: str, allowed: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, but {value} was given.")

    def _require_names(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if any(item not in allowed for item in value) or len(set(value)) != len(value):
            raise ConfigError(
                f"{name} must name each of some of {', '.join(allowed)} once, but {list(value)} was given."
            )

    def _require_patterns(self) -> None:
        if self.patterns == ANY_PATTERN:
            return
        try:
            found = [NMPattern.parse(text) for text in self.patterns]
        except (TypeError, ValueError):
            found = []
        written = [str(pattern) for pattern in found]
        if not found or written != list(self.patterns) or len(set(written)) != len(written):
            raise ConfigError(
                f"patterns must be ['any'], or name patterns n:m such as '2:4', each once, but "
                f"{list(self.patterns)} was given."
            )
        for pattern in found:
            if pattern.is_dense and pattern.m > 1:
                raise ConfigError(f"patterns has {pattern}; dense weights of any block run as 1:1, so name that.")
            if pattern.m > self.window:
                raise ConfigError(
                    f"patterns has {pattern}, but window = {self.window} holds no block of {pattern.m}. Raise window "
                    f"or leave {pattern} out."
                )

    # -- value ranges and the widths that follow ---------------------------------------------------

    @cached_property
    def m_max(self) -> int:
        """Largest block of a pattern."""
        return max(pattern.m for pattern in self.all_patterns)

    @property
    def act_range(self) -> tuple[int, int]:
        """Smallest and largest activation."""
        return -(1 << (self.act_bits - 1)), (1 << (self.act_bits - 1)) - 1

    @property
    def weight_range(self) -> tuple[int, int]:
        """Smallest and largest weight that a lane multiplies, zero point already subtracted."""
        return (-15, 15) if self.asymmetric else (-8, 7)

    @property
    def scale_range(self) -> tuple[int, int]:
        """Smallest and largest group scale."""
        return -(1 << (self.scale_bits - 1)), (1 << (self.scale_bits - 1)) - 1

    @property
    def product_range(self) -> tuple[int, int]:
        """Range of one activation times one weight."""
        return _product_range(self.act_range, self.weight_range)

    @property
    def weight_bits(self) -> int:
        """Width of the signed weight at a lane: 4, or 5 with zero points."""
        return signed_bits(*self.weight_range)

    @property
    def product_bits(self) -> int:
        """Width of one product."""
        return signed_bits(*self.product_range)

    @property
    def multiplier_widths(self) -> tuple[tuple[int, int], ...]:
        """Operands of each of a lane's multipliers, in bits: one, or one for each part of a weight."""
        if self.has_register("parts"):
            # The lower bits are not signed, so the activation comes as wide as the product.
            return (self.act_bits + LOW_BITS, LOW_BITS), (self.act_bits, self.weight_bits - LOW_BITS)
        return ((self.act_bits, self.weight_bits),)

    def partial_range(self, weights: int) -> tuple[int, int]:
        """Range of the sum of up to ``weights`` products (0 included, for fewer of them)."""
        low, high = self.product_range
        return low * weights, high * weights

    @property
    def partial_bits(self) -> int:
        """Width of a group partial sum: holds group_max products of the worst sign."""
        return signed_bits(*self.partial_range(self.group_max))

    @property
    def scaled_bits(self) -> int:
        """Width of a group partial times its scale."""
        return signed_bits(*_product_range(self.partial_range(self.group_max), self.scale_range))

    def acc_range(self, k: int) -> tuple[int, int]:
        """Range of an accumulator after ``k`` input features."""
        return _product_range(self.partial_range(k), self.scale_range)

    @property
    def acc_bits(self) -> int:
        """Width of an accumulator: holds k_max products of the worst sign, each times the worst scale."""
        return signed_bits(*self.acc_range(self.k_max))

    @property
    def scale_bytes(self) -> int:
        """Bytes of a group scale in the stream: 1 or 2."""
        return -(-self.scale_bits // 8)

    @property
    def header_bits(self) -> int:
        """Width of a tile header in the weight buffer: the scale and, with zero points, four bits more."""
        return self.scale_bits + (4 if self.asymmetric else 0)

    @property
    def header_parts(self) -> tuple[tuple[int, int], ...]:
        """Bits of a tile header that each slice brings: first one, and the one after the last."""
        parts = []
        for start in range(0, self.scale_bytes + self.asymmetric, self.slice_bytes):
            stop = start + self.slice_bytes
            end = self.header_bits if stop > self.scale_bytes else min(self.scale_bits, 8 * stop)
            parts.append((min(self.scale_bits, 8 * start), end))
        return tuple(parts)

    # -- geometry ------------------------------------------------------------------------------------

    @property
    def slice_bits(self) -> int:
        """Bits of a weight word that belong to one column."""
        return 8 * self.slice_bytes

    @property
    def word_bytes(self) -> int:
        """Bytes of a weight word: one slice for each column."""
        return self.columns * self.slice_bytes

    @property
    def act_port_bits(self) -> int:
        """Bits of one port of an activation word: one window of one row."""
        return self.window * self.act_bits

    @property
    def chain_rows(self) -> int:
        """PEs on the longest drain chain of a column."""
        return -(-self.rows // self.drain_chains)

    @property
    def acc_words(self) -> int:
        """Accumulators behind one drain chain, for one of the two halves of the accumulator RAM."""
        return self.subtiles * self.chain_rows

    @property
    def column_groups(self) -> int:
        """Result words that one row of one output tile takes."""
        return -(-self.columns // self.result_lanes)

    def k_words(self, k: int) -> int:
        """Windows that one row of ``k`` activations takes."""
        return -(-k // self.window)

    @cached_property
    def all_patterns(self) -> tuple[NMPattern, ...]:
        """Every pattern n:m that this core runs; with "any" patterns also each dense n:n, which runs as 1:1."""
        if self.patterns == ANY_PATTERN:
            return tuple(NMPattern(n, m) for m in range(1, self.window + 1) for n in range(1, m + 1))
        return tuple(NMPattern.parse(text) for text in self.patterns)

    @cached_property
    def lane_reach(self) -> tuple[tuple[int, int], ...]:
        """Lowest and highest window position that each lane takes a weight from, over all patterns and steps."""
        reach = [lane_reach(pattern, self.group_max, self.lanes, self.window) for pattern in self.all_patterns]
        ranges = [[pattern[lane] for pattern in reach if lane < len(pattern)] for lane in range(self.lanes)]
        # A lane that no pattern uses stays at position 0.
        return tuple(
            (min((low for low, _ in lane), default=0), max((high for _, high in lane), default=0)) for lane in ranges
        )

    def codes_of(self, pattern: NMPattern) -> tuple[str, ...]:
        """Block codes that this core decodes for ``pattern``; fewest stream bits first, "none" for dense."""
        return codes_for(pattern, self.codes, min(RANK_M_MAX, self.m_max))

    @property
    def rank_m_max(self) -> int:
        """Largest block that the rank decoder is generated for; 0 without one."""
        return min(RANK_M_MAX, self.m_max) if "rank" in self.codes else 0

    @cached_property
    def _code_needs(self) -> tuple[int, int, int]:
        """Over all patterns and codes: bits read in a step, bytes in a tile, bits of one code field."""
        window_bits, tile_bytes, field_bits = 1, 1, 1
        for pattern in self.all_patterns:
            blocks = blocks_in_step(pattern, self.lanes, self.window)
            for code in self.codes_of(pattern):
                bits = code_bits(code, pattern)
                if code == "none":
                    continue
                per_block = bits * (pattern.n if code == "index" else 1)
                in_step = bits * self.lanes if code == "index" else bits * blocks
                window_bits = max(window_bits, in_step)
                tile_bytes = max(tile_bytes, -(-(self.group_max // pattern.m) * per_block // 8))
                field_bits = max(field_bits, bits)
        return window_bits, tile_bytes, field_bits

    @property
    def code_window_bits(self) -> int:
        """Most bits of block codes that one step reads."""
        return self._code_needs[0]

    @property
    def code_bytes_max(self) -> int:
        """Most bytes of block codes that one column of a tile holds."""
        return self._code_needs[1]

    @property
    def code_field_bits(self) -> int:
        """Width of the widest code field: of a block (rank, bitmask) or of a nonzero (index)."""
        return self._code_needs[2]

    @cached_property
    def lane_shifts(self) -> tuple[tuple[int, int], ...]:
        """Bits that are 1 in some, and in all, of a lane's distances into the code window, over patterns and codes."""
        reach: list[set[int]] = [set() for _ in range(self.lanes)]
        for pattern, code, bits in self._coded:
            for within, count in step_shapes(pattern, self.group_max, self.lanes, self.window):
                for lane in range(count):
                    reach[lane].add(bits * (lane if code == "index" else (within + lane) // pattern.n))
        # A lane that no pattern uses may look anywhere, so nowhere.
        return tuple((reduce(or_, lane, 0), reduce(and_, lane)) if lane else (0, 0) for lane in reach)

    @cached_property
    def code_alignment(self) -> int:
        """Bits of block codes that every step but a group's last one is over a multiple of, a power of two."""
        advances = [
            bits * (count if code == "index" else (within + count) // pattern.n)
            for pattern, code, bits in self._coded
            for within, count in step_shapes(pattern, self.group_max, self.lanes, self.window)[:-1]
        ]
        return _power_of_two(gcd(self.slice_bits, *advances))

    @cached_property
    def value_alignment(self) -> int:
        """Values that every step but a group's last one takes a multiple of, a power of two."""
        counts = [
            count
            for pattern in self.all_patterns
            for _, count in step_shapes(pattern, self.group_max, self.lanes, self.window)[:-1]
        ]
        return _power_of_two(gcd(2 * self.slice_bytes, *counts))

    @property
    def _coded(self) -> Iterator[tuple[NMPattern, str, int]]:
        """Each pattern with each code that its blocks may have, and the bits of that code."""
        for pattern in self.all_patterns:
            for code in self.codes_of(pattern):
                if code != "none":
                    yield pattern, code, code_bits(code, pattern)

    @property
    def value_bytes_max(self) -> int:
        """Most bytes of values that one column of a tile holds: group_max nibbles."""
        return -(-self.group_max // 2)

    @property
    def code_words(self) -> int:
        """Slices in a column's ring of block codes (even: two banks)."""
        return _even(self.weight_tiles * -(-self.code_bytes_max // self.slice_bytes))

    @property
    def value_words(self) -> int:
        """Slices in a column's ring of values (even: two banks)."""
        return _even(self.weight_tiles * -(-self.value_bytes_max // self.slice_bytes))

    @property
    def header_slots(self) -> int:
        """Tile headers (scale and zero point) that a column holds: small tiles may queue deeper."""
        return 4 * self.weight_tiles

    @property
    def out_tiles_max(self) -> int:
        """Most output tiles of one GEMM."""
        return (1 << 16) - 1

    # -- latency ---------------------------------------------------------------------------------------

    def has_register(self, place: str) -> int:
        """1 if there is a register in that place of `REGISTERS`, else 0."""
        return int(place in self.registers)

    @property
    def row_copies(self) -> int:
        """Copies of a register that goes to all rows."""
        return -(-self.rows // self.fanout_rows)

    @property
    def lane_registers(self) -> int:
        """Registers between a PE's window and its accumulator."""
        return sum(map(self.has_register, ("multiplexer", "parts", "multiplier", "adders")))

    @property
    def window_registers(self) -> int:
        """Cycles that configured registers make the reads of activations wait for weights to be decoded; −1 with a
        register in the row feeder alone, for which they come earlier."""
        return self.decode_registers - self.has_register("window")

    @property
    def sum_registers(self) -> int:
        """Cycles that configured registers add between a step and its sum."""
        return self.has_register("read") + self.decode_registers + self.lane_registers

    @property
    def result_registers(self) -> int:
        """Cycles that configured registers add between a step and its results."""
        return self.sum_registers + self.has_register("scale")

    @property
    def tile_delay(self) -> int:
        """Cycles from the last beat of a weight tile to the first in which a step may use it."""
        return 2 + self.has_register("weights")

    @property
    def read_delay(self) -> int:
        """Cycles from the read of a result to the first in which its word may leave."""
        return 2 + 2 * self.has_register("results")

    # -- names ---------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The parameters, in order, as JSON-ready values."""
        return {name: list(value) if name in _LISTS else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CoreConfig:
        """Build from a mapping that states every parameter and nothing else.

        Raises
        ------
        ConfigError
            Naming the missing and the unknown keys.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        unknown = [name for name in values if name not in names]
        if missing or unknown:
            raise ConfigError(
                f"A core configuration states each of its {len(names)} parameters once; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
            )
        return cls(**dict(values))

    def replace(self, **changes: Any) -> CoreConfig:
        """A copy with some parameters changed, validated anew."""
        return dataclasses.replace(self, **changes)


def _product_range(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _even(n: int) -> int:
    return n + n % 2


def _power_of_two(n: int) -> int:
    """The largest one that divides ``n``."""
    return n & -n


def preset_names() -> list[str]:
    """Names of the presets that ship with the generator."""
    return list(_presets())


def load_preset(name: str) -> CoreConfig:
    """The named preset from ``presets.toml``.

    Raises
    ------
    ConfigError
        For an unknown name (the known ones are listed).
    """
    presets = _presets()
    if name not in presets:
        raise ConfigError(f"There is no preset named {name!r}; the presets are {', '.join(presets)}.")
    return CoreConfig.from_dict(presets[name])


def _presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads(PRESETS_FILE.read_text(encoding="utf-8"))
