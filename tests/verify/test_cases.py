"""Stored cases, and the stimulus that they hold."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from accel import load_preset
from accel.memory import Memory
from quant import NMPattern
from verify.cases import Case
from verify.stimulus import NO_STALLS, RANDOM_LENGTHS, STREAMS, Stalls
from verify.strategies import all_stalls, cases, core_configs, memories

TINY = load_preset("tiny")


@given(cases(core_configs()))
def test_a_stored_case_is_the_same_case(case):
    assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 1}, "The stored case has version 1, but this program reads version 2"),
        ({"stalls": {"weights": "012"}}, "A stall pattern holds zeros and ones"),
        ({"stalls": {"acts": "11"}}, r"acts = \(1, 1\) blocks for ever"),
        ({"stalls": {"acts": "on"}}, "The stored case is damaged"),
        ({"memory": {"bytes_per_cycle": "0"}}, "A memory moves more than 0 bytes a cycle"),
        ({"memory": {"bytes_per_cycle": "1/0"}}, "The stored case is damaged"),
        ({"memory": {"bytes_per_cycle": "7/3", "latency": -1}}, "latency of a memory is a whole number from 0 on"),
        ({"memory": {"latency": 3}}, "The stored case is damaged: 'bytes_per_cycle'"),
        ({"memory": {"bytes_per_cycle": "7/3", "banks": 2}}, "The stored case is damaged"),
        ({"memory": 5}, "The stored case is damaged"),
    ],
)
def test_a_damaged_case_is_refused_in_words(changes, words):
    case = Case(TINY, NMPattern(2, 4), 1, 8, 1, 8, memory=Memory(Fraction(7, 3), 3, 0))
    document = {**json.loads(case.to_json()), **changes}
    with pytest.raises(ValueError, match=words):
        Case.from_json(json.dumps(document))


@given(st.integers(0, 1 << 32), st.lists(st.floats(0, 0.99), min_size=4, max_size=4))
def test_stalls_from_a_seed_block_the_share_asked_for(seed, shares):
    stalls = Stalls.random(seed, *shares)
    assert stalls == Stalls.random(seed, *shares)
    for name, share, length in zip(STREAMS, shares, RANDOM_LENGTHS, strict=True):
        assert sum(getattr(stalls, name)) == round(share * length)


def test_seeds_give_different_stalls():
    assert Stalls.random(1, weights=0.5) != Stalls.random(2, weights=0.5)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_stream_that_never_or_negatively_moves_is_refused(share):
    with pytest.raises(ValueError, match=r"A stream is held back in 0 to 0\.99 of the cycles, but acts = "):
        Stalls.random(1, acts=share)


def test_stimulus_shrinks_to_none():
    assert find(all_stalls(), lambda stalls: True) == NO_STALLS
    assert find(memories(TINY), lambda memory: True) is None
    slow = find(memories(TINY), lambda memory: memory is not None and memory.word_cycles(TINY.word_bytes) > 1)
    assert slow.latency == slow.buffer_bytes == 0
