"""The command `nimble estimate`: options in, a `Report` out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Options of ``nimble estimate`` that mean something for a layer list; the first ones for it alone.
_LIST_OPTIONS = frozenset({"topology", "compare", "array"})
_SHARED_OPTIONS = frozenset(
    {"preset", "config", "pattern", "clock", "clock_from", "memory", "bandwidth", "latency", "group", "asymmetric"}
)


def _check_layer_source(ctx: typer.Context) -> None:
    """Refuse options of a model with a layer list, and the other way round."""
    given = given_options(ctx)
    if ("model" in given) == ("topology" in given):
        what = "Both --model and --topology were" if "model" in given else "Neither --model nor --topology was"
        raise ValueError(f"{what} given; layers come from one of them.")
    with_list = "topology" in given
    wrong = given - _LIST_OPTIONS - _SHARED_OPTIONS - {"json_output"} if with_list else given & _LIST_OPTIONS
    if wrong:
        option = "--" + sorted(wrong)[0].replace("_", "-")
        needed, present = ("--model", "--topology") if with_list else ("--topology", "--model")
        raise ValueError(f"{option} belongs to {needed} and has no meaning with {present}.")


def register(app: typer.Typer) -> None:
    """Add ``estimate`` to the command line."""
    app.command(
        cls=Command,
        epilog=examples(
            "nimble estimate --model llama-7b --preset edge --pattern 2:4 --prefill 128 --decode 32",
            "nimble estimate --model llama-7b --preset wide --pattern dense,2:4,3:4,1:4 --prefill 1920 --decode 128",
            "nimble estimate --model ./my-model --memory lpddr5-6400 --clock 800 --batch 8 --attention host --json",
            "nimble estimate --model llama-7b --pattern dense,2:4 --recipe mixed.toml",
            "nimble estimate --model llama-7b --pattern dense,2:4 --energy-from energy.json",
            "nimble estimate --model llama-7b --pattern dense,2:4 --html llama-7b.html --perfetto llama-7b.trace.json",
            "nimble estimate --topology layers.csv --compare scalesim-os,scalesim-ws",
        ),
    )(estimate)


def estimate(
    ctx: typer.Context,
    model: MaybeModelOption = None,
    topology: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="In place of a model, SCALE-Sim's layer list: CSV of Layer, M, N, K, Sparsity."
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="With --topology: scalesim-os, scalesim-ws, beside our cycles."),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(metavar="RxC", help="Their array; by default our rows and as many multipliers."),
    ] = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    pattern: Annotated[
        str | None,
        typer.Option(metavar="N:M[,N:M...]", help="One pattern or several to compare, or dense; by default 2:4."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file with a pattern for each layer; see the guide.")
    ] = None,
    prefill: PrefillOption = 128,
    decode: DecodeOption = 32,
    batch: BatchOption = 1,
    clock: Annotated[
        float | None, typer.Option(metavar="MHZ", help="The core's clock; an assumption, by default 500.")
    ] = None,
    clock_from: ClockFromOption = None,
    memory: MemoryOption = None,
    bandwidth: BandwidthOption = None,
    latency: LatencyOption = None,
    group: GroupOption = 128,
    asymmetric: AsymmetricFlag = False,
    attention: AttentionOption = "core-int8",
    lm_head: LmHeadOption = "int4",
    energy_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A report of nimble energy, for joules a token.")
    ] = None,
    html: PageOption = None,
    perfetto: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev to this file.")
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Estimate a model's tokens per second: exact core cycles, with an assumed clock and memory.

    Attention is shown apart from linear layers. A recipe is a column of its own beside the patterns. With
    --topology, cycles of single layers, each with the pattern in the file unless --pattern is given.
    """
    _check_layer_source(ctx)
    from flows.estimate import estimate_model, read_patterns
    from flows.memories import choose_clock, choose_memory
    from flows.recipe import Recipe, read_recipe
    from flows.views import estimate_view
    from flows.workload import Workload

    core = choose_core(preset, config)
    if topology is not None:
        from flows.layer_views import topology_view
        from flows.scalesim import Array, read_compared
        from flows.topology import Side, estimate_topology

        side = Side(
            core.name,
            core.config,
            memory=choose_memory(memory, bandwidth, latency),
            clock=choose_clock(clock, clock_from),
            compare=() if compare is None else tuple(read_compared(compare)),
            array=None if array is None else Array.parse(array),
            group_size=group,
            asymmetric=asymmetric,
        )
        listed = estimate_topology(topology, side, None if pattern is None else read_patterns(pattern))
        return Report(listed.document(), topology_view(listed))
    assert model is not None  # or there was a list
    patterns = read_patterns(pattern or "2:4") if pattern is not None or recipe is None else []
    recipes = [Recipe.uniform(chosen) for chosen in patterns]
    if recipe is not None:
        recipes.append(read_recipe(recipe))
    workload = Workload(
        core.config,
        model,
        prefill=prefill,
        decode=decode,
        batch=batch,
        group_size=group,
        asymmetric=asymmetric,
        attention=attention,
        lm_head=lm_head,
        clock=choose_clock(clock, clock_from),
        memory=choose_memory(memory, bandwidth, latency),
    )
    energy = None
    if energy_from is not None:
        from flows.energy_tokens import read_energy

        energy = read_energy(energy_from, core.config)
    with progress(f"Estimating {model}"):
        estimates = estimate_model(core.name, workload, recipes)
    document = estimates.document()
    energy_view: list[RenderableType] = []
    if energy is not None:
        from flows.energy_tokens import token_energy

        energies = token_energy(estimates, energy)
        document["energy"] = energies.document()
        energy_view = energies.view()
    written = []
    if html is not None:
        from flows.page import write_page

        write_page(document, html)
        written.append(f"Wrote {html}: open it in a browser.")
    if perfetto is not None:
        from flows.perfetto import write_trace

        write_trace(document, perfetto)
        written.append(f"Wrote {perfetto}: open it in ui.perfetto.dev, where 1 cycle is shown as 1 µs.")
    return Report(document, [*estimate_view(estimates), *energy_view, *written])
