"""The stream's file form: what is written is read back, and what is not exactly that is refused."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel import ConfigError, PackedStream, StreamError, load_preset, pack, unpack
from accel.core.CoreFL import run_fl
from accel.image import pack_activations
from quant import NMPattern, NMWeight
from verify.strategies import cases, core_configs

TINY = load_preset("tiny")

#: The header as files on disk have it; a change here means a new version.
HEADER = struct.Struct("<4sHBBBBHIIIIIiQI12sI")
FIELDS = (
    *("magic", "version", "code", "flags", "n", "m", "slice_bytes", "columns", "out_features", "in_features"),
    *("group", "groups", "group_size", "size", "checksum", "reserved", "header_checksum"),
)


def small_stream(symmetric: bool = True) -> PackedStream:
    rng = np.random.default_rng(11)
    weight = NMWeight(
        values=rng.integers(0, 8, (3, 8)),
        mask=np.tile([True, False, False, True], (3, 2)),
        group_scale=rng.integers(-128, 128, (3, 2)),
        channel_scale=np.ones(3, np.float32),
        pattern=NMPattern(2, 4),
        group_size=4,
        zero_point=None if symmetric else rng.integers(0, 16, (3, 2)),
    )
    return pack(weight, TINY)


STREAM = small_stream()
DATA = STREAM.to_bytes()


# Two files of version 1 as they were before scales could have two bytes, and what they hold.
OLD_SYMMETRIC = bytes.fromhex(
    "4e4d5357010003000204020002000000030000000800000004000000020000000400000018000000"
    "00000000693d8096000000000000000000000000689fe4a7"
    "80030003a37fe8ff03df031601030000895d000003110000"
)
OLD_INTEGERS = [[3, 0, 0, -6, -1, 0, 0, -3], [-8, 0, 0, -2, 6, 0, 0, 1], [-7, 0, 0, -8, 1, 0, 0, 1]]
OLD_ASYMMETRIC = bytes.fromhex(
    "4e4d5357010003010204020002000000030000000800000004000000020000000400000020000000"
    "0000000066e8816400000000000000000000000046523210"
    "80000007032b03607f0fff080357039e01030000030100005d01000003990000"
)
OLD_ASYMMETRIC_INTEGERS = [[11, 0, 0, 2, -8, 0, 0, -10], [-7, 0, 0, -1, 6, 0, 0, 1], [-2, 0, 0, -3, 8, 0, 0, 8]]


def signed_again(data: bytes, **changes: object) -> bytes:
    """A file with some header fields changed and all checksums right."""
    fields = dict(zip(FIELDS, HEADER.unpack(data[:64]), strict=True))
    fields.update(changes)
    header = HEADER.pack(*fields.values())[:-4]
    return header + struct.pack("<I", zlib.crc32(header)) + data[64:]


def test_header_fields_lie_where_the_format_says() -> None:
    fields = dict(zip(FIELDS, HEADER.unpack(DATA[:64]), strict=True))
    assert fields == {
        "magic": b"NMSW",
        "version": 1,
        "code": 3,
        "flags": 0,
        "n": 2,
        "m": 4,
        "slice_bytes": 2,
        "columns": 2,
        "out_features": 3,
        "in_features": 8,
        "group": 4,
        "groups": 2,
        "group_size": 4,
        "size": len(STREAM.payload),
        "checksum": zlib.crc32(STREAM.payload),
        "reserved": bytes(12),
        "header_checksum": zlib.crc32(DATA[:60]),
    }
    assert DATA[64:] == STREAM.payload
    assert signed_again(DATA) == DATA
    for scale_bits, wide in ((2, 0), (8, 0), (9, 2), (16, 2)):
        weight = NMWeight(np.ones((2, 4), int), np.ones((2, 4), bool), [[1], [-2]], np.ones(2), NMPattern(1, 1), 4)
        zeros = dataclasses.replace(weight, zero_point=[[1], [0]])
        for each, flags in ((weight, wide), (zeros, wide + 1)):
            data = pack(each, TINY.replace(scale_bits=scale_bits)).to_bytes()
            assert HEADER.unpack(data[:64])[3] == flags
            assert PackedStream.from_bytes(data).layout.scale_bytes == (2 if wide else 1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_file_from_before_scales_had_two_bytes_is_read_and_written_alike(symmetric: bool) -> None:
    data, integers = (OLD_SYMMETRIC, OLD_INTEGERS) if symmetric else (OLD_ASYMMETRIC, OLD_ASYMMETRIC_INTEGERS)
    stream = PackedStream.from_bytes(data)
    weight = unpack(stream)
    assert weight.integers().tolist() == integers
    assert weight.group_scale.tolist() == [[-128, 127], [0, -1], [1, 93]]
    assert stream.to_bytes() == data
    assert pack(weight, TINY).to_bytes() == data


@given(cases(core_configs(rows=1), max_tokens=1))
def test_a_file_gives_the_stream_back(case: object) -> None:
    try:
        stream = pack(case.build()[1], case.config, case.code)  # type: ignore[attr-defined]
    except ConfigError:  # K padded to whole tiles is beyond the core
        return
    data = stream.to_bytes()
    assert PackedStream.from_bytes(data) == stream
    assert PackedStream.from_bytes(bytearray(data)).to_bytes() == data  # type: ignore[arg-type]


def test_every_truncation_is_refused() -> None:
    for length in range(len(DATA)):
        with pytest.raises(StreamError, match="truncated") as error:
            PackedStream.from_bytes(DATA[:length])
        if length < 64:
            expected = f"The stream is truncated: it has {length} bytes, but its header alone takes 64."
        else:
            expected = (
                f"The stream is truncated: its header promises {len(DATA) - 64} payload bytes, "
                f"but {length - 64} follow."
            )
        assert str(error.value) == expected


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(StreamError) as error:
        PackedStream.from_bytes(DATA + b"\0")
    size = len(DATA) - 64
    assert str(error.value) == (
        f"The stream is too long: its header promises {size} payload bytes, but {size + 1} follow."
    )


def test_every_altered_byte_is_refused() -> None:
    for position in range(len(DATA)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(DATA)
            altered[position] ^= flip
            with pytest.raises(StreamError) as error:
                PackedStream.from_bytes(bytes(altered))
            words = str(error.value)
            if position < 4:
                assert words.startswith("This is not a packed weight stream: it starts with ")
                assert words.endswith(" instead of b'NMSW'.")
            elif position < 6:
                version = int.from_bytes(altered[4:6], "little")
                assert words == f"The stream has version {version}, but this program reads version 1."
            elif position < 64:
                assert words == "The stream's header is altered: its checksum does not match."
            else:
                assert words == "The stream's payload is altered: its checksum does not match."


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(StreamError):
        PackedStream.from_bytes(data)
    with pytest.raises(StreamError):
        PackedStream.from_bytes(b"NMSW\x01\x00" + data)


def test_another_version_is_refused_even_when_signed() -> None:
    with pytest.raises(StreamError, match=r"^The stream has version 2, but this program reads version 1\.$"):
        PackedStream.from_bytes(signed_again(DATA, version=2))


IMPOSSIBLE = "The stream's header describes no possible weights: "


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code": 4}, "The stream's header names block code 4, which does not exist."),
        ({"code": 0}, IMPOSSIBLE + "Block code none does not write pattern 2:4."),
        ({"m": 16, "group": 16, "groups": 1, "group_size": -1}, IMPOSSIBLE + "Block code rank does not"),
        ({"n": 0}, IMPOSSIBLE + "Pattern 0:4 has n = 0"),
        ({"n": 5}, IMPOSSIBLE + "Pattern 5:4 has n = 5"),
        ({"m": 0}, IMPOSSIBLE + "Pattern 2:0 has m = 0"),
        ({"m": 33}, IMPOSSIBLE + "Pattern 2:33 has m = 33"),
        ({"slice_bytes": 0}, IMPOSSIBLE + "A weight word has at least one column"),
        ({"slice_bytes": 3}, IMPOSSIBLE + "A weight word has at least one column"),
        ({"columns": 0}, IMPOSSIBLE + "A weight word has at least one column"),
        ({"out_features": 0}, IMPOSSIBLE + "A weight matrix has at least one row and column, but 0 output"),
        ({"in_features": 0}, IMPOSSIBLE + "A weight matrix has at least one row and column"),
        ({"group": 0}, IMPOSSIBLE + "A group of 0 weights is not a positive multiple of m = 4 of 2:4."),
        ({"group": 6}, IMPOSSIBLE + "A group of 6 weights is not a positive multiple of m = 4 of 2:4."),
        ({"groups": 0}, IMPOSSIBLE + "0 tiles of 4 weights do not make up 8 input features."),
        ({"groups": 3}, IMPOSSIBLE + "3 tiles of 4 weights do not make up 8 input features."),
        ({"in_features": 9}, IMPOSSIBLE + "2 tiles of 4 weights do not make up 9 input features."),
        ({"group": 8, "groups": 1}, IMPOSSIBLE + "Tiles of 8 weights do not cut groups of 4 evenly."),
        ({"group_size": 0}, IMPOSSIBLE + "Group size 0 is not positive"),
        ({"group_size": -2}, IMPOSSIBLE + "Group size -2 is not positive"),
        ({"group_size": 6}, IMPOSSIBLE + "Group size 6 is not a multiple of m = 4"),
        ({"out_features": 5}, "The stream's header contradicts itself: its geometry takes 36 "),
        ({"columns": 3}, "The stream's header contradicts itself: its geometry takes "),
        ({"flags": 1}, "The stream's header contradicts itself: its geometry takes "),
        ({"flags": 2}, "The stream's header "),
        ({"reserved": b"\1" + bytes(11)}, "The stream's header sets flags or reserved bytes that "),
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(StreamError) as error:
        PackedStream.from_bytes(signed_again(DATA, **changes))
    assert str(error.value).startswith(words)
    assert str(error.value).endswith(".")
    assert ".." not in str(error.value)


def test_an_unknown_flag_is_refused_where_sizes_agree() -> None:
    data = small_stream(symmetric=False).to_bytes()
    assert PackedStream.from_bytes(data).layout.asymmetric
    with pytest.raises(StreamError, match=r"^The stream's header sets flags or reserved bytes"):
        PackedStream.from_bytes(signed_again(data, flags=1 | 4))


def resigned_payload(stream: PackedStream, payload: bytes) -> PackedStream:
    """A stream of other bytes, as a writer with a bug would give it: every checksum is right."""
    return PackedStream.from_bytes(signed_again(stream.to_bytes()[:64] + payload, checksum=zlib.crc32(payload)))


def test_damage_under_a_right_checksum_is_refused_where_it_is_decoded() -> None:
    # 2:4 by rank: six code words in three bits. Column 0's second byte holds the two ranks of its first tile.
    payload = bytearray(STREAM.payload)
    payload[1] = 0x3F
    damaged = resigned_payload(STREAM, bytes(payload))
    sentence = r"^A block's rank is beyond C\(4,2\) − 1 = 5: the stream is damaged\.$"
    with pytest.raises(ValueError, match=sentence):
        unpack(damaged)
    acts = pack_activations(TINY, damaged.layout, np.zeros((1, 8), np.int64))
    with pytest.raises(ValueError, match=sentence):
        run_fl(TINY, damaged, acts, 1)


def test_a_zero_point_beyond_fifteen_is_refused() -> None:
    """The core keeps four bits of it: the functional level must not compute with eight."""
    stream = small_stream(symmetric=False)
    payload = bytearray(stream.payload)
    payload[1] |= 0x10
    damaged = resigned_payload(stream, bytes(payload))
    acts = pack_activations(TINY, damaged.layout, np.zeros((1, 8), np.int64))
    for read in (lambda: unpack(damaged), lambda: run_fl(TINY, damaged, acts, 1)):
        with pytest.raises(ValueError, match=r"^A tile's zero point is \d+, beyond 15: the stream is damaged\.$"):
            read()
