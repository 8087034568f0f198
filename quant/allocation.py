"""Which option each layer gets, so that all together cost least within an allowed sum of losses.

This is the multiple-choice knapsack problem. Lagrange's relaxation gives a bound from below and, repaired, a choice
to start from; dynamic programming over the layers then keeps only states that no other one beats in cost and loss
and whose bound is no worse than the best choice known, which finds the cheapest choice of all.

Source: H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack Problems", Springer 2004, chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Option = TypeVar("Option")

#: States that one layer may leave; beyond it the least promising ones are dropped, and the result is only known to
#: lie between its cost and its lower bound.
MAX_STATES = 200_000

#: Losses are counted in whole units of 2**-40, so that sums are exact and the order of layers does not matter.
_UNITS = 1 << 40

#: Largest allowance: its units fit 64 bits with room to add two of them.
_LARGEST_ALLOWANCE = float(1 << 20)


class AllowanceError(ValueError):
    """No choice stays within the allowance."""


@dataclass(frozen=True)
class Allocation(Generic[Option]):
    """A choice for every layer."""

    choice: dict[str, Option]
    #: Sum of the costs.
    cost: int
    #: Sum of the losses, those below 0 taken as 0.
    loss: float
    #: No choice within the allowance costs less: equal to ``cost`` unless states had to be dropped.
    lower_bound: int


def allocate(
    losses: Mapping[str, Mapping[Option, float]], cost: Callable[[str, Option], int], allowance: float
) -> Allocation[Option]:
    """Choose one option for each layer, at the least sum of costs whose losses sum to at most the allowance.

    Losses below 0 are noise of a measurement and count as 0: no layer earns an allowance for the others. Losses are
    rounded up to multiples of 2**-40, the allowance down. Of choices that cost the same, the one of smallest loss is
    taken, and of those the one with the earliest options in the order given, first layer first. With a larger
    allowance the result costs no more.

    Parameters
    ----------
    losses
        Loss of each option of each layer, in any unit that adds up; the order of options settles ties.
    cost
        A layer's and an option's cost, an integer of 0 or more.
    allowance
        Largest sum of losses, 0 to 2**20.

    Raises
    ------
    AllowanceError
        Even the smallest losses sum to more than the allowance; the message says to how much.
    ValueError
        If there is no layer, a layer has no option, a loss is NaN, a cost is negative, or the allowance is out of
        range.
    TypeError
        If a cost is not an integer.
    """
    if not 0 <= allowance <= _LARGEST_ALLOWANCE:
        raise ValueError(f"The allowance is {allowance}; it must be 0 to {_LARGEST_ALLOWANCE:g}.")
    if not losses:
        raise ValueError("There is no layer to choose an option for.")
    table = _Table.of(losses, cost)
    limit = math.floor(allowance * _UNITS)
    smallest = sum(int(row.min()) for row in table.losses)
    if smallest > limit:
        raise AllowanceError(
            f"The smallest losses of all layers sum to {smallest / _UNITS:.3g}, more than the {allowance:.3g} allowed."
        )
    # Any multiplier gives a valid bound; one at which the relaxed choice just fits gives a tight one.
    price = _price(table, limit)
    picks = _repaired(table, table.cheapest_at(price), limit)
    picks, exact = _search(table, limit, price, picks)

    total = table.cost_of(picks)
    bound = total if exact else min(total, math.ceil(table.bound(price, limit) - _slack(total)))
    names = list(losses)
    choice = {name: table.options[row][pick] for row, (name, pick) in enumerate(zip(names, picks, strict=True))}
    spent = math.fsum(max(0.0, losses[name][option]) for name, option in choice.items())
    return Allocation(choice, total, spent, bound)


@dataclass(frozen=True)
class _Table(Generic[Option]):
    """Options of every layer that no other one of the layer beats, in the order given."""

    options: list[list[Option]]
    costs: list[NDArray[np.int64]]
    #: In units.
    losses: list[NDArray[np.int64]]

    @classmethod
    def of(cls, losses: Mapping[str, Mapping[Option, float]], cost: Callable[[str, Option], int]) -> _Table[Option]:
        table = cls([], [], [])
        for name, row in losses.items():
            if not row:
                raise ValueError(f"Layer {name} has no option to choose from.")
            kept: list[tuple[int, int, Option]] = []
            for option, loss in row.items():
                if math.isnan(loss):
                    raise ValueError(f"The loss of {option} in layer {name} is not a number.")
                kept.append((_cost(name, option, cost), _units(loss), option))
            kept = [
                entry
                for number, entry in enumerate(kept)
                if not any(_beats(other, entry, place < number) for place, other in enumerate(kept))
            ]
            table.costs.append(np.array([entry[0] for entry in kept], np.int64))
            table.losses.append(np.array([entry[1] for entry in kept], np.int64))
            table.options.append([entry[2] for entry in kept])
        return table

    def cost_of(self, picks: list[int]) -> int:
        return sum(int(row[pick]) for row, pick in zip(self.costs, picks, strict=True))

    def loss_of(self, picks: list[int]) -> int:
        return sum(int(row[pick]) for row, pick in zip(self.losses, picks, strict=True))

    def cheapest_at(self, price: float) -> list[int]:
        """The options of least cost, where a unit of loss has a price; of those the ones of least loss."""
        picks = []
        for costs, losses in zip(self.costs, self.losses, strict=True):
            priced = costs + price * losses
            picks.append(int(np.lexsort((losses, priced))[0]))
        return picks

    def relaxed(self, price: float) -> NDArray[np.float64]:
        """Least cost of each layer where a unit of loss has a price."""
        rows = zip(self.costs, self.losses, strict=True)
        return np.array([(costs + price * losses).min() for costs, losses in rows])

    def bound(self, price: float, limit: int) -> float:
        """Cost below which no choice within the limit can be, but for rounding."""
        return float(self.relaxed(price).sum() - price * limit)


def _beats(one: tuple[int, int, Option], other: tuple[int, int, Option], earlier: bool) -> bool:
    """Whether one option makes another needless: no worse in both, and better in one or given before."""
    no_worse = one[0] <= other[0] and one[1] <= other[1]
    return no_worse and (one[:2] != other[:2] or earlier)


def _cost(name: str, option: Option, cost: Callable[[str, Option], int]) -> int:
    value = cost(name, option)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"The cost of {option} in layer {name} is {value!r}; it must be an integer.")
    if value < 0:
        raise ValueError(f"The cost of {option} in layer {name} is {value}; it must be 0 or more.")
    return int(value)


def _units(loss: float) -> int:
    # Whatever is over the largest allowance can never be chosen.
    return math.ceil(min(max(loss, 0.0), 2 * _LARGEST_ALLOWANCE) * _UNITS)


def _slack(cost: int) -> float:
    """Room for the rounding of float64 bounds."""
    return 1e-9 * (1 + cost)


def _price(table: _Table[Option], limit: int) -> float:
    """The lowest price of a unit of loss at which the relaxed choice is within the limit."""
    if table.loss_of(table.cheapest_at(0.0)) <= limit:
        return 0.0
    # At this price the least loss is cheapest in every layer.
    low, high = 0.0, 1.0 + max(float(row.max() - row.min()) for row in table.costs)
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if table.loss_of(table.cheapest_at(middle)) <= limit:
            high = middle
        else:
            low = middle
    return high


def _repaired(table: _Table[Option], picks: list[int], limit: int) -> list[int]:
    """Spend what is left of the limit on the changes that save most."""
    picks = list(picks)
    left = limit - table.loss_of(picks)
    while True:
        best = (0, 0, 0)
        for row, pick in enumerate(picks):
            costs, losses = table.costs[row], table.losses[row]
            saved = np.where(losses - losses[pick] <= left, costs[pick] - costs, 0)
            change = int(saved.argmax())
            if saved[change] > best[0]:
                best = (int(saved[change]), row, change)
        if best[0] == 0:
            return picks
        _, row, change = best
        left -= int(table.losses[row][change] - table.losses[row][picks[row]])
        picks[row] = change


def _search(table: _Table[Option], limit: int, price: float, known: list[int]) -> tuple[list[int], bool]:
    """The cheapest choice, last layer first, and whether no state had to be dropped.

    From the last layer to the first, so that of equal states the first one found has the earliest options.
    """
    best = table.cost_of(known)
    before = np.concatenate([[0.0], np.cumsum(table.relaxed(price))])
    least_before = np.concatenate([[0], np.cumsum([row.min() for row in table.losses])])
    costs, losses = np.zeros(1, np.int64), np.zeros(1, np.int64)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    exact = True
    for row in reversed(range(len(table.options))):
        option = np.repeat(np.arange(len(table.costs[row])), len(costs))
        state = np.tile(np.arange(len(costs)), len(table.costs[row]))
        new_costs = table.costs[row][option] + costs[state]
        new_losses = table.losses[row][option] + losses[state]
        bound = new_costs + before[row] + price * (new_losses - limit)
        keep = np.flatnonzero((new_losses + least_before[row] <= limit) & (bound <= best + _slack(best)))
        keep = keep[np.lexsort((new_losses[keep], new_costs[keep]))]
        sorted_losses = new_losses[keep]
        first = np.ones(len(keep), bool)
        first[1:] = sorted_losses[1:] < np.minimum.accumulate(sorted_losses)[:-1]
        keep = keep[first]
        if len(keep) > MAX_STATES:
            exact = False
            keep = keep[np.sort(np.argsort(bound[keep], kind="stable")[:MAX_STATES])]
        costs, losses = new_costs[keep], new_losses[keep]
        steps.append((option[keep], state[keep]))
    if len(costs) == 0 or int(costs[0]) > best:
        return known, exact
    picks, at = [], 0
    for options, states in reversed(steps):
        picks.append(int(options[at]))
        at = int(states[at])
    return picks, exact
