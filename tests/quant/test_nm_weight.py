from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern, NMWeight


def random_parts(
    rng: np.random.Generator, pattern: NMPattern, rows: int, columns: int, group_size: int, symmetric: bool
) -> dict[str, Any]:
    """Legal constructor arguments over the full ranges, with arbitrary codes at pruned positions."""
    m = pattern.m
    groups = 1 if group_size == -1 else math.ceil(columns / group_size)
    order = rng.random((rows, math.ceil(columns / m), m)).argsort(axis=2)
    mask = (order < rng.integers(0, pattern.n + 1, order.shape[:2])[:, :, None]).reshape(rows, -1)[
        :, :columns
    ]
    low, high = (-8, 8) if symmetric else (0, 16)
    return {
        "values": rng.integers(low, high, (rows, columns)).astype(np.int8),
        "mask": mask,
        "group_scale": rng.integers(-128, 128, (rows, groups)),
        "channel_scale": rng.standard_normal(rows).astype(np.float32),
        "pattern": pattern,
        "group_size": group_size,
        "zero_point": None if symmetric else rng.integers(0, 16, (rows, groups)),
    }


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    m = draw(st.integers(1, 32))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 100))
    group_size = draw(st.one_of(st.just(-1), st.integers(1, 5).map(lambda blocks: blocks * m)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random_parts(rng, pattern, rows, columns, group_size, draw(st.booleans()))


@given(parts())
def test_dense_weights_follow_the_definition(given_parts: dict[str, Any]) -> None:
    w = NMWeight(**given_parts)
    rows, columns = given_parts["values"].shape
    length = given_parts["group_size"] if given_parts["group_size"] != -1 else columns
    integers, dense = w.integers(), w.to_dense()
    assert integers.dtype == np.int8
    assert dense.dtype == np.float32
    for o in range(rows):
        for k in range(columns):
            g = k // length
            integer = 0
            if given_parts["mask"][o, k]:
                zero = 0 if given_parts["zero_point"] is None else int(given_parts["zero_point"][o, g])
                integer = int(given_parts["values"][o, k]) - zero
            assert integers[o, k] == integer
            expected = np.float32(integer * int(given_parts["group_scale"][o, g])) * w.channel_scale[o]
            assert dense[o, k] == expected
    assert not np.signbit(dense[dense == 0]).any()


@given(parts())
def test_sizes_are_derived_from_the_arrays(given_parts: dict[str, Any]) -> None:
    w = NMWeight(**given_parts)
    rows, columns = given_parts["values"].shape
    assert (w.out_features, w.in_features) == (rows, columns)
    assert w.groups == given_parts["group_scale"].shape[1] == math.ceil(columns / w.effective_group_size)
    assert w.effective_group_size % w.pattern.m == 0
    assert w.symmetric == (given_parts["zero_point"] is None)


@given(parts(), st.integers(0, 2**32 - 1))
def test_codes_at_pruned_positions_have_no_effect(given_parts: dict[str, Any], seed: int) -> None:
    w = NMWeight(**given_parts)
    low, high = (-8, 8) if w.symmetric else (0, 16)
    other = np.random.default_rng(seed).integers(low, high, w.values.shape)
    changed = dataclasses.replace(w, values=np.where(w.mask, w.values, other))
    assert np.array_equal(changed.integers(), w.integers())
    assert np.array_equal(changed.to_dense(), w.to_dense())


@given(parts())
def test_arrays_are_read_only_copies(given_parts: dict[str, Any]) -> None:
    w = NMWeight(**given_parts)
    for name in ("values", "mask", "group_scale", "channel_scale", "zero_point"):
        held = getattr(w, name)
        if held is None:
            continue
        assert not np.shares_memory(held, given_parts[name])
        with pytest.raises(ValueError, match="read-only"):
            held[0] = 0


def one_row(**changes: Any) -> dict[str, Any]:
    """Legal arguments for a 2 x 10 weight of pattern 2:4 in groups of 4."""
    arguments: dict[str, Any] = {
        "values": np.zeros((2, 10), dtype=np.int8),
        "mask": np.zeros((2, 10), dtype=bool),
        "group_scale": np.ones((2, 3), dtype=np.int64),
        "channel_scale": np.ones(2, dtype=np.float32),
        "pattern": NMPattern(2, 4),
        "group_size": 4,
        "zero_point": None,
    }
    return {**arguments, **changes}


def changed(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def test_extremes_are_legal_and_exact() -> None:
    w = NMWeight(
        values=np.array([[-8, -8, 7, 7]]),
        mask=np.ones((1, 4), dtype=bool),
        group_scale=np.array([[-128, 127]]),
        channel_scale=np.array([-1.0]),
        pattern=NMPattern(1, 1),
        group_size=2,
    )
    assert w.to_dense().tolist() == [[-1024.0, -1024.0, -889.0, -889.0]]
    asymmetric = NMWeight(
        values=np.array([[0, 0, 15, 15]]),
        mask=np.array([[True, False, True, False]]),
        group_scale=np.array([[-128, 127]]),
        channel_scale=np.array([1.0]),
        pattern=NMPattern(1, 2),
        group_size=2,
        zero_point=np.array([[15, 0]]),
    )
    assert asymmetric.integers().tolist() == [[-15, 0, 15, 0]]
    assert asymmetric.to_dense().tolist() == [[1920.0, 0.0, 1905.0, 0.0]]


def test_kept_zero_stays_kept() -> None:
    mask = np.array([[True, True, False, False]])
    w = NMWeight(np.zeros((1, 4), np.int8), mask, np.ones((1, 1), int), np.ones(1), NMPattern(2, 4), 4)
    assert w.mask.tolist() == mask.tolist()


def test_group_scale_and_channel_scale_may_be_zero() -> None:
    w = NMWeight(**one_row(group_scale=np.zeros((2, 3), int), channel_scale=np.zeros(2)))
    assert not w.to_dense().any()


def test_group_may_be_longer_than_the_row() -> None:
    w = NMWeight(**one_row(group_size=128, group_scale=np.ones((2, 1), int)))
    assert (w.groups, w.effective_group_size) == (1, 128)
    whole = NMWeight(**one_row(group_size=-1, group_scale=np.ones((2, 1), int)))
    assert (whole.groups, whole.effective_group_size) == (1, 12)


def test_repr_is_one_short_line() -> None:
    assert repr(NMWeight(**one_row())) == "NMWeight([2, 10], 2:4, group_size=4, symmetric)"


BASE = one_row()
THREE_KEPT = np.zeros((6, 12), dtype=bool)
THREE_KEPT[5, 8:11] = True


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"pattern": "2:4"},
            TypeError,
            "pattern must be an NMPattern, but '2:4' was given; NMPattern.parse reads a string.",
        ),
        (
            {"group_size": 6},
            ValueError,
            "Group size 6 is not a multiple of m = 4 of pattern 2:4; "
            "allowed are multiples of 4 or -1 for one group per row.",
        ),
        (
            {"values": np.zeros((2, 10))},
            TypeError,
            "values has dtype float64, but its dtype must be integer.",
        ),
        (
            {"values": np.zeros((0, 10), int)},
            ValueError,
            "values has shape (0, 10), but it must be [O, K] with O and K at least 1.",
        ),
        (
            {"values": changed(BASE["values"], (1, 3), 8)},
            ValueError,
            "values holds 8 in row 1, column 3, but a symmetric INT4 code must be -8 to 7.",
        ),
        (
            {"values": changed(BASE["values"], (0, 9), -9)},
            ValueError,
            "values holds -9 in row 0, column 9, but a symmetric INT4 code must be -8 to 7.",
        ),
        (
            {"values": changed(BASE["values"], (0, 2), -1), "zero_point": np.zeros((2, 3), int)},
            ValueError,
            "values holds -1 in row 0, column 2, but an asymmetric INT4 code must be 0 to 15.",
        ),
        (
            {"zero_point": changed(np.zeros((2, 3), int), (1, 2), 16)},
            ValueError,
            "zero_point holds 16 in row 1, group 2, but a zero point must be 0 to 15.",
        ),
        (
            {"zero_point": np.zeros((2, 2), int)},
            ValueError,
            "zero_point has shape (2, 2), but it must be [O, groups] = (2, 3) to match values.",
        ),
        (
            {"zero_point": np.zeros((2, 3))},
            TypeError,
            "zero_point has dtype float64, but its dtype must be integer.",
        ),
        ({"mask": np.ones((2, 10), int)}, TypeError, "mask has dtype int64, but its dtype must be bool."),
        (
            {"mask": np.zeros((2, 9), bool)},
            ValueError,
            "mask has shape (2, 9), but it must be [O, K] = (2, 10) to match values.",
        ),
        (
            {
                "values": np.zeros((6, 12), int),
                "mask": THREE_KEPT,
                "group_scale": np.ones((6, 3), int),
                "channel_scale": np.ones(6),
            },
            ValueError,
            "The mask keeps 3 weights in row 5, block 2 (columns 8 to 11), but pattern 2:4 allows at most 2.",
        ),
        (
            {"pattern": NMPattern(1, 4), "mask": changed(BASE["mask"], (1, slice(8, 10)), True)},
            ValueError,
            "The mask keeps 2 weights in row 1, block 2 (columns 8 to 9), but pattern 1:4 allows at most 1.",
        ),
        (
            {"group_scale": changed(BASE["group_scale"], (0, 1), 32768)},
            ValueError,
            "group_scale holds 32768 in row 0, group 1, but a signed 16-bit group scale must be -32768 to 32767.",
        ),
        (
            {"group_scale": changed(BASE["group_scale"], (1, 0), -32769)},
            ValueError,
            "group_scale holds -32769 in row 1, group 0, but a signed 16-bit group scale must be -32768 to 32767.",
        ),
        (
            {"group_scale": np.ones((2, 3))},
            TypeError,
            "group_scale has dtype float64, but its dtype must be integer.",
        ),
        (
            {"group_scale": np.ones((2, 4), int)},
            ValueError,
            "group_scale has shape (2, 4), but it must be [O, groups] = (2, 3) to match values.",
        ),
        (
            {"channel_scale": np.ones(2, int)},
            TypeError,
            "channel_scale has dtype int64, but its dtype must be floating.",
        ),
        (
            {"channel_scale": np.ones((2, 1))},
            ValueError,
            "channel_scale has shape (2, 1), but it must be [O] = (2,) to match values.",
        ),
        (
            {"channel_scale": np.array([1.0, np.nan])},
            ValueError,
            "channel_scale holds nan in row 1, but every channel scale must be finite in float32.",
        ),
        (
            {"channel_scale": np.array([1e300, 1.0])},
            ValueError,
            "channel_scale holds 1e+300 in row 0, but every channel scale must be finite in float32.",
        ),
    ],
)
def test_errors_are_sentences(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        NMWeight(**one_row(**changes))
    assert str(raised.value) == words
