from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.scales import integer_scales, split_scales


def rebuilt(channel: np.ndarray, group: np.ndarray) -> list[list[Fraction]]:
    """Scales of two levels as fractions, which round nothing."""
    return [[Fraction(float(c)) * int(g) for g in row] for c, row in zip(channel, group, strict=True)]


def as_fractions(scale: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(s)) for s in row] for row in scale]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_float16_scales_of_a_checkpoint_are_met_exactly(
    seed: int, rows: int, groups: int, octaves: int, signed: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Eleven significant bits and up to three octaves in a row are at most 15 bits of one unit.
    scale = np.float16(rng.uniform(1, 2, (rows, groups)) * np.exp2(rng.integers(-octaves, 1, (rows, groups)) - 8))
    if signed:
        scale *= rng.choice([-1, 1, 0], scale.shape).astype(np.float16)
    channel, group, error = integer_scales(scale)
    assert rebuilt(channel, group) == as_fractions(scale)
    assert error == 0
    assert np.abs(group).max() < 1 << 15


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.sampled_from([8, 16]))
def test_two_levels_survive_as_one_float32(seed: int, rows: int, groups: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.uniform(-20, 20, (rows, 1)) + rng.uniform(-3, 0, (rows, groups)))
    split = split_scales(scale, bits)
    one_level = split.channel_scale[:, None] * split.group_scale.astype(np.float32)
    again = integer_scales(one_level)
    assert rebuilt(split.channel_scale, split.group_scale) == as_fractions(one_level)  # float32 rounded nothing
    assert rebuilt(again.channel_scale, again.group_scale) == as_fractions(one_level)
    assert split.group_scale.min() >= 1
    largest = split.group_scale.max(axis=1)
    assert (largest == 127 if bits == 8 else largest >= 32767 * (1 - 2**-7) - 1).all()
    # Half a step of the integers, and what is cut off an 8-bit row's largest scale.
    step = split.channel_scale.astype(np.float64)[:, None]
    assert (np.abs(one_level - scale) <= step / 2 + scale * 2.0**-15).all()


def test_scales_beyond_sixteen_bits_are_rounded_and_the_error_is_told() -> None:
    scale = np.array([[1.0, 2.0**-40], [3.0, 5.0]])
    channel, group, error = integer_scales(scale)
    assert group.tolist() == [[32767, 0], [3, 5]]
    assert channel[1] == 1.0
    assert error == 1.0  # the smallest scale of the first row became 0
    assert integer_scales(np.zeros((2, 3))).relative_error == 0


@pytest.mark.parametrize(
    ("scale", "bits", "words"),
    [
        ([[1.0, np.nan]], 8, "The scale of row 0, group 1 is nan, but every scale must be finite."),
        ([[1.0], [-2.0]], 8, "The scale of row 1, group 0 is -2.0, but a scale to split must be 0 or more."),
        ([[1.0]], 4, "Group scales of 4 bits were asked for; they have 8 or 16."),
    ],
)
def test_errors_are_sentences(scale: list[list[float]], bits: int, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        split_scales(np.array(scale), bits)
    assert str(raised.value) == words
