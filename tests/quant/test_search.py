"""The search: models whose loss follows a known rule stand in for real ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import LayerSettings, NMPattern
from quant.allocation import AllowanceError, allocate
from quant.judgement import Rise
from quant.search import Choice, Search, search_choice
from quant.sensitivity import Sensitivities, Sensitivity

#: Gentlest first; bits fall as the error rises.
SETTINGS = tuple(
    LayerSettings(NMPattern.parse(pattern), group_size=group)
    for pattern, group in (("dense", 32), ("dense", 128), ("3:4", 128), ("2:4", 128), ("1:4", 128))
)
BITS = dict(zip(SETTINGS, (17, 16, 14, 11, 6), strict=True))
FLOAT_BITS = 64


def bits(name: str, settings: LayerSettings | None) -> int:
    return FLOAT_BITS if settings is None else BITS[settings]


#: Each layer's rise per unit of layer error, and what noise added to its measured rises.
LAYERS = st.lists(
    st.tuples(st.floats(0.2, 1.0), st.lists(st.floats(-0.01, 0.01), min_size=5, max_size=5)), min_size=1, max_size=8
)


def sensitivities_of(layers: list[tuple[float, list[float]]], noisy: bool) -> Sensitivities:
    errors = (0.001, 0.002, 0.01, 0.04, 0.2)
    return Sensitivities(
        2.0,
        {
            f"layers.{number}.q_proj": {
                settings: Sensitivity(error, Rise(rate * error + noisy * noise, 0.005 * noisy))
                for settings, error, noise in zip(SETTINGS, errors, noises, strict=True)
            }
            for number, (rate, noises) in enumerate(layers)
        },
    )


def run(
    layers: list[tuple[float, list[float]]],
    factor: float,
    allowed: float,
    noisy: bool = True,
    rounds: int = 4,
    unsure: float = 0.0,
) -> tuple[Search, Sensitivities, list[Choice]]:
    measured: list[Choice] = []

    def measure(choice: Choice) -> Rise:
        measured.append(choice)
        rise = factor * math.fsum(
            rate * found.layers[name][settings].error
            for (rate, _), (name, settings) in zip(layers, choice.items(), strict=True)
            if settings is not None
        )
        return Rise(rise, unsure * rise)

    found = sensitivities_of(layers, noisy)
    return search_choice(found, bits, allowed, measure, rounds), found, measured


ALLOWED = st.floats(1e-4, 0.5)


@given(layers=LAYERS, factor=st.floats(0.1, 10), allowed=ALLOWED, rounds=st.integers(1, 6))
def test_the_best_is_the_cheapest_that_was_measured_within_what_is_allowed(
    layers: list[tuple[float, list[float]]], factor: float, allowed: float, rounds: int
) -> None:
    search, found, measured = run(layers, factor, allowed, rounds=rounds)
    assert [trial.choice for trial in search.trials] == measured
    assert len({tuple(choice.items()) for choice in measured}) == len(measured) <= rounds + 5
    for trial in search.trials:
        assert list(trial.choice) == list(found.layers)
        assert trial.cost == sum(bits(name, settings) for name, settings in trial.choice.items())
        alone = [found.rises(name)[settings].mean for name, settings in trial.choice.items() if settings is not None]
        assert trial.predicted == pytest.approx(math.fsum(max(0.0, rise) for rise in alone))
    within = [trial for trial in search.trials if trial.measured.mean <= allowed]
    assert (search.best is None) == (not within)
    if search.best is not None:
        assert search.best in within
        assert search.best.cost == min(trial.cost for trial in within)
    # Nothing stays float while some choice of INT4 settings keeps to what is allowed.
    gentlest = sum(rate * 0.001 for rate, _ in layers) * factor
    if gentlest <= allowed * (1 - 1e-9):
        assert search.best is not None
        assert search.best.floats == 0


@given(layers=LAYERS, allowed=ALLOWED)
def test_where_rises_add_up_one_trial_finds_the_cheapest_of_all(
    layers: list[tuple[float, list[float]]], allowed: float
) -> None:
    search, found, _ = run(layers, 1.0, allowed, noisy=False)
    try:
        rises = {name: {one: rise.mean for one, rise in found.rises(name).items()} for name in found.layers}
        best = allocate(rises, bits, allowed)
    except AllowanceError:
        assert search.best is None or search.best.floats > 0
    else:
        assert search.best is not None
        assert search.best.cost == best.cost


LADDER = [(0.1 * (1 + number), [0.0] * 5) for number in range(8)]


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_trials_close_in_on_what_is_allowed(factor: float) -> None:
    first, _, _ = run(LADDER, factor, 0.1, noisy=False, rounds=1)
    search, _, _ = run(LADDER, factor, 0.1, noisy=False)
    assert search.best is not None
    assert 0.8 * 0.1 < search.best.measured.mean <= 0.1
    if factor < 1:
        assert first.best is not None
        assert search.best.cost < first.best.cost


def test_more_is_spent_only_as_far_as_a_rise_is_sure_to_be_small() -> None:
    sure, _, _ = run(LADDER, 0.4, 0.1, noisy=False, rounds=2)
    unsure, _, _ = run(LADDER, 0.4, 0.1, noisy=False, rounds=2, unsure=1.0)
    assert sure.trials[0] == replace(unsure.trials[0], measured=sure.trials[0].measured)
    assert sure.trials[1].predicted > unsure.trials[1].predicted > sure.trials[0].predicted
    assert len(run(LADDER, 0.4, 0.1, noisy=False, unsure=2.0)[0].trials) == 1


def test_a_lucky_layer_does_not_stay_free() -> None:
    # One layer's rise was measured below 0 for every setting, though in truth it costs most.
    lucky = [(1.0, [-0.3] * 5), *LADDER[:3]]
    search, found, _ = run(lucky, 1.0, 0.05)
    assert search.best is not None
    assert search.best.floats == 0
    assert search.best.choice["layers.0.q_proj"] != SETTINGS[-1]
    assert search.best.predicted == pytest.approx(
        math.fsum(
            max(0.0, found.rises(name)[settings].mean)
            for name, settings in search.best.choice.items()
            if settings is not None and name != "layers.0.q_proj"
        )
    )


@pytest.mark.parametrize(("error", "pruned"), [(0.0001, "layers.0.q_proj"), (1.0, "layers.1.q_proj")])
def test_what_is_unsure_counts_as_its_layer_error_says(error: float, pruned: str) -> None:
    # The first layer moves its output more, but was measured to cost less.
    dense, sparse = SETTINGS[0], SETTINGS[-1]
    found = Sensitivities(
        2.0,
        {
            "layers.0.q_proj": {dense: Sensitivity(0.0, Rise(0.0, 0.0)), sparse: Sensitivity(0.3, Rise(0.01, error))},
            "layers.1.q_proj": {dense: Sensitivity(0.0, Rise(0.0, 0.0)), sparse: Sensitivity(0.1, Rise(0.02, 0.0001))},
        },
    )
    search = search_choice(found, bits, 0.0205, lambda choice: Rise(0.0204, 0.0), 1)
    assert [name for name, settings in search.trials[0].choice.items() if settings == sparse] == [pruned]


def test_one_setting_for_all_layers_may_beat_their_sum() -> None:
    tried: list[Choice] = []

    def measure(choice: Choice) -> Rise:
        """Layers that differ disturb each other; those that are alike make up for half of what each would cost."""
        tried.append(choice)
        alone = math.fsum(found.rises(name)[one].mean for name, one in choice.items() if one is not None)
        return Rise(alone / 2 if len(set(choice.values())) == 1 else alone, 0.0)

    found = sensitivities_of(LADDER, noisy=False)
    allowed = 0.8 * 3.6 * 0.04  # 2:4 for all layers is a quarter too much by the sum
    search = search_choice(found, bits, allowed, measure, 4)
    assert len(tried) >= 2
    assert search.best is not None
    assert search.best == search.trials[-1]
    assert set(search.best.choice.values()) == {SETTINGS[3]}
    assert all(trial.cost > search.best.cost for trial in search.trials[:-1] if trial.measured.mean <= allowed)


@pytest.mark.parametrize(("factor", "floats"), [(90.0, 2), (130.0, 4), (400.0, 6)])
def test_the_layers_that_cost_most_stay_float_as_a_last_resort(factor: float, floats: int) -> None:
    # Dense in groups of 32, the rises sum to 0.0036 times the factor.
    search, _, measured = run(LADDER, factor, 0.25, noisy=False)
    assert search.best is not None
    assert search.best.floats == floats
    kept = [name for name, settings in search.best.choice.items() if settings is None]
    assert kept == [f"layers.{number}.q_proj" for number in range(8 - floats, 8)]
    assert {settings for settings in search.best.choice.values() if settings} == {SETTINGS[0]}
    assert all(settings == SETTINGS[0] for settings in measured[-1 - floats // 2].values())


def test_there_may_be_no_choice() -> None:
    search, _, measured = run(LADDER, 1e6, 0.1, noisy=False)
    assert search.best is None
    assert len(measured) == 1 + 4  # a second allocation has no choice
    assert all(any(settings is not None for settings in choice.values()) for choice in measured)


@pytest.mark.parametrize(
    ("allowed", "rounds", "sentence"),
    [
        (0.0, 1, "A rise of the loss by 0.0 was allowed; it must be above 0 and finite."),
        (math.inf, 1, "A rise of the loss by inf was allowed; it must be above 0 and finite."),
        (0.1, 0, "0 rounds were asked for; there is at least 1."),
    ],
)
def test_what_cannot_be_searched_is_refused(allowed: float, rounds: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(LADDER, 1.0, allowed, rounds=rounds)
