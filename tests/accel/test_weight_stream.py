"""Packed weights: the layout in memory by a reader of its own, sizes on real bytes, and what is refused."""

from __future__ import annotations

import dataclasses
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import example, given, reject

from accel import ConfigError, PackedStream, load_preset, pack, unpack
from accel.stream import layout_for
from quant import NMPattern, NMWeight
from verify.cases import Case
from verify.strategies import cases, core_configs

TINY = load_preset("tiny")
EDGE = load_preset("edge")


def random_weight(
    seed: int, pattern: str, rows: int, features: int, group_size: int, symmetric: bool = True
) -> NMWeight:
    """Weights over the full ranges, exactly n to a block, kept zeros and −8 among them."""
    rng = np.random.default_rng(seed)
    shape = NMPattern.parse(pattern)
    order = rng.random((rows, -(-features // shape.m), shape.m)).argsort(axis=-1)
    groups = 1 if group_size == -1 else -(-features // group_size)
    low = -8 if symmetric else 0
    return NMWeight(
        values=rng.integers(low, low + 16, (rows, features), dtype=np.int8),
        mask=(order < shape.n).reshape(rows, -1)[:, :features],
        group_scale=rng.integers(-128, 128, (rows, groups)),
        channel_scale=np.ones(rows, np.float32),
        pattern=shape,
        group_size=group_size,
        zero_point=None if symmetric else rng.integers(0, 16, (rows, groups)),
    )


# -- a reader of its own, from the text that describes the layout ---------------------------------------


class Bits:
    """Bits of a column's bytes, the least significant of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.bits = [byte >> i & 1 for byte in data for i in range(8)]
        self.at = 0

    def take(self, count: int) -> int:
        field = sum(bit << i for i, bit in enumerate(self.bits[self.at : self.at + count]))
        assert self.at + count <= len(self.bits), "read beyond the stream"
        self.at += count
        return field

    def pad_to_byte(self) -> None:
        rest = -self.at % 8
        assert self.take(rest) == 0, "padding bits are not zero"


def kept_positions(bits: Bits, code: str, n: int, m: int) -> list[int]:
    """One block's kept positions."""
    if code == "none":
        return list(range(n))
    if code == "index":
        return [bits.take(max(1, ceil(log2(m)))) for _ in range(n)]
    if code == "bitmask":
        mask = bits.take(m)
    else:
        masks = [mask for mask in range(1 << m) if bin(mask).count("1") == n]
        mask = masks[bits.take(max(1, ceil(log2(len(masks)))))]
    return [position for position in range(m) if mask >> position & 1]


def read_by_hand(stream: PackedStream) -> tuple[dict, dict]:
    """Integer weights of slots by (o, k), padding included, and (scale, zero point) by (o, tile along K)."""
    layout = stream.layout
    n, m = layout.pattern.n, layout.pattern.m
    word = layout.columns * layout.slice_bytes
    assert len(stream.payload) % word == 0
    slots: dict[tuple[int, int], int] = {}
    headers: dict[tuple[int, int], tuple[int, int]] = {}
    for c in range(layout.columns):
        column = b"".join(
            stream.payload[start + c * layout.slice_bytes : start + (c + 1) * layout.slice_bytes]
            for start in range(0, len(stream.payload), word)
        )
        bits = Bits(column)
        for tile in range(ceil(layout.out_features / layout.columns)):
            o = tile * layout.columns + c
            for group in range(layout.groups):
                scale = bits.take(8 * layout.scale_bytes)
                zero = bits.take(8) if layout.asymmetric else 0
                assert zero < 16
                negative = scale >> 8 * layout.scale_bytes - 1
                headers[o, group] = (scale - (negative << 8 * layout.scale_bytes), zero)
                kept = []
                for block in range(layout.group // m):
                    positions = kept_positions(bits, layout.code, n, m)
                    assert positions == sorted(set(positions))
                    assert len(positions) == n
                    kept += [group * layout.group + block * m + position for position in positions]
                bits.pad_to_byte()
                for k in kept:
                    value = bits.take(4)
                    signed = value - 16 if value > 7 else value
                    slots[o, k] = value - zero if layout.asymmetric else signed
                bits.pad_to_byte()
        rest = len(bits.bits) - bits.at
        assert rest < 8 * layout.slice_bytes, "more than one word of padding"
        assert bits.take(rest) == 0
    return slots, headers


def check_by_hand(weight: NMWeight, stream: PackedStream) -> None:
    """The stream says of every weight what the weight matrix says, and zero of everything else."""
    layout = stream.layout
    slots, headers = read_by_hand(stream)
    rows, features = weight.values.shape
    group_size = features if weight.group_size == -1 else weight.group_size
    for o in range(ceil(rows / layout.columns) * layout.columns):
        for k in range(layout.group * layout.groups):
            value = slots.get((o, k))
            if o >= rows or k >= features or not weight.mask[o, k]:
                assert value in (None, 0), f"padding or a pruned weight at {o}, {k} counts as {value}"
                continue
            zero = 0 if weight.zero_point is None else int(weight.zero_point[o, k // group_size])
            assert value == int(weight.values[o, k]) - zero, f"weight {o}, {k}"
            scale, stored_zero = headers[o, k // layout.group]
            assert scale == weight.group_scale[o, k // group_size]
            assert stored_zero == zero


def packed(case: Case) -> tuple[NMWeight, PackedStream]:
    weight = case.build()[1]
    try:
        return weight, pack(weight, case.config, case.code)
    except ConfigError as error:
        # Padded to whole tiles, K may be beyond the core; everything else fits by construction.
        if "after padding to whole groups" in str(error):
            reject()
        raise


SMALL_CASES = cases(core_configs(rows=2), max_tokens=1)
KEPT_ZEROS_AND_MINUS_8 = Case(TINY, NMPattern(2, 4), 1, 9, 3, 4, weights="extreme", seed=3)


@example(KEPT_ZEROS_AND_MINUS_8)
@example(Case(TINY, NMPattern(3, 7), 1, 100, 5, -1, symmetric=False, weights="uniform", seed=1))
@given(SMALL_CASES)
def test_a_reader_of_its_own_finds_the_same_weights(case: Case) -> None:
    weight, stream = packed(case)
    check_by_hand(weight, stream)


@pytest.mark.parametrize("code", ["rank", "index", "bitmask"])
@pytest.mark.parametrize("pattern", ["1:2", "1:3", "2:5", "5:8", "7:8", "3:4"])
def test_each_code_lies_in_memory_as_described(pattern: str, code: str) -> None:
    weight = random_weight(5, pattern, 3, 50, 5 * NMPattern.parse(pattern).m, symmetric=False)
    config = TINY.replace(group_max=64)
    stream = pack(weight, config, code)
    assert stream.layout.code == code
    check_by_hand(weight, stream)


@pytest.mark.parametrize("pattern", ["1:9", "4:16", "5:12", "17:32", "31:32"])
@pytest.mark.parametrize("code", ["index", "bitmask"])
def test_large_blocks_lie_in_memory_as_described(pattern: str, code: str) -> None:
    config = load_preset("wide").replace(columns=3, result_lanes=1)
    check_by_hand(weight := random_weight(6, pattern, 4, 140, -1), pack(weight, config, code))


# -- there and back ----------------------------------------------------------------------------------------


@example(KEPT_ZEROS_AND_MINUS_8)
@given(SMALL_CASES)
def test_unpacking_gives_the_same_integers(case: Case) -> None:
    weight, stream = packed(case)
    channel_scale = np.linspace(0.5, 2, weight.out_features, dtype=np.float32)
    again = unpack(stream, channel_scale)
    assert np.array_equal(again.integers(), weight.integers())
    assert np.array_equal(again.channel_scale, channel_scale)
    assert np.array_equal(unpack(stream).channel_scale, np.ones(weight.out_features, np.float32))
    assert again.pattern == (NMPattern(1, 1) if weight.pattern.is_dense else weight.pattern)
    assert again.symmetric == weight.symmetric
    assert not (weight.mask & ~again.mask).any(), "a kept weight is lost"
    n, m = again.pattern.n, again.pattern.m
    for start in range(0, weight.in_features - m + 1, m):
        assert (again.mask[:, start : start + m].sum(axis=1) == n).all()
    for k in range(weight.in_features):
        mine, theirs = k // again.effective_group_size, k // weight.effective_group_size
        assert np.array_equal(again.group_scale[:, mine], weight.group_scale[:, theirs])
        if not weight.symmetric:
            assert np.array_equal(again.zero_point[:, mine], weight.zero_point[:, theirs])
    # What comes back packs to the same payload: slots are filled up in one way only.
    try:
        assert pack(again, case.config, stream.layout.code).payload == stream.payload
    except ConfigError:
        assert case.pattern.n == case.pattern.m  # "none" is not to be asked for by name


def test_kept_zeros_and_minus_eight_keep_their_places() -> None:
    weight = NMWeight(
        values=np.array([[0, 5, -8, 5], [5, -8, 5, 0]]),
        mask=np.array([[True, False, True, False], [False, True, False, True]]),
        group_scale=np.array([[-128], [127]]),
        channel_scale=np.ones(2, np.float32),
        pattern=NMPattern(2, 4),
        group_size=4,
    )
    stream = pack(weight, TINY, "index")
    # One tile: scale, two indices of two bits, two nibbles; columns side by side in slices of two bytes.
    assert stream.payload.hex() == "80087f0d80000800"
    wide = pack(dataclasses.replace(weight, group_scale=[[-32768], [32766]]), TINY.replace(scale_bits=16), "index")
    assert wide.payload.hex() == "0080fe7f08800d08"
    assert unpack(wide).group_scale.tolist() == [[-32768], [32766]]
    again = unpack(stream)
    assert np.array_equal(again.mask, weight.mask)
    assert again.integers().tolist() == [[0, 0, -8, 0], [0, -8, 0, 0]]


def test_filled_up_slots_of_asymmetric_weights_count_as_zero() -> None:
    """Nothing is kept, and the zero point is not 0: a slot of code 0 would be a weight of −zero_point."""
    for zero_point in range(16):
        weight = NMWeight(
            values=np.full((1, 6), 9),
            mask=np.zeros((1, 6), bool),
            group_scale=np.array([[1]]),
            channel_scale=np.ones(1, np.float32),
            pattern=NMPattern(2, 3),
            group_size=-1,
            zero_point=np.array([[zero_point]]),
        )
        stream = pack(weight, TINY)
        slots, _ = read_by_hand(stream)
        assert set(slots.values()) == {0}
        assert not unpack(stream).integers().any()


# -- how a row is cut into tiles ---------------------------------------------------------------------------


@given(SMALL_CASES)
def test_no_tile_has_two_scales_and_none_is_smaller_than_needed(case: Case) -> None:
    weight, stream = packed(case)
    layout, m = stream.layout, stream.layout.pattern.m
    assert m == (1 if weight.pattern.is_dense else weight.pattern.m)
    longest = case.config.group_max // m * m
    assert layout.group % m == 0
    assert m <= layout.group <= longest
    assert (layout.groups - 1) * layout.group < weight.in_features <= layout.groups * layout.group
    if weight.groups == 1:
        # As few tiles as possible, and then as little padding as possible.
        fewest = ceil(ceil(weight.in_features / m) / (longest // m))
        assert layout.groups <= fewest
        assert layout.group == ceil(ceil(weight.in_features / m) / fewest) * m
    else:
        starts = range(0, layout.groups * layout.group, layout.group)
        assert all(k // weight.group_size == (k + layout.group - 1) // weight.group_size for k in starts)
        longer = range(layout.group + m, min(weight.group_size, longest) + 1, m)
        assert all(weight.group_size % length for length in longer), "a longer tile would do"


def test_a_long_group_is_cut_into_equal_tiles_of_one_scale() -> None:
    weight = random_weight(7, "2:4", 2, 96, 96)
    stream = pack(weight, TINY.replace(group_max=40))
    assert (stream.layout.group, stream.layout.groups) == (32, 3)
    _, headers = read_by_hand(stream)
    assert [headers[0, g][0] for g in range(3)] == [weight.group_scale[0, 0]] * 3
    assert unpack(stream).group_scale.shape == (2, 3)


# -- sizes -------------------------------------------------------------------------------------------------


@given(SMALL_CASES)
def test_payload_has_the_bytes_that_the_formula_says(case: Case) -> None:
    weight, stream = packed(case)
    layout, (n, m) = stream.layout, (weight.pattern.n, weight.pattern.m)
    if n == m:
        n = m = 1  # any n:n is the same dense stream, also where m does not divide K
    blocks = layout.group // m
    subsets = len([mask for mask in range(1 << min(m, 12)) if bin(mask).count("1") == n])
    block_bits = {
        "none": 0,
        "index": n * max(1, ceil(log2(m))),
        "bitmask": m,
        "rank": ceil(log2(max(2, subsets))),
    }[layout.code]
    header = (1 if case.config.scale_bits <= 8 else 2) + (0 if weight.symmetric else 1)
    tile = header + ceil(blocks * block_bits / 8) + ceil(blocks * n / 2)
    column = tile * layout.groups * ceil(weight.out_features / case.config.columns)
    words = ceil(column / case.config.slice_bytes)
    assert len(stream.payload) == words * case.config.columns * case.config.slice_bytes
    assert layout.payload_bytes == len(stream.payload)
    weights = weight.out_features * weight.in_features
    assert layout.bits_per_weight == 8 * len(stream.payload) / weights
    assert len(stream.to_bytes()) == 64 + len(stream.payload)


@pytest.mark.parametrize(
    ("pattern", "code", "expected"),
    [("2:4", "rank", 2.8125), ("2:4", "index", 3.0625), ("1:1", "none", 4.0625)],
)
def test_bits_per_weight_on_the_packed_bytes_of_a_large_layer(pattern: str, code: str, expected: float) -> None:
    weight = random_weight(8, pattern, 4096, 4096, 128)
    stream = pack(weight, EDGE, code)
    bits = 8 * len(stream.payload) / (4096 * 4096)
    assert bits == expected
    assert stream.layout.bits_per_weight == expected
    if code == "rank":
        assert 16 / bits >= 5.6
        assert pack(weight, EDGE).layout.code == "rank", "the default is the shortest"
    # Several strips were packed one after the other: rows of each of them read back.
    assert np.array_equal(unpack(stream).integers()[::97], weight.integers()[::97])


def test_the_shortest_code_is_the_default() -> None:
    for pattern, code in (
        ("2:4", "rank"),
        ("1:4", "rank"),
        ("7:8", "rank"),
        ("4:4", "none"),
        ("1:1", "none"),
    ):
        assert pack(random_weight(9, pattern, 2, 16, -1), TINY).layout.code == code
    assert pack(random_weight(9, "1:16", 2, 32, -1), EDGE).layout.code == "index"
    assert pack(random_weight(9, "8:16", 2, 32, -1), EDGE).layout.code == "bitmask"


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "config", "code", "words"),
    [
        (
            random_weight(1, "2:9", 2, 18, 9),
            TINY,
            None,
            "Pattern 2:9 has blocks of 9 weights, but this core's window holds 8; patterns with m up to 8 are allowed.",
        ),
        (
            random_weight(1, "2:4", 2, 132, 4),
            TINY,
            None,
            "The weights have 132 input features (132 after padding to whole groups), but this core's "
            "accumulators are sized for k_max = 128.",
        ),
        (
            random_weight(1, "1:3", 2, 128, -1),
            TINY,
            None,
            "The weights have 128 input features (135 after padding to whole groups), but this core's "
            "accumulators are sized for k_max = 128.",
        ),
        (
            random_weight(1, "1:1", 65536, 1, -1),
            TINY.replace(columns=1),
            None,
            "The weights have 65536 output features, but this core counts at most 65535 output tiles of 1, "
            "which is 65535.",
        ),
        (
            random_weight(1, "2:4", 2, 16, 4, symmetric=False),
            TINY.replace(asymmetric=False),
            None,
            "The weights have zero points, but this core is generated without them (asymmetric = false); "
            "quantise symmetrically or generate the core with asymmetric = true.",
        ),
        (
            random_weight(1, "2:4", 2, 16, 4),
            TINY.replace(codes=("index", "bitmask")),
            "rank",
            "Block code 'rank' is not available for pattern 2:4 on this core; available: index, bitmask.",
        ),
        (
            random_weight(1, "2:9", 2, 18, 9),
            EDGE,
            "rank",
            "Block code 'rank' is not available for pattern 2:9 on this core; available: index, bitmask.",
        ),
        (
            random_weight(1, "4:4", 2, 16, 4),
            TINY,
            "bitmask",
            "Block code 'bitmask' is not available for pattern 4:4 on this core; available: none.",
        ),
        (
            random_weight(1, "1:1", 9, 120, 1),
            TINY.replace(scale_bits=5),
            None,
            "Group scales run from -128 to 127, but this core's 5-bit scales hold -16 to 15.",
        ),
        (
            dataclasses.replace(random_weight(1, "1:1", 1, 2, 1), group_scale=[[-32768, 32767]]),
            TINY.replace(scale_bits=15),
            None,
            "Group scales run from -32768 to 32767, but this core's 15-bit scales hold -16384 to 16383.",
        ),
    ],
    ids=[
        "m",
        "k",
        "padded k",
        "o",
        "zero points",
        "code not generated",
        "rank of a large block",
        "code of dense",
        "scale",
        "scale of 16 bits",
    ],
)
def test_weights_beyond_the_core_are_refused(weight: NMWeight, config: object, code: str | None, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        pack(weight, config, code)  # type: ignore[arg-type]
    assert str(error.value) == words


def test_a_group_that_m_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        layout_for(TINY, NMPattern(2, 4), 2, 16, 6)
    assert str(error.value) == "Group size 6 is not a multiple of m = 4 of pattern 2:4."


def test_the_ends_of_the_capacity_are_accepted() -> None:
    assert layout_for(TINY, NMPattern(1, 1), 65535 * 2, 128, -1).out_tiles == 65535
    weight = random_weight(2, "1:1", 2, 128, -1)
    narrow = TINY.replace(scale_bits=5)
    for scale in (-16, 15):
        ok = NMWeight(weight.values, weight.mask, np.full((2, 1), scale), weight.channel_scale, weight.pattern, -1)
        assert unpack(pack(ok, narrow)).group_scale.tolist() == [[scale] * 4] * 2


# -- streams for another core ---------------------------------------------------------------------------


@given(SMALL_CASES)
def test_a_stream_runs_on_the_core_it_is_packed_for(case: Case) -> None:
    _, stream = packed(case)
    stream.require_core(case.config)
    stream.require_core(case.config.replace(subtiles=case.config.subtiles + 1))


def test_a_stream_for_another_core_is_refused() -> None:
    weight = random_weight(3, "2:4", 3, 64, 32)
    stream = pack(weight, TINY)
    for changes in ({"columns": 3}, {"slice_bytes": 4}):
        other = TINY.replace(**changes)
        with pytest.raises(ConfigError) as error:
            stream.require_core(other)
        assert str(error.value) == (
            f"The stream is packed for 2 columns of 2 bytes a word, but this core has {other.columns} "
            f"columns of {other.slice_bytes}; pack the weights for this core."
        )
    with pytest.raises(ConfigError) as error:
        stream.require_core(TINY.replace(group_max=16))
    assert str(error.value) == (
        "The stream has tiles of 32 weights along K, but this core takes 16 for group size 32; "
        "pack the weights for this core."
    )
    with pytest.raises(ConfigError, match=r"Block code 'rank' is not available for pattern 2:4 on this core"):
        stream.require_core(TINY.replace(codes=("index",)))
    with pytest.raises(ConfigError, match=r"sized for k_max = 32\.$"):
        stream.require_core(TINY.replace(k_max=32))
    with pytest.raises(ConfigError, match=r"^Pattern 2:4 has blocks of 4 weights, but this core's window holds 3"):
        stream.require_core(TINY.replace(window=3, act_words=64))
    with pytest.raises(ConfigError, match=r"^The weights have zero points"):
        pack(random_weight(3, "2:4", 3, 64, 32, symmetric=False), TINY).require_core(TINY.replace(asymmetric=False))


def test_a_stream_with_wider_scales_than_the_core_is_refused() -> None:
    """Tile geometry does not tell: the core would cut the scale's high bits off."""
    weight = random_weight(4, "2:4", 3, 64, 4)
    stream = pack(weight, TINY)
    with pytest.raises(ConfigError, match=r"^Group scales run from -\d+ to \d+, but this core's 4-bit scales hold -8"):
        stream.require_core(TINY.replace(scale_bits=4))
    wide = pack(dataclasses.replace(weight, group_scale=255 * weight.group_scale), TINY.replace(scale_bits=16))
    wide.require_core(TINY.replace(scale_bits=16))
    with pytest.raises(ConfigError, match=r"^Group scales run from -\d+ to \d+, but this core's 15-bit scales"):
        wide.require_core(TINY.replace(scale_bits=15))


def test_a_stream_with_scales_of_another_size_is_refused() -> None:
    """Also where they would fit: the core takes as many bytes as its own scales have."""
    weight = random_weight(4, "2:4", 3, 64, 4)
    for scale_bits, packed_for in ((16, 8), (8, 16)):
        stream = pack(weight, TINY.replace(scale_bits=packed_for))
        with pytest.raises(ConfigError) as error:
            stream.require_core(TINY.replace(scale_bits=scale_bits))
        assert str(error.value) == (
            f"The stream has group scales of {packed_for} bits, but this core reads {scale_bits} "
            f"(scale_bits = {scale_bits}); pack the weights for this core."
        )


# -- a layout that contradicts itself ---------------------------------------------------------------------

LAYOUT = layout_for(TINY, NMPattern(2, 4), 3, 64, 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"out_features": 0}, "0 output features and 64 input features"),
        ({"in_features": 0, "groups": 0}, "3 output features and 0 input features"),
        ({"columns": 0}, "0 columns"),
        ({"slice_bytes": 3}, "slices of 3 bytes"),
        ({"scale_bytes": 0}, "A group scale has 1 or 2 bytes, but 0 were given."),
        ({"scale_bytes": 3}, "A group scale has 1 or 2 bytes, but 3 were given."),
        ({"code": "none"}, "code none does not write pattern 2:4"),
        ({"pattern": NMPattern(4, 4)}, "code rank does not write pattern 4:4"),
        ({"pattern": NMPattern(2, 16)}, "code rank does not write pattern 2:16"),
        ({"group": 30, "groups": 3}, "30 weights is not a positive multiple of m = 4"),
        ({"group": 0}, "0 weights is not a positive multiple of m = 4"),
        ({"groups": 3}, "3 tiles of 32 weights do not make up 64 input features"),
        ({"groups": 1}, "1 tiles of 32 weights do not make up 64 input features"),
        ({"group_size": 0}, "Group size 0 is not positive"),
        ({"group_size": 30}, "Group size 30 is not a multiple of m = 4"),
        ({"group_size": 16}, "Tiles of 32 weights do not cut groups of 16"),
        ({"group_size": 48}, "Tiles of 32 weights do not cut groups of 48"),
    ],
)
def test_a_layout_of_nothing_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared
        dataclasses.replace(LAYOUT, **changes)
    assert words in str(error.value)


@pytest.mark.parametrize("group_size", [0, -2])
def test_a_group_of_no_weights_is_refused(group_size: int) -> None:
    with pytest.raises(ConfigError) as error:
        layout_for(load_preset("tiny"), NMPattern(2, 4), 4, 64, group_size)
    assert str(error.value) == f"A group is of one weight or more, or -1 for a whole row, but {group_size} was given."
