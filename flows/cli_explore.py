"""The command `nimble explore`: options in, a `Report` out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.core_choice import ConfigOption, PresetOption, choose_core
from flows.terminal import Command, JsonFlag, Report, examples, given_options, progress
from flows.workload_options import (
    AsymmetricFlag,
    AttentionOption,
    BandwidthOption,
    BatchOption,
    ClockFromOption,
    DecodeOption,
    GroupOption,
    LatencyOption,
    LmHeadOption,
    MaybeModelOption,
    MemoryOption,
    PageOption,
    PrefillOption,
)


def register(app: typer.Typer) -> None:
    """Add ``explore`` to the command line."""
    app.command(
        cls=Command,
        epilog=examples(
            "nimble explore --model llama-7b --memory ddr4-3200 --luts 80000",
            "nimble explore --model llama-7b --pattern dense,2:4,1:4 --objective prefill --html explore.html",
            "nimble explore --model ./my-model --rows 4,8 --columns 8,12,16 --clock-from synth.json -o explore.json",
            "nimble explore --model llama-7b --ray auto --json",
            "nimble explore --measure 40 --points my-points.json",
        ),
    )(explore)


def explore(
    ctx: typer.Context,
    model: MaybeModelOption = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    rows: Annotated[str, typer.Option(metavar="R[,R...]", help="PE rows.")] = "4,8,16",
    columns: Annotated[str, typer.Option(metavar="C[,C...]", help="PE columns.")] = "4,8,16",
    lanes: Annotated[str, typer.Option(metavar="L[,L...]", help="Multipliers of a PE.")] = "2,4,8",
    window: Annotated[str, typer.Option(metavar="W[,W...]", help="Activations that a PE sees.")] = "8,16",
    chains: Annotated[str, typer.Option(metavar="N[,N...]", help="Drain chains of a column.")] = "1,2",
    tiles: Annotated[str, typer.Option(metavar="N[,N...]", help="Largest tiles in the weight buffer.")] = "2,3",
    act_rows: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Longest rows in the activation buffer, for each PE row.")
    ] = "1",
    slices: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Bytes of a column's weight word; least: as few as it takes.")
    ] = "least",
    support: Annotated[
        str,
        typer.Option(metavar="any[,listed]", help="Patterns that a core is made for: any, or those of --pattern."),
    ] = "any,listed",
    pattern: Annotated[
        str, typer.Option(metavar="N:M[,N:M...]", help="Patterns that a core must run; each has its front.")
    ] = "2:4",
    prefill: PrefillOption = 128,
    decode: DecodeOption = 32,
    batch: BatchOption = 1,
    objective: Annotated[
        str, typer.Option(metavar="PHASE", help="Speed that the front is made of: decode or prefill.")
    ] = "decode",
    luts: Annotated[int | None, typer.Option(metavar="N", help="Most LUTs; by default those of an ECP5-85F.")] = None,
    dsp: Annotated[
        int | None, typer.Option(metavar="N", help="Multiplier blocks to use at most; by default an ECP5-85F's 156.")
    ] = None,
    bram: Annotated[
        int | None, typer.Option(metavar="N", help="Most block RAMs; by default an ECP5-85F's 208.")
    ] = None,
    clock: Annotated[
        float | None, typer.Option(metavar="MHZ", help="The cores' clock; an assumption, by default 120.")
    ] = None,
    clock_from: ClockFromOption = None,
    memory: MemoryOption = None,
    bandwidth: BandwidthOption = None,
    latency: LatencyOption = None,
    group: GroupOption = 128,
    asymmetric: AsymmetricFlag = False,
    attention: AttentionOption = "core-int8",
    lm_head: LmHeadOption = "int4",
    points: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Synthesised cores for the area model, in place of Nimble's.")
    ] = None,
    measure: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of a model: synthesise until --points holds N cores."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Processes; by default one a core.")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster: its address, auto, or local.")
    ] = None,
    html: PageOption = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Keep the JSON here; a run that was stopped goes on."),
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Sweep cores for a model: LUTs by a model of synthesised ones, tokens/s as nimble estimate, and the best of both.

    Other parameters are those of --preset or --config, else of the ulx3s core. LUTs are those of Lattice ECP5.
    """
    from flows.parallel import Workers

    workers = Workers(jobs, ray)
    if measure is not None:
        return _measure(ctx, measure, points, workers)
    if model is None:
        raise ValueError("No model was given; --model names one, and --measure needs none.")

    from flows.area_points import SHIPPED
    from flows.estimate import read_patterns
    from flows.explore import CLOCK_MHZ, DEVICE_BRAM, DEVICE_DSP, DEVICE_LUTS, Grid, Plan
    from flows.explore import explore as explore_cores
    from flows.explore_views import exploration_view
    from flows.memories import choose_clock, choose_memory
    from flows.validate import numbers_of
    from flows.workload import Workload

    base = choose_core(preset, config, default="ulx3s")
    grid = Grid(
        rows=numbers_of(rows, "--rows"),
        columns=numbers_of(columns, "--columns"),
        lanes=numbers_of(lanes, "--lanes"),
        window=numbers_of(window, "--window"),
        drain_chains=numbers_of(chains, "--chains"),
        weight_tiles=numbers_of(tiles, "--tiles"),
        act_rows=numbers_of(act_rows, "--act-rows"),
        slice_bytes=(0,) if slices == "least" else numbers_of(slices, "--slices"),
        support=tuple(support.split(",")),
    )
    plan = Plan(
        Workload(
            base.config,
            model,
            prefill=prefill,
            decode=decode,
            batch=batch,
            group_size=group,
            asymmetric=asymmetric,
            attention=attention,
            lm_head=lm_head,
            clock=choose_clock(CLOCK_MHZ if clock is None and clock_from is None else clock, clock_from),
            memory=choose_memory(memory, bandwidth, latency),
        ),
        base.name,
        grid,
        tuple(read_patterns(pattern)),
        luts=DEVICE_LUTS if luts is None else luts,
        dsp=DEVICE_DSP if dsp is None else dsp,
        bram=DEVICE_BRAM if bram is None else bram,
        objective=objective,
    )
    explored = explore_cores(plan, SHIPPED if points is None else points, workers, output)
    document = explored.document()
    written = [] if output is None else [f"Wrote {output}."]
    if html is not None:
        from flows.explore_page import write_exploration_page

        write_exploration_page(document, html)
        written.append(f"Wrote {html}: open it in a browser.")
    return Report(document, [*exploration_view(explored), *written])


