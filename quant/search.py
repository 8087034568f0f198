"""The settings of every layer of a model, cheapest within an allowed rise of its loss.

Rises of layers alone, as `quant.sensitivity` measures them, add up to a prediction for the whole model. It only says
what is worth a trial: what counts is the rise that a caller measures with all layers quantised. A trial over the
allowed rise tightens what the next one may spend, one well under it loosens it.

Rises of single layers are small differences of large numbers and often noise. From the second trial on a rise is
therefore the mean of the measured one and of the one that the layer error suggests, for over all layers the rise is
proportional to it (V. Malinovskii and others, "Pushing the Limits of Large Language Model Quantization via the
Linearity Theorem", 2024), so that no layer stays for free because it was lucky once.
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

    If none of `rounds` trials keeps to it, each layer gets the setting of its smallest layer error, and if that is
    still too much, a quarter of the layers, then half and then three quarters stay float: those whose rise is
    largest. So there are at most `rounds` + 4 trials.

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
    if state.best is None:
        state.try_gentle_choices()
    return Search(tuple(state.trials), state.best)


class _State:
    def __init__(
        self, sensitivities: Sensitivities, cost: ChoiceCost, allowed: float, measure: Callable[[Choice], Rise]
    ) -> None:
        self.rises = {name: sensitivities.losses(name) for name in sensitivities.layers}
        self.hedged = _hedged(sensitivities)
        self.errors = {
            name: {settings: found.error for settings, found in row.items() if found.loss is not None}
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
        rises, budget = self.rises, self.allowed
        for _ in range(rounds):
            try:
                choice = allocate(rises, self.cost, budget).choice
            except AllowanceError:
                return
            if any(trial.choice == choice for trial in self.trials):
                return
            self.try_choice(choice)
            rises, next_budget = self.hedged, self.next_budget()
            if next_budget is None:
                return
            budget = next_budget

    def next_budget(self) -> float | None:
        """What the next trial may spend of hedged rises; None when the last one came near enough to the allowed rise.

        As much as the last trial's rise says, between what kept to the allowed rise so far and what did not. More is
        spent only as far as the last rise is sure to be small.
        """
        last = self.trials[-1]
        spent = self.hedged_sum(last.choice)
        kept = [self.hedged_sum(trial.choice) for trial in self.trials if self.keeps(trial)]
        over = [self.hedged_sum(trial.choice) for trial in self.trials if not self.keeps(trial)]
        low, high = max(kept, default=0.0), min(over, default=math.inf)
        rise = last.measured.mean + (last.measured.error if self.keeps(last) else 0.0)
        if self.keeps(last) and rise >= _NEAR * self.allowed:
            return None
        # A rise of almost nothing says little about what lies beyond twice as much.
        aim = spent * min(_AIM * self.allowed / rise if rise > 0 else math.inf, 2.0)
        return aim if low < aim < high else (low + min(high, 2 * low)) / 2

    def keeps(self, trial: Trial) -> bool:
        return trial.measured.mean <= self.allowed

    def try_gentle_choices(self) -> None:
        gentle = {name: min(row, key=lambda settings: row[settings]) for name, row in self.errors.items()}
        most = sorted(gentle, key=lambda name: -self.hedged[name][gentle[name]])
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
            sum(self.cost(name, settings) for name, settings in choice.items()),
            math.fsum(max(0.0, self.rises[name][settings]) for name, settings in _quantised(choice)),
            self.measure(choice),
        )
        self.trials.append(trial)
        return trial

    def hedged_sum(self, choice: Choice) -> float:
        return math.fsum(self.hedged[name][settings] for name, settings in _quantised(choice))


def _quantised(choice: Choice) -> list[tuple[str, LayerSettings]]:
    return [(name, settings) for name, settings in choice.items() if settings is not None]


def _hedged(sensitivities: Sensitivities) -> dict[str, dict[LayerSettings, float]]:
    """For each layer and setting that was measured, the mean of its rise and of what its layer error suggests."""
    measured = [found for row in sensitivities.layers.values() for found in row.values() if found.loss is not None]
    errors = math.fsum(found.error for found in measured)
    rate = math.fsum(abs(found.loss or 0.0) for found in measured) / errors if errors > 0 else 0.0
    return {
        name: {
            settings: (max(0.0, found.loss) + rate * found.error) / 2
            for settings, found in row.items()
            if found.loss is not None
        }
        for name, row in sensitivities.layers.items()
    }
