"""What ``nimble quantize`` prints: what each layer got and why, and the model before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flows.info import pattern_name
from flows.quantization import LayerResult, Quantization, relative
from flows.recipe import FLOAT

if TYPE_CHECKING:
    from rich.console import RenderableType


def quantization_view(finished: Quantization) -> list[RenderableType]:
    """Return the tables and sentences of a finished run."""
    return [_layer_table(finished), *_sentences(finished)]


def _layer_table(finished: Quantization) -> Table:
    """One line for the layers of a kind that got the same settings."""
    searched = finished.search is not None
    table = Table(title=f"{finished.job.model.name}: what each layer got", title_justify="left")
    table.add_column("layers")
    table.add_column("pattern", no_wrap=True)
    table.add_column("group", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("output\nerror", justify="right", no_wrap=True)
    if searched:
        table.add_column("loss\nalone", justify="right", no_wrap=True)
        table.add_column("share of\nallowed", justify="right", no_wrap=True)
    table.add_column("bits per\nweight", justify="right", no_wrap=True)
    for layers in _alike(finished.layers):
        first = layers[0].settings
        name = Text(f"{layers[0].kind} {_ranges([layer.block for layer in layers])}")
        bits = f"{sum(layer.bits for layer in layers) / sum(layer.weights for layer in layers):.2f}"
        if first is None:
            table.add_row(name, FLOAT, "", "", "", *([""] * 2 if searched else []), bits)
            continue
        errors = [layer.error for layer in layers if layer.error is not None]
        cells = [
            pattern_name(first.pattern) + ("" if first.symmetric else " +z"),
            "row" if first.group_size == -1 else str(first.group_size),
            first.method,
            f"{sum(errors) / len(errors):.3%}",
        ]
        if searched:
            assert finished.aim is not None
            alone = sum(max(0.0, layer.rise or 0.0) for layer in layers)
            cells += [f"{relative(alone):.3%}", f"{relative(alone) / finished.aim.max_loss:.1%}"]
        table.add_row(name, *cells, bits)
    return table


def _sentences(finished: Quantization) -> list[str]:
    job = finished.job
    lines = []
    size = finished.float_bits / finished.bits
    weights = sum(layer.weights for layer in finished.layers)
    lines.append(
        f"These layers take {finished.bits / 8e6:,.2f} MB in place of {finished.float_bits / 8e6:,.2f} MB "
        f"({size:.2f} times less, {finished.bits / weights:.2f} bits per weight)."
    )
    lines.append(
        f"Perplexity on {job.held_out} samples of {finished.length} tokens that neither calibration nor a choice has "
        f"seen: {finished.float_perplexity:.4f} before, {finished.perplexity:.4f} after."
    )
    if finished.search is not None and finished.search.best is not None and finished.aim is not None:
        best = finished.search.best
        if best.floats:
            lines.append(
                f"{best.floats} of {len(finished.layers)} layers stay float: no choice of INT4 settings for all kept "
                "to the allowed loss."
            )
        lines.append(
            f"Loss: allowed {finished.aim.max_loss:.3%}, predicted {relative(best.predicted):.3%}, "
            f"measured {relative(best.measured):.3%} ({len(finished.search.trials)} trials)."
        )
    else:
        lines.append(f"Loss: measured {finished.rise:.3%}.")
    lines.append(f"Wrote {job.output} ({job.format}, for core {job.core.name}).")
    return lines


def _alike(layers: Sequence[LayerResult]) -> list[list[LayerResult]]:
    """Layers of a kind with the same settings together, in the order of the first of each."""
    groups: dict[object, list[LayerResult]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.settings), []).append(layer)
    return list(groups.values())


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3,5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
