"""Hypothesis strategies: cores, patterns, GEMM sizes, data, stalls and memories, shaped so that all of them shrink."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from accel.codes import CODES
from accel.config import REGISTERS, ConfigError, CoreConfig
from accel.image import act_port_bytes
from accel.memory import Memory
from accel.stream import layout_for
from quant import NMPattern
from verify.cases import BACKGROUNDS, Case
from verify.stimulus import NO_STALLS, Stalls

#: Smallest legal core: what configurations shrink to.
SMALLEST = CoreConfig(
    rows=1,
    columns=1,
    lanes=1,
    window=1,
    patterns=("any",),
    act_bits=4,
    asymmetric=False,
    codes=("rank",),
    scale_bits=2,
    k_max=1,
    group_max=1,
    subtiles=1,
    drain_chains=1,
    slice_bytes=1,
    weight_tiles=2,
    act_words=2,
    act_ports=1,
    result_lanes=1,
    registers=(),
    decode_registers=0,
    fanout_rows=64,
)


@st.composite
def core_configs(draw: st.DrawFn, rows: int = 4, columns: int = 4, lanes: int = 4, window: int = 12) -> CoreConfig:
    """Small cores in which every parameter varies, most of them not powers of two."""
    lane_count = draw(st.integers(1, lanes))
    window_size = draw(st.integers(lane_count, max(lane_count, window)))
    row_count = draw(st.integers(1, rows))
    column_count = draw(st.integers(1, columns))
    group_max = window_size * draw(st.integers(1, 4)) + draw(st.integers(0, 3))
    k_max = group_max * draw(st.integers(1, 4)) + draw(st.integers(0, 5))
    patterns = draw(st.just(("any",)) | some_patterns(window_size))
    largest = window_size if patterns == ("any",) else max(NMPattern.parse(pattern).m for pattern in patterns)
    codes = draw(
        st.lists(st.sampled_from(CODES), min_size=int(largest > 1), max_size=3, unique=True).filter(
            lambda chosen: largest <= 8 or chosen != ["rank"]
        )
    )
    values: dict[str, Any] = {
        "rows": row_count,
        "columns": column_count,
        "lanes": lane_count,
        "window": window_size,
        "patterns": patterns,
        "act_bits": draw(st.sampled_from((4, 8, 16))),
        "asymmetric": draw(st.booleans()),
        "codes": tuple(codes),
        # Those of a checkpoint's scales more often than the others.
        "scale_bits": draw(st.sampled_from((*range(2, 17), 16, 16, 16))),
        "k_max": k_max,
        "group_max": group_max,
        "subtiles": draw(st.integers(1, 3)),
        "drain_chains": draw(st.integers(1, row_count)),
        "weight_tiles": draw(st.integers(2, 4)),
        "act_words": 2 * (-(-k_max // window_size) // 2 + 1) + 2 * draw(st.just(0) | st.integers(1, 8)),
        "act_ports": draw(st.integers(1, row_count)),
        "result_lanes": draw(st.integers(1, column_count)),
        "registers": tuple(name for name in REGISTERS if draw(st.booleans())),
        "decode_registers": draw(st.just(0) | st.integers(0, 8)) if codes else 0,
        "fanout_rows": draw(st.just(64) | st.integers(1, 8)),
    }
    widths = _slice_widths(tuple(values.items()))
    return CoreConfig(**values, slice_bytes=draw(st.sampled_from(widths)))


def some_patterns(window: int) -> st.SearchStrategy[tuple[str, ...]]:
    """A few patterns that fit a window, dense among them or not."""
    sparse = [f"{n}:{m}" for m in range(2, window + 1) for n in range(1, m)]
    return st.lists(st.sampled_from(["1:1", *sparse]), min_size=1, max_size=4, unique=True).map(tuple)


@lru_cache(maxsize=4096)
def _slice_widths(items: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
    """Slice widths that the other parameters allow."""
    allowed = []
    for slice_bytes in (1, 2, 4, 8):
        try:
            CoreConfig(**dict(items), slice_bytes=slice_bytes)
        except ConfigError:
            continue
        allowed.append(slice_bytes)
    return tuple(allowed)


def patterns(config: CoreConfig) -> st.SearchStrategy[NMPattern]:
    """Patterns that a core runs, dense first; those that it has no code for are left out."""
    return st.sampled_from([pattern for pattern in config.all_patterns if config.codes_of(pattern)])


def stall_patterns(longest: int = 6) -> st.SearchStrategy[tuple[int, ...]]:
    """No stall, or a short repeating pattern that lets at least one cycle through."""
    return st.lists(st.integers(0, 1), max_size=longest).filter(lambda bits: not bits or not all(bits)).map(tuple)


def all_stalls() -> st.SearchStrategy[Stalls]:
    """Stalls of all four streams: none, short repeating patterns, or drawn from a seed."""
    periodic = st.builds(
        Stalls,
        command=stall_patterns(3),
        weights=stall_patterns(),
        acts=stall_patterns(),
        results=stall_patterns(),
    )
    share = st.sampled_from((0.0, 0.1, 0.3, 0.5, 0.8))
    from_seed = st.builds(
        Stalls.random, st.integers(0, 1 << 16), command=share, weights=share, acts=share, results=share
    )
    return st.just(NO_STALLS) | periodic | from_seed


@st.composite
def memories(draw: st.DrawFn, config: CoreConfig) -> Memory | None:
    """No memory port, or one from far too slow for one of the core's streams to more than enough for all of them.

    A word of the widest stream takes at most four cycles, or the runs of most cases would only wait.
    """
    if not draw(st.sampled_from((False, True, True))):
        return None
    widths = (config.word_bytes, config.act_ports * act_port_bytes(config), 4 * config.result_lanes)
    parts = draw(st.sampled_from((1, 2, 3, 7, 8)))
    rate = draw(st.sampled_from(widths)) / Fraction(draw(st.integers(1, 4 * parts)), parts)
    return Memory(
        max(rate, Fraction(max(widths), 4)),
        latency=draw(st.just(0) | st.integers(1, 60)),
        buffer_bytes=draw(st.just(0) | st.integers(1, 300) | st.just(16384)),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    configs: st.SearchStrategy[CoreConfig],
    max_tokens: int = 7,
    max_features: int = 64,
    max_outputs: int = 7,
) -> Case:
    """GEMMs on a core: tails in K and O, one token, fewer outputs than columns, K of a single group."""
    config = draw(configs)
    pattern = draw(patterns(config))
    features = draw(st.integers(1, min(max_features, config.k_max)))
    if draw(st.sampled_from((False, False, False, True))):
        # Rows about as long as the core takes fill its activation buffer with few tokens.
        features = min(features + max_features, config.k_max)
    sizes = [-1, *range(pattern.m, config.k_max + 1, pattern.m)]
    fitting = [size for size in sizes if _fits(config, pattern, features, size)]
    if not fitting:
        # No padding of this K fits k_max; one block always does.
        features, fitting = pattern.m, [-1]
    group_size = draw(st.sampled_from(fitting[:16]))
    data = st.sampled_from(BACKGROUNDS)
    cell = st.integers(0, 63)
    overrides = st.lists(st.tuples(cell, cell, st.integers(0, 1 << 16)), max_size=4).map(tuple)
    return Case(
        config=config,
        pattern=pattern,
        tokens=draw(st.integers(1, max_tokens)),
        in_features=features,
        out_features=draw(st.integers(1, max_outputs)),
        group_size=group_size,
        symmetric=draw(st.booleans()) if config.asymmetric else True,
        code=draw(st.sampled_from([None, *config.codes_of(pattern)])),
        weights=draw(data),
        acts=draw(data),
        seed=draw(st.integers(0, 1 << 16)),
        weight_overrides=draw(overrides),
        act_overrides=draw(overrides),
        scale_overrides=draw(overrides),
        stalls=draw(all_stalls()),
        memory=draw(memories(config)),
    )


def _fits(config: CoreConfig, pattern: NMPattern, features: int, group_size: int) -> bool:
    """Whether K padded to whole tiles stays within the core's k_max."""
    try:
        layout_for(config, pattern, 1, features, group_size)
    except ConfigError:
        return False
    return True
