from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern

PATTERNS = st.integers(1, 32).flatmap(lambda m: st.builds(NMPattern, st.integers(1, m), st.just(m)))


@given(PATTERNS)
def test_parse_inverts_str(pattern: NMPattern) -> None:
    assert NMPattern.parse(str(pattern)) == pattern
    assert str(pattern) == f"{pattern.n}:{pattern.m}"


@given(PATTERNS)
def test_kept_and_pruned_counts_add_up_to_the_block(pattern: NMPattern) -> None:
    assert NMPattern.from_pruned_count(pattern.m - pattern.n, pattern.m) == pattern


@given(PATTERNS, st.integers(1, 5), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_mask_check_agrees_with_a_loop_over_blocks(
    pattern: NMPattern, rows: int, columns: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < rng.random()
    expected = [[sum(row[k : k + pattern.m]) for k in range(0, columns, pattern.m)] for row in mask.tolist()]
    assert pattern.kept_per_block(mask).tolist() == expected
    if max(max(counts) for counts in expected) <= pattern.n:
        pattern.check_mask(mask)
    else:
        with pytest.raises(ValueError, match="allows at most"):
            pattern.check_mask(mask)


def test_pruning_one_of_four_keeps_three_and_keeping_one_prunes_three() -> None:
    assert NMPattern.from_pruned_count(1, 4) == NMPattern(3, 4)
    assert NMPattern.from_pruned_count(3, 4) == NMPattern(1, 4) == NMPattern.parse("1:4")
    assert NMPattern.parse("1:4").density == 0.25


def test_dense_is_every_pattern_that_prunes_nothing() -> None:
    assert NMPattern.parse("dense") == NMPattern(1, 1)
    assert NMPattern(4, 4).is_dense
    assert not NMPattern(3, 4).is_dense
    assert NMPattern(4, 4).density == 1.0


def test_patterns_are_hashable_values_of_python_integers() -> None:
    pattern = NMPattern(np.int64(2), np.int64(4))  # type: ignore[arg-type]
    assert {pattern: "found"}[NMPattern(2, 4)] == "found"
    assert type(pattern.n) is int
    assert type(pattern.m) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.n = 3  # type: ignore[misc]


@pytest.mark.parametrize("group_size", [-1, 4, 128, 132])
def test_group_size_may_be_a_whole_row_or_a_multiple_of_m(group_size: int) -> None:
    NMPattern(2, 4).check_group_size(group_size)


def test_mask_message_names_row_block_and_columns() -> None:
    mask = np.zeros((8, 18), dtype=bool)
    mask[5, 8:11] = True
    with pytest.raises(ValueError, match="The mask keeps") as raised:
        NMPattern(2, 4).check_mask(mask)
    assert str(raised.value) == (
        "The mask keeps 3 weights in row 5, block 2 (columns 8 to 11), but pattern 2:4 allows at most 2."
    )
    mask[5, 8] = False
    mask[7, 16:] = True
    with pytest.raises(ValueError, match="The mask keeps") as raised:
        NMPattern(1, 4).check_mask(mask)
    assert "2 weights in row 5, block 2" in str(raised.value)
    mask[5] = False
    with pytest.raises(ValueError, match=re.escape("row 7, block 4 (columns 16 to 17)")):
        NMPattern(1, 4).check_mask(mask)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda: NMPattern(2.0, 4),
            TypeError,
            "NMPattern needs an integer n, but 2.0 of type float was given.",
        ),
        (
            lambda: NMPattern(1, True),
            TypeError,
            "NMPattern needs an integer m, but True of type bool was given.",
        ),
        (lambda: NMPattern(1, 33), ValueError, "Pattern 1:33 has m = 33; m must be 1 to 32."),
        (lambda: NMPattern(0, 0), ValueError, "Pattern 0:0 has m = 0; m must be 1 to 32."),
        (
            lambda: NMPattern(0, 4),
            ValueError,
            "Pattern 0:4 has n = 0; n counts the kept weights and must be 1 to m = 4.",
        ),
        (
            lambda: NMPattern.parse("5:4"),
            ValueError,
            "Pattern 5:4 has n = 5; n counts the kept weights and must be 1 to m = 4.",
        ),
        (
            lambda: NMPattern.parse("2/4"),
            ValueError,
            "Pattern '2/4' is not understood; write n:m with n kept of every m weights, "
            'such as "2:4", or "dense".',
        ),
        (
            lambda: NMPattern.parse(24),
            TypeError,
            'A pattern is parsed from a string such as "2:4", but 24 was given.',
        ),
        (
            lambda: NMPattern.from_pruned_count(4, 4),
            ValueError,
            "A pruned count of 4 of every m = 4 weights was given; it must be 0 to m - 1, "
            "so that at least one weight is kept.",
        ),
        (
            lambda: NMPattern.from_pruned_count("1", 4),
            TypeError,
            "from_pruned_count needs an integer pruned, but '1' of type str was given.",
        ),
        (
            lambda: NMPattern(2, 3).check_group_size(128),
            ValueError,
            "Group size 128 is not a multiple of m = 3 of pattern 2:3; "
            "allowed are multiples of 3 or -1 for one group per row.",
        ),
        (
            lambda: NMPattern(2, 4).check_group_size(0),
            ValueError,
            "Group size 0 is not positive; allowed are multiples of 4 or -1 for one group per row.",
        ),
        (
            lambda: NMPattern(2, 4).check_group_size(-4),
            ValueError,
            "Group size -4 is not positive; allowed are multiples of 4 or -1 for one group per row.",
        ),
        (
            lambda: NMPattern(2, 4).check_group_size(128.0),
            TypeError,
            "The group size must be an integer, but 128.0 of type float was given.",
        ),
    ],
)
def test_errors_are_sentences(make, error, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value) == words
