from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import METHODS, LayerSettings, NMPattern, NMWeight, magnitude_mask, quantize_rtn
from quant.layer import layer_error, quantize_layer
from quant.masks import keep_largest, wanda_score
from quant.statistics import InputStatistics

Inputs = Callable[..., torch.Tensor]
TWO_OF_FOUR = NMPattern(2, 4)


def gathered(x: torch.Tensor, full: bool = True) -> InputStatistics:
    statistics = InputStatistics(x.shape[-1], full)
    statistics.add(x)
    return statistics


def random_weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator)
    return weights * torch.rand(rows, 1, generator=generator).exp() * 0.02


@st.composite
def all_settings(draw: st.DrawFn) -> LayerSettings:
    m = draw(st.integers(1, 32))
    return LayerSettings(
        NMPattern(draw(st.integers(1, m)), m),
        draw(st.one_of(st.just(-1), st.integers(1, 5).map(lambda blocks: blocks * m))),
        draw(st.booleans()),
        draw(st.sampled_from(METHODS)),
        draw(st.sampled_from([8, 16])),
        draw(st.booleans()),
    )


def check_pattern(weight: NMWeight) -> None:
    m, columns = weight.pattern.m, weight.in_features
    for first in range(0, columns, m):
        kept = weight.mask[:, first : first + m].sum(axis=1)
        assert (kept == min(weight.pattern.n, m, columns - first)).all()
    assert not weight.to_dense()[~weight.mask].any()
    # What is stored at a pruned position stands for 0 to a reader that knows no mask.
    zero = 0 if weight.zero_point is None else np.repeat(weight.zero_point, weight.effective_group_size, 1)[:, :columns]
    assert (np.where(weight.mask, 0, weight.values - zero) == 0).all()


