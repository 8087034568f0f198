"""Layer lists in SCALE-Sim's CSV format, and their exact cycles on a core.

A list of GEMMs has the columns ``Layer, M, N, K`` and, for n:m weights, ``Sparsity``: M tokens, N output
features and K input features, n of every m weights kept. A list of convolutions (``Layer, IFMAP Height, …,
Strides``) is read as the GEMMs that SCALE-Sim runs for it. Lines usually end with a comma.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accel.config import CoreConfig
from accel.memory import Memory
from accel.stream import StreamLayout, layout_for
from accel.timing import GemmTiming, gemm_timings
from flows.estimate import bound_of
from flows.info import multipliers, pattern_name
from flows.memories import Clock, MemorySystem, choose_clock
from flows.scalesim import CLOSED_FORMS, Array, ArrayCycles, ClosedForm, kept_inputs
from quant import NMPattern

SCHEMA = "nimble.topology"
VERSION = 1

GEMM_COLUMNS = ("Layer", "M", "N", "K")
CONV_COLUMNS = (
    "Layer name",
    "IFMAP Height",
    "IFMAP Width",
    "Filter Height",
    "Filter Width",
    "Channels",
    "Num Filter",
    "Strides",
)
#: Names of the column that may follow.
SPARSITY_COLUMNS = ("sparsity", "sparsityratio", "n:m")

DENSE = NMPattern(1, 1)

#: Largest size in a file: far beyond any layer, and far from any overflow.
LARGEST_SIZE = 10**9


@dataclass(frozen=True)
class TopologyLayer:
    """One line of a layer list."""

    name: str
    #: Line of the file, from 1 on.
    line: int
    #: M, K and N of the GEMM.
    tokens: int
    in_features: int
    out_features: int
    #: Dense where the file says nothing.
    pattern: NMPattern = DENSE
    #: Equal GEMMs that make up the layer: the channels of a depthwise convolution.
    calls: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense product, all calls together."""
        return self.calls * self.tokens * self.in_features * self.out_features

    @property
    def kept_macs(self) -> int:
        """Multiply-accumulates with kept weights, all calls together."""
        return self.calls * self.tokens * kept_inputs(self.in_features, self.pattern) * self.out_features


# -- the file ----------------------------------------------------------------------------------------


def read_topology(file: Path) -> list[TopologyLayer]:
    """Return the layers of a file, in its order.

    Blank lines, blanks around a value, any case in the heading, a comma at the end of a line and a byte order
    mark are all allowed.

    Raises
    ------
    ValueError
        It is no such list; the sentence names the line and the column.
    OSError
        The file cannot be read.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a CSV file: byte {error.start} is not part of any UTF-8 text.") from None
    try:
        return list(_layers(text))
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from None


def _layers(text: str) -> list[TopologyLayer]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    columns: tuple[str, ...] = ()
    layers = []
    try:
        for cells in reader:
            values = [cell.strip() for cell in cells]
            while values and not values[-1]:
                values.pop()
            if not values:
                continue
            if columns:
                layers.append(_layer(columns, values, reader.line_num))
            else:
                columns = _columns(values, reader.line_num)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}.") from None
    if not layers:
        raise ValueError(f"line {max(reader.line_num, 1)}: the list ends here, and no layer stands in it.")
    return layers


def _columns(heading: list[str], line: int) -> tuple[str, ...]:
    """Return the file's columns, under the names of this module."""
    # SCALE-Sim goes by position, and its own lists name a column twice; so one name tells which list it is.
    conv = len(heading) > 1 and _plain(heading[1]).startswith("ifmap")
    columns = CONV_COLUMNS if conv else GEMM_COLUMNS
    for place, name in enumerate(columns):
        given = heading[place] if place < len(heading) else None
        if given is None or not (conv or place == 0 or _plain(given) == _plain(name)):
            found = "no such column" if given is None else repr(given)
            raise ValueError(
                f"line {line}, column {place + 1}: {found} stands where {name} is expected; the first line names the "
                f"columns {', '.join(columns)} and, where weights are sparse, Sparsity"
                + ("." if conv else f" (or, of convolutions, {', '.join(CONV_COLUMNS)}).")
            )
    if len(heading) == len(columns):
        return columns
    extra = heading[len(columns)]
    if len(heading) > len(columns) + 1 or _plain(extra) not in SPARSITY_COLUMNS:
        place = len(columns) + (1 if _plain(extra) not in SPARSITY_COLUMNS else 2)
        raise ValueError(
            f"line {line}, column {place}: {heading[place - 1]!r} is not known; after {columns[-1]}, only the column "
            "Sparsity is read, with n:m (n kept of every m weights)."
        )
    return (*columns, "Sparsity")


def _plain(name: str) -> str:
    return re.sub(r"[\s_]", "", name).lower()


