"""What commands print for people: tables and sentences made from a flow's results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from flows.info import FP16_BITS, pattern_name

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.bench import Benchmark
    from flows.demo import Demonstration, MatrixRun
    from flows.estimate import Estimate, Estimates, Total
    from flows.info import PatternFacts
    from flows.model_trace import ModelTrace
    from flows.simulate import LayerSimulation, Simulation
    from flows.verify import Verification


def table_of(title: str, left: Sequence[str], right: Sequence[str], **options: Any) -> Table:
    """Return an empty table whose first columns are text and whose other ones are numbers."""
    # Ten columns have to fit a terminal of 80: no rules between them, and no padding.
    narrow = {"box": box.SIMPLE_HEAD, "padding": 0, "pad_edge": False}
    # Text, not str: a directory's name may look like markup.
    table = Table(title=Text(title), **{**narrow, **options})
    for heading in left:
        table.add_column(heading, overflow="fold", min_width=7)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def facts_table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Return a table of names and what they stand for."""
    table = table_of(title, ["", ""], [], show_header=False, box=box.HEAVY_HEAD, padding=(0, 1), pad_edge=True)
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def trace_view(traced: ModelTrace) -> list[RenderableType]:
    """The distinct products of a model, its KV cache, and what its trace leaves out."""
    macs = traced.macs_per_token
    layers = table_of(
        f"{traced.model}: {len(traced.layers)} linear layers, {traced.facts.num_hidden_layers} blocks",
        ["layer"],
        ["K (in)", "O (out)", "bias", "count", "tokens", "MAC"],
        caption=f"MAC per token: {macs.blocks:,} in the blocks, {macs.lm_head:,} in the head",
    )
    for shape in traced.distinct():
        layers.add_row(
            ", ".join(shape.kinds),
            f"{shape.in_features:,}",
            f"{shape.out_features:,}",
            "yes" if shape.bias else "no",
            str(shape.count),
            f"{shape.tokens:,}",
            f"{shape.macs:,}",
        )
    view: list[RenderableType] = [layers]
    if traced.attention:
        view += [_attention_table(traced), _kv_cache_table(traced)]
    if traced.layers_on_cache:
        view.append(
            f"Growing with the context, as they run on what is cached: {len(traced.layers_on_cache)} linear layers "
            f"(first: {traced.layers_on_cache[0]})"
        )
    return [*view, *(f"Not included: {exclusion}" for exclusion in traced.excludes)]


def _attention_table(traced: ModelTrace) -> Table:
    sequences = "1 sequence" if traced.batch == 1 else f"each of {traced.batch:,} sequences"
    table = table_of(
        f"Attention of {sequences}: new tokens {traced.tokens:,}, cached {traced.context:,}",
        ["product"],
        ["heads", "KV heads", "head dim", "tokens", "keys", "count", "MAC"],
        caption=f"MAC of attention: {traced.attention_macs:,}, masked ones included",
    )
    for product, count in traced.distinct_attention():
        table.add_row(
            {"qk": "Q·Kᵀ", "pv": "P·V"}[product.kind],
            str(product.heads),
            str(product.kv_heads),
            str(product.head_dim),
            f"{product.tokens:,}",
            f"{product.context:,}",
            str(count),
            f"{count * product.macs:,}",
        )
    return table


def _kv_cache_table(traced: ModelTrace) -> Table:
    widths = (16, 8, 4)
    table = table_of(
        "KV cache in bytes, without scales",
        ["KV cache"],
        ["values", *(f"{bits} bits" for bits in widths)],
    )
    for what, values, size in (
        ("of one token", traced.kv_values_per_token, traced.kv_bytes_per_token),
        ("after this pass", traced.kv_values, traced.kv_bytes),
    ):
        table.add_row(what, f"{values:,}", *(f"{size(bits):,}" for bits in widths))
    return table


