"""What a quantisation came to: each layer's settings and what they cost, and the model before and after."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from flows.info import pattern_name
from flows.quantize_options import Aim, Job
from flows.recipe import FLOAT
from quant import LayerSettings
from quant.judgement import Rise
from quant.search import Search

SCHEMA = "nimble.quantize"
VERSION = 1


@dataclass(frozen=True)
class LayerResult:
    """What became of a linear layer."""

    name: str
    #: None where it stayed float.
    settings: LayerSettings | None
    weights: int
    #: Bits of the stream and the channel scales, or of the float weights.
    bits: int
    #: Relative squared error of its output on the calibration text; None for a float layer.
    error: float | None
    #: Rise of the loss with this layer alone quantised; None where nobody measured it.
    rise: Rise | None

    @property
    def kind(self) -> str:
        """Last part of the name."""
        return self.name.rpartition(".")[2]

    @property
    def block(self) -> int:
        """Index of its block."""
        return next(int(part) for part in self.name.split(".") if part.isdigit())

    def document(self) -> dict[str, Any]:
        """Return one entry of ``layers``."""
        return {
            "name": self.name,
            **settings_document(self.settings),
            "error": self.error,
            "alone": None if self.rise is None else rise_document(self.rise),
            "bits": self.bits,
            "bits_per_weight": self.bits / self.weights,
        }


@dataclass(frozen=True)
class Quantization:
    """A finished run."""

    job: Job
    awq: bool
    length: int
    layers: tuple[LayerResult, ...]
    #: Bits of all these layers in the model's own type.
    float_bits: int
    #: Loss of the float model in nats a token, on text that neither calibrates nor tells a search what to try.
    float_loss: float
    #: How much the quantised model's is above it.
    measured: Rise
    #: Of a search: what was allowed, and all that was tried.
    aim: Aim | None = None
    search: Search | None = None

    @property
    def bits(self) -> int:
        """Bits of all layers."""
        return sum(layer.bits for layer in self.layers)

    @property
    def float_perplexity(self) -> float:
        """Perplexity before."""
        return math.exp(self.float_loss)

    @property
    def perplexity(self) -> float:
        """Perplexity after, with dequantised weights."""
        return math.exp(self.float_loss + self.measured.mean)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble quantize``."""
        job = self.job
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "model": str(job.model),
            "output": str(job.output),
            "format": job.format,
            "core": job.core.name,
            "text": None if job.text is None else str(job.text),
            "samples": job.samples,
            "held_out": job.held_out,
            "length": self.length,
            "seed": job.seed,
            "awq": self.awq,
            "perplexity": {
                "float": self.float_perplexity,
                "quantised": self.perplexity,
                **rise_document(self.measured),
            },
            "bits": self.bits,
            "float_bits": self.float_bits,
            "bits_per_weight": self.bits / sum(layer.weights for layer in self.layers),
            "layers": [layer.document() for layer in self.layers],
            "search": self._search_document(),
        }

    def _search_document(self) -> dict[str, Any] | None:
        if self.aim is None or self.search is None:
            return None
        best = self.search.best
        assert best is not None  # or there was no result
        return {
            "objective": self.aim.objective,
            "allowed": self.aim.max_loss,
            "predicted": relative(best.predicted),
            "measured": relative(best.measured.mean),
            "candidates": [settings_document(settings) for settings in self.aim.candidates],
            "trials": [
                {
                    "cost": trial.cost,
                    "predicted": relative(trial.predicted),
                    "measured": relative(trial.measured.mean),
                    "float_layers": trial.floats,
                }
                for trial in self.search.trials
            ],
        }


def settings_document(settings: LayerSettings | None) -> dict[str, Any]:
    """Return settings as JSON values."""
    if settings is None:
        return {"pattern": FLOAT}
    return {**asdict(settings), "pattern": pattern_name(settings.pattern)}


def rise_document(rise: Rise) -> dict[str, Any]:
    """Return a relative rise of a perplexity and its standard error, which a single sample has none of."""
    error = relative_error(rise)
    return {"rise": relative(rise.mean), "standard_error": error if math.isfinite(error) else None}


def relative_error(rise: Rise) -> float:
    """Standard error of a relative rise."""
    return math.exp(rise.mean) * rise.error


def relative(rise: float) -> float:
    """Relative rise of a perplexity whose logarithm rises by this much."""
    return math.expm1(rise)
