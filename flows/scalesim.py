"""SCALE-Sim's cycles of a GEMM, as closed forms, and where they go.

SCALE-Sim is a widely used simulator of systolic arrays. It cuts Y[M, N] = X[M, K] · W[K, N] into folds of the
array's size, which follow one another without overlap, and models n:m weights as fewer input features: every
output feature keeps the same first n of each m, and the array is dense. So its cycles have closed forms. It has
no index multiplexer and no metadata, and the array is never without an operand.

A test runs an array of registers, cycle by cycle, against both forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from quant import NMPattern


class Array(NamedTuple):
    """A systolic array with one multiplier in each PE."""

    rows: int
    columns: int

    @property
    def multipliers(self) -> int:
        """Multiplications that it does in a cycle at most."""
        return self.rows * self.columns

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    @classmethod
    def parse(cls, text: str) -> Array:
        """Read ``RxC``; `str` is the inverse.

        Raises
        ------
        ValueError
            The text has another form, or a side is 0.
        """
        match = re.fullmatch(r"([0-9]{1,6})[xX×]([0-9]{1,6})", text.strip())
        if match is None or int(match[1]) == 0 or int(match[2]) == 0:
            raise ValueError(f"The array {text!r} is not understood; write its rows and columns, such as 16x64.")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class ArrayCycles:
    """Cycles of a GEMM on an array. ``useful + idle + lost`` is ``cycles``."""

    cycles: int
    #: Cycles if all multipliers worked on kept weights all the time.
    useful: float
    #: What multipliers outside the matrix's edge add to that.
    idle: float
    #: Cycles that folds take to load, fill and drain the array.
    lost: int


def kept_inputs(in_features: int, pattern: NMPattern) -> int:
    """K′: input features left when each block of m keeps its first n, the last and shorter one too."""
    blocks, tail = divmod(in_features, pattern.m)
    return blocks * pattern.n + min(tail, pattern.n)


def output_stationary(
    array: Array, tokens: int, out_features: int, in_features: int, pattern: NMPattern
) -> ArrayCycles:
    """⌈M/R⌉ · ⌈N/C⌉ · (K′ + R + C − 2) − 1: a fold ends when the last PE has added its last product.

    The − 1 is SCALE-Sim's own: it counts cycles from 0 and reports the number of the last one
    (its issues 60 and 125).
    """
    kept = kept_inputs(in_features, pattern)
    folds = -(-tokens // array.rows) * -(-out_features // array.columns)
    return _split(array, tokens * out_features * kept, work=folds * kept, lost=folds * (array.rows + array.columns - 2))


def weight_stationary(
    array: Array, tokens: int, out_features: int, in_features: int, pattern: NMPattern
) -> ArrayCycles:
    """⌈K′/R⌉ · ⌈N/C⌉ · (2R + C + M − 2) − 1: a fold loads R rows of weights before its first token.

    The − 1 is as for `output_stationary`.
    """
    kept = kept_inputs(in_features, pattern)
    folds = -(-kept // array.rows) * -(-out_features // array.columns)
    return _split(
        array,
        tokens * out_features * kept,
        work=folds * tokens,
        lost=folds * (2 * array.rows + array.columns - 2),
    )


def _split(array: Array, macs: int, work: int, lost: int) -> ArrayCycles:
    useful = macs / array.multipliers
    return ArrayCycles(cycles=work + lost - 1, useful=useful, idle=work - useful, lost=lost - 1)


#: Array, M, N, K and pattern to cycles.
ClosedForm = Callable[[Array, int, int, int, NMPattern], ArrayCycles]

#: The closed forms by the name that ``--compare`` takes.
CLOSED_FORMS: dict[str, ClosedForm] = {"scalesim-os": output_stationary, "scalesim-ws": weight_stationary}


def read_compared(text: str) -> list[str]:
    """Return the names of a comma-separated list of closed forms, such as ``scalesim-os,scalesim-ws``.

    Raises
    ------
    ValueError
        A name is unknown, or stands twice.
    """
    names = [item.strip() for item in text.split(",")]
    for name in names:
        if name not in CLOSED_FORMS:
            raise ValueError(f"Nothing named {name!r} can be compared with; there are {', '.join(CLOSED_FORMS)}.")
    if len(set(names)) != len(names):
        raise ValueError(f"{text!r} is to be compared with; each is named once.")
    return names
