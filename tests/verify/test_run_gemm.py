"""The call for users: results, bad input, and the words of its errors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from accel import ConfigError, PackedStream, load_preset, pack
from golden import integer_gemm
from quant import NMPattern, NMWeight, prune_magnitude, quantize_rtn
from quant.scales import integer_scales
from verify import LEVELS, GemmRun, run_gemm

TINY = load_preset("tiny")


def weights(out_features=5, in_features=64, pattern="2:4", group_size=32, symmetric=True, seed=0):
    n_m = NMPattern.parse(pattern)
    matrix = np.random.default_rng(seed).standard_normal((out_features, in_features)).astype(np.float32)
    return quantize_rtn(prune_magnitude(matrix, n_m), pattern=n_m, group_size=group_size, symmetric=symmetric)


def activations(tokens=3, in_features=64, seed=1):
    return np.random.default_rng(seed).integers(-128, 128, (tokens, in_features))


@pytest.mark.parametrize("symmetric", [True, False])
def test_all_levels_give_the_same_integers_and_timed_levels_the_same_cycles(symmetric):
    x, w = activations(), weights(symmetric=symmetric)
    runs = {level: run_gemm(TINY, x, w, level=level) for level in LEVELS}
    expected = integer_gemm(x, w).numpy()
    for run in runs.values():
        assert isinstance(run, GemmRun)
        assert run.y.dtype == np.int64
        assert np.array_equal(run.y, expected)
    for level in ("golden", "fl"):
        assert runs[level].cycles is None
        assert runs[level].counters == {}
    assert runs["rtl"].cycles == runs["verilog"].cycles == sum(runs["rtl"].counters.values())
    assert runs["rtl"].counters == runs["verilog"].counters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_checkpoints_float_scales_lose_nothing(dtype, symmetric):
    """Weights as GPTQ and AWQ store them, code − zero point times a scale of 16 bits: exact up to the last product."""
    rng = np.random.default_rng(9)
    pattern, group, config = NMPattern(2, 4), 16, TINY.replace(scale_bits=16)
    codes = rng.integers(-8, 8, (5, 64)) if symmetric else rng.integers(0, 16, (5, 64))
    zeros = None if symmetric else rng.integers(0, 16, (5, 4))
    mask = rng.random((5, 16, 4)).argsort(axis=-1).reshape(5, 64) < pattern.n
    scales = torch.tensor(rng.uniform(0.004, 0.06, (5, 4)) * rng.choice([-1, 1], (5, 4))).to(dtype).double().numpy()
    split = integer_scales(scales)
    w = NMWeight(codes, mask, split.group_scale, split.channel_scale, pattern, group, zeros)
    assert split.relative_error == 0
    assert dtype == torch.bfloat16 or w.scale_bits == 16
    x = activations()
    runs = [run_gemm(config, x, w, level=level) for level in LEVELS]
    assert runs[2].cycles == runs[3].cycles == runs[4].cycles
    for run in runs:
        real = run.y * w.channel_scale.astype(np.float64)
        for t, o in np.ndindex(*run.y.shape):
            exact = sum(
                int(x[t, k]) * (int(codes[o, k]) - (0 if symmetric else int(zeros[o, k // group])))
                * Fraction(scales[o, k // group])
                for k in np.flatnonzero(mask[o])
            )  # fmt: skip
            assert real[t, o] == float(exact), "not the float64 next to the exact product"


def test_torch_activations_are_taken():
    x, w = activations(), weights()
    assert np.array_equal(run_gemm(TINY, torch.tensor(x), w).y, run_gemm(TINY, x, w).y)


@pytest.mark.parametrize("level", LEVELS)
def test_a_stored_stream_runs_as_it_is(level):
    x, w = activations(), weights(symmetric=False)
    stored = PackedStream.from_bytes(pack(w, TINY, "index").to_bytes())
    assert np.array_equal(run_gemm(TINY, x, stored, level=level).y, integer_gemm(x, w).numpy())
    with pytest.raises(ValueError, match=r"The stream is packed with code 'index' and cannot be read as 'rank'\."):
        run_gemm(TINY, x, stored, level=level, code="rank")
    with pytest.raises(ConfigError, match="The stream is packed for 2 columns of 2 bytes a word, but this core has 3"):
        run_gemm(TINY.replace(columns=3), x, stored, level=level)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (
            activations(in_features=60),
            ValueError,
            "The activations have K = 60 input features, but the weights have K = 64.",
        ),
        (activations() * 2, ValueError, r"Activations must lie in -128\.\.127 for act_bits = 8, but they run from"),
        (activations().astype(np.float32), TypeError, "Activations must be integers, but dtype float32 was given"),
        (
            activations()[0],
            ValueError,
            r"Activations must be a matrix \[T, K\] with at least one token, but shape \(64,\)",
        ),
        (
            activations()[:0],
            ValueError,
            r"Activations must be a matrix \[T, K\] with at least one token, but shape \(0, 64\)",
        ),
    ],
)
@pytest.mark.parametrize("level", LEVELS)
def test_bad_activations_are_refused_before_anything_runs(x, error, words, level, monkeypatch):
    monkeypatch.setattr("verify.gemm.execute", lambda *_, **__: pytest.fail("a simulation started"))
    with pytest.raises(error, match=words):
        run_gemm(TINY, x, weights(), level=level)


@pytest.mark.parametrize(
    ("w", "words"),
    [
        (weights(in_features=256), "256 input features .* but this core's accumulators are sized for k_max = 128"),
        (
            weights(pattern="3:12", group_size=-1),
            "Pattern 3:12 has blocks of 12 weights, but this core's window holds 8",
        ),
    ],
)
@pytest.mark.parametrize("level", LEVELS)
def test_weights_beyond_the_core_are_refused_at_every_level(w, words, level):
    with pytest.raises(ConfigError, match=words):
        run_gemm(TINY, np.zeros((1, w.in_features), np.int8), w, level=level)


def test_zero_points_need_a_core_that_subtracts_them():
    with pytest.raises(ConfigError, match="The weights have zero points, but this core is generated without them"):
        run_gemm(TINY.replace(asymmetric=False), activations(), weights(symmetric=False))


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="There is no level named 'netlist'; the levels are golden, fl, cl, rtl"):
        run_gemm(TINY, activations(), weights(), level="netlist")
    with pytest.raises(TypeError, match=r"The first argument must be a CoreConfig, but a str was given\."):
        run_gemm("tiny", activations(), weights())
    with pytest.raises(
        TypeError, match=r"The weights must be an NMWeight \(see quant.quantize_rtn\) or a PackedStream, but a ndarray"
    ):
        run_gemm(TINY, activations(), np.zeros((5, 64)))
    with pytest.raises(ConfigError, match="Block code 'huffman' is not available for pattern 2:4 on this core"):
        run_gemm(TINY, activations(), weights(), code="huffman")