#: Options that go with --measure.
_MEASURE_OPTIONS = frozenset({"measure", "points", "jobs", "ray", "json_output"})


def _measure(ctx: typer.Context, count: int, file: Path | None, workers: Any) -> Report:
    """Synthesise cores for the area model, and say how well it fits them."""
    given = given_options(ctx)
    if wrong := sorted(given - _MEASURE_OPTIONS):
        option = "--" + wrong[0].replace("_", "-")
        raise ValueError(f"{option} has no meaning with --measure, which synthesises cores and explores none.")

    from flows.area_model import LEAST_POINTS, held_out
    from flows.area_points import SHIPPED, measure
    from flows.explore_views import measured_view

    chosen = SHIPPED if file is None else file
    with progress("Synthesising cores", total=count) as bar:
        shown = 0

        def advance(done: int) -> None:
            nonlocal shown
            bar.advance(done - shown)
            shown = done

        try:
            points, dropped = measure(chosen, count, workers.run, advance)
        except KeyboardInterrupt:
            if shown:
                print(f"{shown} cores are kept in {chosen}; the same command goes on with them.", file=sys.stderr)
            raise
    # One more than a fit needs, as each turn leaves at least one out.
    errors = held_out(points.in_order) if len(points.points) > LEAST_POINTS else None
    document = {
        "file": str(chosen),
        "points": len(points.points),
        "dropped": dropped,
        "area_model": None if errors is None else errors.document(),
    }
    return Report(document, measured_view(points, errors, dropped, str(chosen)))
