"""The `nimble` command line: options in, a `Report` out.

Only the terminal is here. A command imports the flow that does its work when it runs, because torch,
transformers and PyMTL3 take seconds to import and ``nimble --help`` must not wait for them.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_accuracy import register as register_accuracy
from flows.cli_energy import register as register_energy
from flows.cli_explore import register as register_explore
from flows.cli_models import register as register_models
from flows.cli_quantize import quantize
from flows.cli_synth import register as register_synth
from flows.core_choice import ConfigOption, PresetOption, choose_core
from flows.terminal import (
    EXIT_DEFECT,
    EXIT_MISMATCH,
    EXIT_OK,
    Command,
    JsonFlag,
    Report,
    examples,
    progress,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

# The same option in several commands.
MODEL_SOURCES = "llama-7b, llama-2-7b, llama-3-8b, gpt-neox-20b, or a directory that holds a Hugging Face config.json"
ModelOption = Annotated[str, typer.Option(metavar="NAME|DIR", help=f"{MODEL_SOURCES}.")]
GroupOption = Annotated[
    int, typer.Option(metavar="G", help="Weights that share a scale: a multiple of m, or -1 for a whole row.")
]
AsymmetricFlag = Annotated[bool, typer.Option("--asymmetric", help="Weights with a zero point per group.")]

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
        "nimble trace --model gpt-neox-20b --tokens 128 --batch 4",
        "nimble trace --model llama-7b.json --context 1024",
    ),
)
def trace(
    model: Annotated[str, typer.Option(metavar="NAME|DIR|FILE", help=f"{MODEL_SOURCES}, or a trace that -o wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the trace to this JSON file."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(metavar="T", help="New tokens of each sequence; by default 1.")] = None,
    batch: Annotated[int | None, typer.Option(metavar="B", help="Sequences; by default 1.")] = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="C", help="Tokens of each sequence in the KV cache before the pass; by default 0."),
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Record every matrix product that a model runs, from its configuration alone.

    transformers builds the model without weights, so no checkpoint is needed. Prefill is T tokens at context 0,
    decode one token at a context.
    """
    from flows.model_trace import save_trace
    from flows.trace import read_trace
    from flows.views import trace_view

    with progress(f"Tracing {model}"):
        traced = read_trace(model, tokens, batch=batch, context=context)
    if output is not None:
        save_trace(traced, output)
    written = [] if output is None else [f"Wrote {output}."]
    return Report(document=traced.to_document(), view=[*trace_view(traced), *written])


@app.command(
    cls=Command,
    epilog=examples(
        "nimble info --preset edge",
        "nimble info --preset wide --all",
        "nimble info --config my-core.toml --json",
    ),
)
def info(
    preset: PresetOption = None,
    config: ConfigOption = None,
    every: Annotated[bool, typer.Option("--all", help="Every pattern n:m with m up to 8.")] = False,
    group: Annotated[int, typer.Option(metavar="G", help="Weights that share a scale.")] = 128,
    json_output: JsonFlag = False,
) -> Report:
    """Show a core's parameters, what follows from them, and what each pattern costs on it.

    Without --preset and --config it is the edge core.
    """
    core = choose_core(preset, config)

    from flows.info import core_document, pattern_facts, patterns_to_show
    from flows.views import info_view

    facts = [pattern_facts(core.config, pattern, group) for pattern in patterns_to_show(core.config, every)]
    document = core_document(core.name, core.config, facts)
    return Report(document, info_view(document, facts))


