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

    from flows.topology import TopologyEstimate
    from flows.validate import Row, Validation


def topology_view(estimate: TopologyEstimate) -> list[RenderableType]:
    """The layers, the layers beside the closed forms if there are any, and what all that means."""
    tables = [_layers_table(estimate)]
    if estimate.side.compare:
        tables.append(_compared_table(estimate))
    return [*tables, *(Text(f"- {sentence}") for sentence in estimate.explanations)]


def _layers_table(estimate: TopologyEstimate) -> Table:
    side = estimate.side
    table = table_of(
        f"{estimate.name} on {side.core}, {'no memory' if side.memory is None else side.memory.name}",
        ["layer"],
        ["T (M)", "K", "O (N)", "pattern", "calls", "cycles\n/call", "lane\nuse", "dense-\nequiv.", "bound"],
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
            f"{row.timing.written:,}",
            f"{row.lane_use:.1%}",
            f"{row.dense_equivalent:.1%}",
            row.bound,
        )
    table.add_section()
    for total in estimate.totals:
        table.add_row(
            *("total", "", "", "", total.pattern, ""),
            f"{total.cycles:,}",
            f"{total.lane_use:.1%}",
            f"{total.dense_equivalent:.1%}",
        )
    return table


def _compared_table(estimate: TopologyEstimate) -> Table:
    side = estimate.side
    table = table_of(
        f"Side by side: {side.core}, and SCALE-Sim's array of {side.compared_array}",
        ["layer", "model"],
        ["pattern", "cycles", "ratio", "useful", "idle", "lost", "vs\ndense"],
        caption="Ratio: cycles over nimble's. Useful, idle, lost: shares of the model's own cycles.",
    )
    # "nimble" has no memory, as the closed forms have none.
    labels = {"nimble-memory": "" if side.memory is None else f"+ {side.memory.name}"}
    for row in estimate.layers:
        first = [row.layer.name, pattern_name(row.layer.pattern)]
        for name, model in row.models.items():
            cycles = model.cycles
            shares = (part / cycles.cycles for part in (cycles.useful, cycles.idle, cycles.lost))
            table.add_row(
                Text(first[0]),
                labels.get(name, name),
                first[1],
                f"{cycles.cycles:,}",
                f"{row.ratio(name):.2f}×",
                *(f"{share:.1%}" for share in shares),
                f"{model.speedup:.2f}×",
            )
            first = ["", ""]
    table.add_section()
    for total in estimate.totals:
        first = ["total", total.pattern]
        for name in total.layers[0].models:
            whole = total.in_model(name)
            table.add_row(
                first[0],
                labels.get(name, name),
                first[1],
                f"{whole['cycles']:,}",
                f"{whole['ratio']:.2f}×",
                *("", "", ""),
                f"{whole['speedup_over_dense']:.2f}×",
            )
            first = ["", ""]
    return table


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
        f"{validation.model} on the verilated {plan.core} core\n{behind}", ["layer"], ["K×O", "pattern", "T", *figures]
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
