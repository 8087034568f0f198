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

from flows.cli_accuracy import register as register_accuracy
from flows.cli_energy import register as register_energy
from flows.cli_estimate import register as register_estimate
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
from flows.workload_options import MODEL_SOURCES, AsymmetricFlag, GroupOption, ModelOption

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


register_estimate(app)


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
