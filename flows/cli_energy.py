"""The command `nimble energy`: options in, a `Report` out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.core_choice import ConfigOption, PresetOption, choose_core
from flows.terminal import Command, JsonFlag, Report, examples, progress
from flows.workload_options import AsymmetricFlag


def register(app: typer.Typer) -> None:
    """Add ``energy`` to the command line."""
    app.command(
        cls=Command,
        epilog=examples(
            "nimble energy --preset tiny",
            "nimble energy --preset edge --inputs 512 --outputs 64 --pattern dense,2:4,1:4 -o energy.json",
            "nimble energy --preset tiny --target liberty:cells.lib --json",
        ),
    )(energy)


def energy(
    preset: PresetOption = None,
    config: ConfigOption = None,
    pattern: Annotated[
        str, typer.Option(metavar="N:M[,N:M...]", help="One pattern or several to compare, or dense.")
    ] = "dense,2:4,1:4",
    tokens: Annotated[
        int | None, typer.Option(metavar="T", help="Rows of the activations; by default the core's rows.")
    ] = None,
    inputs: Annotated[
        int | None, typer.Option(metavar="K", help="Input features; by default 512, or as many as the core takes.")
    ] = None,
    outputs: Annotated[
        int | None, typer.Option(metavar="O", help="Output features; by default 4 for each column.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(metavar="G", help="Weights that share a scale; by default 128, or the core's most.")
    ] = None,
    asymmetric: AsymmetricFlag = False,
    activations: Annotated[
        str, typer.Option(metavar="HOW", help="normal, uniform (over the whole range) or zero.")
    ] = "normal",
    target: Annotated[
        str, typer.Option(metavar="NAME", help="ecp5, ice40, xilinx7, xilinx-us, generic, or liberty:FILE.")
    ] = "ecp5",
    dsp: Annotated[str, typer.Option(metavar="WHICH", help="Multipliers in blocks: all, scale or none.")] = "all",
    goal: Annotated[float, typer.Option(metavar="MHZ", help="Clock that each block is mapped for.")] = 120.0,
    memory: Annotated[
        str | None, typer.Option(metavar="NAME", help="ddr3-1600, ddr4-3200 (default), lpddr5-6400 or hbm2-u280.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of weights and activations.")] = 0,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", help="Stop mapping after S seconds; what is finished is kept.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write the JSON report, for nimble estimate --energy-from."
        ),
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Estimate a core's energy: changes counted on the verilated core, times energies that are assumed.

    Without --preset and --config it is the tiny core. Every energy is an estimate; the constants and their sources
    are printed with it. Blocks are mapped one by one, not placed; the core is compiled on its first run.
    """
    core = choose_core(preset, config, default="tiny")

    import json

    from flows.energy import map_core, measure_energy
    from flows.energy_views import energy_view
    from flows.estimate import read_patterns
    from flows.memories import choose_memory
    from flows.simulate import LayerGemm
    from quant.atomic_file import write_text
    from verify.synthesis.tools import Deadline

    patterns = read_patterns(pattern)
    outside = choose_memory(memory)
    gemm = LayerGemm(
        core.config,
        tokens=core.config.rows if tokens is None else tokens,
        in_features=min(512, core.config.k_max) if inputs is None else inputs,
        out_features=4 * core.config.columns if outputs is None else outputs,
        pattern=patterns[0],
        group_size=min(128, core.config.group_max) if group is None else group,
        symmetric=not asymmetric,
        seed=seed,
    )
    gemm.check()
    with progress(f"Mapping the blocks of {core.name}") as bar:
        mapped = map_core(core.config, target, dsp=dsp, goal_mhz=goal, deadline=Deadline(time_limit))
        bar.describe("Compiling the core with counters; the first time takes about a minute")
        found = measure_energy(core.name, gemm, patterns, mapped, activations=activations, memory=outside.name, bar=bar)
    document = found.document()
    written = []
    if output is not None:
        write_text(output, json.dumps(document, indent=2) + "\n")
        written.append(f"Wrote {output}.")
    return Report(document, [*energy_view(found), *written])
