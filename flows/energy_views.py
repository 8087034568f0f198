"""What `nimble energy` prints for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from flows.energy import KINDS, CoreEnergy
from flows.info import pattern_name
from flows.views import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Blocks deeper than this are part of those above them in the table; the JSON has all.
_DEPTH = 2

#: Blocks with a smaller share of the core's energy with every pattern are left out.
_SMALLEST_SHARE = 0.01


def energy_view(energy: CoreEnergy) -> list[RenderableType]:
    """Energy by what it goes to and by block, how it scales, what each constant does, and the assumptions."""
    tool = energy.mapped.yosys
    gemm = energy.gemm
    return [
        f"{energy.core} on {energy.mapped.target.title}, memory {energy.memory}: estimates, no energy was measured\n"
        f"{tool.version} ({tool.origin}); K {gemm.in_features}, O {gemm.out_features}, {gemm.tokens} tokens, group "
        f"{gemm.group_size}, seed {gemm.seed}, {energy.activations} activations",
        _kinds_table(energy),
        _blocks_table(energy),
        _scaling_table(energy),
        _sensitivity_table(energy),
        *(f"{name}: {value.pj:g} pJ. {value.source}. Assumed: {value.assumption}."
          for name, value in energy.constants.values.items()),
        *energy.assumptions(),
    ]  # fmt: skip


def _kinds_table(energy: CoreEnergy) -> Any:
    table = table_of(
        "Estimate: pJ for each multiply-accumulate of the unpruned layer, and for each that is left",
        ["pattern"],
        ["cycles", "clock", "regs", "logic", "mult", "RAM", "core", "memory", "sum", "sum left"],
    )
    for pattern in energy.patterns:
        run = pattern.many
        dense = run.measured.dense_macs
        table.add_row(
            pattern_name(pattern.pattern),
            f"{run.measured.cycles:,}",
            *(f"{run.kinds[kind] / dense:.2f}" for kind in KINDS),
            f"{run.core_pj / dense:.2f}",
            f"{run.external_pj / dense:.2f}",
            f"{run.total_pj / dense:.2f}",
            f"{run.total_pj / run.measured.macs:.2f}",
        )
    return table


def _blocks_table(energy: CoreEnergy) -> Any:
    columns = [_by_block(pattern.many.blocks) for pattern in energy.patterns]
    names = [pattern_name(pattern.pattern) for pattern in energy.patterns]
    table = table_of(
        "Estimate: core, pJ for each multiply-accumulate of the unpruned layer, by block",
        ["block"],
        [*names, *(f"{name} share" for name in names)] if len(names) <= 3 else names,
    )
    wholes = [pattern.many.core_pj for pattern in energy.patterns]
    for place in sorted(columns[0], key=lambda place: -columns[0][place]):
        shares = [column[place] / whole for column, whole in zip(columns, wholes, strict=True)]
        if max(shares) < _SMALLEST_SHARE:
            continue
        each = [
            f"{column[place] / pattern.many.measured.dense_macs:.3f}"
            for column, pattern in zip(columns, energy.patterns, strict=True)
        ]
        percent = [f"{100 * share:.1f} %" for share in shares] if len(names) <= 3 else []
        table.add_row(Text(place.replace("_", " ") or "top"), *each, *percent)
    return table


def _by_block(blocks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for place, kinds in blocks.items():
        above = ".".join(place.split(".")[:_DEPTH])
        sums[above] = sums.get(above, 0.0) + sum(kinds.values())
    return sums


def _scaling_table(energy: CoreEnergy) -> Any:
    table = table_of(
        "Estimate: the core's energy at other sizes, in pJ; error of a run that was not fitted",
        ["pattern"],
        ["a cycle", "a busy cycle", "a multiplication", "check, tokens", "error"],
    )
    for pattern in energy.patterns:
        scaled = pattern.scaling
        table.add_row(
            pattern_name(pattern.pattern),
            f"{scaled.cycle_pj:.1f}",
            f"{scaled.busy_cycle_pj:.1f}",
            f"{scaled.mac_pj:.2f}",
            f"{pattern.check.measured.tokens}",
            f"{100 * pattern.check_error:+.1f} %",
        )
    return table


def _sensitivity_table(energy: CoreEnergy) -> Any:
    names = [pattern_name(pattern.pattern) for pattern in energy.patterns]
    table = table_of("What doubling a constant adds to the sum, memory included", ["constant"], names)
    for constant, shares in energy.sensitivity.items():
        table.add_row(constant, *(f"{100 * shares[name]:+.1f} %" for name in names))
    return table
