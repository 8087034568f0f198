"""Block codes: each writes every kept set of a block and reads it back; what is no code word is refused."""

from __future__ import annotations

from itertools import combinations
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.codes import (
    CODES,
    bits_per_block,
    code_bits,
    codes_for,
    decode_blocks,
    decode_mask,
    encode_blocks,
    encode_mask,
)
from quant import NMPattern

SMALL = [NMPattern(n, m) for m in range(1, 9) for n in range(1, m + 1)]


def in_colex_order(pattern: NMPattern) -> list[tuple[int, ...]]:
    """Kept sets by ascending masks, which is the colexicographic order, without binomials."""
    masks = [mask for mask in range(1 << pattern.m) if bin(mask).count("1") == pattern.n]
    return [tuple(bit for bit in range(pattern.m) if mask >> bit & 1) for mask in masks]


@pytest.mark.parametrize("pattern", SMALL, ids=str)
@pytest.mark.parametrize("code", CODES)
def test_every_kept_set_comes_back(pattern: NMPattern, code: str) -> None:
    sets = np.array(list(combinations(range(pattern.m), pattern.n)))
    fields = encode_blocks(sets, code, pattern)
    assert fields.dtype == np.uint32
    assert fields.shape == (len(sets), pattern.n if code == "index" else 1)
    assert int(fields.max()) < 1 << code_bits(code, pattern)
    assert np.array_equal(decode_blocks(fields, code, pattern), sets)
    assert len(np.unique(fields, axis=0)) == len(sets), "two kept sets share a code word"


@pytest.mark.parametrize("pattern", SMALL, ids=str)
def test_rank_counts_the_kept_sets_in_colex_order(pattern: NMPattern) -> None:
    sets = in_colex_order(pattern)
    ranks = encode_blocks(np.array(sets), "rank", pattern)[:, 0]
    assert ranks.tolist() == list(range(len(sets)))
    assert decode_blocks(np.arange(len(sets))[:, None], "rank", pattern).tolist() == [list(s) for s in sets]


@pytest.mark.parametrize("pattern", SMALL, ids=str)
def test_fields_say_what_their_names_say(pattern: NMPattern) -> None:
    for kept in combinations(range(pattern.m), pattern.n):
        assert encode_blocks(np.array(kept), "index", pattern).tolist() == list(kept)
        mask = sum(1 << position for position in kept)
        assert encode_blocks(np.array(kept), "bitmask", pattern).tolist() == [mask]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[NMPattern, np.ndarray]:
    m = draw(st.integers(1, 32))
    kept = st.sets(st.integers(0, m - 1), min_size=1, max_size=m)
    first = sorted(draw(kept))
    n = len(first)
    others = st.permutations(range(m)).map(lambda order: sorted(order[:n]))
    shape = draw(st.sampled_from([(1,), (2,), (1, 3), (2, 2)]))
    count = int(np.prod(shape))
    sets = [first, *(draw(others) for _ in range(count - 1))]
    return NMPattern(n, m), np.array(sets).reshape(*shape, n)


@given(blocks(), st.sampled_from(["index", "bitmask"]))
def test_large_blocks_come_back(case: tuple[NMPattern, np.ndarray], code: str) -> None:
    pattern, sets = case
    fields = encode_blocks(sets, code, pattern)
    assert fields.shape == (*sets.shape[:-1], pattern.n if code == "index" else 1)
    assert int(fields.max()) < 1 << code_bits(code, pattern)
    assert np.array_equal(decode_blocks(fields, code, pattern), sets)


@given(blocks(), st.data())
def test_a_mask_is_encoded_as_its_blocks_are(case: tuple[NMPattern, np.ndarray], data: st.DataObject) -> None:
    pattern, sets = case
    code = data.draw(st.sampled_from([code for code in CODES if code != "rank" or pattern.m <= 8]))
    rows = sets.reshape(sets.shape[0], -1, pattern.n)
    mask = np.zeros((*rows.shape[:2], pattern.m), bool)
    np.put_along_axis(mask, rows, True, axis=-1)
    fields = encode_mask(mask.reshape(len(rows), -1), code, pattern)
    assert np.array_equal(fields, encode_blocks(rows, code, pattern).reshape(len(rows), -1))
    assert np.array_equal(decode_mask(fields, code, pattern), mask.reshape(len(rows), -1))


