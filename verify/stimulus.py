"""What drives a core besides its data: when each stream holds back."""

from __future__ import annotations

from dataclasses import dataclass

STREAMS = ("command", "weights", "acts", "results")


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

    def blocks(self, name: str, cycle: int) -> bool:
        """Whether a stream is held back in a cycle."""
        pattern = getattr(self, name)
        return bool(pattern) and bool(pattern[cycle % len(pattern)])

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