def info_view(document: dict[str, Any], facts: Sequence[PatternFacts]) -> list[RenderableType]:
    """A core's parameters and derived widths side by side, and its patterns."""
    parameters = document["parameters"]
    core = table_of(
        f"{document['core']}: {parameters['rows']} × {parameters['columns']} PEs, "
        f"{parameters['lanes']} lanes each, "
        f"{document['macs_per_cycle']:,} MAC/cycle",
        ["parameter", "value", "derived", "value"],
        [],
    )
    given = [(name, _plain(value)) for name, value in parameters.items()]
    derived = [(name, _plain(value)) for name, value in document["derived"].items()]
    for index in range(max(len(given), len(derived))):
        core.add_row(*(given[index : index + 1] or [("", "")])[0], *(derived[index : index + 1] or [("", "")])[0])
    patterns = table_of(
        f"Patterns (INT4 weights, {8 if parameters['scale_bits'] <= 8 else 16}-bit scales, symmetric)",
        ["pattern", "code"],
        ["group", "steps\n/group", "lane use", "MAC/cycle\nas dense", "bits\n/weight", "less than\nFP16"],
        caption="MAC/cycle as dense: what a dense core would have to do for the same product",
    )
    for fact in facts:
        patterns.add_row(
            fact.pattern,
            fact.code,
            str(fact.group),
            str(fact.steps),
            f"{fact.lane_use:.1%}",
            f"{fact.dense_macs_per_cycle:,.{0 if fact.dense_macs_per_cycle >= 100 else 1}f}",
            f"{fact.bits_per_weight:.4f}",
            f"{fact.ratio_to_fp16:.2f}×",
        )
    return [core, patterns]


def verify_view(verification: Verification) -> list[RenderableType]:
    """Whether the levels agreed, and on what; or what failed and how to see it again."""
    campaign = verification.campaign
    levels = ", ".join(campaign.levels)
    if campaign.failure is not None:
        return [
            f"FAILED at levels {levels}: {campaign.complaint}",
            f"The smallest failing case: {verification.case_file}. Run it again with",
            # On a line of its own, never folded: it is there to be copied.
            Text(verification.replay_command or "", no_wrap=True, overflow="ignore"),
        ]
    if verification.seed is None:
        return [f"The case agrees at levels {levels} ({verification.seconds:.1f} s)."]
    patterns = verification.document()["patterns"]
    reached = sum(1 for count in campaign.reached.values() if count)
    view: list[RenderableType] = [
        f"{campaign.cases} random cases on {verification.core} cores agree at levels {levels}: "
        f"{verification.seconds:.1f} s, seed {verification.seed}."
        if verification.core == "random"
        else f"{campaign.cases} random cases on the {verification.core} core agree at levels {levels}: "
        f"{verification.seconds:.1f} s, seed {verification.seed}.",
        "Patterns (cases): " + ", ".join(f"{pattern} ({count})" for pattern, count in patterns.items()),
        f"Extremes reached: {reached} of {reached + len(campaign.missed)}",
    ]
    if campaign.missed:
        view.append("Not reached: " + ", ".join(campaign.missed))
    return view


def simulation_rows(simulation: Simulation) -> list[tuple[str, str]]:
    """One run, fact by fact."""
    document = simulation.document()
    verdict = f"all {document['results']:,} equal PyTorch's" if simulation.match else f"DIFFER: {simulation.complaint}"
    rows = [
        ("results", verdict),
        (
            "weight stream",
            f"{document['stream_bytes']:,} bytes, {document['bits_per_weight']:.4f} bits/weight, "
            f"{document['ratio_to_fp16']:.2f}× less than FP16 (code: {document['code']})",
        ),
    ]
    if simulation.run.cycles is None:
        return [*rows, ("cycles", f"level {simulation.run.level} has no time")]
    lost = [f"{cause} {count:,}" for cause, count in simulation.run.counters.items() if count]
    return [
        *rows,
        ("cycles", f"{simulation.run.cycles:,} (ideal {document['ideal_cycles']:,})"),
        ("lane use", f"{document['utilisation']:.2%} in the rows at work"),
        ("multiplier use", f"{document['mac_utilisation']:.2%} in all rows, padding not counted"),
        ("cycles by cause", ", ".join(lost)),
        ("simulated", f"in {simulation.seconds:.2f} s, {document['cycles_per_second']:,.0f} cycles/s"),
    ]


