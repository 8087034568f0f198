"""What ``nimble evaluate`` and ``nimble convert`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from flows.info import pattern_name
from flows.views import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.convert import Conversion, ConvertedLayer
    from flows.evaluate import Evaluation

#: What each perplexity is of.
_MODELS = {
    "float": "float",
    "dequantised": "dequantised weights, float activations",
    "accelerator": "accelerator, INT{} activations",
}


def evaluation_view(evaluation: Evaluation, layers: bool) -> list[RenderableType]:
    """The perplexities side by side, and on demand what each layer's integer activations cost."""
    text = "the text that ships with CPython" if evaluation.text is None else str(evaluation.text)
    table = table_of(
        f"{evaluation.model} ({evaluation.kind})",
        ["model"],
        ["perplexity", "beside float"],
        padding=(0, 1),
        caption=f"{evaluation.samples} samples of {evaluation.length} tokens, seed {evaluation.seed}, from the last "
        f"fifth of {text}",
    )
    reference = evaluation.float_perplexity
    for name, value in evaluation.perplexities.items():
        if value is None:
            continue
        beside = "" if reference is None or name == "float" else f"{value / reference - 1:+.2%}"
        table.add_row(_MODELS[name].format(evaluation.act_bits), f"{value:.4f}", beside)
    view: list[RenderableType] = [table]
    errors = evaluation.activation_errors
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        view.append(
            f"Integer activations cost most in {worst}: a squared error of {errors[worst]:.2e} of the squared outputs."
        )
    if evaluation.kind != "float" and reference is None:
        view.append("Give the float model by --model to see its perplexity beside these.")
    if layers and errors:
        rows = table_of("What integer activations cost", ["layer"], ["squared error of outputs"], padding=(0, 1))
        for name, error in errors.items():
            rows.add_row(Text(name), f"{error:.2e}")
        view.append(rows)
    return view


def conversion_view(conversion: Conversion) -> list[RenderableType]:
    """What was read and what was written, layers of one kind and settings in one line."""
    packed = conversion.core is not None
    table = table_of(
        f"{conversion.source} ({conversion.kind}) → {conversion.format}"
        + (f" for core {conversion.core}" if packed else ""),
        ["layer", "pattern"],
        ["K (in)", "O (out)", "group", "scales", "count", *(["bits/weight"] if packed else [])],
        padding=(0, 1),
    )
    for alike in _alike(conversion.layers):
        first = alike[0]
        table.add_row(
            Text(_kind(first)),
            pattern_name(first.pattern) + ("" if first.symmetric else " +z"),
            f"{first.in_features:,}",
            f"{first.out_features:,}",
            "row" if first.group_size == -1 else str(first.group_size),
            f"{first.scale_bits} bits",
            str(len(alike)),
            *([f"{8 * (first.stream_bytes or 0) / first.weights:.4f}"] if packed else []),
        )
    view: list[RenderableType] = [table]
    size = sum(layer.stream_bytes or 0 for layer in conversion.layers)
    weights = sum(layer.weights for layer in conversion.layers)
    streams = f", {size:,} bytes of streams, {8 * size / weights:.4f} bits a weight" if packed else ""
    view.append(f"Wrote {conversion.output}: {len(conversion.layers)} layers{streams}. Every pattern was checked.")
    if conversion.scale_error:
        view.append(f"Scales are off by up to {conversion.scale_error:.1e}: 16-bit integers do not hold them exactly.")
    if conversion.file_scale_error:
        view.append(f"Scales in the file are off by up to {conversion.file_scale_error:.1e}, float32's rounding.")
    return view


def _alike(layers: Sequence[ConvertedLayer]) -> list[list[ConvertedLayer]]:
    """Layers of the same last name, size and settings."""
    groups: dict[tuple[object, ...], list[ConvertedLayer]] = {}
    for layer in layers:
        facts = (layer.pattern, layer.group_size, layer.symmetric, layer.scale_bits)
        groups.setdefault((_kind(layer), layer.in_features, layer.out_features, *facts), []).append(layer)
    return list(groups.values())


def _kind(layer: ConvertedLayer) -> str:
    return layer.name.rpartition(".")[2]
