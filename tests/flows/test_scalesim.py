"""SCALE-Sim's closed forms, against arrays of registers that are stepped cycle by cycle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flows.scalesim import (
    Array,
    kept_inputs,
    output_stationary,
    read_compared,
    weight_stationary,
)
from quant import NMPattern

DENSE = NMPattern(1, 1)

SIZES = st.integers(1, 13)
SIDES = st.integers(1, 5)
PATTERNS = st.integers(1, 5).flatmap(lambda m: st.integers(1, m).map(lambda n: NMPattern(n, m)))


# The arrays. A wire carries a value and whether it is one; PEs outside the matrix get zeros, like all others.
# One fold starts when the one before it has ended: SCALE-Sim does not overlap them.


class OutputStationaryArray:
    """Registers of R × C PEs. X comes in from the left, W from above; each PE keeps one sum."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.cycle = 0

    def fold(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """x [R, K] · w [K, C], and the clock moves on until the last PE has added its last product."""
        rows, columns, depth = self.rows, self.columns, x.shape[1]
        right = np.zeros((rows, columns), np.int64)
        down = np.zeros((rows, columns), np.int64)
        valid = np.zeros((rows, columns), bool)
        total = np.zeros((rows, columns), np.int64)
        added = np.zeros((rows, columns), np.int64)
        start = self.cycle
        while (added < depth).any():
            now = self.cycle - start
            # The edge is skewed: row r and column c get their k-th value in cycle k + r and k + c.
            left = [(x[r, now - r], True) if 0 <= now - r < depth else (0, False) for r in range(rows)]
            above = [w[now - c, c] if 0 <= now - c < depth else 0 for c in range(columns)]
            right = np.column_stack([[value for value, _ in left], right[:, :-1]])
            valid = np.column_stack([[fresh for _, fresh in left], valid[:, :-1]])
            down = np.vstack([above, down[:-1]])
            total += right * down
            added += valid
            self.cycle += 1
        return total


class WeightStationaryArray:
    """Registers of R × C PEs. Each holds one weight; X comes in from the left and sums move down."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.cycle = 0

    def fold(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """x [M, R] · w [R, C], and the clock moves on until the last sum has left."""
        rows, columns, tokens = self.rows, self.columns, x.shape[0]
        weights = np.zeros((rows, columns), np.int64)
        for row in reversed(range(rows)):  # the last row goes in first, and each cycle moves all rows down
            weights = np.vstack([w[row], weights[:-1]])
            self.cycle += 1
        assert (weights == w).all()

        right = np.zeros((rows, columns), np.int64)
        valid = np.zeros((rows, columns), bool)
        sums = np.zeros((rows, columns), np.int64)
        out: list[list[int]] = [[] for _ in range(columns)]
        start = self.cycle
        while any(len(column) < tokens for column in out):
            now = self.cycle - start
            left = [(x[now - r, r], True) if 0 <= now - r < tokens else (0, False) for r in range(rows)]
            right = np.column_stack([[value for value, _ in left], right[:, :-1]])
            valid = np.column_stack([[fresh for _, fresh in left], valid[:, :-1]])
            sums = np.vstack([np.zeros(columns, np.int64), sums[:-1]]) + right * weights
            for column in np.flatnonzero(valid[-1]):
                out[column].append(int(sums[-1, column]))
            self.cycle += 1
        return np.array(out, np.int64).T


def padded(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The matrix with zeros up to a multiple of each size."""
    return np.pad(matrix, [(0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)])


def run_output_stationary(array: Array, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, int]:
    """x · w fold by fold, and the cycles of all folds."""
    device = OutputStationaryArray(*array)
    rows, columns = array
    x, w = padded(x, rows, 1), padded(w, 1, columns)
    y = np.zeros((x.shape[0], w.shape[1]), np.int64)
    for m in range(0, x.shape[0], rows):
        for n in range(0, w.shape[1], columns):
            y[m : m + rows, n : n + columns] = device.fold(x[m : m + rows], w[:, n : n + columns])
    return y, device.cycle


def run_weight_stationary(array: Array, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, int]:
    """x · w fold by fold, and the cycles of all folds."""
    device = WeightStationaryArray(*array)
    rows, columns = array
    x, w = padded(x, 1, rows), padded(w, rows, columns)
    y = np.zeros((x.shape[0], w.shape[1]), np.int64)
    for k in range(0, w.shape[0], rows):
        for n in range(0, w.shape[1], columns):
            y[:, n : n + columns] += device.fold(x[:, k : k + rows], w[k : k + rows, n : n + columns])
    return y, device.cycle


FORMS = [(output_stationary, run_output_stationary), (weight_stationary, run_weight_stationary)]


@pytest.mark.parametrize(("closed_form", "run"), FORMS)
@given(
    array=st.builds(Array, SIDES, SIDES),
    tokens=SIZES,
    out_features=SIZES,
    in_features=SIZES,
    pattern=PATTERNS,
    seed=st.integers(0, 2**32 - 1),
)
@example(array=Array(4, 4), tokens=4, out_features=4, in_features=4, pattern=DENSE, seed=0)
@example(array=Array(1, 1), tokens=1, out_features=1, in_features=1, pattern=DENSE, seed=0)
def test_closed_forms_are_the_cycles_of_an_array(
    closed_form: object,
    run: object,
    array: Array,
    tokens: int,
    out_features: int,
    in_features: int,
    pattern: NMPattern,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 10, (tokens, in_features))
    w = rng.integers(-9, 10, (in_features, out_features))
    # SCALE-Sim's mask: the same first n of each block of m, in every column.
    kept = np.arange(in_features) % pattern.m < pattern.n
    y, cycles = run(array, x[:, kept], w[kept])  # type: ignore[operator]
    assert (y[:tokens, :out_features] == x @ (w * kept[:, None])).all()

    assert kept_inputs(in_features, pattern) == kept.sum()
    form = closed_form(array, tokens, out_features, in_features, pattern)  # type: ignore[operator]
    # The number of the last cycle, counted from 0, where the array has taken `cycles` of them.
    assert form.cycles == cycles - 1
    assert form.useful * array.multipliers == pytest.approx(tokens * out_features * kept.sum())
    assert form.useful + form.idle + form.lost == pytest.approx(form.cycles)
    assert form.idle >= -1e-9
    assert form.lost >= -1


@pytest.mark.parametrize(
    ("closed_form", "tokens", "cycles"),
    [
        # SCALE-Sim 3.0.0 itself printed these for one token; with 128 it did not end in ten minutes.
        (output_stationary, 1, 1_056_255),
        (weight_stationary, 1, 3_080_191),
        # 8 · 256 folds of 4096 + 30 cycles, and 256 · 256 folds of 174.
        (output_stationary, 128, 8_450_047),
        (weight_stationary, 128, 11_403_263),
    ],
)
def test_a_layer_of_llama_7b(closed_form: object, tokens: int, cycles: int) -> None:
    assert closed_form(Array(16, 16), tokens, 4096, 4096, DENSE).cycles == cycles  # type: ignore[operator]


def test_the_cycle_that_its_users_miss() -> None:
    # SCALE-Sim's issues 60 and 125: 9 and 3 are printed where pencil and paper give 10 and 4.
    assert output_stationary(Array(4, 4), 4, 4, 4, DENSE).cycles == 9
    assert output_stationary(Array(2, 2), 2, 2, 2, DENSE).cycles == 3


def test_an_array_is_written_as_it_is_read() -> None:
    assert Array.parse(" 16x64 ") == Array(16, 64)
    assert Array.parse(str(Array(3, 7))) == Array(3, 7)
    for text in ("16", "16x", "0x16", "16x0", "-1x2", "1x2x3", "a"):
        with pytest.raises(ValueError, match="is not understood; write its rows and columns, such as 16x64"):
            Array.parse(text)


def test_names_to_compare_with() -> None:
    assert read_compared("scalesim-ws, scalesim-os") == ["scalesim-ws", "scalesim-os"]
    with pytest.raises(ValueError, match=r"Nothing named 'stonne' can be .*; there are scalesim-os, scalesim-ws\."):
        read_compared("scalesim-os,stonne")
    with pytest.raises(ValueError, match="each is named once"):
        read_compared("scalesim-os,scalesim-os")
