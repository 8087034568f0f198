"""What ``nimble accuracy`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.info import pattern_name
from flows.views import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.accuracy import Accuracy


def accuracy_view(measured: Accuracy) -> list[RenderableType]:
    """Return the perplexities of every pattern under every method, beside the float model's."""
    plan = measured.plan
    text = "the text that ships with CPython" if plan.text is None else str(plan.text)
    codes = "symmetric" if plan.symmetric else "with zero points"
    table = table_of(
        f"{plan.model}, INT4 {codes}, groups of {plan.group_size}",
        ["pattern", "method"],
        ["perplexity\n(median)", "lowest to highest", "beside\nfloat"],
        padding=(0, 1),
        caption=f"{measured.predicted:,} tokens from the last fifth of {text}; calibrated on {plan.samples} samples "
        f"of {plan.length} tokens, seeds {', '.join(map(str, plan.seeds))}",
    )
    table.add_row("float", "", f"{measured.float_perplexity:.4f}", "", "")
    for number, row in enumerate(measured.rows):
        if number == 0 or row.pattern != measured.rows[number - 1].pattern:
            table.add_section()
        table.add_row(
            pattern_name(row.pattern),
            row.name,
            f"{row.median:.4f}",
            f"{min(row.perplexities):.4f} to {max(row.perplexities):.4f}",
            f"{row.median / measured.float_perplexity - 1:+.2%}",
        )
    return [table]
