"""The packed weight stream: what lies in memory, is moved by DMA and is stored on disk.

Payload: weight words in the order of use. A word has one slice of ``slice_bytes`` bytes for each of the C
columns of the core, so a column sees a byte stream of its own. For each output tile (C output features)
and each group in turn that byte stream holds one tile column:

1. header: the group scale (signed; one byte, or two with the low one first where the core's scales have more
   than 8 bits), and for asymmetric weights the zero point (one byte);
2. block codes, packed from the least significant bit, padded to a byte (absent for dense patterns);
3. values, one nibble each, low nibble first, padded to a byte; n slots a block in ascending position.

Tiles follow each other without padding; only the end of the stream is padded to a whole word. All columns
share the pattern, so all sections start at the same byte of each column. Sections aligned to the bus word
instead would take 6,144 bits a tile where 5,760 do (2:4, rank, G = 128, 16 columns): 5.33× instead of
5.69× against FP16.

K is padded to whole groups and O to whole output tiles with slots of value zero. A group longer than the
core's ``group_max`` is cut into equal chunks that repeat its scale and zero point.

File form: a 64-byte header (magic, version, geometry, checksums) followed by the payload.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from accel.codes import CODES, bits_per_block, code_bits, codes_for, decode_blocks, decode_mask, encode_mask
from accel.config import RANK_M_MAX, SLICE_BYTES, ConfigError, CoreConfig
from accel.schedule import nonzeros
from quant import NMPattern, NMWeight

MAGIC = b"NMSW"
VERSION = 1
CODE_IDS = {"none": 0, "index": 1, "bitmask": 2, "rank": 3}
_CODE_NAMES = {number: name for name, number in CODE_IDS.items()}
# magic, version, code, flags, n, m, slice_bytes, columns, O, K, group, groups, logical group size, payload
# bytes, payload CRC-32, padding, CRC-32 of the header before it
_HEADER = struct.Struct("<4sHBBBBHIIIIIiQI12xI")
HEADER_BYTES = _HEADER.size
_ASYMMETRIC, _WIDE_SCALES = 1, 2  # flags; streams of scales in one byte are those of before there was the second


class StreamError(ValueError):
    """A packed stream that must not be trusted: truncated, altered, or of another version."""


@dataclass(frozen=True)
class StreamLayout:
    """Geometry of a packed stream; everything that the size of its sections depends on.

    Raises
    ------
    ValueError
        When no weight matrix has this geometry.
    """

    #: Pattern n:m, and the block code that writes it.
    pattern: NMPattern
    code: str
    #: Whether each tile carries zero points.
    asymmetric: bool
    #: Output features and input features of the weight matrix, without padding.
    out_features: int
    in_features: int
    #: Weights along K in one tile: the group of the quantiser, or an equal chunk of it.
    group: int
    #: Tiles along K.
    groups: int
    #: Group size of the quantiser (−1: whole row).
    group_size: int
    #: Columns of the core and bytes of each in a weight word.
    columns: int
    slice_bytes: int
    #: Bytes of a group scale: 1 or 2.
    scale_bytes: int

    def __post_init__(self) -> None:
        if self.out_features < 1 or self.in_features < 1:
            raise ValueError(
                f"A weight matrix has at least one row and column, but {self.out_features} output features and "
                f"{self.in_features} input features were given."
            )
        if self.columns < 1 or self.slice_bytes not in SLICE_BYTES:
            raise ValueError(
                f"A weight word has at least one column and slices of {', '.join(map(str, SLICE_BYTES))} bytes, but "
                f"{self.columns} columns and slices of {self.slice_bytes} bytes were given."
            )
        if self.scale_bytes not in (1, 2):
            raise ValueError(f"A group scale has 1 or 2 bytes, but {self.scale_bytes} were given.")
        if self.code not in codes_for(self.pattern, CODES, RANK_M_MAX):
            raise ValueError(f"Block code {self.code} does not write pattern {self.pattern}.")
        self.pattern.check_group_size(self.group_size)
        nonzeros(self.pattern, self.group)  # refuses a tile of no whole blocks
        if self.groups != -(-self.in_features // self.group):
            raise ValueError(
                f"{self.groups} tiles of {self.group} weights do not make up {self.in_features} input features."
            )
        if 0 < self.group_size < self.in_features and self.group_size % self.group:
            raise ValueError(f"Tiles of {self.group} weights do not cut groups of {self.group_size} evenly.")

    @property
    def k_padded(self) -> int:
        """Input features after padding to whole tiles."""
        return self.group * self.groups

    @property
    def out_tiles(self) -> int:
        """Output tiles of ``columns`` output features."""
        return -(-self.out_features // self.columns)

    @property
    def slots(self) -> int:
        """Value slots of one output feature in one tile."""
        return nonzeros(self.pattern, self.group)

    @property
    def header_bytes(self) -> int:
        """Bytes of the scale and the zero point in one tile column."""
        return self.scale_bytes + self.asymmetric

    @property
    def code_bytes(self) -> int:
        """Bytes of the block codes in one tile column."""
        return -(-(self.group // self.pattern.m) * bits_per_block(self.code, self.pattern) // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of the values in one tile column."""
        return -(-self.slots // 2)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile column."""
        return self.header_bytes + self.code_bytes + self.value_bytes

    @property
    def words(self) -> int:
        """Weight words of the whole stream."""
        return -(-self.out_tiles * self.groups * self.tile_bytes // self.slice_bytes)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payload: what the memory interface moves for one pass over the weights."""
        return self.words * self.columns * self.slice_bytes

    @property
    def bits_per_weight(self) -> float:
        """Payload bits per weight of the unpadded matrix, pruned positions counted."""
        return 8 * self.payload_bytes / (self.out_features * self.in_features)


def layout_for(
    config: CoreConfig,
    pattern: NMPattern,
    out_features: int,
    in_features: int,
    group_size: int,
    *,
    asymmetric: bool = False,
    code: str | None = None,
) -> StreamLayout:
    """Layout of a weight matrix on a core; ``code`` defaults to the one with the fewest bits.

    Raises
    ------
    ConfigError
        When the matrix or its pattern is beyond the core's capacity, with the limit named.
    """
    given = pattern
    if pattern.is_dense:
        pattern = NMPattern(1, 1)  # the same stream for any n:n, and no block to fit the window
    if pattern.m > config.window:
        raise ConfigError(
            f"Pattern {pattern} has blocks of {pattern.m} weights, but this core's window holds {config.window}; "
            f"patterns with m up to {config.m_max} are allowed."
        )
    if pattern not in config.all_patterns:
        raise ConfigError(
            f"Pattern {given} is none of those that this core is generated for: {', '.join(config.patterns)}."
        )
    if asymmetric and not config.asymmetric:
        raise ConfigError(
            "The weights have zero points, but this core is generated without them (asymmetric = false); "
            "quantise symmetrically or generate the core with asymmetric = true."
        )
    allowed = config.codes_of(pattern)
    if not allowed:
        raise ConfigError(
            f"This core decodes {', '.join(config.codes)} codes, and none of them writes pattern {given}."
        )
    chosen = allowed[0] if code is None else code
    if chosen not in allowed:
        raise ConfigError(f"Block code {chosen!r} is not available for pattern {given} on this core; "
                          f"available: {', '.join(allowed)}.")  # fmt: skip
    group = tile_group(config, pattern, in_features, group_size)
    groups = -(-in_features // group)
    layout = StreamLayout(
        pattern=pattern,
        code=chosen,
        asymmetric=asymmetric,
        out_features=out_features,
        in_features=in_features,
        group=group,
        groups=groups,
        group_size=-1 if group_size >= in_features else group_size,
        columns=config.columns,
        slice_bytes=config.slice_bytes,
        scale_bytes=config.scale_bytes,
    )
    if layout.k_padded > config.k_max:
        raise ConfigError(
            f"The weights have {in_features} input features ({layout.k_padded} after padding to whole groups), but "
            f"this core's accumulators are sized for k_max = {config.k_max}."
        )
    if layout.out_tiles > config.out_tiles_max:
        raise ConfigError(
            f"The weights have {out_features} output features, but this core counts at most {config.out_tiles_max} "
            f"output tiles of {config.columns}, which is {config.out_tiles_max * config.columns}."
        )
    return layout


def tile_group(config: CoreConfig, pattern: NMPattern, in_features: int, group_size: int) -> int:
    """Weights along K in one tile: the quantiser's group, or the longest chunk of it that the core takes.

    A group that spans the whole row is cut into equal chunks, the last one padded. Of several groups each is
    cut at a divisor of its blocks, so that no chunk has two scales.
    """
    if group_size != -1 and group_size < 1:
        raise ConfigError(f"A group is of one weight or more, or -1 for a whole row, but {group_size} was given.")
    row_blocks = -(-in_features // pattern.m)
    blocks_max = config.group_max // pattern.m
    if group_size == -1 or group_size >= in_features:
        chunks = -(-row_blocks // blocks_max)
        return -(-row_blocks // chunks) * pattern.m
    if group_size % pattern.m:
        raise ConfigError(f"Group size {group_size} is not a multiple of m = {pattern.m} of pattern {pattern}.")
    blocks = group_size // pattern.m
    divisor = max(d for d in range(1, min(blocks, blocks_max) + 1) if blocks % d == 0)
    return divisor * pattern.m


@dataclass(frozen=True)
class PackedStream:
    """A layout and its payload bytes."""

    layout: StreamLayout
    payload: bytes

    def to_bytes(self) -> bytes:
        """Header with version and checksums, then the payload."""
        layout = self.layout
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            CODE_IDS[layout.code],
            _ASYMMETRIC * layout.asymmetric | _WIDE_SCALES * (layout.scale_bytes == 2),
            layout.pattern.n,
            layout.pattern.m,
            layout.slice_bytes,
            layout.columns,
            layout.out_features,
            layout.in_features,
            layout.group,
            layout.groups,
            layout.group_size,
            len(self.payload),
            zlib.crc32(self.payload),
            0,
        )
        return header[:-4] + struct.pack("<I", zlib.crc32(header[:-4])) + self.payload

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedStream:
        """Read and check everything before trusting anything.

        Raises
        ------
        StreamError
            For a truncated or altered stream, another version, or a header that contradicts itself.
        """
        if len(data) < HEADER_BYTES:
            raise StreamError(
                f"The stream is truncated: it has {len(data)} bytes, but its header alone takes {HEADER_BYTES}."
            )
        (magic, version, code, flags, n, m, slice_bytes, columns, out_features, in_features, group, groups,
         group_size, size, checksum, header_checksum) = _HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC:
            raise StreamError(f"This is not a packed weight stream: it starts with {magic!r} instead of {MAGIC!r}.")
        if version != VERSION:
            raise StreamError(f"The stream has version {version}, but this program reads version {VERSION}.")
        if zlib.crc32(data[: HEADER_BYTES - 4]) != header_checksum:
            raise StreamError("The stream's header is altered: its checksum does not match.")
        payload = bytes(data[HEADER_BYTES:])
        if len(payload) != size:
            raise StreamError(
                f"The stream is {'truncated' if len(payload) < size else 'too long'}: its header promises {size} "
                f"payload bytes, but {len(payload)} follow."
            )
        if zlib.crc32(payload) != checksum:
            raise StreamError("The stream's payload is altered: its checksum does not match.")
        try:
            pattern = NMPattern(n, m)
            layout = StreamLayout(pattern, _CODE_NAMES[code], bool(flags & _ASYMMETRIC), out_features, in_features,
                                  group, groups, group_size, columns, slice_bytes,
                                  scale_bytes=2 if flags & _WIDE_SCALES else 1)  # fmt: skip
        except KeyError:
            raise StreamError(f"The stream's header names block code {code}, which does not exist.") from None
        except ValueError as error:
            raise StreamError(f"The stream's header describes no possible weights: {error}") from error
        if layout.payload_bytes != size:
            raise StreamError(
                f"The stream's header contradicts itself: its geometry takes {layout.payload_bytes} payload bytes, "
                f"but it promises {size}."
            )
        stream = cls(layout, payload)
        if stream.to_bytes()[:HEADER_BYTES] != data[:HEADER_BYTES]:
            raise StreamError("The stream's header sets flags or reserved bytes that this version does not know.")
        return stream

    def require_core(self, config: CoreConfig) -> None:
        """Raise ConfigError unless ``config`` can execute this stream as it is."""
        layout = self.layout
        if (layout.columns, layout.slice_bytes) != (config.columns, config.slice_bytes):
            raise ConfigError(
                f"The stream is packed for {layout.columns} columns of {layout.slice_bytes} bytes a word, but this "
                f"core has {config.columns} columns of {config.slice_bytes}; pack the weights for this core."
            )
        if layout.scale_bytes != config.scale_bytes:
            raise ConfigError(
                f"The stream has group scales of {8 * layout.scale_bytes} bits, but this core reads "
                f"{8 * config.scale_bytes} (scale_bits = {config.scale_bits}); pack the weights for this core."
            )
        expected = layout_for(
            config,
            layout.pattern,
            layout.out_features,
            layout.in_features,
            layout.group_size,
            asymmetric=layout.asymmetric,
            code=layout.code,
        )
        if layout != expected:
            raise ConfigError(
                f"The stream has tiles of {layout.group} weights along K, but this core takes {expected.group} for "
                f"group size {layout.group_size}; pack the weights for this core."
            )
        scale = _scales(tile_columns(self), layout)
        _require_scales(config, int(scale.min()), int(scale.max()))


def pack(weight: NMWeight, config: CoreConfig, code: str | None = None) -> PackedStream:
    """Pack quantised weights into the stream that the core reads.

    Parameters
    ----------
    weight
        Any symmetric or asymmetric N:M weight that the core has the capacity for.
    code
        Block code; by default the one with the fewest bits that the core decodes.

    Raises
    ------
    ConfigError
        When the weights are beyond the core's capacity.
    """
    symmetric = weight.zero_point is None
    out_features, in_features = weight.values.shape
    layout = layout_for(
        config,
        weight.pattern,
        out_features,
        in_features,
        weight.group_size,
        asymmetric=not symmetric,
        code=code,
    )
    _require_scales(config, int(weight.group_scale.min()), int(weight.group_scale.max()))
    rows = layout.out_tiles * layout.columns
    # Each tile column repeats the scale and the zero point of the quantiser's group that it belongs to.
    chunk_group = np.minimum(
        np.arange(layout.groups) * layout.group // (weight.group_size if weight.group_size > 0 else in_features),
        weight.group_scale.shape[1] - 1,
    )
    scale = np.zeros((rows, layout.groups), f"<i{layout.scale_bytes}")
    scale[:out_features] = weight.group_scale[:, chunk_group]
    zero = np.zeros((rows, layout.groups), np.uint8)
    if weight.zero_point is not None:
        zero[:out_features] = weight.zero_point[:, chunk_group]

    payload = np.empty((rows, layout.groups, layout.tile_bytes), np.uint8)
    payload[:, :, : layout.scale_bytes] = scale[:, :, None].view(np.uint8)
    if not symmetric:
        payload[:, :, layout.scale_bytes] = zero
    # One strip of output features at a time keeps the temporaries in the processor's caches.
    strip = max(1, (1 << 18) // layout.k_padded)
    for start in range(0, rows, strip):
        stop = min(start + strip, rows)
        real = max(0, min(stop, out_features) - start)
        values = np.zeros((stop - start, layout.k_padded), np.uint8)
        mask = np.zeros((stop - start, layout.k_padded), bool)
        values[:real, :in_features] = weight.values[start : start + real].view(np.uint8) & 15
        mask[:real, :in_features] = weight.mask[start : start + real]
        slots = _filled_up(mask, layout.pattern)
        if symmetric:
            values *= mask
        else:
            values = np.where(mask, values, np.repeat(zero[start:stop], layout.group, axis=1))
        nibbles = values[slots].reshape(stop - start, layout.groups, layout.slots)
        if layout.code != "none":
            fields = encode_mask(slots, layout.code, layout.pattern).reshape(stop - start, layout.groups, -1)
            begin = layout.header_bytes
            payload[start:stop, :, begin : begin + layout.code_bytes] = _pack_fields(
                fields, code_bits(layout.code, layout.pattern), layout.code_bytes
            )
        payload[start:stop, :, layout.header_bytes + layout.code_bytes :] = _pack_fields(nibbles, 4, layout.value_bytes)

    # Columns' byte streams, padded to whole words, then interleaved slice by slice.
    streams = payload.reshape(layout.out_tiles, layout.columns, -1).transpose(1, 0, 2).reshape(layout.columns, -1)
    padded = np.zeros((layout.columns, layout.words * layout.slice_bytes), np.uint8)
    padded[:, : streams.shape[1]] = streams
    words = padded.reshape(layout.columns, layout.words, layout.slice_bytes).transpose(1, 0, 2)
    return PackedStream(layout, words.tobytes())


def _filled_up(mask: np.ndarray, pattern: NMPattern) -> np.ndarray:
    """Slots, bool [rows, K]: the kept positions and, where a block keeps fewer than n, the first others of it."""
    kept = pattern.kept_per_block(mask)
    short = np.flatnonzero(kept < pattern.n)
    if not len(short):
        return mask
    slots = mask.copy()
    by_block = slots.reshape(-1, pattern.m)
    others = ~by_block[short]
    wanted = pattern.n - kept.reshape(-1)[short]
    by_block[short] |= others & (np.cumsum(others, axis=1) <= wanted[:, None])
    return slots


def _require_scales(config: CoreConfig, smallest: int, largest: int) -> None:
    low, high = config.scale_range
    if smallest < low or largest > high:
        raise ConfigError(
            f"Group scales run from {smallest} to {largest}, but this core's {config.scale_bits}-bit scales hold "
            f"{low} to {high}."
        )


@dataclass(frozen=True)
class TileArrays:
    """A stream taken apart: what each tile column says, rows being output features with padding."""

    #: int8 or int16 [rows, groups], as wide as in the stream, and uint8 [rows, groups] (zeros for symmetric weights).
    scale: np.ndarray
    zero_point: np.ndarray
    #: Positions in the group of each slot, int64 [rows, groups, slots].
    position: np.ndarray
    #: Nibbles 0..15, uint8 [rows, groups, slots].
    nibble: np.ndarray


def tile_columns(stream: PackedStream) -> np.ndarray:
    """Bytes of every tile column, uint8 [out_tiles, columns, groups, tile_bytes]."""
    layout = stream.layout
    words = np.frombuffer(stream.payload, np.uint8).reshape(layout.words, layout.columns, layout.slice_bytes)
    streams = words.transpose(1, 0, 2).reshape(layout.columns, -1)
    streams = streams[:, : layout.out_tiles * layout.groups * layout.tile_bytes]
    return streams.reshape(layout.columns, layout.out_tiles, layout.groups, layout.tile_bytes).transpose(1, 0, 2, 3)


def _scales(columns: np.ndarray, layout: StreamLayout) -> np.ndarray:
    """Group scales of tile columns, uint8 [..., tile_bytes]: int8 or int16 [...]."""
    stored = np.ascontiguousarray(columns[..., : layout.scale_bytes])
    return stored.view(f"<i{layout.scale_bytes}")[..., 0]


def take_apart(columns: np.ndarray, layout: StreamLayout) -> TileArrays:
    """Decode tile columns, uint8 [..., groups, tile_bytes].

    Raises
    ------
    ValueError
        When a block code is no code word, or a zero point is beyond 15.
    """
    scale, zero, nibble, fields = _sections(columns.reshape(-1, layout.groups, layout.tile_bytes), layout)
    n, m = layout.pattern.n, layout.pattern.m
    blocks = layout.group // m
    if fields is None:
        local = np.broadcast_to(np.arange(n), (*scale.shape, blocks, n))
    else:
        local = decode_blocks(fields.reshape(*scale.shape, blocks, -1), layout.code, layout.pattern)
    position = (local + np.arange(blocks)[:, None] * m).reshape(*scale.shape, layout.slots)
    return TileArrays(scale, zero, position, nibble)


def _sections(data: np.ndarray, layout: StreamLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Scales, zero points, nibbles and fields of block codes (None without) of [rows, groups, tile_bytes]."""
    begin = layout.header_bytes
    end = begin + layout.code_bytes
    zero = data[:, :, layout.scale_bytes] if layout.asymmetric else np.zeros_like(data[:, :, 0])
    if (zero > 15).any():
        raise ValueError(f"A tile's zero point is {zero.max()}, beyond 15: the stream is damaged.")
    nibbles = _unpack_fields(data[:, :, end:], 4, layout.slots)
    fields = None
    if layout.code != "none":
        count = layout.group // layout.pattern.m * (layout.pattern.n if layout.code == "index" else 1)
        fields = _unpack_fields(data[:, :, begin:end], code_bits(layout.code, layout.pattern), count)
    return _scales(data, layout), zero, nibbles, fields


def unpack(stream: PackedStream, channel_scale: np.ndarray | None = None) -> NMWeight:
    """The quantised weights of a stream.

    Slots that filled up a block come back as kept zeros, and a group that was cut comes back as its chunks;
    ``integers()`` of the result equals that of the weights that were packed.

    Parameters
    ----------
    channel_scale
        float32 [O]; the stream holds integers only, so it is ones by default.
    """
    layout = stream.layout
    columns = tile_columns(stream).reshape(-1, layout.groups, layout.tile_bytes)
    scale, zero_point, nibbles, fields = _sections(columns, layout)
    if fields is None:
        mask = np.ones((len(columns), layout.k_padded), bool)
    else:
        mask = decode_mask(fields.reshape(len(columns), -1), layout.code, layout.pattern)
    values = np.zeros(mask.shape, np.int8)
    codes = nibbles.astype(np.int8)
    if not layout.asymmetric:
        codes = (codes ^ 8) - np.int8(8)  # the sign of four bits
    values[mask] = codes.reshape(-1)
    rows, in_features = layout.out_features, layout.in_features
    if channel_scale is None:
        channel_scale = np.ones(rows, np.float32)
    return NMWeight(
        values=values[:rows, :in_features],
        mask=mask[:rows, :in_features],
        group_scale=scale[:rows],
        channel_scale=channel_scale,
        pattern=layout.pattern,
        group_size=layout.group,
        zero_point=zero_point[:rows] if layout.asymmetric else None,
    )


def _pack_fields(fields: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Fields [rows, groups, count] of ``bits`` bits, least significant first, in ``size`` bytes each."""
    if bits == 4:
        even = np.zeros((*fields.shape[:2], 2 * size), np.uint8)
        even[:, :, : fields.shape[2]] = fields
        pairs = even.view("<u2")
        return (pairs | (pairs >> 4)).astype(np.uint8)
    octets = np.ascontiguousarray(fields[..., None], "<u4").view(np.uint8)
    planes = np.unpackbits(octets, axis=-1, count=bits, bitorder="little")
    return np.packbits(planes.reshape(*fields.shape[:2], -1), axis=-1, bitorder="little")[:, :, :size]


def _unpack_fields(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Inverse of ``_pack_fields``: uint8 [rows, groups, count], or uint32 for more than 8 bits."""
    if bits == 4:
        nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:2], -1)
        return nibbles[:, :, :count]
    planes = np.unpackbits(data, axis=-1, bitorder="little", count=bits * count)
    planes = planes.reshape(*data.shape[:2], count, bits)
    # One pass a bit: a sum over a last axis of so few is far slower.
    word = np.uint8 if bits <= 8 else np.uint32
    fields = np.zeros(planes.shape[:3], word)
    for bit in range(bits):
        fields |= planes[..., bit].astype(word) << word(bit)
    return fields
