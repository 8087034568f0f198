"""What `nimble explore` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel.config import ANY_PATTERN
from flows.area_model import HeldOut
from flows.area_points import AreaPoints
from flows.explore import Exploration, Priced
from flows.info import pattern_name
from flows.views import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Cores of a front that are shown; the page and the JSON have all.
_MOST_ROWS = 24

#: Reasons that are shown.
_MOST_REASONS = 5


def exploration_view(explored: Exploration) -> list[RenderableType]:
    """What was counted and left out, a front for each pattern, and what the figures rest on."""
    plan = explored.plan
    work = plan.workload
    parts: list[RenderableType] = [
        f"{explored.model} at {work.clock.mhz:g} MHz on {work.memory.name}, {work.memory.bandwidth_gb_s:g} GB/s; "
        f"prefill {work.prefill}, decode {work.decode}, batch {work.batch}\n{_counts(explored)}"
    ]
    parts += [f"  {count} × {reason}" for reason, count in explored.invalid[:_MOST_REASONS]]
    parts += [f"  {count} × {reason}" for reason, count in explored.unable[:_MOST_REASONS]]
    if not explored.priced:
        parts.append("No core is left.")
    else:
        parts += [_front(explored, pattern_name(pattern), explored.front(pattern)) for pattern in plan.patterns]
    return [*parts, *explored.assumptions]


def _counts(explored: Exploration) -> str:
    plan = explored.plan
    invalid, unable = (sum(count for _, count in found) for found in (explored.invalid, explored.unable))
    return (
        f"{len(plan.grid):,} cores in the grid: {invalid:,} not possible, {explored.over_luts:,} above {plan.luts:,} "
        f"LUTs, {explored.over_bram:,} of the others above {plan.bram:,} block RAMs, {unable:,} do not run the model, "
        f"{len(explored.priced):,} priced."
    )


#: Parameters in a row: heading, and name in `CoreConfig`.
_SHOWN = (
    ("R", "rows"),
    ("C", "columns"),
    ("L", "lanes"),
    ("W", "window"),
    ("ch", "drain_chains"),
    ("tl", "weight_tiles"),
    ("sl", "slice_bytes"),
    ("acts", "act_words"),
)


def _front(explored: Exploration, pattern: str, front: list[Priced]) -> Any:
    objectives = explored.objectives
    beaten = len(explored.priced) - len(front)
    table = table_of(
        f"{pattern}: {len(front)} cores by LUTs and {objectives[0]} tokens/s; each of the other {beaten:,} has one of "
        "them that is smaller and no slower, or faster and no larger",
        [],
        ["LUT", "DSP", "BRAM", *(heading for heading, _ in _SHOWN), "runs", *objectives, "Mcycles"],
    )
    for core in front[:_MOST_ROWS]:
        speeds = core.speeds[pattern]
        table.add_row(
            f"{core.area.lut:,}",
            str(core.area.dsp),
            str(core.area.bram),
            *(str(getattr(core.config, name)) for _, name in _SHOWN),
            "any" if core.config.patterns == ANY_PATTERN else "list",
            *(_figure(speeds[name]["tokens_per_second"]) for name in objectives),
            _figure(speeds[objectives[0]]["cycles"] / 1e6),
        )
    if len(front) > _MOST_ROWS:
        table.caption = f"and {len(front) - _MOST_ROWS} larger ones: see -o, --json or --html"
    return table


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def measured_view(points: AreaPoints, errors: HeldOut | None, dropped: int, file: str) -> list[RenderableType]:
    """What was measured, and how well the model fits it."""
    tools = ", ".join(tool["version"] for tool in points.tools)
    parts: list[RenderableType] = []
    if dropped:
        parts.append(f"{dropped} cores of other sources than this version's were dropped.")
    parts.append(f"{file} holds {len(points.points)} synthesised cores ({tools}).")
    if errors is not None:
        parts.append(
            f"Area model on cores left out of the fit ({errors.folds} turns): off by {100 * errors.median:.1f} % "
            f"(median), at most {100 * errors.worst:.1f} %; the rules miss the multiplier blocks of "
            f"{errors.dsp_misses} and the block RAMs of {errors.bram_misses}."
        )
    return parts
