"""The `nimble` command line: options in, a `Report` out.

Only the terminal is here. A command imports the flow that does its work when it runs, because torch,
transformers and PyMTL3 take seconds to import and ``nimble --help`` must not wait for them.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import EXIT_DEFECT, Command, JsonFlag, Report, examples, progress

app = typer.Typer(
    name="nimble",
    help="Generate, verify and estimate an N:M structured-sparse INT4 tensor core.",
    epilog="Exit codes: 0 ok, 1 results differ, 2 bad input, 70 defect in nimble, 130 interrupted.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    # main() prints tracebacks: of defects only, and with their own exit code.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"nimble {version('nimble')}")
        raise typer.Exit()


@app.callback()
def _options_of_nimble(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # typer runs an app of a single command without its name unless there is a callback.
    pass


@app.command(
    cls=Command,
    epilog=examples(
        "nimble trace --model llama-7b -o llama-7b.json",
        "nimble trace --model ./my-model --json",
        "nimble trace --model gpt-neox-20b --tokens 128",
    ),
)
def trace(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help="llama-7b, llama-2-7b, llama-3-8b, gpt-neox-20b, or a directory that holds "
            "a Hugging Face config.json.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the trace to this JSON file."),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="T", help="Tokens in the traced forward pass.")] = 1,
    json_output: JsonFlag = False,
) -> Report:
    """Record every linear layer that a model runs, from its configuration alone.

    transformers builds the model without weights, so no checkpoint is needed.
    """
    from rich.table import Table
    from rich.text import Text

    from flows.trace import save_trace, trace_model

    with progress(f"Tracing {model}"):
        traced = trace_model(model, tokens)
    if output is not None:
        save_trace(traced, output)

    macs = traced.macs_per_token
    table = Table(
        # Text, not str: a directory's name may look like markup.
        title=Text(
            f"{traced.model}: {len(traced.layers)} linear layers, {traced.facts.num_hidden_layers} blocks"
        ),
        caption=f"MAC per token: {macs.blocks:,} in the blocks, {macs.lm_head:,} in the head",
    )
    table.add_column("layer")
    for heading in ("K (in)", "O (out)", "bias", "count", "tokens", "MAC"):
        table.add_column(heading, justify="right")
    for shape in traced.distinct():
        table.add_row(
            ", ".join(shape.kinds),
            f"{shape.in_features:,}",
            f"{shape.out_features:,}",
            "yes" if shape.bias else "no",
            str(shape.count),
            f"{shape.tokens:,}",
            f"{shape.macs:,}",
        )
    notes = [f"Not included: {exclusion}" for exclusion in traced.excludes]
    written = [] if output is None else [f"Wrote {output}."]
    return Report(document=traced.to_document(), view=[table, *notes, *written])


def main() -> None:
    """Run the command line; the entry point of the installed ``nimble`` script."""
    try:
        app()
    except Exception as error:
        traceback.print_exc()
        print("nimble: this is a defect in nimble itself, not in its input.", file=sys.stderr)
        raise SystemExit(EXIT_DEFECT) from error


if __name__ == "__main__":
    main()
