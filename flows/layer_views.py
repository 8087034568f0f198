"""What is printed of single layers: layer lists beside SCALE-Sim, and the validation table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from flows.info import pattern_name
from flows.views import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.topology import ModelledLayer, TopologyEstimate
    from flows.validate import Row, Validation


def topology_view(estimate: TopologyEstimate) -> list[RenderableType]:
    """The layers, the layers beside the closed forms if there are any, and what all that means."""
    tables = [_layers_table(estimate)]
    if estimate.compare:
        tables.append(_compared_table(estimate))
    return [*tables, *(Text(f"- {sentence}") for sentence in estimate.explanations)]


def _layers_table(estimate: TopologyEstimate) -> Table:
    table = table_of(
        f"{estimate.name} on {estimate.core}, {estimate.multipliers:,} multipliers",
        ["layer"],
        ["T (M)", "K", "O (N)", "pattern", "calls", "cycles\n/call", "lane\nuse", "dense-\nequiv.", "most lost\nto"],
        caption="Exact model.",
    )
    for row in estimate.layers:
        layer = row.layer
        table.add_row(
            Text(layer.name),
            f"{layer.tokens:,}",
            f"{layer.in_features:,}",
            f"{layer.out_features:,}",
            pattern_name(layer.pattern),
            f"{layer.calls:,}",
            f"{row.timing.cycles:,}",
            f"{row.timing.utilisation:.1%}",
            f"{row.dense_use:.1%}",
            row.largest_loss,
        )
    table.add_section()
    for total in estimate.totals():
        table.add_row(
            "total",
            *[""] * 3,
            total["pattern"] if estimate.patterns is not None else "",
            "",
            f"{total['cycles']:,}",
            f"{total['utilisation']:.1%}",
            f"{total['dense_equivalent_utilisation']:.1%}",
            "",
        )
    return table


def _compared_table(estimate: TopologyEstimate) -> Table:
    table = table_of(
        f"Side by side, {estimate.core} and an array of {estimate.array}",
        ["layer", "model"],
        ["pattern", "cycles", "ratio", "useful", "idle", "lost", "vs dense"],
        caption="Ratio: cycles over Nimble's. Useful, idle and lost: of the model's own cycles.",
    )
    for row in estimate.layers:
        name, pattern = Text(row.layer.name), pattern_name(row.layer.pattern)
        table.add_row(name, "nimble", pattern, *_model_cells(row.core, row.timing.cycles))
        for form, model in row.compared.items():
            table.add_row("", form, "", *_model_cells(model, row.timing.cycles))
    table.add_section()
    for total in estimate.totals():
        pattern = total["pattern"] if estimate.patterns is not None else ""
        table.add_row("total", "nimble", pattern, f"{total['cycles']:,}", "1.00×")
        for form, compared in total["compared"].items():
            table.add_row("", form, "", f"{compared['cycles']:,}", f"{compared['ratio']:.2f}×")
    return table


def _model_cells(model: ModelledLayer, reference: int) -> list[str]:
    cycles = model.cycles
    shares = (part / cycles.cycles for part in (cycles.useful, cycles.idle, cycles.lost))
    return [
        f"{cycles.cycles:,}",
        f"{cycles.cycles / reference:.2f}×",
        *(f"{share:.1%}" for share in shares),
        f"{model.speedup:.2f}×",
    ]


def validation_view(validation: Validation) -> list[RenderableType]:
    """A line for each run, and what they come to."""
    plan = validation.plan
    memory = plan.memory
    behind = "streams that never hold back"
    if memory is not None:
        behind = f"{memory.name} ({memory.bandwidth_gb_s:g} GB/s, {memory.latency_ns:g} ns) at {plan.clock_mhz:g} MHz"
    figures = ["RTL\ncycles", "model\ncycles", "differ-\nence"]
    if memory is not None:
        figures = ["RTL\ncycles", "model\ncycles", "RTL\nwritten", "model\nwritten", "differ-\nence"]
    table = table_of(
        f"{plan.model} on the verilated {plan.core} core\n{behind}", ["layer"], ["K×O", "pattern", "T", *figures]
    )
    for row in validation.rows:
        pairs = [row.rtl_cycles, row.model_cycles]
        if row.rtl_written is not None and row.model_written is not None:
            pairs += [row.rtl_written, row.model_written]
        table.add_row(
            row.layer,
            f"{row.in_features}×{row.out_features}",
            row.pattern,
            str(row.tokens),
            *(f"{cycles:,}" for cycles in pairs),
            f"{row.difference:+,}" if row.difference else "0",
        )
    return [table, *_verdicts(validation)]


def _verdicts(validation: Validation) -> list[str]:
    rows = validation.rows
    lines = [
        f"Largest difference: {validation.largest_difference:,} cycles in {len(rows)} runs; "
        f"{validation.cycles:,} cycles simulated in {validation.seconds:.1f} s, "
        f"{validation.cycles / validation.seconds:,.0f} cycles/s."
    ]
    causes = [row for row in rows if row.rtl_counters != row.model_counters]
    wrong = [row for row in rows if row.wrong_results]
    lines.append(f"CAUSES DIFFER: {_named(causes)}." if causes else "Cycles by cause: equal in every run.")
    lines.append(
        f"RESULTS DIFFER from PyTorch's: {_named(wrong)}."
        if wrong
        else f"Results: all {sum(row.results for row in rows):,} equal PyTorch's."
    )
    if validation.kept:
        lines.append(f"{validation.kept} of the runs were finished before.")
    return lines


def _named(rows: Sequence[Row]) -> str:
    return "; ".join(f"{row.layer}, {row.pattern}, {row.tokens} tokens" for row in rows)