def simulation_view(simulated: LayerSimulation) -> list[RenderableType]:
    """A layer's run, and that its numbers are random."""
    gemm = simulated.gemm
    kind = "symmetric" if gemm.symmetric else "asymmetric"
    whole = "" if gemm.out_features == simulated.layer.out_features else f" of {simulated.layer.out_features:,}"
    rows = [
        ("layer", f"{simulated.layer.name} of {simulated.model}"),
        ("shape", f"T = {gemm.tokens:,}, K = {gemm.in_features:,}, O = {gemm.out_features:,}{whole}"),
        (
            "weights",
            f"random (seed {gemm.seed}), {pattern_name(gemm.pattern)}, INT4 {kind}, group {gemm.group_size}",
        ),
        *simulation_rows(simulated.simulation),
    ]
    return [
        facts_table(f"{simulated.core} at level {simulated.simulation.run.level}", rows),
        "The sizes are the layer's own. Weights and activations are random numbers: cycles do not depend on "
        "their values.",
    ]


def estimate_view(estimates: Estimates) -> list[RenderableType]:
    """The phases and layers of a single pattern, a line for each pattern, and what all rest on."""
    first = estimates.estimates[0]
    assumptions = [f"- {sentence}" for sentence in estimates.assumptions]
    single = len(estimates.estimates) == 1
    tables: list[RenderableType] = [*_layers_tables(estimates, first), _phases_table(first), _causes_table(first)]
    return [
        *(tables if single else []),
        comparison_table(estimates),
        _use_table(estimates),
        "Assumptions",
        *(Text(line) for line in assumptions),
        f"Model time: {estimates.model_seconds:.2f} s of the processor, without tracing the model.",
    ]


def comparison_table(estimates: Estimates) -> Table:
    """One line for each pattern or recipe."""
    work = estimates.workload
    table = table_of(
        f"{estimates.trace.model} on {estimates.core}: prefill {work.prefill}, decode {work.decode}, batch "
        f"{work.batch}, {work.clock.mhz:g} MHz, {work.memory.name} ({work.memory.bandwidth_gb_s:g} GB/s)",
        ["pattern"],
        [
            "prefill\nTTFT s",
            "\ntokens/s",
            "\nbound",
            "decode\nTPOT ms",
            "\ntokens/s",
            "\nbound",
            "both\nseconds",
            "atten-\ntion",
            "vs\nfirst",
        ],
        caption="All estimated. TTFT: time to first token. TPOT: time per output token.\n"
        "attention: share of all seconds.",
    )
    reference = estimates.estimates[0].totals["total"].seconds
    for estimate in estimates.estimates:
        totals = estimate.totals
        total = totals["total"]
        table.add_row(
            Text(estimate.recipe.name),
            *_phase_cells(totals.get("prefill"), estimate.ttft_seconds, 1),
            *_phase_cells(totals.get("decode"), estimate.tpot_seconds, 1e3),
            _three_digits(total.seconds),
            f"{total.attention_seconds / total.seconds:.1%}",
            f"{reference / total.seconds:.2f}×",
        )
    return table


def _phase_cells(total: Total | None, seconds: float | None, unit: float) -> list[str]:
    if total is None or seconds is None:
        return ["–"] * 3
    return [_three_digits(unit * seconds), f"{total.tokens_per_second:,.2f}", _short(total.bound)]


