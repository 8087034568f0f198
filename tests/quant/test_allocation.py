"""Allocation: brute force over every choice is the oracle of small instances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quant import allocation
from quant.allocation import Allocation, AllowanceError, allocate

#: A layer's options by name: cost and loss. Losses are multiples of 1/64, so that float sums are exact.
Layer = dict[str, tuple[int, float]]

LOSSES = st.integers(-4, 40).map(lambda units: units / 64)
LAYER = st.lists(st.tuples(st.integers(0, 30), LOSSES), min_size=1, max_size=5).map(
    lambda rows: {f"option {number}": row for number, row in enumerate(rows)}
)
LAYERS = st.lists(LAYER, min_size=1, max_size=6)
ALLOWANCES = st.integers(0, 150).map(lambda units: units / 64)


def run(layers: list[Layer], allowance: float) -> Allocation[str]:
    by_name = {f"layer {number}": layer for number, layer in enumerate(layers)}
    return allocate(
        {name: {option: loss for option, (_, loss) in layer.items()} for name, layer in by_name.items()},
        lambda name, option: by_name[name][option][0],
        allowance,
    )


def brute_force(layers: list[Layer], allowance: float) -> tuple[int, float, tuple[str, ...]] | None:
    """Cost, loss and options of the best choice, by trying all; None if none is within the allowance."""
    best = None
    for options in itertools.product(*layers):
        chosen = [layer[option] for layer, option in zip(layers, options, strict=True)]
        loss = sum(max(loss, 0.0) for _, loss in chosen)
        if loss <= allowance:
            candidate = (sum(cost for cost, _ in chosen), loss, options)
            if best is None or candidate[:2] < best[:2]:
                best = candidate
    return best


@given(layers=LAYERS, allowance=ALLOWANCES)
def test_it_is_the_best_of_all_choices_and_ties_go_to_the_earliest_options(
    layers: list[Layer], allowance: float
) -> None:
    best = brute_force(layers, allowance)
    if best is None:
        least = sum(min(max(loss, 0.0) for _, loss in layer.values()) for layer in layers)
        with pytest.raises(AllowanceError, match="The smallest losses of all layers sum to") as refused:
            run(layers, allowance)
        assert f"{least:.3g}, more than the {allowance:.3g} allowed." in str(refused.value)
    else:
        found = run(layers, allowance)
        assert (found.cost, found.loss, tuple(found.choice.values())) == best
        assert found.lower_bound == found.cost


@given(layers=LAYERS, allowance=ALLOWANCES, states=st.integers(1, 4))
def test_with_states_dropped_the_best_lies_between_bound_and_cost(
    layers: list[Layer], allowance: float, states: int
) -> None:
    best = brute_force(layers, allowance)
    assume(best is not None)
    assert best is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "MAX_STATES", states)
        found = run(layers, allowance)
    assert found.loss <= allowance
    assert found.lower_bound <= best[0] <= found.cost


@given(
    layers=st.lists(
        st.lists(st.tuples(st.integers(0, 1 << 40), st.floats(-1e-3, 1.0)), min_size=1, max_size=8).map(
            lambda rows: {f"option {number}": row for number, row in enumerate(rows)}
        ),
        min_size=1,
        max_size=40,
    ),
    allowances=st.lists(st.floats(0, 40), min_size=2, max_size=4).map(sorted),
)
def test_more_allowance_never_costs_more(layers: list[Layer], allowances: list[float]) -> None:
    costs = []
    for allowance in allowances:
        try:
            found = run(layers, allowance)
        except AllowanceError:
            costs.append(math.inf)
        else:
            assert found.loss <= allowance
            costs.append(found.cost)
    assert costs == sorted(costs, reverse=True)


def test_the_layers_of_a_7b_model_are_solved_exactly() -> None:
    # Sizes of LLaMA-7B, bits of five patterns, and losses that differ from layer to layer.
    bits = {"4": 4.0625, "3": 3.5625, "2:4": 2.8125, "4:8": 2.9375, "1:4": 1.5625}
    layers: list[Layer] = []
    for number in range(224):
        size = 4096 * (11008 if number % 7 > 3 else 4096)
        hardness = 1 + 37 * number % 101 / 10
        layers.append(
            {
                name: (int(size * each), hardness * 1e-4 * (4.5 - each) ** 3 * (1 + 13 * number % 7 / 50))
                for name, each in bits.items()
            }
        )
    found = run(layers, 0.05)
    assert found.lower_bound == found.cost
    assert 0.0499 < found.loss <= 0.05


@pytest.mark.parametrize(
    ("losses", "cost", "allowance", "sentence"),
    [
        ({}, lambda name, option: 1, 0.1, "There is no layer to choose an option for."),
        ({"q": {}}, lambda name, option: 1, 0.1, "Layer q has no option to choose from."),
        ({"q": {"a": math.nan}}, lambda name, option: 1, 0.1, "The loss of a in layer q is not a number."),
        ({"q": {"a": 0.0}}, lambda name, option: -1, 0.1, "The cost of a in layer q is -1; it must be 0 or more."),
        ({"q": {"a": 0.0}}, lambda name, option: 1, -0.1, "The allowance is -0.1; it must be 0 to 1.04858e+06."),
        ({"q": {"a": 0.0}}, lambda name, option: 1, math.nan, "The allowance is nan; it must be 0 to 1.04858e+06."),
        ({"q": {"a": 0.0}}, lambda name, option: 0.5, 0.1, "The cost of a in layer q is 0.5; it must be an integer."),
    ],
)
def test_what_cannot_be_allocated_is_refused(
    losses: dict[str, dict[str, float]], cost: Callable[[str, str], int], allowance: float, sentence: str
) -> None:
    with pytest.raises((ValueError, TypeError)) as refused:
        allocate(losses, cost, allowance)
    assert str(refused.value) == sentence


def test_losses_smaller_than_a_unit_are_rounded_up() -> None:
    half = 2.0**-41
    layers: list[Layer] = [{"pruned": (1, half), "float": (16, 0.0)}] * 3
    found = run(layers, 3 * half)
    assert found.loss == half
    assert found.cost == 33


def test_a_loss_beyond_any_allowance_is_never_chosen() -> None:
    assert run([{"free": (0, math.inf), "safe": (9, 0.0)}], 1.0).choice == {"layer 0": "safe"}
