"""Activation and result images: where each number lies, by a reader of its own, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from accel import ConfigError, CoreConfig, load_preset
from accel.command import token_blocks
from accel.image import (
    check_activations,
    pack_activations,
    pack_results,
    read_activations,
    result_words,
    unpack_results,
)
from accel.stream import StreamLayout, layout_for
from quant import NMPattern
from verify.strategies import core_configs, patterns

TINY = load_preset("tiny")


@st.composite
def gemms(draw: st.DrawFn) -> tuple[CoreConfig, StreamLayout, int]:
    config = draw(core_configs(rows=5, columns=5, window=9))
    pattern = draw(patterns(config))
    features = draw(st.integers(1, min(40, config.k_max)))
    try:
        layout = layout_for(config, pattern, draw(st.integers(1, 8)), features, -1)
    except ConfigError:  # K padded to whole tiles is beyond the core
        reject()
    return config, layout, draw(st.integers(1, 3 * config.rows))


def blocks_by_hand(config: CoreConfig, layout: StreamLayout, tokens: int) -> list[list[int]]:
    """Tokens of each block: as many subtiles as accumulators and activation buffer hold."""
    words = -(-layout.group * layout.groups // config.window)
    subtiles = 1
    while subtiles < config.subtiles and (subtiles + 1) * words <= config.act_words:
        subtiles += 1
    size = subtiles * config.rows
    return [list(range(tokens))[start : start + size] for start in range(0, tokens, size)]


@given(gemms())
def test_tokens_go_in_blocks_that_the_buffers_hold(gemm: tuple[CoreConfig, StreamLayout, int]) -> None:
    config, layout, tokens = gemm
    assert token_blocks(config, layout, tokens) == [len(b) for b in blocks_by_hand(config, layout, tokens)]


def test_a_gemm_without_tokens_is_refused() -> None:
    layout = layout_for(TINY, NMPattern(2, 4), 2, 16, -1)
    for tokens in (0, -1):
        with pytest.raises(ConfigError) as error:
            token_blocks(TINY, layout, tokens)
        assert str(error.value) == f"A GEMM needs at least one token, but {tokens} were given."


def activations_by_hand(
    config: CoreConfig, layout: StreamLayout, tokens: int, image: bytes
) -> dict[tuple[int, int], int]:
    """Activations by (token, k), padding included, read bit by bit in the order that the module describes."""
    bits = int.from_bytes(image, "little")
    at = 0
    found: dict[tuple[int, int], int] = {}
    words = -(-layout.group * layout.groups // config.window)
    port_bits = -(-config.window * config.act_bits // 8) * 8
    for block in blocks_by_hand(config, layout, tokens):
        for first in range(0, len(block), config.rows):
            subtile = block[first : first + config.rows]
            for beat in range(0, len(subtile), config.act_ports):
                for word in range(words):
                    for port in range(config.act_ports):
                        for i in range(config.window):
                            field = bits >> (at + i * config.act_bits) & ((1 << config.act_bits) - 1)
                            if field >> (config.act_bits - 1):
                                field -= 1 << config.act_bits
                            if beat + port < len(subtile):
                                found[subtile[beat + port], word * config.window + i] = field
                            else:
                                assert field == 0, "a port without a row is not zero"
                        padding = bits >> (at + config.window * config.act_bits)
                        assert padding & ((1 << port_bits - config.window * config.act_bits) - 1) == 0
                        at += port_bits
    assert at == 8 * len(image)
    return found


@given(gemms(), st.integers(0, 1 << 16), st.booleans())
def test_activations_lie_where_the_module_says(
    gemm: tuple[CoreConfig, StreamLayout, int], seed: int, extreme: bool
) -> None:
    config, layout, tokens = gemm
    low, high = config.act_range
    rng = np.random.default_rng(seed)
    x = rng.integers(low, high + 1, (tokens, layout.in_features))
    if extreme:
        x = np.where(x < 0, low, high)
    image = pack_activations(config, layout, x)
    found = activations_by_hand(config, layout, tokens, image)
    for (token, k), value in found.items():
        assert value == (x[token, k] if k < layout.in_features else 0)
    assert len({token for token, _ in found}) == tokens
    again = read_activations(config, layout, tokens, image)
    assert again.dtype == np.int64
    assert np.array_equal(again[:, : layout.in_features], x)
    assert not again[:, layout.in_features :].any()


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize(("window", "rows", "ports"), [(1, 1, 1), (3, 5, 2), (5, 3, 3), (7, 4, 3), (8, 2, 1)])
def test_odd_windows_and_ports_that_do_not_divide_rows(act_bits: int, window: int, rows: int, ports: int) -> None:
    config = TINY.replace(act_bits=act_bits, window=window, rows=rows, act_ports=ports, lanes=1, act_words=256)
    layout = layout_for(config, NMPattern(1, 1), 3, 23, -1)
    tokens = 2 * rows + 1
    low, high = config.act_range
    x = np.random.default_rng(act_bits).integers(low, high + 1, (tokens, 23))
    x[0, :2] = low, high
    image = pack_activations(config, layout, x)
    found = activations_by_hand(config, layout, tokens, image)
    assert all(found[token, k] == x[token, k] for token in range(tokens) for k in range(23))
    assert np.array_equal(read_activations(config, layout, tokens, image)[:, :23], x)


def results_by_hand(
    config: CoreConfig, layout: StreamLayout, tokens: int, image: bytes, wide: bool
) -> dict[tuple[int, int], int]:
    """Results by (token, output feature), padding included."""
    size = 8 if wide else 4
    at = 0
    found = {}
    words_per_row = -(-config.columns // config.result_lanes)
    for block in blocks_by_hand(config, layout, tokens):
        for tile in range(-(-layout.out_features // config.columns)):
            for token in block:
                for lane in range(words_per_row * config.result_lanes):
                    value = int.from_bytes(image[at : at + size], "little", signed=True)
                    at += size
                    if lane < config.columns:
                        found[token, tile * config.columns + lane] = value
                    else:
                        assert value == 0
    assert at == len(image)
    return found


@given(gemms(), st.booleans(), st.integers(0, 1 << 16))
def test_results_lie_where_the_module_says(gemm: tuple[CoreConfig, StreamLayout, int], wide: bool, seed: int) -> None:
    config, layout, tokens = gemm
    limit = 1 << (62 if wide else 31)
    padded = -(-layout.out_features // config.columns) * config.columns
    y = np.random.default_rng(seed).integers(-limit, limit, (tokens, padded))
    y[0, 0], y[-1, -1] = -limit, limit - 1
    image = pack_results(config, layout, y, wide=wide)
    found = results_by_hand(config, layout, tokens, image, wide)
    assert found == {(t, o): int(y[t, o]) for t in range(tokens) for o in range(padded)}
    assert len(image) == result_words(config, layout, tokens) * config.result_lanes * (8 if wide else 4)
    again = unpack_results(config, layout, tokens, image, wide=wide)
    assert again.dtype == np.int64
    assert np.array_equal(again, y[:, : layout.out_features])


@pytest.mark.parametrize(
    ("x", "error_type", "words"),
    [
        (np.zeros(4, int), ValueError, "Activations must be a matrix [T, K] with at least one token, "),
        (np.zeros((0, 4), int), ValueError, "Activations must be a matrix [T, K] with at least one token, "),
        (
            np.zeros((1, 4)),
            TypeError,
            "Activations must be integers, but dtype float64 was given; quantise them first.",
        ),
        (np.zeros((1, 4), bool), TypeError, "Activations must be integers, but dtype bool was given; "),
        (
            np.zeros((1, 5), int),
            ValueError,
            "The activations have K = 5 input features, but the weights have K = 4.",
        ),
        (
            np.array([[0, 8, -8, 7]]),
            ValueError,
            "Activations must lie in -8..7 for act_bits = 4, but they run from -8 to 8.",
        ),
        (
            np.array([[0, 8, -9, 7]]),
            ValueError,
            "Activations must lie in -8..7 for act_bits = 4, but they run from -9 to 8.",
        ),
        (
            np.array([[1 << 63, 0, 0, 0]], np.uint64),
            ValueError,
            "Activations must lie in -8..7 for act_bits = 4, but they run from 0 to 9223372036854775808.",
        ),
    ],
    ids=["vector", "no token", "float", "bool", "K", "too large", "too small", "unsigned"],
)  # fmt: skip
def test_activations_that_do_not_fit_are_refused(x: np.ndarray, error_type: type[Exception], words: str) -> None:
    with pytest.raises(error_type) as error:
        check_activations(x, 4, 4)
    assert str(error.value).startswith(words)
    config = TINY.replace(act_bits=4)
    with pytest.raises(error_type) as error:
        pack_activations(config, layout_for(config, NMPattern(1, 1), 2, 4, -1), x)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("act_bits", [4, 8, 16])
def test_the_whole_range_of_activations_is_legal(act_bits: int) -> None:
    low, high = -(1 << (act_bits - 1)), (1 << (act_bits - 1)) - 1
    check_activations(np.array([[low, high, 0, -1]]), 4, act_bits)
    for outside in (low - 1, high + 1):
        with pytest.raises(ValueError, match=rf"for act_bits = {act_bits},"):
            check_activations(np.array([[low, high, 0, outside]]), 4, act_bits)
