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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accel.config import CoreConfig
from accel.stream import StreamLayout, layout_for
from accel.timing import GemmTiming, gemm_timing
from flows.info import multipliers, pattern_name
from flows.scalesim import CLOSED_FORMS, Array, ArrayCycles, ClosedForm, kept_inputs
from quant import NMPattern

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
    """One layer in one model of its cycles: the core's, or a closed form."""

    #: Cycles of one call, and where they go.
    cycles: ArrayCycles
    #: Cycles of the same layer without a pruned weight.
    dense_cycles: int

    @property
    def speedup(self) -> float:
        """How many times fewer cycles than dense; what K·n/m promises is m/n."""
        return self.dense_cycles / self.cycles.cycles

    def document(self) -> dict[str, Any]:
        """Return the fields that every model has."""
        return {**asdict(self.cycles), "dense_cycles": self.dense_cycles, "speedup_over_dense": self.speedup}


@dataclass(frozen=True)
class ComparedLayer:
    """One layer on the core, and on an array by closed forms. Cycles are of one call."""

    layer: TopologyLayer
    group_size: int
    multipliers: int
    timing: GemmTiming
    #: The core's cycles of the dense layer.
    dense_cycles: int
    #: By the names of `CLOSED_FORMS`.
    compared: dict[str, ModelledLayer]

    @property
    def core(self) -> ModelledLayer:
        """Where the core's cycles go: steps are useful or idle, and all other cycles are lost."""
        cycles, busy = self.timing.cycles, self.timing.counters["busy"]
        useful = self.layer.kept_macs / self.layer.calls / self.multipliers
        return ModelledLayer(ArrayCycles(cycles, useful, busy - useful, cycles - busy), self.dense_cycles)

    @property
    def dense_use(self) -> float:
        """Multiplications of the dense product over all that the multipliers could do; above 1 where n:m pays."""
        return self.layer.macs / self.layer.calls / (self.multipliers * self.timing.cycles)

    @property
    def largest_loss(self) -> str:
        """The cause with the most cycles besides ``busy``."""
        lost = {cause: count for cause, count in self.timing.counters.items() if cause != "busy"}
        return max(lost, key=lambda cause: lost[cause])

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
            **self.core.document(),
            "counters": timing.counters,
            "utilisation": timing.utilisation,
            "dense_equivalent_utilisation": self.dense_use,
            "weight_bytes": timing.weight_bytes,
            "act_bytes": timing.act_bytes,
            "result_bytes": timing.result_bytes,
            "compared": {
                name: {**model.document(), "ratio": model.cycles.cycles / timing.cycles}
                for name, model in self.compared.items()
            },
        }