@given(all_settings(), st.integers(1, 5), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_every_method_keeps_exactly_n_of_every_block_and_repeats_itself(
    correlated: Inputs, how: LayerSettings, rows: int, columns: int, seed: int
) -> None:
    weights, statistics = random_weights(rows, columns, seed), gathered(correlated(columns, seed))
    before = weights.clone()
    found = quantize_layer(weights, statistics, how)
    assert torch.equal(weights, before)
    check_pattern(found)
    assert found.pattern == how.pattern
    assert found.group_size == how.group_size
    assert found.symmetric == how.symmetric
    assert found.scale_bits <= how.scale_bits
    again = quantize_layer(weights, statistics, how)
    for name in ("values", "mask", "group_scale", "channel_scale", "zero_point"):
        assert np.array_equal(getattr(again, name), getattr(found, name))
    assert 0 <= layer_error(weights, found, statistics) < float("inf")


@given(all_settings(), st.integers(1, 5), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_plain_rounding_is_that_of_quantize_rtn(how: LayerSettings, rows: int, columns: int, seed: int) -> None:
    how = replace(how, method="magnitude-rtn", clip=False, scale_bits=8)
    weights = random_weights(rows, columns, seed)
    found = quantize_layer(weights, None, how)
    mask = magnitude_mask(weights, how.pattern)
    expected = quantize_rtn(weights, how.pattern, how.group_size, how.symmetric, mask)
    assert np.array_equal(found.mask, expected.mask)
    # float32 and float64 may round a scale apart by one.
    assert np.abs(found.group_scale - expected.group_scale).max() <= 1
    assert found.to_dense() == pytest.approx(expected.to_dense(), abs=float(np.abs(expected.to_dense()).max()) / 100)
    assert np.mean(found.values[mask] != expected.values[mask]) <= 0.02


@pytest.mark.parametrize("text", ["3:5", "5:8", "3:7", "1:3", "1:4", "7:32"])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_that_do_not_divide_128_are_kept_whole(correlated: Inputs, text: str, method: str) -> None:
    """Blocks of 128 columns leave 0 to 4 nonzeros in 3:5, without a word."""
    weights, statistics = random_weights(3, 263), gathered(correlated(263, rows=300))
    for group_size in (-1, 3 * NMPattern.parse(text).m, 8 * NMPattern.parse(text).m):
        check_pattern(
            quantize_layer(weights, statistics, LayerSettings(NMPattern.parse(text), group_size, method=method))
        )


def test_one_of_four_keeps_one_and_pruning_one_keeps_three(correlated: Inputs) -> None:
    weights, statistics = random_weights(4, 32), gathered(correlated(32))
    for pattern, kept in ((NMPattern(1, 4), 1), (NMPattern.from_pruned_count(1, 4), 3)):
        for method in METHODS:
            found = quantize_layer(weights, statistics, LayerSettings(pattern, 32, method=method))
            assert (found.mask.reshape(4, 8, 4).sum(axis=2) == kept).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("chosen", ["magnitude", "wanda"])
def test_gptq_after_pruning_keeps_the_mask(correlated: Inputs, chosen: str, symmetric: bool) -> None:
    """Run on a pruned layer without its mask, GPTQ refills zeros: 90.7 % of 2:4 blocks are left."""
    weights, statistics = random_weights(16, 130), gathered(correlated(130))
    score = weights.abs() if chosen == "magnitude" else wanda_score(weights, statistics)
    how = LayerSettings(TWO_OF_FOUR, 64, symmetric, f"{chosen}-gptq")
    found = quantize_layer(weights, statistics, how)
    assert np.array_equal(found.mask, keep_largest(score, TWO_OF_FOUR).numpy())
    check_pattern(found)
    assert np.array_equal(found.mask, quantize_layer(weights, statistics, replace(how, method=f"{chosen}-rtn")).mask)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4", "3:5"])
def test_joint_errs_far_less_than_pruning_before_rounding(correlated: Inputs, text: str, seed: int) -> None:
    weights, statistics = random_weights(64, 256, seed), gathered(correlated(256, seed))
    pattern = NMPattern.parse(text)
    how = LayerSettings(pattern, 16 * pattern.m)
    error = {
        method: layer_error(weights, quantize_layer(weights, statistics, replace(how, method=method)), statistics)
        for method in METHODS
    }
    assert error["joint"] <= 0.6 * error["sparsegpt-gptq"]
    # Where three of four are pruned, what rounding adds is small.
    assert error["sparsegpt-gptq"] <= (1.0 if text == "1:4" else 0.9) * error["sparsegpt-rtn"]
    assert error["sparsegpt-rtn"] <= 0.9 * error["wanda-rtn"]
    assert error["wanda-gptq"] <= 0.7 * error["wanda-rtn"]
    assert error["wanda-rtn"] <= 0.9 * error["magnitude-rtn"]
    assert error["magnitude-gptq"] <= 0.9 * error["magnitude-rtn"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_dense_layers_err_least_with_joint(correlated: Inputs, symmetric: bool) -> None:
    weights, statistics = random_weights(64, 256), gathered(correlated(256))
    how = LayerSettings(NMPattern.parse("dense"), 64, symmetric)
    error = {
        method: layer_error(weights, quantize_layer(weights, statistics, replace(how, method=method)), statistics)
        for method in ("joint", "wanda-gptq", "wanda-rtn")
    }
    assert error["joint"] <= 0.9 * error["wanda-gptq"]
    assert error["wanda-gptq"] <= 0.5 * error["wanda-rtn"]


def test_denser_patterns_smaller_groups_and_the_clip_search_lower_the_error(correlated: Inputs) -> None:
    weights, statistics = random_weights(48, 256), gathered(correlated(256))
    weights *= torch.randn(48, 256, generator=torch.Generator().manual_seed(1)).exp()  # heavy tails

    def error(how: LayerSettings) -> float:
        return layer_error(weights, quantize_layer(weights, statistics, how), statistics)

    how = LayerSettings(TWO_OF_FOUR, 128)
    by_pattern = [error(replace(how, pattern=NMPattern.parse(text))) for text in ("1:4", "2:4", "4:8", "3:4", "dense")]
    assert by_pattern == sorted(by_pattern, reverse=True)
    dense = LayerSettings(NMPattern.parse("dense"), -1, method="wanda-rtn")
    assert error(replace(dense, group_size=32)) < 0.7 * error(dense)
    assert error(replace(dense, clip=False)) > 1.2 * error(dense)
    assert error(replace(dense, symmetric=False, clip=False)) > 1.2 * error(replace(dense, symmetric=False))


@pytest.mark.parametrize("method", METHODS)
def test_features_that_are_dead_or_huge_are_survived(correlated: Inputs, method: str) -> None:
    x = correlated(64)
    x[:, 5] = 0
    x[:, 9] *= 1e4
    x[:, 40:44] = 0
    weights, statistics = random_weights(8, 64), gathered(x)
    found = quantize_layer(weights, statistics, LayerSettings(TWO_OF_FOUR, 32, method=method))
    check_pattern(found)
    assert np.isfinite(found.to_dense()).all()
    if method != "magnitude-rtn":
        assert layer_error(weights, found, statistics) < 0.02  # one feature is nearly all of the output
        assert found.mask[:, 9].mean() > 0.9 or method == "magnitude-gptq"
    dead = quantize_layer(weights, gathered(torch.zeros(3, 64)), LayerSettings(TWO_OF_FOUR, 32, method=method))
    check_pattern(dead)
    assert layer_error(weights, dead, gathered(torch.zeros(3, 64))) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_zeros_stay_zero(correlated: Inputs, method: str) -> None:
    weights = random_weights(4, 40)
    weights[1] = 0
    weights[2, :32] = 0
    found = quantize_layer(weights, gathered(correlated(40)), LayerSettings(TWO_OF_FOUR, 8, method=method))
    check_pattern(found)
    assert not found.to_dense()[1].any()
    assert found.channel_scale[1] == 1.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40))
def test_error_is_that_of_the_outputs(correlated: Inputs, seed: int, rows: int, columns: int) -> None:
    weights, x = random_weights(rows, columns, seed), correlated(columns, seed)
    found = quantize_layer(weights, None, LayerSettings(NMPattern(1, 1), -1, method="magnitude-rtn"))
    outputs = x.double() @ weights.double().T
    off = x.double() @ (weights.double() - torch.from_numpy(found.to_dense()).double()).T
    expected = float(off.square().sum() / outputs.square().sum())
    assert layer_error(weights, found, gathered(x)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    diagonal = (weights - torch.from_numpy(found.to_dense())).square() @ x.square().sum(dim=0)
    expected = float(diagonal.sum() / (weights.square() @ x.square().sum(dim=0)).sum())
    assert layer_error(weights, found, gathered(x, full=False)) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_weights_of_a_module_in_bfloat16_are_taken(correlated: Inputs) -> None:
    weights = torch.nn.Parameter(random_weights(4, 32).bfloat16())
    statistics = gathered(correlated(32))
    for method in METHODS:
        how = LayerSettings(TWO_OF_FOUR, 32, method=method)
        expected = quantize_layer(weights.detach().float(), statistics, how)
        assert np.array_equal(quantize_layer(weights, statistics, how).to_dense(), expected.to_dense())


def test_methods_ask_for_no_more_than_they_need(correlated: Inputs) -> None:
    weights, x = random_weights(4, 32), correlated(32)
    for method in METHODS:
        how = LayerSettings(TWO_OF_FOUR, 32, method=method)
        if method != "magnitude-rtn":
            with pytest.raises(ValueError, match="statistics") as raised:
                quantize_layer(weights, None, how)
            assert str(raised.value) == (
                f"Method {method} needs statistics of the layer's input; only magnitude-rtn needs none."
            )
        if method not in ("magnitude-rtn", "wanda-rtn"):
            with pytest.raises(ValueError, match="diagonal") as raised:
                quantize_layer(weights, gathered(x, full=False), how)
            assert str(raised.value) == (
                f"Method {method} needs the whole matrix of second moments, but only its diagonal was kept."
            )
    how = LayerSettings(TWO_OF_FOUR, 32, method="wanda-rtn")
    few, full = quantize_layer(weights, gathered(x, full=False), how), quantize_layer(weights, gathered(x), how)
    assert np.array_equal(few.mask, full.mask)


@pytest.mark.parametrize(
    ("weights", "statistics", "words"),
    [
        (
            torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]),
            None,
            "The weight in row 1, column 0 is nan, but every weight must be finite.",
        ),
        (
            torch.ones(4),
            None,
            "The weight matrix has shape (4,), but it must be [O, K] with O and K at least 1.",
        ),
        (
            torch.ones(2, 4),
            InputStatistics(5),
            "The statistics are of 5 input features, but the layer has 4.",
        ),
        (
            torch.ones(2, 4),
            InputStatistics(4),
            "The statistics have seen no input; add calibration inputs first.",
        ),
    ],
)
def test_errors_are_sentences(weights: torch.Tensor, statistics: InputStatistics | None, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        quantize_layer(weights, statistics, LayerSettings(NMPattern(1, 1), -1, method="magnitude-rtn"))
    assert str(raised.value) == words
