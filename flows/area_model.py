"""LUTs, multiplier blocks and block RAMs of any core on ECP5, from a model that is fitted to synthesised ones.

A core is a tree of blocks, and what a block takes follows from a few widths: the shifters of a feeder from its code
window, a lane's multiplexer from the activations that it reaches. `BLOCKS` names the blocks and these terms. Their
weights are fitted, for each block, to its LUTs in the measured cores, by least squares with weights that are not
negative, and an error counts as a share of its core. Blocks are measured module by module; mapped as one, a core takes
fewer LUTs where logic is shared across modules, and more on the slowest way, so there is a factor for each of a few
parts of a core, `PARTS`, fitted to the cores mapped as one.

Multiplier blocks and block RAMs follow from rules, which `HeldOut` counts the misses of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from accel.config import CoreConfig, count_bits
from verify.synthesis.expectations import expectations

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Words and bits of the block RAM's shapes, with one write and one read port (Lattice FPGA-TN-02204).
_BLOCK_RAM_SHAPES = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))

#: yosys takes block RAM, or distributed memory in cells of 16 words of 4 bits, whichever costs less: so much a block,
#: so much a cell, and so much a bit for each way of a multiplexer behind cells but the first. Fits 38 memories of 4 to
#: 2048 words of 8 to 256 bits, mapped by yosys 0.70.
_BLOCK_RAM_COST, _CELL_COST, _WAY_COST = 128, 4, 0.5

#: LUTs of a cell of distributed memory.
_CELL_LUTS = 6

#: Widest operand of a multiplier block; of a signed one that is cut, each part but the first gives up a bit.
_DSP_BITS = 18

#: Cores that errors are found on are left out of the fit, in so many turns.
FOLDS = 10

#: Fewer measured cores do not fix the model.
LEAST_POINTS = 5


@dataclass(frozen=True)
class Area:
    """What a core takes."""

    lut: int
    dsp: int
    bram: int

    def document(self) -> dict[str, int]:
        """Return the JSON object of the counts."""
        return {"lut": self.lut, "dsp": self.dsp, "bram": self.bram}


@dataclass(frozen=True)
class Placing:
    """How many of a core's multipliers are in multiplier blocks."""

    #: Multipliers of scale units, and of lanes, which have one or two each.
    scale: int
    lanes: int

    @classmethod
    def of_choice(cls, config: CoreConfig, choice: str) -> Placing:
        """Read a choice of ``nimble synth --dsp``: all, scale or none.

        Raises
        ------
        ValueError
            It is none of them.
        """
        if choice not in ("all", "scale", "none"):
            raise ValueError(f"Multiplier blocks are for all, scale or none, but {choice!r} was given.")
        scale = config.columns * config.drain_chains
        lanes = config.rows * config.columns * config.lanes * len(config.multiplier_widths)
        return cls(0 if choice == "none" else scale, lanes if choice == "all" else 0)

    @classmethod
    def within(cls, config: CoreConfig, blocks: int) -> Placing:
        """Use at most so many multiplier blocks: the scale units' multipliers come first, as in ``nimble synth``."""
        full = cls.of_choice(config, "all")
        scale = min(full.scale, blocks // scale_dsp(config))
        left = blocks - scale * scale_dsp(config)
        return cls(scale, min(full.lanes, left) if scale == full.scale else 0)

    @property
    def multipliers(self) -> int:
        """The number to give to ``nimble synth --dsp``."""
        return self.scale + self.lanes


def scale_dsp(config: CoreConfig) -> int:
    """Multiplier blocks of one scale unit: a partial sum beyond 18 bits is cut into parts."""
    if config.partial_bits <= _DSP_BITS:
        return 1
    part = _DSP_BITS - 1
    whole, rest = divmod(config.partial_bits, part)
    return whole + (rest > 2)  # what is left of one or two bits is multiplied by LUTs


def upper_parts(config: CoreConfig, choice: str) -> int:
    """Blocks for the short upper parts of partial sums, which get some only where ``all`` is asked for."""
    in_parts = config.has_register("scale") and scale_dsp(config) == 1 and config.partial_bits > _DSP_BITS
    return config.columns * config.drain_chains if choice == "all" and in_parts else 0


def memory_area(words: int, width: int) -> tuple[int, int, int]:
    """Block RAMs, cells of distributed memory, and ways of the multiplexer that reads these, of one memory."""
    blocks = min(math.ceil(words / deep) * math.ceil(width / wide) for deep, wide in _BLOCK_RAM_SHAPES)
    ways = math.ceil(words / 16)
    cells = ways * math.ceil(width / 4)
    distributed = _CELL_COST * cells + _WAY_COST * (ways - 1) * width
    return (blocks, 0, 0) if distributed >= _BLOCK_RAM_COST * blocks else (0, cells, ways)


# -- blocks and the terms of their size ----------------------------------------------------------------------

#: Of a core: how many of a block there are, and the terms of each.
Terms = Callable[[CoreConfig, Placing, Mapping[str, Sequence[float]]], tuple[float, Sequence[float]]]


def _log(value: int) -> int:
    return max(1, value - 1).bit_length()


def _memory_terms(config: CoreConfig) -> dict[str, list[float]]:
    """LUTs of distributed memories, ways times width beyond the first, bits beside block RAMs, and block RAMs."""
    found: dict[str, list[float]] = {}
    for memory in expectations(config).memories:
        blocks, cells, ways = memory_area(memory.words, memory.width)
        place = ".".join(part.partition("[")[0] for part in memory.path.split("."))
        terms = found.setdefault(_block_of(place), [0.0] * 4)
        terms[0] += _CELL_LUTS * cells
        terms[1] += max(0, ways - 1) * memory.width
        terms[2] += memory.width if blocks else 0
        terms[3] += blocks
    return found


def memory_luts(config: CoreConfig) -> int:
    """LUTs of a core's distributed memories."""
    return round(sum(terms[0] for terms in _memory_terms(config).values()))


def _processing_element(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    count = config.rows * config.columns
    soft = config.lanes - placing.lanes / count / len(config.multiplier_widths)
    return count, (
        sum(high - low for low, high in config.lane_reach) * config.act_bits,
        soft * config.act_bits * config.weight_bits,
        soft * config.product_bits,
        (config.lanes - 1) * config.product_bits,
        config.partial_bits,
        1.0,
    )


def _scale_unit(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    count = config.columns * config.drain_chains
    hard = placing.scale / count
    return count, (
        (1 - hard) * config.partial_bits * config.scale_bits,
        (1 - hard) * (config.partial_bits + config.scale_bits),
        hard * (scale_dsp(config) - 1) * config.scaled_bits,
    )


def _feeder(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    lanes, m_max = config.lanes, config.m_max
    sparse = m_max > 1
    most_kept = max(pattern.n for pattern in config.all_patterns)
    return config.columns, (
        4 * lanes * _log(2 * config.slice_bytes // config.value_alignment),
        lanes * config.weight_bits,
        lanes * _log(config.window),
        config.slice_bits,
        # Of the codes: their shifter, and in each lane the choice of a field and the decoders.
        sparse * config.code_window_bits * _log(config.slice_bits // config.code_alignment),
        sparse * lanes * config.code_window_bits,
        sparse * sum((some & ~always).bit_count() for some, always in config.lane_shifts) * config.code_field_bits,
        sparse * lanes * config.rank_m_max * min(most_kept, config.rank_m_max),
        sparse * lanes * (m_max * _log(m_max + 1) if "bitmask" in config.codes else 0),
        sparse * lanes,
        1.0,
    )


def _weight_buffer(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    header = memory_area(config.header_slots, config.header_bits)
    return config.columns, (
        *_of_memory(memory, "column.buffer", config.columns),
        _CELL_LUTS * header[1] + max(0, header[2] - 1) * config.header_bits,
        4 * config.slice_bits,
        1.0,
    )


def _accumulator(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    count = config.columns * config.drain_chains
    return count, (*_of_memory(memory, "column.acc", count), config.acc_bits, 1.0)


def _column(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    return config.columns, (config.acc_bits * (2 * config.drain_chains - 1), 1.0)


def _row_feeder(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    bits = config.act_port_bits
    return config.rows, (bits * _log(config.window), bits, config.window)


def _act_buffer(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    return 1, (*_of_memory(memory, "acts_buffer", 1), config.rows, 1.0)


def _counters(config: CoreConfig) -> float:
    """Bits of the numbers that control goes by."""
    sizes = (config.act_words, config.k_max, config.group_max, config.code_words, config.value_words)
    return float(sum(map(count_bits, sizes)))


def _control(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    return 1, (_counters(config), 1.0)


def _unpacker(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    gearboxes = config.columns * config.slice_bits
    return 1, (gearboxes * _log(2 * config.slice_bytes), gearboxes, config.columns, _counters(config), 1.0)


def _sequencer(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    lanes = config.lanes * (_log(config.window) + _log(config.code_window_bits))
    return 1, (_counters(config), lanes, config.lanes * config.code_window_bits, config.rows, 1.0)


def _writer(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    return 1, (config.columns * config.acc_bits, config.result_lanes * config.acc_bits, 64 * config.result_lanes, 1.0)


def _rest(config: CoreConfig, placing: Placing, memory: Mapping[str, Sequence[float]]) -> Any:
    from accel.core.CoreMsg import mk_command_msg

    # Each unit has a queue of commands.
    return 1, (mk_command_msg(config).nbits, config.rows, config.columns, 1.0)


def _of_memory(memory: Mapping[str, Sequence[float]], block: str, count: int) -> list[float]:
    return [term / count for term in memory.get(block, (0.0,) * 4)[:3]]


#: Blocks by their place in the tree. What lies below a place that is not here belongs to the place above it.
BLOCKS: dict[str, Terms] = {
    "": _rest,
    "acts_buffer": _act_buffer,
    "column": _column,
    "column.acc": _accumulator,
    "column.buffer": _weight_buffer,
    "column.feeder": _feeder,
    "column.pe": _processing_element,
    "column.scale": _scale_unit,
    "loader": _control,
    "row": _row_feeder,
    "sequencer": _sequencer,
    "unpacker": _unpacker,
    "writer": _writer,
}


#: Parts of a core with a factor of their own, and their blocks.
PARTS = {"processing elements": ("column.pe",), "scale units": ("column.scale",), "the rest": ()}


def _block_of(place: str) -> str:
    """The block of `BLOCKS` that a place of the tree belongs to."""
    while place not in BLOCKS:
        place = place.rpartition(".")[0]
    return place


# -- fit -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A core that was synthesised."""

    config: CoreConfig
    #: all, scale or none, as for ``nimble synth --dsp``.
    multipliers: str
    #: LUTs of each place of the tree, all its instances together, without what is below it.
    places: Mapping[str, int]
    #: Of the core mapped as one.
    total: Area

    @property
    def blocks(self) -> dict[str, int]:
        """LUTs of each block of `BLOCKS`; they sum to those of all places."""
        found = dict.fromkeys(BLOCKS, 0)
        for place, lut in self.places.items():
            found[_block_of(place)] += lut
        return found


@dataclass(frozen=True)
class AreaModel:
    """Weights of the terms of each block, and the factors from blocks to the core mapped as one."""

    weights: Mapping[str, tuple[float, ...]]
    #: Of each of `PARTS`.
    flattening: tuple[float, ...]

    def area(self, config: CoreConfig, placing: Placing) -> Area:
        """Return what a core takes."""
        terms = _terms_of(config, placing)
        memories = _memory_terms(config)
        parts = _parts(config, {block: float(terms[block] @ weights) for block, weights in self.weights.items()})
        return Area(
            lut=round(float(np.dot(self.flattening, parts))),
            dsp=placing.scale * scale_dsp(config) + placing.lanes,
            bram=round(sum(terms[3] for terms in memories.values())),
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the fitted weights."""
        return {
            "weights": {block: [round(weight, 6) for weight in weights] for block, weights in self.weights.items()},
            "flattening": dict(zip(PARTS, (round(factor, 6) for factor in self.flattening), strict=True)),
        }


def fit(points: Sequence[Point]) -> AreaModel:
    """Fit the model to synthesised cores.

    Raises
    ------
    ValueError
        They are fewer than `LEAST_POINTS`.
    """
    if len(points) < LEAST_POINTS:
        raise ValueError(f"An area model needs at least {LEAST_POINTS} measured cores, but there are {len(points)}.")
    terms = [_terms_of(point.config, Placing.of_choice(point.config, point.multipliers)) for point in points]
    blocks = [point.blocks for point in points]
    share = 1 / np.array([sum(found.values()) for found in blocks], dtype=float)
    weights = {}
    for block in BLOCKS:
        design = np.array([found[block] for found in terms]) * share[:, None]
        weights[block] = tuple(nonnegative_fit(design, np.array([found[block] for found in blocks]) * share))
    totals = np.array([point.total.lut for point in points], dtype=float)
    parts = np.array([_parts(point.config, found) for point, found in zip(points, blocks, strict=True)])
    parts /= totals[:, None]
    return AreaModel(weights, tuple(nonnegative_fit(parts, np.ones(len(points)))))


def _parts(config: CoreConfig, blocks: Mapping[str, float]) -> list[float]:
    """LUTs of each of `PARTS`; the last one is all that is in no other.

    Of a row feeder only what leads to positions of the window that a lane reaches is left in a core mapped as one.
    """
    left = {**blocks, "row": blocks["row"] * row_feeder_share(config)}
    named = [sum(left[block] for block in part) for part in PARTS.values()]
    return [*named[:-1], sum(left.values()) - sum(named[:-1])]


def _terms_of(config: CoreConfig, placing: Placing) -> dict[str, NDArray[np.float64]]:
    """Terms of each block, times how many of it there are."""
    memory = _memory_terms(config)
    found = {}
    for block, terms in BLOCKS.items():
        count, each = terms(config, placing, memory)
        found[block] = count * np.array(each, dtype=float)
    return found


def nonnegative_fit(design: NDArray[np.float64], values: NDArray[np.float64]) -> list[float]:
    """Weights from 0 on with the least sum of squared differences between ``design @ weights`` and ``values``.

    Source: Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23, on columns scaled to length 1.
    """
    lengths = np.linalg.norm(design, axis=0)
    used = lengths > 0
    scaled = design / np.where(used, lengths, 1.0)
    weights = np.zeros(design.shape[1])
    active = np.zeros(design.shape[1], dtype=bool)
    tolerance = 1e-12 * max(1e-300, float(np.linalg.norm(values)))
    for _ in range(10 * design.shape[1] + 10):
        gradient = np.where(active | ~used, -np.inf, scaled.T @ (values - scaled @ weights))
        if not (gradient > tolerance).any():
            break
        active[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros_like(weights)
            trial[active] = np.linalg.lstsq(scaled[:, active], values, rcond=None)[0]
            below = active & (trial <= 0)
            if not below.any():
                break
            # As far towards the trial as no weight turns negative; those that reach 0 leave.
            shares = np.full_like(weights, np.inf)
            shares[below] = weights[below] / np.maximum(weights[below] - trial[below], 1e-300)
            leaves = int(np.argmin(shares))
            weights = np.where(active, np.maximum(weights + shares[leaves] * (trial - weights), 0.0), 0.0)
            weights[leaves] = 0.0
            # The one that leaves does so by its number: rounding may not keep it, or the loop would not end.
            active &= weights > 0
        weights = trial
    return [float(weight) for weight in np.where(used, weights / np.where(used, lengths, 1.0), 0.0)]


def row_feeder_share(config: CoreConfig) -> float:
    """Share of a row feeder's multiplexers that lead to positions of the window that a lane reaches."""
    steps = [1 << stage for stage in range((config.window - 1).bit_length())]

    def multiplexers(positions: int) -> int:
        # Each stage of the rotator passes on what the later ones can reach; before all, a word is put together.
        rotated = sum(min(config.window, positions + step - 1) for step in steps)
        return rotated + min(config.window, positions + sum(steps))

    return multiplexers(1 + max(high for _, high in config.lane_reach)) / multiplexers(config.window)


@dataclass(frozen=True)
class HeldOut:
    """How far the model is off on cores that it was not fitted to."""

    points: int
    folds: int
    #: Relative differences of LUTs, in the order of the points: positive where the model has more.
    errors: tuple[float, ...]
    #: Cores whose multiplier blocks, and block RAMs, are not as the rules say.
    dsp_misses: int
    bram_misses: int

    @property
    def median(self) -> float:
        """Median of the errors' sizes."""
        return float(np.median(np.abs(self.errors)))

    @property
    def worst(self) -> float:
        """The largest of the errors' sizes."""
        return max(map(abs, self.errors))

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the errors."""
        return {
            "points": self.points,
            "folds": self.folds,
            "median_error": round(self.median, 6),
            "worst_error": round(self.worst, 6),
            "errors": [round(error, 6) for error in self.errors],
            "dsp_misses": self.dsp_misses,
            "bram_misses": self.bram_misses,
        }


def held_out(points: Sequence[Point]) -> HeldOut:
    """Leave out every `FOLDS`-th core in turn, fit to the others, and compare.

    Raises
    ------
    ValueError
        Fewer than `LEAST_POINTS` cores are left in a turn.
    """
    folds = min(FOLDS, len(points))
    areas: dict[int, Area] = {}
    for fold in range(folds):
        model = fit([point for number, point in enumerate(points) if number % folds != fold])
        for number in range(fold, len(points), folds):
            config = points[number].config
            areas[number] = model.area(config, Placing.of_choice(config, points[number].multipliers))
    pairs = [(areas[number], point.total) for number, point in enumerate(points)]
    upper = [upper_parts(point.config, point.multipliers) for point in points]
    return HeldOut(
        points=len(points),
        folds=folds,
        errors=tuple(found.lut / true.lut - 1 for found, true in pairs),
        dsp_misses=sum(found.dsp + more != true.dsp for (found, true), more in zip(pairs, upper, strict=True)),
        bram_misses=sum(found.bram != true.bram for found, true in pairs),
    )