@dataclass(frozen=True)
class TopologyEstimate:
    """A layer list on a core, beside what it is compared with."""

    core: str
    config: CoreConfig
    #: Name of the list.
    name: str
    #: None where each layer has the file's own pattern; else the layers come once for each of these.
    patterns: tuple[NMPattern, ...] | None
    array: Array
    compare: tuple[str, ...]
    layers: tuple[ComparedLayer, ...]

    @property
    def multipliers(self) -> int:
        """Multipliers of the core."""
        return multipliers(self.config)

    def groups(self) -> list[tuple[str, list[ComparedLayer]]]:
        """The layers of each pattern asked for, or all under ``as in the file``."""
        if self.patterns is None:
            return [("as in the file", list(self.layers))]
        return [
            (pattern_name(pattern), [layer for layer in self.layers if layer.layer.pattern == pattern])
            for pattern in self.patterns
        ]

    def totals(self) -> list[dict[str, Any]]:
        """Cycles of all calls, for each of `groups`."""
        totals = []
        for name, layers in self.groups():
            cycles = sum(layer.layer.calls * layer.timing.cycles for layer in layers)
            ideal = sum(layer.layer.calls * layer.timing.ideal_cycles for layer in layers)
            compared = {
                form: sum(layer.layer.calls * layer.compared[form].cycles.cycles for layer in layers)
                for form in self.compare
            }
            totals.append(
                {
                    "pattern": name,
                    "cycles": cycles,
                    "utilisation": ideal / cycles,
                    "dense_equivalent_utilisation": sum(layer.layer.macs for layer in layers)
                    / (self.multipliers * cycles),
                    "compared": {form: {"cycles": total, "ratio": total / cycles} for form, total in compared.items()},
                }
            )
        return totals

    @property
    def explanations(self) -> tuple[str, ...]:
        """What the numbers mean and where they part, in full sentences."""
        config = self.config
        own = (
            "Exact model: cycles and their causes are those of the RTL, which a test shows. Lane use is that of the "
            "rows at work, never above 100 %; dense-equivalent use counts pruned weights as done, so that it is "
            "above 100 % where n:m pays.",
        )
        if not self.compare:
            return own
        same = "as many as" if self.array.multipliers == self.multipliers else f"beside {self.multipliers:,} of"
        return (
            *own,
            f"SCALE-Sim: closed forms for {self.array.rows} × {self.array.columns} PEs with one multiplier each, "
            f"{self.array.multipliers:,} in all, {same} {self.core} has ({config.rows} × {config.columns} PEs of "
            f"{config.lanes} lanes). The ratio is its cycles over Nimble's.",
            "Useful cycles are kept weights times tokens over all multipliers. Idle are multipliers outside the "
            "matrix's edge, in rows or columns without work. The rest is lost: to fill, drain and loading of weights "
            "on SCALE-Sim's array, to waits by the named causes on Nimble.",
            "SCALE-Sim takes n:m as K·n/m input features: the same mask for every column, no index multiplexer, no "
            "metadata, and operands that are always there. Nimble's cycles hold the code and scale words of every "
            "tile, its buffers, and any mask. Vs dense: how many times fewer cycles than the same layer unpruned, in "
            "the same model; K·n/m promises m/n.",
            "The output-stationary array fills and drains for each fold of its size, one after the other; Nimble "
            "drains a group while the next one computes. The weight-stationary array loads its weights for every "
            "fold of K, which few tokens cannot make up for.",
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble estimate --topology``."""
        return {
            "topology": self.name,
            "core": self.core,
            "multipliers": self.multipliers,
            "patterns": "file" if self.patterns is None else [pattern_name(pattern) for pattern in self.patterns],
            "compare": list(self.compare),
            "array": {"rows": self.array.rows, "columns": self.array.columns, "multipliers": self.array.multipliers},
            "layers": [layer.document() for layer in self.layers],
            "totals": self.totals(),
            "sources": {"layers": "exact model", "totals": "exact model", "compared": "closed form of SCALE-Sim"},
            "explanations": list(self.explanations),
        }


def default_array(config: CoreConfig) -> Array:
    """The array that has a core's rows and as many multipliers: each PE's lanes stand side by side."""
    return Array(config.rows, config.columns * config.lanes)


def estimate_topology(
    core: str,
    config: CoreConfig,
    file: Path,
    patterns: Sequence[NMPattern] | None = None,
    *,
    group_size: int = 128,
    asymmetric: bool = False,
    compare: Sequence[str] = (),
    array: Array | None = None,
    advance: Callable[[], None] = lambda: None,
) -> TopologyEstimate:
    """Exact cycles of every layer of a list.

    Parameters
    ----------
    patterns
        Patterns for all layers, in place of those in the file.
    group_size
        Weights that share a scale; with a pattern whose m does not divide it, the longest multiple of m below.
    compare
        Names of `CLOSED_FORMS`.
    array
        Array of the closed forms; `default_array` of the core unless it is given.
    advance
        Called after each layer.

    Raises
    ------
    ValueError
        The file is no layer list, or a layer is beyond the core's capacity.
    OSError
        The file cannot be read.
    """
    listed = read_topology(file)
    array = array or default_array(config)
    layers = [replace(layer, pattern=pattern) for pattern in patterns for layer in listed] if patterns else listed
    estimated = []
    for layer in layers:
        layouts = [
            _layout(config, file, replace(layer, pattern=pattern), group_size, asymmetric)
            for pattern in (layer.pattern, DENSE)
        ]
        timing, dense = (gemm_timing(config, layout, layer.tokens) for layout in layouts)
        compared = {name: _modelled(CLOSED_FORMS[name], array, layer) for name in compare}
        estimated.append(
            ComparedLayer(layer, layouts[0].group_size, multipliers(config), timing, dense.cycles, compared)
        )
        advance()
    return TopologyEstimate(
        core,
        config,
        file.stem,
        None if patterns is None else tuple(patterns),
        array,
        tuple(compare),
        tuple(estimated),
    )


def _modelled(closed_form: ClosedForm, array: Array, layer: TopologyLayer) -> ModelledLayer:
    sizes = (array, layer.tokens, layer.out_features, layer.in_features)
    return ModelledLayer(closed_form(*sizes, layer.pattern), closed_form(*sizes, DENSE).cycles)


def _layout(config: CoreConfig, file: Path, layer: TopologyLayer, group_size: int, asymmetric: bool) -> StreamLayout:
    m = layer.pattern.m
    group = group_size if group_size < m else group_size // m * m
    try:
        layer.pattern.check_group_size(group)
        return layout_for(config, layer.pattern, layer.out_features, layer.in_features, group, asymmetric=asymmetric)
    except ValueError as error:
        raise ValueError(f"{file}, line {layer.line}: layer {layer.name} does not run on this core: {error}") from None
