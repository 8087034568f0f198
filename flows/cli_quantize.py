"""The `nimble quantize` command line, apart from the others for its many options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.core_choice import ConfigOption, PresetOption, choose_core
from flows.terminal import JsonFlag, Report, given_options
from flows.workload_options import AsymmetricFlag, GroupOption

#: Settings that a search chooses from, as `flows.quantize_options.read_candidates` reads them: those that fit the core.
CANDIDATES = "dense/128,dense/32,3:4,4:8,2:4,1:4"

#: Options that have a meaning only for a search, or only by hand.
_OF_SEARCH = ("candidates", "objective", "rounds")
_OF_CYCLES = ("prefill", "decode", "clock", "memory", "bandwidth", "latency")
_BY_HAND = ("pattern", "recipe", "awq")


def quantize(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A transformers folder with safetensors weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder to make.")],
    max_loss: Annotated[
        str | None,
        typer.Option(
            metavar="P%",
            help="Choose every layer's settings for the smallest model whose perplexity rises by at most P%.",
        ),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="One pattern for all layers, or dense: n kept weights of every m.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file with the settings of each layer; see the guide.")
    ] = None,
    group: GroupOption = 128,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="joint, or what finds the mask and then the codes: sparsegpt, wanda or magnitude, and -gptq or -rtn.",
        ),
    ] = "joint",
    asymmetric: AsymmetricFlag = False,
    scale_bits: Annotated[int, typer.Option(metavar="BITS", help="Bits of a group's scale: 8 or 16.")] = 8,
    no_clip: Annotated[bool, typer.Option("--no-clip", help="Leave groups' ranges as wide as their weights.")] = False,
    awq: Annotated[bool, typer.Option("--awq", help="Scale input features first, by AWQ.")] = False,
    candidates: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="What --max-loss chooses from: pattern, pattern/group or pattern/group/method of each."
        ),
    ] = CANDIDATES,
    objective: Annotated[
        str, typer.Option(metavar="WHAT", help="What --max-loss makes small: size or cycles.")
    ] = "size",
    rounds: Annotated[int, typer.Option(metavar="R", help="Whole models that --max-loss tries.")] = 4,
    prefill: Annotated[int, typer.Option(metavar="P", help="For cycles: tokens of the prompt, in one pass.")] = 128,
    decode: Annotated[int, typer.Option(metavar="D", help="For cycles: tokens after it, one a pass.")] = 32,
    clock: Annotated[
        float | None, typer.Option(metavar="MHZ", help="For cycles: the core's clock, by default 500.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="NAME", help="For cycles: the memory, as for nimble estimate.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/S", help="For cycles: bandwidth of another memory.")
    ] = None,
    latency: Annotated[float | None, typer.Option(metavar="NS", help="For cycles: its latency.")] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="UTF-8 text; by default the one that ships with CPython.")
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples of the text that calibrate.")] = 64,
    held_out: Annotated[
        int, typer.Option("--held-out", metavar="N", help="Other samples that losses are measured on.")
    ] = 16,
    length: Annotated[
        int | None,
        typer.Option(metavar="L", help="Tokens of a sample; by default 512, or fewer if the model ends there."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the samples.")] = 0,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where unfinished work is kept; by default a hidden folder beside OUT."),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="packed (the core's streams) or compressed-tensors.")
    ] = "packed",
    preset: PresetOption = None,
    config: ConfigOption = None,
    json_output: JsonFlag = False,
) -> Report:
    """Prune and quantise a model's linear layers to N:M INT4, by hand or within an allowed loss.

    Give --max-loss to have every layer's settings chosen by measurement, or --pattern or --recipe to set them. A run
    that was stopped goes on where it was when it is started again. OUT also gets recipe.toml, which --recipe takes
    here and in nimble estimate, and report.json.
    """
    _check_options(ctx, objective)
    core = choose_core(preset, config)

    from flows.layer_costs import OBJECTIVES, Pass
    from flows.memories import choose_clock, choose_memory
    from flows.quantize_options import Aim, Job, fitting_candidates, read_candidates, read_max_loss
    from flows.recipe import Recipe, read_recipe
    from quant import LayerSettings, NMPattern

    job = Job(
        model,
        output,
        core,
        text=text,
        samples=samples,
        held_out=held_out,
        length=length,
        seed=seed,
        work=work,
        format=format,
    )
    others: dict[str, Any] = {
        "group_size": group,
        "method": method,
        "symmetric": not asymmetric,
        "scale_bits": scale_bits,
        "clip": not no_clip,
    }
    LayerSettings(NMPattern(1, 1), **others)  # a sentence of its own for what no pattern can have
    if max_loss is None:
        chosen = read_recipe(recipe) if recipe is not None else Recipe.uniform(NMPattern.parse(str(pattern)))
        from flows.quantize import quantize_by_hand

        finished = quantize_by_hand(job, chosen, others, awq)
    else:
        if objective not in OBJECTIVES:
            raise ValueError(f"--objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
        settings = read_candidates(candidates, others)
        counted = Pass(prefill, decode, choose_clock(clock), choose_memory(memory, bandwidth, latency))
        allowed = read_max_loss(max_loss)
        if candidates == CANDIDATES:
            settings = fitting_candidates(settings, core)
        from flows.quantize import quantize_automatically

        finished = quantize_automatically(job, Aim(allowed, settings, objective, counted, rounds))

    from flows.quantize_views import quantization_view

    return Report(finished.document(), quantization_view(finished))


def _check_options(ctx: typer.Context, objective: str) -> None:
    """Refuse options that contradict each other, or that the chosen way of working has no use for."""
    given = given_options(ctx)
    ways = [f"--{name.replace('_', '-')}" for name in ("max_loss", "pattern", "recipe") if name in given]
    if not ways:
        raise ValueError(
            "Nothing says how to quantise; give --max-loss 0.5% to have each layer's settings chosen, --pattern 2:4 "
            "to set them for all layers, or --recipe with a file that sets them for each."
        )
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} were given; settings come from one of them.")
    if "max_loss" in given:
        useless = [name for name in _BY_HAND if name in given]
        needed = "--pattern or --recipe"
        if not useless and objective != "cycles":
            useless, needed = [name for name in _OF_CYCLES if name in given], "--objective cycles"
    else:
        useless, needed = [name for name in (*_OF_SEARCH, *_OF_CYCLES) if name in given], "--max-loss"
    if useless:
        raise ValueError(f"--{useless[0].replace('_', '-')} has a meaning with {needed} only.")