@app.command(
    cls=Command,
    epilog=examples(
        "nimble verify --preset tiny --levels golden,fl,cl,rtl,verilog --examples 200 --seed 1",
        "nimble verify --random-configs --levels golden,fl,cl,rtl --examples 50",
        "nimble verify --replay nimble-case-0123456789ab.json --levels golden,fl,cl,rtl",
    ),
)
def verify(
    preset: PresetOption = None,
    config: ConfigOption = None,
    levels: Annotated[
        str, typer.Option(metavar="LEVELS", help="Levels to compare; the first is the reference.")
    ] = "golden,fl,cl,rtl,verilog",
    examples: Annotated[int, typer.Option(metavar="N", help="Random cases to run.")] = 200,
    seed: Annotated[int, typer.Option(metavar="S", help="The same seed and program give the same cases.")] = 1,
    random_configs: Annotated[
        bool, typer.Option("--random-configs", help="Draw a small core for each case, too.")
    ] = False,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run the one case that a failing verify has stored.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where a failing case is stored.")
    ] = Path(),
    json_output: JsonFlag = False,
) -> Report:
    """Run random GEMMs at several levels, which must agree in every result and every cycle.

    Without --preset and --config it is the tiny core. A case that fails is made as small as possible and
    stored, and one command to run it again is printed. At level verilog, the first run on a core compiles it.
    """
    from flows.verify import check_core_source, read_levels, replay_case, verify_core
    from flows.views import verify_view

    chosen = read_levels(levels)
    check_core_source(preset or config, random_configs, replay)
    if replay is not None:
        with progress(f"Replaying {replay}"):
            verification = replay_case(replay, chosen)
    else:
        core = None if random_configs else choose_core(preset, config, default="tiny")
        with progress("Comparing " + ", ".join(chosen), total=examples) as bar:
            verification = verify_core(
                "random" if core is None else core.name,
                None if core is None else core.config,
                chosen,
                examples,
                seed,
                output,
                progress=lambda cases: bar.advance(),
            )
    failed = verification.campaign.failure is not None
    return Report(verification.document(), verify_view(verification), exit_code=EXIT_MISMATCH if failed else EXIT_OK)


@app.command(
    cls=Command,
    epilog=examples(
        "nimble simulate --preset edge --model llama-7b --layer q_proj --tokens 16 --pattern 2:4 --level verilog",
        "nimble simulate --model llama-7b --layer down_proj --outputs 256 --pattern 3:4 --asymmetric --json",
    ),
)
def simulate(
    model: ModelOption,
    layer: Annotated[str, typer.Option(metavar="NAME", help="A kind of layer such as q_proj, or a layer's full name.")],
    preset: PresetOption = None,
    config: ConfigOption = None,
    tokens: Annotated[int, typer.Option(metavar="T", help="Rows of the activations.")] = 16,
    pattern: Annotated[str, typer.Option(metavar="N:M", help="Kept weights n of every m, or dense.")] = "2:4",
    level: Annotated[str, typer.Option(metavar="LEVEL", help="fl, cl, rtl or verilog.")] = "verilog",
    group: GroupOption = 128,
    asymmetric: AsymmetricFlag = False,
    code: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Block code (rank, index, bitmask); by default the shortest."),
    ] = None,
    outputs: Annotated[
        int | None, typer.Option(metavar="O", help="Take only the layer's first O output features.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of weights and activations.")] = 0,
    json_output: JsonFlag = False,
) -> Report:
    """Run one layer of a model on the core and compare every result with PyTorch's.

    Sizes are the layer's own. Weights and activations are random: cycles do not depend on their values.
    """
    from flows.simulate import check_compared_level, layer_gemm, simulate_layer
    from flows.trace import trace_model
    from flows.views import simulation_view
    from quant import NMPattern

    core = choose_core(preset, config)
    check_compared_level(level)
    with progress(f"Tracing {model}"):
        traced = trace_model(model)
    shape = traced.find(layer)
    simulated = simulate_layer(
        core.name,
        traced.model,
        shape,
        layer_gemm(
            core.config,
            shape,
            tokens=tokens,
            outputs=outputs,
            pattern=NMPattern.parse(pattern),
            group_size=group,
            symmetric=not asymmetric,
            code=code,
            seed=seed,
        ),
        level,
    )
    return Report(
        simulated.document(),
        simulation_view(simulated),
        exit_code=EXIT_OK if simulated.simulation.match else EXIT_MISMATCH,
    )


@app.command(
    cls=Command,
    epilog=examples(
        "nimble verilog --preset edge -o build/edge",
        "nimble verilog --config my-core.toml -o build/my-core --json",
    ),
)
def verilog(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder that both files are written to.")
    ],
    preset: PresetOption = None,
    config: ConfigOption = None,
    json_output: JsonFlag = False,
) -> Report:
    """Write a core as one SystemVerilog file, with a manifest of its parameters.

    Without --preset and --config it is the edge core.
    """
    core = choose_core(preset, config)

    from flows.verilog import generate_verilog

    with progress(f"Translating {core.name}"):
        written = generate_verilog(core.config, output)
    sentences = [
        f"Wrote {written.verilog} ({written.lines:,} lines) and {written.manifest}.",
        f"Top module: {written.top}",
        f"SHA-256: {written.sha256}",
    ]
    return Report({"core": core.name, **written.document()}, sentences)