def _use_table(estimates: Estimates) -> Table:
    """One line for each pattern or recipe: what the multipliers do, and how near the limit the time is."""
    uses = ["{}\nlane\nuse", "\narray\nuse", "\ndense\nequiv.", "\nover\nlimit"]
    table = table_of(
        "Utilisation, and time over the larger one of the lane limit and the bytes limit",
        ["pattern"],
        ["weights\n\nGB", *(heading.format(phase) for phase in ("prefill", "decode") for heading in uses)],
        caption="Over limit: estimated. All else: exact model. Lane use: of the rows at work.\n"
        "Array use: useful work, of all rows. Dense equivalent: the unpruned model's.",
    )
    for estimate in estimates.estimates:
        totals = estimate.totals
        cells = []
        for phase in ("prefill", "decode"):
            total = totals.get(phase)
            if total is None:
                cells += ["–"] * 4
                continue
            shares = (total.lane_use, total.array_use, total.dense_equivalent)
            cells += [*(_share(share) for share in shares), f"{total.over_limit:.3f}×"]
        table.add_row(Text(estimate.recipe.name), _three_digits(estimate.weight_bytes / 1e9), *cells)
    return table


def _causes_table(estimate: Estimate) -> Table:
    totals = estimate.totals
    causes = list(totals["total"].counters)
    table = table_of(
        f"{estimate.recipe.name}: what the core's cycles go to",
        ["phase"],
        ["Mcycles", *(cause.replace("_", "\n") for cause in causes)],
        caption="Exact model.",
    )
    for phase, total in totals.items():
        shares = [count / total.cycles if total.cycles else None for count in total.counters.values()]
        table.add_row(phase, f"{total.cycles / 1e6:,.1f}", *map(_share, shares))
    return table


def _phases_table(estimate: Estimate) -> Table:
    table = table_of(
        f"{estimate.recipe.name}: where the time goes, in seconds, beside two limits",
        ["phase"],
        [
            "tokens",
            "linear",
            "atten-\ntion",
            "on\nhost",
            "total",
            "lane\nlimit",
            "bytes\nlimit",
            "total over\nlimit",
        ],
        caption="All estimated. Lane limit: each lane of the rows at work multiplies in every cycle.\n"
        "Bytes limit: memory always moves bytes.",
    )
    for phase, total in estimate.totals.items():
        parts = (total.linear_seconds, total.attention_seconds, total.host_seconds, total.seconds)
        limits = (total.lane_limit_seconds, total.bytes_limit_seconds)
        table.add_row(
            phase,
            f"{total.tokens:,}",
            *(_three_digits(value) for value in parts + limits),
            # Both phases together have no one limit: they may be bounded by different ones.
            "" if phase == "total" else f"{total.over_limit:.3f}×",
        )
    return table


def _layers_tables(estimates: Estimates, estimate: Estimate) -> list[Table]:
    tables = []
    for phase, total in estimate.totals.items():
        layers = [layer for layer in estimate.layers if layer.work.phase == phase]
        if not layers:
            continue
        table = table_of(
            f"{phase}: {estimates.trace.model}, {total.tokens} tokens, {estimate.recipe.name} on {estimates.core}",
            ["layer"],
            ["T", "K", "O", "calls", "cycles\n/call", "lane\nuse", "MB\n/call", "ms\n/call", "bound"],
            caption="cycles, lane use and MB: exact model, the mean where the context grows.\n"
            "ms, bound, and what runs on the host: estimated.",
        )
        for layer in layers:
            work = layer.work
            other = "" if work.pattern == estimate.recipe.name else f" ({work.pattern})"
            table.add_row(
                Text(work.name + other),
                f"{work.tokens:,}",
                f"{work.in_features:,.0f}",
                f"{work.out_features:,.0f}",
                f"{work.calls:,}",
                f"{layer.cycles / work.calls:,.0f}" if layer.cycles else "host",
                _share(layer.lane_use),
                _three_digits(layer.bytes / work.calls / 1e6),
                _three_digits(1e3 * layer.seconds / work.calls),
                _short(layer.bound),
            )
        tables.append(table)
    return tables


def _short(bound: str) -> str:
    # The table is to fit 80 columns.
    return "acts" if bound == "activations" else bound


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _three_digits(value: float) -> str:
    """A number with at least three digits that count, as far as three decimals show them."""
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 10 else 3}f}"


