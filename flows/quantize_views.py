"""What ``nimble quantize`` prints: what each layer got and why, what was tried, and the model before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from flows.info import pattern_name
from flows.quantization import LayerResult, Quantization, relative, relative_error
from flows.recipe import FLOAT
from flows.views import table_of
from quant import LayerSettings
from quant.judgement import Rise

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from flows.quantize_options import Aim
    from quant.search import Search, Trial

#: Standard error beside the allowed loss, beyond which a table says that more samples are wanted.
_SURE = 0.5


def quantization_view(finished: Quantization) -> list[RenderableType]:
    """Return the tables and sentences of a finished run."""
    job, aim, search = finished.job, finished.aim, finished.search
    view: list[RenderableType] = [_layer_table(finished)]
    if aim is not None and search is not None:
        view.append(_trial_table(aim, search))
    view += [
        f"These layers take {finished.bits / 8e6:,.3f} MB in place of {finished.float_bits / 8e6:,.3f} MB, "
        f"{finished.float_bits / finished.bits:.2f} times less.",
        f"Perplexity on {job.held_out} samples of {finished.length} tokens that calibration has not seen: "
        f"{finished.float_perplexity:.4f} before, {finished.perplexity:.4f} after.",
    ]
    measured = f"measured {relative(finished.measured.mean):.3%} {_uncertainty(finished.measured)}"
    if aim is None or search is None or search.best is None:
        view.append(f"Loss: {measured}.")
    else:
        best = search.best
        if best.floats:
            view.append(
                f"{best.floats} of {len(finished.layers)} layers stay float: INT4 for all of them, even with the "
                f"gentlest settings, was over the allowed loss."
            )
        view.append(f"Loss: allowed {aim.max_loss:.3%}, predicted {relative(best.predicted):.3%}, {measured}.")
        sure = relative_error(finished.measured) / aim.max_loss
        if sure > _SURE:
            more = math.ceil(job.held_out * (sure / _SURE) ** 2) if math.isfinite(sure) else 2 * job.held_out
            view.append(
                f"The standard error is more than half of what is allowed; about --held-out {more} would bring it to "
                "that."
            )
    view.append(f"Wrote {job.output} ({job.format}).")
    return view


def _uncertainty(rise: Rise) -> str:
    return f"± {relative_error(rise):.3%}" if math.isfinite(rise.error) else "on a single sample"


def settings_name(settings: LayerSettings | None) -> str:
    """Return settings as ``--candidates`` takes them, and what else differs from its defaults."""
    if settings is None:
        return FLOAT
    more = [] if settings.symmetric else ["asymmetric"]
    more += [] if settings.scale_bits == 8 else [f"{settings.scale_bits}-bit scales"]
    more += [] if settings.clip else ["no clip"]
    name = f"{pattern_name(settings.pattern)}/{settings.group_size}/{settings.method}"
    return ", ".join([name, *more])


def _layer_table(finished: Quantization) -> Table:
    """One line for the layers of a kind that got the same settings."""
    aim = finished.aim
    caption = (
        "settings: pattern/group/method\n"
        "output error: squared error of the outputs beside their squares, on the calibration text\n"
        f"bits: of the streams for core {finished.job.core.name} and the channel scales"
    )
    columns = ["output\nerror"]
    if aim is not None:
        columns += ["loss\nalone", "share of\nallowed"]
        caption += (
            "\nloss alone: rise of the perplexity with one of these layers quantised at a time, summed; "
            "what measures below 0 is noise and counts as 0"
        )
    table = table_of(
        f"{finished.job.model.name}: what each layer got",
        ["layers", "settings"],
        [*columns, "bits per\nweight"],
        padding=(0, 1),
        caption=caption,
        caption_justify="left",
    )
    for layers in _alike(finished.layers):
        name = Text(f"{layers[0].kind} {_ranges([layer.block for layer in layers])}")
        bits = f"{sum(layer.bits for layer in layers) / sum(layer.weights for layer in layers):.2f}"
        errors = [layer.error for layer in layers if layer.error is not None]
        cells = [f"{sum(errors) / len(errors):.3%}" if errors else ""]
        if aim is not None:
            alone = relative(sum(max(0.0, layer.rise.mean) for layer in layers if layer.rise is not None))
            cells += [f"{alone:.3%}", f"{alone / aim.max_loss:.1%}"]
        table.add_row(name, settings_name(layers[0].settings), *cells, bits)
    return table


def _trial_table(aim: Aim, search: Search) -> Table:
    unit, scale = ("MB", 8e6) if aim.objective == "size" else ("million cycles", 1e6)
    table = table_of(
        "What was tried on the whole model",
        ["trial"],
        [unit, "predicted", "measured", f"allowed: {aim.max_loss:.3%}"],
        padding=(0, 1),
        caption=f"chosen from {', '.join(settings_name(one) for one in aim.candidates)}",
        caption_justify="left",
    )
    for number, trial in enumerate(search.trials, 1):
        table.add_row(
            str(number),
            f"{trial.cost / scale:,.3f}",
            f"{relative(trial.predicted):.3%}",
            f"{relative(trial.measured.mean):.3%}",
            _verdict(aim, search, trial),
        )
    return table


def _verdict(aim: Aim, search: Search, trial: Trial) -> str:
    floats = f", {trial.floats} float" if trial.floats else ""
    if trial is search.best:
        return f"taken{floats}"
    return f"{'too much' if relative(trial.measured.mean) > aim.max_loss else 'kept'}{floats}"


def _alike(layers: Sequence[LayerResult]) -> list[list[LayerResult]]:
    """Layers of a kind with the same settings together, by kind in the model's order, then by block."""
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    groups: dict[object, list[LayerResult]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.settings), []).append(layer)
    return sorted(groups.values(), key=lambda group: kinds.index(group[0].kind))


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3,5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