def _layer(columns: tuple[str, ...], values: list[str], line: int) -> TopologyLayer:
    """Return the layer of one line."""
    if len(values) > len(columns):
        raise ValueError(
            f"line {line}, column {len(columns) + 1}: {values[len(columns)]!r} stands in a column that the first "
            f"line does not name; it names {', '.join(columns)}."
        )
    if not values[0]:
        raise ValueError(f"line {line}, column 1 ({columns[0]}): the layer has no name.")
    pattern = DENSE
    if columns[-1] == "Sparsity" and len(values) == len(columns):
        try:
            pattern = NMPattern.parse(values[-1])
        except ValueError as error:
            raise ValueError(f"line {line}, column {len(columns)} (Sparsity): {error}") from None
    places = [place for place, name in enumerate(columns) if place and name != "Sparsity"]
    sizes = [_size(columns[place], values, place, line) for place in places]
    if len(sizes) == 3:
        tokens, out_features, in_features = sizes
        return TopologyLayer(values[0], line, tokens, in_features, out_features, pattern)

    height, width, filter_height, filter_width, channels, filters, stride = sizes
    for place, kernel, image in ((3, filter_height, height), (4, filter_width, width)):
        if kernel > image:
            raise ValueError(
                f"line {line}, column {place + 1} ({columns[place]}): a filter of {kernel} does not fit an input of "
                f"{image}."
            )
    # Each place of the filter is a token, and all that the filter sees there its input features. Where the
    # stride does not divide the way, SCALE-Sim rounds up.
    tokens = (1 - (filter_height - height) // stride) * (1 - (filter_width - width) // stride)
    depthwise = "DP" in values[0]  # SCALE-Sim's mark
    return TopologyLayer(
        values[0],
        line,
        tokens,
        filter_height * filter_width * (1 if depthwise else channels),
        filters,
        pattern,
        channels if depthwise else 1,
    )


def _size(name: str, values: list[str], place: int, line: int) -> int:
    where = f"line {line}, column {place + 1} ({name})"
    if place >= len(values) or not values[place]:
        raise ValueError(f"{where}: the value is missing.")
    text = values[place]
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= LARGEST_SIZE:
        raise ValueError(f"{where}: {text!r} is not a whole number from 1 to {LARGEST_SIZE:,}.")
    return int(text)


# -- cycles ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelledLayer:
    """One call of a layer in one model of its cycles."""

    #: Cycles, and where they go.
    cycles: ArrayCycles
    #: Cycles of the same layer without a pruned weight.
    dense_cycles: int

    @property
    def speedup(self) -> float:
        """How many times fewer cycles than dense; what K·n/m promises is m/n."""
        return self.dense_cycles / self.cycles.cycles

    def document(self) -> dict[str, Any]:
        """Return one entry of ``models``, but for the ratio."""
        return {**asdict(self.cycles), "dense_cycles": self.dense_cycles, "speedup_over_dense": self.speedup}


@dataclass(frozen=True)
class LayerCycles:
    """One layer in every model. Cycles are of one call."""

    layer: TopologyLayer
    group_size: int
    multipliers: int
    #: On the core, with the memory if there is one.
    timing: GemmTiming
    #: ``nimble``, whose streams always have a word; ``nimble-memory`` if there is a memory; closed forms by name.
    models: dict[str, ModelledLayer]

    @property
    def counters(self) -> dict[str, int]:
        """Cycles by cause, the last result's way to memory among them."""
        return {**self.timing.counters, "write_back": self.timing.written - self.timing.cycles}

    @property
    def bound(self) -> str:
        """What bounds the layer, as in ``nimble estimate``."""
        return bound_of(self.counters, self.timing.memory_cycles)

    @property
    def lane_use(self) -> float:
        """Share of the lane cycles of the rows at work with a weight slot to work on, at most 1."""
        return self.timing.ideal_cycles / self.timing.written

    @property
    def dense_equivalent(self) -> float:
        """Multiplications of the dense product, of all that could be done: above 1 if pruning pays that much."""
        return self.layer.macs / self.layer.calls / (self.multipliers * self.timing.written)

    def ratio(self, model: str) -> float:
        """Cycles of a model over those of ``nimble``."""
        return self.models[model].cycles.cycles / self.models["nimble"].cycles.cycles

    def document(self) -> dict[str, Any]:
        """Return one entry of ``layers``."""
        layer, timing = self.layer, self.timing
        return {
            "layer": layer.name,
            "line": layer.line,
            "calls": layer.calls,
            "tokens": layer.tokens,
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "pattern": pattern_name(layer.pattern),
            "group_size": self.group_size,
            "cycles": timing.written,
            "counters": self.counters,
            "lane_use": self.lane_use,
            "dense_equivalent": self.dense_equivalent,
            "bytes": timing.bytes,
            "bound": self.bound,
            "models": {name: {**model.document(), "ratio": self.ratio(name)} for name, model in self.models.items()},
        }


@dataclass(frozen=True)
class TopologyTotal:
    """All calls of all layers, with one pattern or with the file's own."""

    pattern: str
    layers: tuple[LayerCycles, ...]

    def _sum(self, of: Callable[[LayerCycles], int]) -> int:
        return sum(layer.layer.calls * of(layer) for layer in self.layers)

    @property
    def cycles(self) -> int:
        """Cycles on the core."""
        return self._sum(lambda layer: layer.timing.written)

    @property
    def lane_use(self) -> float:
        """As `LayerCycles.lane_use`."""
        return self._sum(lambda layer: layer.timing.ideal_cycles) / self.cycles

    @property
    def dense_equivalent(self) -> float:
        """As `LayerCycles.dense_equivalent`."""
        return sum(layer.layer.macs for layer in self.layers) / (self.layers[0].multipliers * self.cycles)

    def in_model(self, name: str) -> dict[str, Any]:
        """Cycles of all calls in one model, beside ``nimble``'s and beside those without pruning."""
        cycles = self._sum(lambda layer: layer.models[name].cycles.cycles)
        dense = self._sum(lambda layer: layer.models[name].dense_cycles)
        reference = self._sum(lambda layer: layer.models["nimble"].cycles.cycles)
        return {
            "cycles": cycles,
            "dense_cycles": dense,
            "speedup_over_dense": dense / cycles,
            "ratio": cycles / reference,
        }

    def document(self) -> dict[str, Any]:
        """Return one entry of ``totals``."""
        return {
            "pattern": self.pattern,
            "cycles": self.cycles,
            "lane_use": self.lane_use,
            "dense_equivalent": self.dense_equivalent,
            "models": {name: self.in_model(name) for name in self.layers[0].models},
        }


@dataclass(frozen=True)
class Side:
    """What a layer list runs on, and what that is compared with."""

    core: str
    config: CoreConfig
    #: The memory behind the streams, and the clock that its figures are turned into cycles with.
    memory: MemorySystem | None = None
    clock: Clock = field(default_factory=choose_clock)
    #: Names of `CLOSED_FORMS`.
    compare: tuple[str, ...] = ()
    #: Array of the closed forms; by default `default_array` of the core.
    array: Array | None = None
    #: Weights that share a scale; with a pattern whose m does not divide it, the longest multiple of m below.
    group_size: int = 128
    asymmetric: bool = False

    @property
    def multipliers(self) -> int:
        """Multipliers of the core."""
        return multipliers(self.config)

    @property
    def compared_array(self) -> Array:
        """Array of the closed forms."""
        return self.array or default_array(self.config)


@dataclass(frozen=True)
class TopologyEstimate:
    """A layer list on a core, beside what it is compared with."""

    side: Side
    #: Name of the list.
    name: str
    #: The patterns asked for in place of the file's; the layers come once for each.
    patterns: tuple[NMPattern, ...] | None
    layers: tuple[LayerCycles, ...]

    @property
    def totals(self) -> tuple[TopologyTotal, ...]:
        """One for each pattern asked for, else one, with the pattern ``file``."""
        if self.patterns is None:
            return (TopologyTotal("file", self.layers),)
        size = len(self.layers) // len(self.patterns)
        return tuple(
            TopologyTotal(pattern_name(pattern), self.layers[i * size : (i + 1) * size])
            for i, pattern in enumerate(self.patterns)
        )

    @property
    def explanations(self) -> tuple[str, ...]:
        """What the numbers mean and where they part, in full sentences."""
        side, memory = self.side, self.side.memory
        config, array = side.config, side.compared_array
        port = "the streams always have a word"
        if memory is not None:
            port = (
                f"the memory is taken to be {memory.name} ({memory.bandwidth_gb_s:g} GB/s, {memory.latency_ns:g} ns) "
                f"at a clock of {side.clock.mhz:g} MHz, {side.clock.source}"
            )
        own = (
            f"Exact model: cycles and their causes are the RTL's, which a test shows; {port}. Lane use is that of the "
            "rows at work, at most 100 %. Dense-equivalent use counts pruned weights as done, and all rows.",
        )
        if not side.compare:
            return own
        same = "as many as" if array.multipliers == side.multipliers else f"beside the {side.multipliers:,} that"
        return (
            *own,
            f"SCALE-Sim: closed forms of an array of {array.rows} × {array.columns} PEs with one multiplier each, "
            f"{array.multipliers:,} in all, {same} {side.core} has ({config.rows} × {config.columns} PEs of "
            f"{config.lanes} lanes). Operands are always there. The ratio is to nimble, whose streams are always "
            "there, too.",
            "Useful cycles are kept weights times tokens over all multipliers. Idle are multipliers in rows and "
            "columns without work and in padding. The rest is lost: to fill, drain and loading of weights on the "
            "array, to waits by the named causes on Nimble.",
            "Vs dense: how many times fewer cycles than the same layer unpruned, in the same model. SCALE-Sim takes "
            "n:m as K·n/m input features, one mask for all columns, without metadata. Nimble takes any mask and reads "
            "codes and scales beside the values, so that pruning saves less where memory bounds a layer.",
            "The output-stationary array fills and drains once for each fold of its size, and the weight-stationary "
            "one loads its weights once for each fold of K; neither overlaps that with work. Nimble drains a group "
            "while the next one computes, and loads a tile while another one is in use.",
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble estimate --topology``."""
        side, array = self.side, self.side.compared_array
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "topology": self.name,
            "core": side.core,
            "multipliers": side.multipliers,
            "patterns": "file" if self.patterns is None else [pattern_name(pattern) for pattern in self.patterns],
            "asymmetric": side.asymmetric,
            "memory": None if side.memory is None else side.memory.document(),
            "clock_mhz": side.clock.mhz,
            "compare": list(side.compare),
            "array": {"rows": array.rows, "columns": array.columns, "multipliers": array.multipliers},
            "layers": [layer.document() for layer in self.layers],
            "totals": [total.document() for total in self.totals],
            "sources": {
                "nimble": "exact model",
                "nimble-memory": "exact model of a memory that is an assumption",
                **dict.fromkeys(CLOSED_FORMS, "closed form of SCALE-Sim"),
            },
            "explanations": list(self.explanations),
        }


def default_array(config: CoreConfig) -> Array:
    """The array that has a core's rows and as many multipliers: the lanes of a PE stand side by side."""
    return Array(config.rows, config.columns * config.lanes)


def estimate_topology(file: Path, side: Side, patterns: Sequence[NMPattern] | None = None) -> TopologyEstimate:
    """Cycles of every layer of a list in every model.

    Parameters
    ----------
    patterns
        Patterns for all layers, in place of those in the file.

    Raises
    ------
    ValueError
        The file is no layer list, or a layer is beyond the core's capacity.
    OSError
        The file cannot be read.
    """
    listed = read_topology(file)
    layers = [replace(layer, pattern=pattern) for pattern in patterns for layer in listed] if patterns else listed
    # Every layer as it is and unpruned: the second half is what the first is held against.
    gemms = [
        (_layout(side, file, layer), layer.tokens)
        for layer in (*layers, *(replace(layer, pattern=DENSE) for layer in layers))
    ]
    ports: dict[str, Memory | None] = {"nimble": None}
    if side.memory is not None:
        ports["nimble-memory"] = side.memory.at_clock(side.clock.mhz)
    timings = {name: gemm_timings(side.config, gemms, memory=port) for name, port in ports.items()}
    rows = []
    for i, layer in enumerate(layers):
        models = {name: _on_core(side, layer, timing[i], timing[len(layers) + i]) for name, timing in timings.items()}
        models.update({name: _by_form(CLOSED_FORMS[name], side.compared_array, layer) for name in side.compare})
        layout, _ = gemms[i]
        group_size = layout.in_features if layout.group_size == -1 else layout.group_size
        rows.append(LayerCycles(layer, group_size, side.multipliers, [*timings.values()][-1][i], models))
    return TopologyEstimate(side, file.stem, None if patterns is None else tuple(patterns), tuple(rows))


def _on_core(side: Side, layer: TopologyLayer, timing: GemmTiming, dense: GemmTiming) -> ModelledLayer:
    """Steps are useful or idle, and all other cycles are lost."""
    useful = layer.kept_macs / layer.calls / side.multipliers
    busy = timing.counters["busy"]
    return ModelledLayer(ArrayCycles(timing.written, useful, busy - useful, timing.written - busy), dense.written)


def _by_form(closed_form: ClosedForm, array: Array, layer: TopologyLayer) -> ModelledLayer:
    sizes = (array, layer.tokens, layer.out_features, layer.in_features)
    return ModelledLayer(closed_form(*sizes, layer.pattern), closed_form(*sizes, DENSE).cycles)


def _layout(side: Side, file: Path, layer: TopologyLayer) -> StreamLayout:
    m, group = layer.pattern.m, side.group_size
    if group >= m:
        group -= group % m
    try:
        layer.pattern.check_group_size(group)
        return layout_for(
            side.config, layer.pattern, layer.out_features, layer.in_features, group, asymmetric=side.asymmetric
        )
    except ValueError as error:
        raise ValueError(f"{file}, line {layer.line}: layer {layer.name} does not run on this core: {error}") from None