@given(st.integers(1, 32), st.data())
def test_bits_are_the_fewest_that_tell_all_code_words_apart(m: int, data: st.DataObject) -> None:
    pattern = NMPattern(data.draw(st.integers(1, m)), m)
    subsets = factorial(m) // factorial(pattern.n) // factorial(m - pattern.n)
    for code, words in (("index", m), ("rank", subsets)):
        bits = code_bits(code, pattern)
        assert 2**bits >= words
        assert bits == 1 or 2 ** (bits - 1) < words
    assert code_bits("bitmask", pattern) == m
    assert code_bits("none", pattern) == 0
    assert bits_per_block("index", pattern) == pattern.n * code_bits("index", pattern)
    assert bits_per_block("rank", pattern) == code_bits("rank", pattern)
    assert bits_per_block("bitmask", pattern) == m


@pytest.mark.parametrize(
    ("pattern", "rank", "index", "bitmask"),
    [
        ("2:4", 3, 4, 4),
        ("1:4", 2, 2, 4),
        ("3:4", 2, 6, 4),
        ("4:8", 7, 12, 8),
        ("5:8", 6, 15, 8),
        ("1:3", 2, 2, 3),
    ],
)
def test_bits_of_familiar_patterns(pattern: str, rank: int, index: int, bitmask: int) -> None:
    got = [bits_per_block(code, NMPattern.parse(pattern)) for code in ("rank", "index", "bitmask")]
    assert got == [rank, index, bitmask]


@given(st.integers(1, 32), st.permutations(CODES), st.integers(1, 3), st.data())
def test_codes_for_lists_the_shortest_first(m: int, order: list[str], count: int, data: st.DataObject) -> None:
    pattern = NMPattern(data.draw(st.integers(1, m)), m)
    available = tuple(order[:count])
    chosen = codes_for(pattern, available, 8)
    if pattern.n == m:
        assert chosen == ("none",)
        return
    assert set(chosen) == {code for code in available if code != "rank" or m <= 8}
    sizes = [bits_per_block(code, pattern) for code in chosen]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("pattern", [p for p in SMALL if p.n < p.m], ids=str)
def test_a_damaged_field_is_refused(pattern: NMPattern) -> None:
    """Every field value that fits the bits is either the code word of some kept set, or refused in words."""
    n, m = pattern.n, pattern.m
    good = {code: set() for code in ("rank", "bitmask")}
    for kept in combinations(range(m), n):
        for code, words in good.items():
            words.add(int(encode_blocks(np.array(kept), code, pattern)[0]))
    sentences = {
        "rank": f"A block's rank is beyond C({m},{n}) − 1 = {len(good['rank']) - 1}: the stream is damaged.",
        "bitmask": f"A block's bitmask does not have n = {n} bits set: the stream is damaged.",
    }
    for code, words in good.items():
        for field in set(range(1 << code_bits(code, pattern))) - words:
            for read in (decode_blocks, decode_mask):
                with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared in full
                    read(np.array([[0 if code == "rank" else (1 << n) - 1], [field]]), code, pattern)
                assert str(error.value) == sentences[code]


@given(st.integers(2, 32), st.data())
def test_damaged_indices_are_refused(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    pattern = NMPattern(n, m)
    width = code_bits("index", pattern)
    fields = data.draw(st.lists(st.integers(0, (1 << width) - 1), min_size=n, max_size=n))
    if fields == sorted(set(fields)) and fields[-1] < m:
        assert decode_blocks(np.array([fields]), "index", pattern).tolist() == [fields]
        return
    with pytest.raises(ValueError) as error:  # noqa: PT011
        decode_blocks(np.array([fields]), "index", pattern)
    assert str(error.value) == f"A block's indices do not ascend below m = {m}: the stream is damaged."


def test_an_unknown_code_is_refused() -> None:
    pattern = NMPattern(2, 4)
    sentence = "'huffman' is not a block code; the codes are rank, index, bitmask, and none for dense blocks."
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        code_bits("huffman", pattern)
    for code in ("none", "huffman"):
        with pytest.raises(ValueError, match=rf"^'{code}' is not a code that writes block positions\.$"):
            encode_blocks(np.array([0, 1]), code, pattern)
        with pytest.raises(ValueError, match=rf"^'{code}' is not a code that writes block positions\.$"):
            decode_blocks(np.array([0]), code, pattern)
        with pytest.raises(ValueError, match=rf"^'{code}' is not a code that writes block positions\.$"):
            encode_mask(np.array([[True, True, False, False]]), code, pattern)
