"""Functional level: equal to the definition in Python integers, and to the PyTorch reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from accel import ConfigError, CoreConfig, load_preset, pack
from accel.command import commands_for
from accel.core.CoreFL import run_fl
from accel.image import pack_activations, unpack_results
from golden import integer_gemm
from quant import NMPattern, NMWeight
from verify.cases import Case
from verify.strategies import cases, core_configs

TINY = load_preset("tiny")


def by_definition(x: np.ndarray, weight: NMWeight) -> list[list[int]]:
    """One product at a time: sum of scale · sum of x · (code − zero point) over the kept weights."""
    size = weight.in_features if weight.group_size == -1 else weight.group_size
    rows = []
    for token in x.tolist():
        row = []
        for o in range(weight.out_features):
            acc = 0
            for k, act in enumerate(token):
                if weight.mask[o, k]:
                    zero = 0 if weight.zero_point is None else int(weight.zero_point[o, k // size])
                    acc += act * (int(weight.values[o, k]) - zero) * int(weight.group_scale[o, k // size])
            row.append(acc)
        rows.append(row)
    return rows


def functional(config: CoreConfig, x: np.ndarray, weight: NMWeight, code: str | None = None) -> np.ndarray:
    stream = pack(weight, config, code)
    acts = pack_activations(config, stream.layout, x)
    results = {}
    for wide in (None, True):
        image = run_fl(config, stream, acts, len(x), wide=wide)
        is_wide = bool(commands_for(config, stream.layout, len(x), wide=wide)[0].wide)
        results[wide] = unpack_results(config, stream.layout, len(x), image, wide=is_wide)
    assert np.array_equal(results[None], results[True])
    return results[None]


@example(Case(TINY, NMPattern(3, 7), 9, 100, 5, -1, symmetric=False, weights="extreme", acts="extreme", seed=5))
@given(cases(core_configs()))
def test_functional_level_is_the_definition(case: Case) -> None:
    x, weight = case.build()
    try:
        y = functional(case.config, x, weight, case.code)
    except ConfigError as error:
        if "after padding to whole groups" in str(error):
            reject()
        raise
    assert y.tolist() == by_definition(x, weight)


@given(st.integers(0, 1 << 16), st.sampled_from(["1:1", "2:4", "1:4", "5:8", "4:16", "31:32"]), st.booleans())
def test_functional_level_is_the_pytorch_reference(seed: int, pattern: str, symmetric: bool) -> None:
    config = load_preset("wide").replace(act_bits=16)
    case = Case(config, NMPattern.parse(pattern), 5, 300, 19, 96, symmetric, None, "uniform", "uniform", seed)
    x, weight = case.build()
    assert np.array_equal(functional(config, x, weight), integer_gemm(x, weight, act_bits=16).numpy())


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", [-128, 127, -32768, 32767])
def test_the_worst_sums_are_exact(act_bits: int, symmetric: bool, scale: int) -> None:
    """Everything at the corner of its range, over the longest group and the longest row of a core."""
    scale_bits = 8 if -128 <= scale <= 127 else 16
    config = load_preset("edge").replace(
        act_bits=act_bits, scale_bits=scale_bits, group_max=4096, k_max=16384, codes=("index",)
    )
    low = -(1 << (act_bits - 1))
    for code, zero in ((-8, None), (7, None)) if symmetric else ((0, 15), (15, 0)):
        weight = NMWeight(
            values=np.full((1, 16384), code),
            mask=np.ones((1, 16384), bool),
            group_scale=np.full((1, 4), scale),
            channel_scale=np.ones(1, np.float32),
            pattern=NMPattern(1, 1),
            group_size=4096,
            zero_point=None if zero is None else np.full((1, 4), zero),
        )
        stream = pack(weight, config)
        acts = pack_activations(config, stream.layout, np.full((1, 16384), low))
        image = run_fl(config, stream, acts, 1, wide=True)
        y = unpack_results(config, stream.layout, 1, image, wide=True)
        assert y.tolist() == [[low * (code - (zero or 0)) * scale * 16384]]
        assert -(1 << (config.acc_bits - 1)) <= y[0, 0] < 1 << (config.acc_bits - 1)


def test_a_stream_for_another_core_is_refused_before_anything_runs() -> None:
    case = Case(TINY, NMPattern(2, 4), 1, 16, 2, -1)
    x, weight = case.build()
    stream = pack(weight, TINY)
    acts = pack_activations(TINY, stream.layout, x)
    with pytest.raises(ConfigError, match=r"^The stream is packed for 2 columns of 2 bytes a word"):
        run_fl(TINY.replace(columns=4), stream, acts, 1)