def bench_view(benchmark: Benchmark) -> list[RenderableType]:
    """Speeds side by side and their ratio."""
    document = benchmark.document()
    table = table_of(
        f"{document['core']}, {document['pattern']}, {document['tokens']} tokens",
        ["part"],
        ["K", "O", "cycles", "seconds", "cycles/s", "equal to PyTorch"],
    )
    for row in document["runs"]:
        table.add_row(
            row["part"],
            f"{row['in_features']:,}",
            f"{row['out_features']:,}",
            "–" if row["cycles"] is None else f"{row['cycles']:,}",
            f"{row['seconds']:.3f}",
            "–" if row["cycles_per_second"] is None else f"{row['cycles_per_second']:,.0f}",
            "–" if row["match"] is None else ("yes" if row["match"] else "NO"),
        )
    return [
        table,
        f"Our verilated core simulates {document['ratio']:.1f}× as many cycles per second as PyMTL3's "
        f"Verilator import of the same core, in the same process; that import took "
        f"{document['import_build_seconds']:.0f} s to build.",
        f"In Python the cycle level simulates {document['cycle_level_ratio']:,.0f}× as many cycles per second as RTL.",
        f"The timing model takes {document['timing_shapes_per_second']:,.0f} distinct layer shapes a second with "
        f"streams that never hold back, {document['timing_shapes_per_second_with_memory']:,.0f} behind "
        f"{document['timing_memory']}.",
        "Packing takes weights at "
        + ", ".join(f"{rate / 1e6:,.0f} MB/s ({name})" for name, rate in document["packed_bytes_per_second"].items())
        + ", counted in FP16.",
    ]


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def demo_view(demonstration: Demonstration) -> list[RenderableType]:
    """Numbered steps, from the model's layers to its tokens per second."""
    sparse, dense = demonstration.runs
    layer, gemm = demonstration.layer, sparse.gemm
    name = pattern_name(gemm.pattern)
    weights = layer.in_features * layer.out_features
    trace, *_ = trace_view(demonstration.trace)
    verdict = "" if demonstration.match else "\nMISMATCH: the parts of the chain do not agree; see above."
    return [
        f"1. What {demonstration.trace.model} computes. transformers built the model from its configuration "
        "alone, and every linear layer that ran was recorded:",
        trace,
        f"\n2. One whole matrix through the chain. A matrix of {layer.kind}'s size ({layer.out_features:,} × "
        f"{layer.in_features:,}, random weights) was pruned to {name}, quantised to INT4, packed "
        f"({FP16_BITS // 8 * weights:,} bytes in FP16), and run for {gemm.tokens} tokens on the core's own "
        "Verilog, compiled by Verilator:",
        facts_table(f"{name}, group {gemm.group_size}, on {demonstration.core}", _matrix_rows(sparse)),
        "\n3. The same matrix unpruned, on the same core:",
        facts_table(f"dense, group {gemm.group_size}, on {demonstration.core}", _matrix_rows(dense)),
        f"Dense takes {demonstration.cycle_ratio:.3f}× as many cycles as {name}.",
        f"\n4. What that gives for the whole of {demonstration.trace.model}: every layer's cycles, from the "
        "cycle model that steps 2 and 3 were held against, with an assumed clock and memory:",
        comparison_table(demonstration.estimates),
        f"What these numbers assume: nimble estimate --model {demonstration.trace.model} --preset {demonstration.core}",
        f"{verdict}\nTook {demonstration.seconds:.0f} s.",
    ]


def _matrix_rows(run: MatrixRun) -> list[tuple[str, str]]:
    total = f"{run.functional.run.y.size:,}"
    functional = f"all {total} equal PyTorch's" if run.functional.match else f"DIFFER: {run.functional.complaint}"
    timing = f"{run.timing.cycles:,} cycles" + (", the same" if run.timing_matches else ": DIFFERENT")
    return [
        *simulation_rows(run.verilated),
        ("functional model", functional),
        ("cycle model", timing),
    ]
