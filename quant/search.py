"""The settings of every layer of a model, cheapest within an allowed rise of its loss.

Rises of layers alone, as `quant.sensitivity` measures them, add up to a prediction for the whole model. It only says
what is worth a trial: what counts is the rise that a caller measures with all layers quantised. A trial over the
allowed rise tightens what the next one may spend, one well under it loosens it.

A rise of one layer is a small difference of large numbers and partly noise. Over all layers and settings the rise is
nearly proportional to the layer error (V. Malinovskii and others, "Pushing the Limits of Large Language Model
Quantization via the Linearity Theorem", 2024). What is spent on a layer is therefore a mean of the rise that was
measured, weighted by its standard error, and of the one that the layer error suggests, taken to be as uncertain as it
is large. It is no less than a tenth of the latter, so that no layer stays for free because it was lucky.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quant.allocation import AllowanceError, allocate
from quant.judgement import Rise
from quant.linear import LayerSettings
from quant.sensitivity import Sensitivities

#: Settings of each layer by its full name; None where it stays float.
Choice = Mapping[str, LayerSettings | None]

#: What a layer costs with a setting, None being float.
ChoiceCost = Callable[[str, LayerSettings | None], int]

#: Share of the allowed rise that a next trial aims at, and that is near enough to end the search.
_AIM, _NEAR = 0.97, 0.9

#: Least estimate of a rise beside the one that the layer error suggests.
_FLOOR = 0.1

#: A uniform choice is tried if its rise should come to no more than this, beside the allowed one.
_WORTH_TRYING = 1.5

#: Shares of the layers that stay float, where even the gentlest settings for all are too much.
_FLOAT_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Trial:
    """A choice, and what it did to the whole model."""

    choice: Choice
    #: Sum of the layers' costs.
    cost: int
    #: Sum of the rises that were measured of each layer alone, those below 0 taken as 0, in nats a token.
    predicted: float
    #: Rise that was measured with all layers quantised.
    measured: Rise

    @property
    def floats(self) -> int:
        """Layers that stay float."""
        return sum(settings is None for settings in self.choice.values())


@dataclass(frozen=True)
class Search:
    """All trials, and the cheapest that kept to the allowed rise."""

    trials: tuple[Trial, ...]
    #: None when no trial did.
    best: Trial | None


def search_choice(
    sensitivities: Sensitivities,
    cost: ChoiceCost,
    allowed: float,
    measure: Callable[[Choice], Rise],
    rounds: int,
) -> Search:
    """Find the cheapest settings of all layers with which a model's loss rises by no more than is allowed.

    After `rounds` trials of allocated choices the cheapest one with the same setting for all layers is tried, if it
    would be cheaper than what was found and its rise does not look too large: layers that are calibrated after one
    another may make up for each other's errors. If no trial keeps to the allowed rise, each layer gets the setting of
    its smallest layer error, and if that is still too much, a quarter of the layers, then half and then three quarters
    stay float: those whose rise is largest. So there are at most `rounds` + 5 trials.

    Parameters
    ----------
    cost
        A layer's cost with a setting; of None, too, which is float.
    allowed
        Largest rise of the mean loss, in nats a token, above 0.
    measure
        Quantises a whole model so and returns the rise of its loss. It is called once for a choice.
    rounds
        Trials of allocated choices, at least 1.

    Raises
    ------
    ValueError
        If `allowed` or `rounds` is out of range.
    """
    if not 0 < allowed < math.inf:
        raise ValueError(f"A rise of the loss by {allowed} was allowed; it must be above 0 and finite.")
    if rounds < 1:
        raise ValueError(f"{rounds} rounds were asked for; there is at least 1.")
    state = _State(sensitivities, cost, allowed, measure)
    state.try_allocations(rounds)
    state.try_uniform_choice()
    if state.best is None:
        state.try_gentle_choices()
    return Search(tuple(state.trials), state.best)


class _State:
    def __init__(
        self, sensitivities: Sensitivities, cost: ChoiceCost, allowed: float, measure: Callable[[Choice], Rise]
    ) -> None:
        self.rises = {name: sensitivities.rises(name) for name in sensitivities.layers}
        self.estimates = _estimates(sensitivities)
        self.errors = {
            name: {settings: found.error for settings, found in row.items() if found.rise is not None}
            for name, row in sensitivities.layers.items()
        }
        self.cost = cost
        self.allowed = allowed
        self.measure = measure
        self.trials: list[Trial] = []

    @property
    def best(self) -> Trial | None:
        kept = [trial for trial in self.trials if self.keeps(trial)]
        return min(kept, key=lambda trial: trial.cost, default=None)

    def try_allocations(self, rounds: int) -> None:
        budget = self.allowed
        for _ in range(rounds):
            try:
                choice = allocate(self.estimates, self.cost, budget).choice
            except AllowanceError:
                return
            if any(trial.choice == choice for trial in self.trials):
                return
            self.try_choice(choice)
            next_budget = self.next_budget()
            if next_budget is None:
                return
            budget = next_budget

    def next_budget(self) -> float | None:
        """What the next trial may spend of estimated rises; None when the last one came near to the allowed rise.

        As much as the last trial's rise says, between what kept to the allowed rise so far and what did not.
        """
        last = self.trials[-1]
        spent = self.estimate(last.choice)
        kept = [self.estimate(trial.choice) for trial in self.trials if self.keeps(trial)]
        over = [self.estimate(trial.choice) for trial in self.trials if not self.keeps(trial)]
        low, high = max(kept, default=0.0), min(over, default=math.inf)
        rise = self.cautious_rise(last)
        if self.keeps(last) and rise >= _NEAR * self.allowed:
            return None
        # A rise of almost nothing says little about what lies beyond twice as much.
        aim = spent * min(_AIM * self.allowed / rise if rise > 0 else math.inf, 2.0)
        return aim if low < aim < high else (low + min(high, 2 * low)) / 2

    def cautious_rise(self, trial: Trial) -> float:
        """A trial's rise where it is over the allowed one; below, only as far as it is sure to be small."""
        return trial.measured.mean + (trial.measured.error if self.keeps(trial) else 0.0)

    def keeps(self, trial: Trial) -> bool:
        return trial.measured.mean <= self.allowed

    def try_uniform_choice(self) -> None:
        best, ratio = self.best, 1.0
        if self.trials and self.estimate(self.trials[-1].choice) > 0:
            ratio = self.cautious_rise(self.trials[-1]) / self.estimate(self.trials[-1].choice)
        shared = set.intersection(*(set(row) for row in self.estimates.values()))
        # In the order of the candidates, which a set has not.
        first = next(iter(self.estimates.values()))
        uniform: list[Choice] = [dict.fromkeys(self.estimates, one) for one in first if one in shared]
        for choice in sorted(uniform, key=self.cost_of):
            if best is not None and self.cost_of(choice) >= best.cost:
                return
            tried = any(trial.choice == choice for trial in self.trials)
            if not tried and self.estimate(choice) * ratio <= _WORTH_TRYING * self.allowed:
                self.try_choice(choice)
                return

    def try_gentle_choices(self) -> None:
        gentle = {name: min(row, key=lambda settings: row[settings]) for name, row in self.errors.items()}
        most = sorted(gentle, key=lambda name: -self.estimates[name][gentle[name]])
        for share in (0.0, *_FLOAT_SHARES):
            floats = set(most[: math.ceil(share * len(most))])
            choice = {name: None if name in floats else settings for name, settings in gentle.items()}
            if all(settings is None for settings in choice.values()):
                return
            if any(trial.choice == choice for trial in self.trials):
                continue
            if self.keeps(self.try_choice(choice)):
                return

    def try_choice(self, choice: Choice) -> Trial:
        trial = Trial(
            choice,
            self.cost_of(choice),
            math.fsum(max(0.0, self.rises[name][settings].mean) for name, settings in _quantised(choice)),
            self.measure(choice),
        )
        self.trials.append(trial)
        return trial

    def cost_of(self, choice: Choice) -> int:
        return sum(self.cost(name, settings) for name, settings in choice.items())

    def estimate(self, choice: Choice) -> float:
        return math.fsum(self.estimates[name][settings] for name, settings in _quantised(choice))


def _quantised(choice: Choice) -> list[tuple[str, LayerSettings]]:
    return [(name, settings) for name, settings in choice.items() if settings is not None]


def _estimates(sensitivities: Sensitivities) -> dict[str, dict[LayerSettings, float]]:
    """What is spent on each layer with each setting that was measured, as at the head of this module."""
    measured = [found for row in sensitivities.layers.values() for found in row.values() if found.rise is not None]
    errors = math.fsum(found.error for found in measured)
    rate = math.fsum(abs(found.rise.mean) for found in measured if found.rise is not None) / errors if errors else 0.0
    return {
        name: {
            settings: _estimate(found.rise, rate * found.error)
            for settings, found in row.items()
            if found.rise is not None
        }
        for name, row in sensitivities.layers.items()
    }


def _estimate(rise: Rise, suggested: float) -> float:
    if math.isinf(rise.error):
        return suggested
    variances = rise.error**2 + suggested**2
    mean = (rise.mean * suggested**2 + suggested * rise.error**2) / variances if variances > 0 else rise.mean
    return max(mean, _FLOOR * suggested)
