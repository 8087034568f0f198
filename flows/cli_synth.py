"""The command `nimble synth`: options in, a `Report` out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.core_choice import ConfigOption, PresetOption, choose_core
from flows.terminal import EXIT_MISMATCH, EXIT_OK, Command, JsonFlag, Report, examples, progress


def register(app: typer.Typer) -> None:
    """Add ``synth`` to the command line."""
    app.command(
        cls=Command,
        epilog=examples(
            "nimble synth --preset tiny",
            "nimble synth --config my-core.toml --device 85k --speed 6 --seeds 5 -o synth.json",
            "nimble synth --preset tiny --target xilinx7",
            "nimble synth --preset tiny --target liberty:cells.lib --json",
        ),
    )(synth)


def synth(
    preset: PresetOption = None,
    config: ConfigOption = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="ecp5, ice40, xilinx7, xilinx-us, generic, or liberty:FILE.")
    ] = "ecp5",
    device: Annotated[str | None, typer.Option(metavar="NAME", help="ecp5: 12k, 25k, 45k or 85k (default).")] = None,
    speed: Annotated[int | None, typer.Option(metavar="GRADE", help="ecp5: 6 (default), 7 or 8.")] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Place and route with seeds 1 to N.")] = 3,
    no_route: Annotated[bool, typer.Option("--no-route", help="ecp5: map only, do not place and route.")] = False,
    dsp: Annotated[
        str,
        typer.Option(metavar="WHICH", help="Multipliers in blocks: all, scale (units), none, or how many of them."),
    ] = "all",
    goal: Annotated[float, typer.Option(metavar="MHZ", help="Clock to work towards.")] = 120.0,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="Stop after S seconds; what is finished is shown and kept.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the JSON report to this file.")
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Synthesise a core: cells of each block, clock after place and route, and guards against unwanted hardware.

    Without --preset and --config it is the tiny core. Finished parts come from the cache the next time. The exit
    code is 1 if a guard found something.
    """
    core = choose_core(preset, config, default="tiny")

    import json

    from flows.synth import synthesize_core
    from flows.synth_views import synthesis_view
    from quant.atomic_file import write_text

    with progress(f"Synthesising {core.name}") as bar:
        synthesised = synthesize_core(
            core.name,
            core.config,
            target=target,
            device=device,
            speed=speed,
            seeds=seeds,
            route=not no_route,
            dsp=dsp,
            goal_mhz=goal,
            time_limit=time_limit,
            bar=bar,
        )
    document = synthesised.document()
    written = []
    if output is not None:
        write_text(output, json.dumps(document, indent=2, default=str) + "\n")
        written.append(f"Wrote {output}.")
    return Report(
        document,
        [*synthesis_view(synthesised), *written],
        exit_code=EXIT_MISMATCH if synthesised.failed else EXIT_OK,
    )
