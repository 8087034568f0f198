"""Commands of `nimble` that read models from disk: ``evaluate`` and ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.core_choice import ConfigOption, PresetOption, choose_core
from flows.terminal import Command, JsonFlag, Report, examples, progress


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        cls=Command,
        epilog=examples(
            "nimble evaluate ./packed --model ./my-model",
            "nimble evaluate ./packed --text my.txt --samples 64 --length 1024 --layers",
            "nimble evaluate ./model-gptq --json",
        ),
    )(evaluate)
    app.command(
        cls=Command,
        epilog=examples(
            "nimble convert ./model-gptq -o ./packed --scale-bits 16",
            "nimble convert ./packed -o ./packed-wide --preset wide",
            "nimble convert ./packed -o ./for-vllm --format compressed-tensors",
            "nimble convert ./model-w4a16 -o ./packed --pattern 2:4 --json",
        ),
    )(convert)


def evaluate(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Packed weights, a quantised model of another tool, or a float model."),
    ],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The float model that DIR was quantised from.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UTF-8 text; by default the one that ships with CPython.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples of the text.")] = 16,
    length: Annotated[
        int | None, typer.Option(metavar="T", help="Tokens of a sample; by default 512, or what the model is made for.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the draw of samples.")] = 0,
    layers: Annotated[bool, typer.Option("--layers", help="What integer activations cost in each layer.")] = False,
    json_output: JsonFlag = False,
) -> Report:
    """Measure a model's perplexity: in float, with dequantised weights, and as the accelerator computes it.

    Samples are drawn from the last fifth of the text, which nimble quantize does not calibrate on. With the same
    text, length and seed they are those that it judges by.
    """
    from flows.evaluate import evaluate as run_evaluation
    from flows.model_views import evaluation_view

    with progress(f"Evaluating {directory}") as bar:
        finished = run_evaluation(
            directory,
            model,
            text,
            samples,
            length,
            seed,
            progress=lambda what, done, blocks: bar.describe(
                f"Evaluating {directory}: {what}, block {done} of {blocks}"
            ),
        )
    return Report(finished.document(), evaluation_view(finished, layers))


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Packed weights, or a quantised model of another tool.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder to make.")],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="packed or compressed-tensors.")] = "packed",
    preset: PresetOption = None,
    config: ConfigOption = None,
    scale_bits: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            help="Bits of the core's group scales in place of its own: 16 hold fp16 scales of other tools.",
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="N:M", help="Pattern that every layer must obey; by default what IN says or shows."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is packed weights.")] = False,
    json_output: JsonFlag = False,
) -> Report:
    """Write quantised weights in another format, or pack them for another core.

    Reads our packed weights, compressed-tensors (pack-quantized and the sparse formats up to 0.14), GPTQ and AWQ.
    Without --preset and --config, packed weights stay with their core, and others go to the edge core.
    """
    from flows.convert import COMPRESSED_TENSORS
    from flows.convert import convert as run_conversion
    from flows.model_views import conversion_view
    from quant import NMPattern

    given = preset is not None or config is not None
    if format == COMPRESSED_TENSORS and (given or scale_bits is not None):
        raise ValueError("--preset, --config and --scale-bits belong to --format packed.")
    with progress(f"Converting {source}") as bar:
        finished = run_conversion(
            source,
            output,
            format,
            choose_core(preset, config) if given else None,
            scale_bits,
            None if pattern is None else NMPattern.parse(pattern),
            overwrite,
            progress=lambda done, total: bar.describe(f"Converting {source}: {done} of {total}"),
        )
    return Report(finished.document(), conversion_view(finished))