#: Options of ``nimble estimate`` that mean something for a layer list; the first ones for it alone.
_LIST_OPTIONS = frozenset({"topology", "compare", "array"})
_SHARED_OPTIONS = frozenset(
    {"preset", "config", "pattern", "clock", "clock_from", "memory", "bandwidth", "latency", "group", "asymmetric"}
)


def _check_layer_source(ctx: typer.Context) -> None:
    """Refuse options of a model with a layer list, and the other way round."""
    given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    if ("model" in given) == ("topology" in given):
        what = "Both --model and --topology were" if "model" in given else "Neither --model nor --topology was"
        raise ValueError(f"{what} given; layers come from one of them.")
    with_list = "topology" in given
    wrong = given - _LIST_OPTIONS - _SHARED_OPTIONS - {"json_output"} if with_list else given & _LIST_OPTIONS
    if wrong:
        option = "--" + sorted(wrong)[0].replace("_", "-")
        needed, present = ("--model", "--topology") if with_list else ("--topology", "--model")
        raise ValueError(f"{option} belongs to {needed} and has no meaning with {present}.")


@app.command(
    cls=Command,
    epilog=examples(
        "nimble estimate --model llama-7b --preset edge --pattern 2:4 --prefill 128 --decode 32",
        "nimble estimate --model llama-7b --preset wide --pattern dense,2:4,4:8,3:4,1:4 --prefill 1920 --decode 128",
        "nimble estimate --model ./my-model --memory lpddr5-6400 --clock 800 --batch 8 --attention host --json",
        "nimble estimate --model llama-7b --pattern dense,2:4 --recipe mixed.toml",
        "nimble estimate --model llama-7b --pattern dense,2:4 --energy-from energy.json",
        "nimble estimate --model llama-7b --pattern dense,2:4 --html llama-7b.html --perfetto llama-7b.trace.json",
        "nimble estimate --topology layers.csv --compare scalesim-os,scalesim-ws",
    ),
)
def estimate(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help=f"{MODEL_SOURCES}."),
    ] = None,
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
    prefill: Annotated[int, typer.Option(metavar="P", help="Tokens of the prompt, in one pass.")] = 128,
    decode: Annotated[int, typer.Option(metavar="D", help="Tokens after it, one a pass.")] = 32,
    batch: Annotated[int, typer.Option(metavar="B", help="Sequences in a pass.")] = 1,
    clock: Annotated[
        float | None, typer.Option(metavar="MHZ", help="The core's clock; an assumption, by default 500.")
    ] = None,
    clock_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A synthesis report: JSON with fmax_mhz, in place of --clock.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ddr3-1600, ddr4-3200 (default), lpddr5-6400 or hbm2-u280."),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/S", help="Bandwidth of another memory, 1 GB = 10^9 bytes.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(metavar="NS", help="Its latency; an assumption, by default 100.")
    ] = None,
    group: GroupOption = 128,
    asymmetric: AsymmetricFlag = False,
    attention: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="Attention's products: core-int8 or core-int4 (bits of keys and values), host or skip."
        ),
    ] = "core-int8",
    lm_head: Annotated[
        str,
        typer.Option(metavar="HOW", help="lm_head: int4 (dense INT4), pruned (like the blocks), fp16-host or skip."),
    ] = "int4",
    energy_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A report of nimble energy, for joules a token.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots to this file; no network.")
    ] = None,
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


