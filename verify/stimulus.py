"""What drives a core besides its data: when each stream holds back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STREAMS = ("command", "weights", "acts", "results")

#: Lengths of random patterns, one a stream: primes, so that together they repeat after 3·10⁸ cycles only.
RANDOM_LENGTHS = (127, 131, 137, 139)


@dataclass(frozen=True)
class Stalls:
    """Back-pressure of the four streams, the same at RTL and Verilog level.

    Each field is a pattern over cycles, repeated for ever: in cycle t (0 = first after reset) the stream is
    held back when ``pattern[t % len(pattern)]`` is 1. Empty patterns never hold back.
    """

    command: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    acts: tuple[int, ...] = ()
    results: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in STREAMS:
            pattern = tuple(getattr(self, name))
            object.__setattr__(self, name, pattern)
            if any(bit not in (0, 1) for bit in pattern):
                raise ValueError(f"A stall pattern holds zeros and ones, but {name} = {pattern} was given.")
            if pattern and all(pattern):
                raise ValueError(
                    f"A stall pattern must let some cycle through, but {name} = {pattern} blocks for ever."
                )

    @classmethod
    def random(
        cls, seed: int, command: float = 0.0, weights: float = 0.0, acts: float = 0.0, results: float = 0.0
    ) -> Stalls:
        """Stalls drawn from a seed, each stream held back in the given share of its cycles.

        Raises
        ------
        ValueError
            When a share is not within 0 and 0.99: some cycle must let a word through.
        """
        rng = np.random.default_rng(seed)
        patterns = {}
        for name, share, length in zip(STREAMS, (command, weights, acts, results), RANDOM_LENGTHS, strict=True):
            if not 0 <= share <= 0.99:
                raise ValueError(f"A stream is held back in 0 to 0.99 of the cycles, but {name} = {share} was given.")
            blocked = np.zeros(length, np.int64)
            blocked[rng.permutation(length)[: round(share * length)]] = 1
            patterns[name] = tuple(blocked.tolist()) if blocked.any() else ()
        return cls(**patterns)

    @property
    def slowdown(self) -> float:
        """Upper bound of how much longer a run takes than without stalls."""
        factor = 1.0
        for name in STREAMS:
            pattern = getattr(self, name)
            if pattern:
                factor += len(pattern) / (len(pattern) - sum(pattern))
        return factor


NO_STALLS = Stalls()
