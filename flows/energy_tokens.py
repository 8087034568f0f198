"""Energy of a model's tokens: cycles, busy cycles and multiplications of its layers, times what a measured GEMM took.

The core's part of a layer is ``cycle_pj × cycles + busy_cycle_pj × busy cycles + mac_pj × multiplications``, with the
numbers that `nimble energy` found for the layer's pattern, and cycles and busy cycles of the timing model; cycles in
which the core waits for memory count as cycles. The bytes that memory moves are added. All of it is an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import CoreConfig
from flows.energy import SCHEMA, VERSION, Scaling
from flows.energy_constants import EXTERNAL, read_constants
from flows.estimate import Estimates, LayerEstimate
from flows.views import table_of

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class EnergyReport:
    """What a report of `nimble energy` says of a core."""

    file: str
    target: str
    patterns: Mapping[str, Scaling]

    def core_pj(self, layer: LayerEstimate) -> float:
        """Return what a layer's calls take on the core.

        Raises
        ------
        ValueError
            The report lacks the layer's pattern.
        """
        pattern = layer.work.pattern
        if pattern not in self.patterns:
            raise ValueError(
                f"{self.file} has no energy of the pattern {pattern} ({layer.work.name} needs it); it has "
                f"{', '.join(self.patterns)}. nimble energy --pattern measures others."
            )
        return self.patterns[pattern].core_pj(layer.cycles, layer.counters["busy"], layer.work.lane_macs)


@dataclass(frozen=True)
class PhaseEnergy:
    """Of all tokens of a phase, in joules."""

    tokens: int
    core: float
    external: float

    @property
    def total(self) -> float:
        """Core and memory outside the chip."""
        return self.core + self.external

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the phase."""
        return {
            "tokens": self.tokens,
            "core_joules": self.core,
            "external_joules": self.external,
            "joules": self.total,
            "joules_per_token": self.total / self.tokens,
        }


@dataclass(frozen=True)
class TokenEnergy:
    """Energy of a model's tokens with each of its recipes."""

    report: EnergyReport
    memory: str
    external_pj_per_bit: float
    #: By recipe and phase.
    recipes: Mapping[str, Mapping[str, PhaseEnergy]]

    def assumptions(self) -> list[str]:
        """Return what the figures rest on, as sentences."""
        return [
            f"Estimated: energies of the core are those of {self.report.file} ({self.report.target}), whose constants "
            "were not measured: for a cycle, a busy cycle and a multiplication each, times those of the layers.",
            f"Estimated: a bit that memory ({self.memory}) moves takes {self.external_pj_per_bit:g} pJ; what memory "
            "takes while it moves none is left out, and so is everything on the host but its bytes.",
            "Weights and activations of all layers are taken to change nets as those of the measured GEMM did.",
        ]

    def document(self) -> dict[str, Any]:
        """Return the entry ``energy`` of the JSON object of ``nimble estimate``."""
        return {
            "kind": "estimate",
            "report": self.report.file,
            "target": self.report.target,
            "external_pj_per_bit": self.external_pj_per_bit,
            "patterns": [
                {"pattern": name, "phases": {phase: energy.document() for phase, energy in phases.items()}}
                for name, phases in self.recipes.items()
            ],
            "assumptions": self.assumptions(),
        }

    def view(self) -> list[RenderableType]:
        """Return the table of ``nimble estimate`` for people."""
        phases = list(next(iter(self.recipes.values())))
        table = table_of(
            f"Energy, estimated from {self.report.file}: mJ a token",
            ["pattern"],
            [f"{phase}\n{part}" for phase in phases for part in ("core", "memory", "sum")],
        )
        for name, energies in self.recipes.items():
            table.add_row(
                name,
                *(
                    f"{1e3 * joules / energy.tokens:.4g}"
                    for energy in energies.values()
                    for joules in (energy.core, energy.external, energy.total)
                ),
            )
        return [table, *self.assumptions()]


def read_energy(file: Path, config: CoreConfig) -> EnergyReport:
    """Read a report of `nimble energy`.

    Raises
    ------
    ValueError
        It is no such report, or one of another core.
    OSError
        It cannot be read.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are no UTF-8 among them
        raise ValueError(f"{file} is not JSON: {error}.") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or document.get("version") != VERSION:
        raise ValueError(f"{file} is not a report of nimble energy: its schema is not {SCHEMA}, version {VERSION}.")
    try:
        parameters, target = document["parameters"], str(document["target"])
        patterns = {
            str(entry["pattern"]): Scaling(
                *(float(entry["scaling"][name]) for name in ("cycle_pj", "busy_cycle_pj", "mac_pj"))
            )
            for entry in document["patterns"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a whole report of nimble energy: {error!r}.") from None
    # What JSON has no tuples for.
    mine = json.loads(json.dumps(config.as_dict()))
    if parameters != mine:
        names = sorted({*parameters, *mine} if isinstance(parameters, dict) else mine)
        other = [name for name in names if not isinstance(parameters, dict) or parameters.get(name) != mine.get(name)]
        raise ValueError(f"{file} is a report of another core: {', '.join(other)} differ.")
    return EnergyReport(str(file), target, patterns)


def token_energy(estimates: Estimates, report: EnergyReport) -> TokenEnergy:
    """Return what the tokens of an estimate take.

    Raises
    ------
    ValueError
        The report lacks a layer's pattern, or there is no constant of the memory.
    """
    memory = estimates.workload.memory.name
    bit = read_constants().of(memory, cells=False).pj(f"{EXTERNAL}.{memory}")
    recipes = {}
    for estimate in estimates.estimates:
        recipes[estimate.recipe.name] = {
            phase: PhaseEnergy(
                total.tokens,
                1e-12 * sum(report.core_pj(layer) for layer in total.layers if layer.work.where == "core"),
                1e-12 * 8 * bit * total.bytes,
            )
            for phase, total in estimate.totals.items()
            if phase != "total"
        }
    return TokenEnergy(report, memory, bit, recipes)