@app.command(
    cls=Command,
    epilog=examples(
        "nimble validate",
        "nimble validate --layers q_proj --patterns dense,2:4 --tokens 1 -o validation.json",
        "nimble validate --preset wide --memory ddr4-3200 --outputs 256 --json",
    ),
)
def validate(
    preset: PresetOption = None,
    config: ConfigOption = None,
    model: ModelOption = "llama-7b",
    layers: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="Kinds of layers.")
    ] = "q_proj,gate_proj,down_proj",
    patterns: Annotated[
        str, typer.Option(metavar="N:M[,N:M...]", help="Patterns, each for every layer.")
    ] = "dense,2:4,3:4,1:4",
    tokens: Annotated[str, typer.Option(metavar="T[,T...]", help="Rows of the activations.")] = "1,16",
    memory: Annotated[
        str, typer.Option(metavar="NAME", help="Memory behind the streams, or none: words are always there.")
    ] = "none",
    clock: Annotated[
        float, typer.Option(metavar="MHZ", help="Clock that the memory's figures are turned into cycles with.")
    ] = 500.0,
    outputs: Annotated[
        int | None, typer.Option(metavar="O", help="Take only the first O output features of each layer.")
    ] = None,
    group: GroupOption = 128,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of weights and activations.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Keep each finished run here, and go on from there."),
    ] = None,
    json_output: JsonFlag = False,
) -> Report:
    """Run whole layers through the verilated core and compare cycles, causes and results with the models'.

    Without options, LLaMA-7B's layers on the edge core, which takes some minutes. With -o, it may be stopped at
    any time: the same command goes on where it was.
    """
    from flows.layer_views import validation_view
    from flows.validate import Plan, memory_named, numbers_of
    from flows.validate import validate as run_validation
    from quant import NMPattern

    core = choose_core(preset, config)
    plan = Plan(
        core.name,
        core.config,
        model=model,
        layers=tuple(name.strip() for name in layers.split(",")),
        patterns=tuple(NMPattern.parse(item) for item in patterns.split(",")),
        tokens=numbers_of(tokens, "tokens"),
        outputs=outputs,
        group_size=group,
        seed=seed,
        memory=memory_named(memory),
        clock_mhz=clock,
    )
    validation = run_validation(plan, output)
    return Report(
        validation.document(), validation_view(validation), exit_code=EXIT_OK if validation.match else EXIT_MISMATCH
    )


@app.command(
    cls=Command,
    epilog=examples("nimble bench", "nimble bench --preset tiny --outputs 8 --json"),
)
def bench(
    preset: PresetOption = None,
    config: ConfigOption = None,
    inputs: Annotated[
        int | None, typer.Option(metavar="K", help="Input features; by default 4096, or what the core takes.")
    ] = None,
    outputs: Annotated[int, typer.Option(metavar="O", help="Output features.")] = 1024,
    tokens: Annotated[int, typer.Option(metavar="T", help="Rows of the activations.")] = 16,
    json_output: JsonFlag = False,
) -> Report:
    """Time our verilated core beside PyMTL3's own Verilator import of it, in one process.

    Without --preset and --config it is the edge core. Results are compared with PyTorch's; times depend
    on the machine and its load.
    """
    core = choose_core(preset, config)

    from flows.bench import benchmark
    from flows.views import bench_view

    timed = benchmark(core.name, core.config, inputs or min(4096, core.config.k_max), outputs, tokens)
    return Report(timed.document(), bench_view(timed), exit_code=EXIT_OK if timed.match else EXIT_MISMATCH)


@app.command(cls=Command, epilog=examples("nimble demo", "nimble demo --json"))
def demo(json_output: JsonFlag = False) -> Report:
    """Show the chain on LLaMA-7B: its layers, a full matrix on the verilated core, and tokens per second.

    The first run compiles the edge core, which takes about a minute.
    """
    from flows.demo import demonstrate
    from flows.views import demo_view

    shown = demonstrate()
    return Report(shown.document(), demo_view(shown), exit_code=EXIT_OK if shown.match else EXIT_MISMATCH)


app.command(
    cls=Command,
    epilog=examples(
        "nimble quantize ./my-model -o packed --max-loss 0.5%",
        "nimble quantize ./my-model -o packed --max-loss 1% --objective cycles --memory lpddr5-6400 --text my.txt",
        "nimble quantize ./my-model -o packed --pattern 2:4 --group 64",
        "nimble quantize ./my-model -o for-vllm --recipe packed/recipe.toml --format compressed-tensors",
    ),
)(quantize)
register_models(app)
register_accuracy(app)
register_synth(app)
register_explore(app)
register_energy(app)


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
