"""One test case of the differential suite: core, GEMM, data, stalls and memory, small enough to print and to replay.

Data is a zero background, or one drawn from a seed, with sparse overrides on top: so the configuration
shrinks as well as the data (drawing sizes first and then one block of numbers does not shrink).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from accel.config import CoreConfig
from accel.memory import Memory
from quant import NMPattern, NMWeight
from verify.stimulus import NO_STALLS, STREAMS, Stalls

SCHEMA = "nimble.case"
VERSION = 2

#: How the background is drawn: all zero, every value at an end of its range, or uniform over the range.
BACKGROUNDS = ("zero", "extreme", "uniform")


@dataclass(frozen=True)
class Case:
    """A GEMM on a core. Rows and columns of overrides are taken modulo the matrices' sizes."""

    config: CoreConfig
    pattern: NMPattern
    tokens: int
    in_features: int
    out_features: int
    #: −1, or a multiple of m.
    group_size: int
    symmetric: bool = True
    #: Block code, or None for the core's default.
    code: str | None = None
    weights: str = "zero"
    acts: str = "zero"
    seed: int = 0
    #: Kept weights (row, column, value): the value is taken modulo the code range.
    weight_overrides: tuple[tuple[int, int, int], ...] = ()
    #: Activations (token, column, value), the value modulo the range of act_bits.
    act_overrides: tuple[tuple[int, int, int], ...] = ()
    #: Group scales (row, group, value), modulo the range of scale_bits.
    scale_overrides: tuple[tuple[int, int, int], ...] = ()
    stalls: Stalls = NO_STALLS
    #: Memory port behind the streams; None: words are always there.
    memory: Memory | None = None

    def build(self) -> tuple[np.ndarray, NMWeight]:
        """Activations int64 [T, K] and weights of the case."""
        rng = np.random.default_rng(self.seed)
        rows, features, pattern = self.out_features, self.in_features, self.pattern
        low, high = (-8, 7) if self.symmetric else (0, 15)
        act_low, act_high = self.config.act_range
        scale_low, scale_high = self.config.scale_range
        group = self.group_size if self.group_size > 0 else features
        groups = -(-features // group)

        values = _background(rng, self.weights, (rows, features), low, high)
        scales = _background(rng, self.weights, (rows, groups), scale_low, scale_high)
        if self.weights == "zero":
            scales += 1
        if self.weights == "uniform":
            scales[rng.random(scales.shape) < 0.1] = 0
        zero_point = None if self.symmetric else _background(rng, self.weights, (rows, groups), 0, 15)
        mask = _mask(rng, self.weights, rows, features, pattern)
        if self.weights == "uniform" and groups > 1:
            # Whole groups of zeros, and kept zeros among the others, next to full-range groups.
            dead = rng.random((rows, groups)) < 0.2
            values[np.repeat(dead, group, axis=1)[:, :features]] = 0
        for row, column, value in self.weight_overrides:
            _keep(mask, row % rows, column % features, pattern)
            values[row % rows, column % features] = low + value % (high - low + 1)
        for row, index, value in self.scale_overrides:
            scales[row % rows, index % groups] = scale_low + value % (scale_high - scale_low + 1)

        x = _background(rng, self.acts, (self.tokens, features), act_low, act_high)
        for token, column, value in self.act_overrides:
            x[token % self.tokens, column % features] = act_low + value % (act_high - act_low + 1)
        weight = NMWeight(
            values=values.astype(np.int8),
            mask=mask,
            group_scale=scales,
            channel_scale=np.ones(rows, np.float32),
            pattern=pattern,
            group_size=self.group_size,
            zero_point=zero_point,
        )
        return x, weight

    def to_json(self) -> str:
        """The case as a JSON document that `from_json` reads."""
        document = asdict(self)
        document["config"] = self.config.as_dict()
        document["pattern"] = str(self.pattern)
        document["stalls"] = {name: "".join(map(str, getattr(self.stalls, name))) for name in STREAMS}
        if self.memory is not None:
            document["memory"]["bytes_per_cycle"] = str(self.memory.bytes_per_cycle)
        return json.dumps({"schema": SCHEMA, "version": VERSION, **document}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Read a stored case.

        Raises
        ------
        ValueError
            For another schema or version, or a damaged document.
        """
        try:
            document: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"A stored case is a JSON document, but this is not JSON: {error}.") from error
        if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
            raise ValueError(f"This is not a stored case: its schema is not {SCHEMA!r}.")
        version = document.pop("version", None)
        if version != VERSION:
            raise ValueError(f"The stored case has version {version}, but this program reads version {VERSION}.")
        try:
            document["config"] = CoreConfig.from_dict(document["config"])
            document["pattern"] = NMPattern.parse(document["pattern"])
            stalls = {name: tuple(int(bit) for bit in bits) for name, bits in document["stalls"].items()}
            document["stalls"] = Stalls(**stalls)
            if document["memory"] is not None:
                rate = Fraction(document["memory"].pop("bytes_per_cycle"))
                document["memory"] = Memory(rate, **document["memory"])
            for name in ("weight_overrides", "act_overrides", "scale_overrides"):
                document[name] = tuple(tuple(int(number) for number in item) for item in document[name])
            return cls(**document)
        except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"The stored case is damaged: {error}.") from error

    def save(self, folder: Path) -> Path:
        """Write the case to ``folder`` under a name that follows from its content."""
        import hashlib

        text = self.to_json()
        path = folder / f"nimble-case-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        path.write_text(text + "\n", encoding="utf-8")
        return path

    def without_stalls(self) -> Case:
        """The same case with streams that hold back only where the memory does."""
        return replace(self, stalls=NO_STALLS)

    def without_waiting(self) -> Case:
        """The same case with streams that never hold back."""
        return replace(self, stalls=NO_STALLS, memory=None)


def _background(rng: np.random.Generator, kind: str, shape: tuple[int, int], low: int, high: int) -> np.ndarray:
    if kind == "zero":
        return np.zeros(shape, np.int64)
    if kind == "extreme":
        return np.where(rng.random(shape) < 0.5, low, high).astype(np.int64)
    if kind == "uniform":
        return rng.integers(low, high + 1, shape)
    raise ValueError(f"There is no background named {kind!r}; there are {', '.join(BACKGROUNDS)}.")


def _mask(rng: np.random.Generator, kind: str, rows: int, features: int, pattern: NMPattern) -> np.ndarray:
    """Zero: the first n of each block; extreme: n at random; uniform: up to n at random."""
    blocks = -(-features // pattern.m)
    if kind == "zero":
        order = np.broadcast_to(np.arange(pattern.m), (rows, blocks, pattern.m))
    else:
        order = rng.random((rows, blocks, pattern.m)).argsort(axis=-1)
    kept = order < pattern.n
    if kind == "uniform":
        kept = kept & (rng.random(kept.shape) < 0.9)
    return kept.reshape(rows, -1)[:, :features].copy()


def _keep(mask: np.ndarray, row: int, column: int, pattern: NMPattern) -> None:
    """Keep one position, giving up the last kept one of a full block."""
    start = column // pattern.m * pattern.m
    block = mask[row, start : start + pattern.m]
    if not mask[row, column] and block.sum() >= pattern.n:
        block[np.nonzero(block)[0][-1]] = False
    mask[row, column] = True
