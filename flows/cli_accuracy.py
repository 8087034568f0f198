"""Commands of `nimble` that judge the quantiser: ``train`` makes a small model, ``accuracy`` compares methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import Command, JsonFlag, Report, examples, progress
from flows.workload_options import GroupOption

TextOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="UTF-8 text; by default the one that ships with CPython.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        cls=Command,
        epilog=examples(
            "nimble train -o llama-small",
            "nimble train -o llama-small --text wikipedia.txt --steps 1000",
            "nimble train -o llama-tiny --hidden 128 --intermediate 256 --blocks 2 --json",
        ),
    )(train)
    app.command(
        cls=Command,
        epilog=examples(
            "nimble accuracy ./llama-small",
            "nimble accuracy ./llama-small --pattern 2:4,1:4 --method joint,wanda-rtn --seeds 0",
            "nimble accuracy ./my-model --text my.txt --samples 64 --length 1024 --work ./runs --json",
        ),
    )(accuracy)


def train(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to make.")],
    text: TextOption = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of the optimiser.")] = 400,
    hidden: Annotated[int, typer.Option(metavar="H", help="Features between layers.")] = 256,
    intermediate: Annotated[int, typer.Option(metavar="I", help="Features inside the feed-forward network.")] = 512,
    blocks: Annotated[int, typer.Option(metavar="B", help="Decoder blocks.")] = 4,
    heads: Annotated[int, typer.Option(metavar="A", help="Attention heads.")] = 4,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples of a step.")] = 16,
    length: Annotated[int, typer.Option(metavar="T", help="Bytes of a sample.")] = 256,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the weights and of the draw of samples.")] = 0,
    json_output: JsonFlag = False,
) -> Report:
    """Train a byte-level Llama on a text, in minutes: a model to try quantisation on without a download.

    It learns from the first four fifths of the text; nimble accuracy and nimble evaluate judge by the rest.
    """
    from flows.small_model import SmallModelSettings, train_small_model

    settings = SmallModelSettings(hidden, intermediate, blocks, heads, heads, steps, batch, length, seed)
    with progress("Training", total=steps) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.describe(f"Training, {loss:.3f} nats a byte")
            bar.advance()

        trained = train_small_model(output, text, settings, on_step)
    document = {"model": str(output), **trained.document()}
    return Report(
        document,
        [
            f"Wrote {output}: {trained.parameters:,} weights, trained on {trained.trained_bytes:,} bytes; "
            f"mean loss of the last tenth of the steps {trained.last_loss:.4f} nats a byte.",
        ],
    )


def accuracy(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A transformers folder with safetensors weights.")],
    text: TextOption = None,
    pattern: Annotated[str, typer.Option(metavar="LIST", help="Patterns n:m, or dense.")] = "dense,4:8,2:4",
    method: Annotated[str, typer.Option(metavar="LIST", help="Methods of nimble quantize, or all of them.")] = "all",
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Each draws calibration samples of its own.")] = "0,1,2",
    group: GroupOption = 128,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Weights with a zero point per group.")] = False,
    samples: Annotated[int, typer.Option(metavar="N", help="Calibration samples.")] = 128,
    length: Annotated[int, typer.Option(metavar="T", help="Tokens of a sample.")] = 256,
    evaluation: Annotated[int, typer.Option(metavar="N", help="Evaluation samples.")] = 128,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the quantised models here, so that a stopped measurement goes on."),
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Compare pruning and quantisation methods on one model, by perplexity on held-out text.

    The model is quantised once for each pattern, method and seed. Activations stay float: nimble evaluate tells what
    8-bit activations cost.
    """
    from flows.accuracy import AccuracyPlan, measure_accuracy, read_methods, read_seeds
    from flows.accuracy_views import accuracy_view
    from flows.estimate import read_patterns

    plan = AccuracyPlan(
        model,
        text,
        tuple(read_patterns(pattern)),
        read_methods(method),
        read_seeds(seeds),
        group,
        not asymmetric,
        samples,
        length,
        evaluation,
    )
    measured = measure_accuracy(plan, work)
    return Report(measured.document(), accuracy_view(measured))
