"""A model on disk, pruned and quantised by hand or by a search, and written for the accelerator or for other tools.

Three texts are drawn that share no token: one calibrates the layers, one tells a search how much each layer alone
would cost, and one, which neither has seen, judges the whole model before and after. A run keeps what it has finished
in a work folder, goes on from there when it is started again, and removes it at its end.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from accel.packed_checkpoint import write_packed
from flows.layer_costs import LayerCosts, Pass
from flows.quantization import LayerResult, Quantization, relative, settings_document
from flows.quantize_options import PACKED, Aim, Job, sample_length
from flows.recipe import Recipe
from flows.stored_model import COMPANIONS
from flows.terminal import progress
from quant import LayerSettings
from quant.atomic_file import write_text
from quant.blocks import BlockModel
from quant.formats.compressed_tensors_folder import write_compressed_tensors
from quant.judgement import Rise, rise_of, sample_losses
from quant.model_folder import ModelFolder
from quant.quantize_model import quantize_model
from quant.quantized_model import QuantizedModel
from quant.run_folder import RunFolder
from quant.search import Choice, Search, search_choice
from quant.sensitivity import Sensitivities, measure_sensitivities
from quant.text import read_tokens


def quantize_by_hand(job: Job, recipe: Recipe, others: Mapping[str, Any], awq: bool = False) -> Quantization:
    """Quantise a model by a recipe and write it.

    Parameters
    ----------
    others
        Fields of `LayerSettings` for what the recipe leaves out.
    awq
        Whether input features are scaled first, unless the recipe says.

    Raises
    ------
    ValueError
        If the model, the recipe or the text is not possible, or the work folder belongs to another run.
    PatternBreach
        If a layer breaks its pattern at any stage.
    OSError
        If a file cannot be read or written.
    """
    run = _Run(job, Pass())
    recipe.check(run.folder.linears)
    choice = {name: recipe.rule_of(name).settings(others) for name in run.folder.linears}
    if all(settings is None for settings in choice.values()):
        raise ValueError(f"{recipe.name} leaves every layer float; nothing would be quantised.")
    run.costs.check(choice.items())
    scaled = awq if recipe.awq is None else recipe.awq
    with run.working():
        before = run.judge("Perplexity of the float model", run.float_model)
        model = run.quantize(choice, scaled)
        rise = rise_of(before, run.judge("Perplexity of the quantised model", BlockModel(model)))
        result = run.result(choice, model, scaled, before, rise)
        run.export(model, choice, result)
    return result


def quantize_automatically(job: Job, aim: Aim) -> Quantization:
    """Choose each layer's settings by a search, quantise the model so and write it.

    Raises
    ------
    ValueError
        If the model, a candidate or the text is not possible, no choice keeps to the allowed rise, or the work
        folder belongs to another run.
    PatternBreach
        If a layer breaks its pattern at any stage.
    OSError
        If a file cannot be read or written.
    """
    run = _Run(job, aim.counted)
    run.costs.check((name, one) for name in run.folder.linears for one in aim.candidates)
    cost = run.costs.of(aim.objective)
    with run.working():
        before = run.judge("Perplexity of the float model", run.float_model)
        sensitivities = run.measure_layers(aim, cost)
        allowed = math.log1p(aim.max_loss)

        def measure(choice: Choice) -> Rise:
            return run.try_choice(choice, before, allowed)

        search = search_choice(sensitivities, cost, allowed, measure, aim.rounds)
        best = search.best
        if best is None:
            least = min(relative(trial.measured.mean) for trial in search.trials)
            raise ValueError(
                f"No choice keeps to a rise of {aim.max_loss:.3%}: the smallest that was measured, in "
                f"{len(search.trials)} trials, is {least:.3%}; allow more. What was measured is kept in "
                f"{job.work_folder}."
            )
        model = run.quantize(best.choice, awq=False)
        result = run.result(best.choice, model, False, before, best.measured, sensitivities, aim, search)
        run.export(model, best.choice, result)
    return result


class _Run:
    """One run: what its steps share."""

    def __init__(self, job: Job, counted: Pass) -> None:
        self.job = job
        self.folder = ModelFolder.open(job.model)
        if self.folder.quantization is not None:
            raise ValueError(f"{job.model} is quantised already; give the folder of the float model.")
        self.costs = LayerCosts(self.folder, job.core.config, counted)
        self.length = sample_length(self.folder.config, job.model, job.length)
        self.calibration = self._tokens(job.samples, "calibration")
        self.judging = self._tokens(job.held_out, "evaluation")

    def _tokens(self, samples: int, part: str) -> torch.Tensor:
        return read_tokens(self.folder, self.job.text, samples, self.length, self.job.seed, part)

    @property
    def held_out(self) -> torch.Tensor:
        """Samples of the part of the text that is not calibrated on, without those that judge."""
        # Of one seed, few samples are among many.
        return without(self._tokens(2 * self.job.held_out, "evaluation"), self.judging)

    @cached_property
    def float_model(self) -> BlockModel:
        return BlockModel(self.folder)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the work folder, which goes away at the end unless the run is stopped."""
        work = RunFolder(self.job.work_folder, {"what": "nimble quantize"})
        try:
            yield
            shutil.rmtree(work.path)
        finally:
            work.close()

    def judge(self, title: str, model: BlockModel) -> torch.Tensor:
        """Losses of the samples that judge."""
        with progress(title, total=model.blocks) as bar:
            return sample_losses(model, self.judging, progress=lambda done, blocks: bar.advance())

    def measure_layers(self, aim: Aim, cost: Callable[[str, LayerSettings | None], int]) -> Sensitivities:
        with progress("Measuring layers", total=len(self.folder.linears)) as bar:
            return measure_sensitivities(
                self.folder,
                aim.candidates,
                self.calibration,
                self.held_out,
                cost,
                self.job.work_folder / "sensitivities",
                progress=lambda name: bar.advance(),
            )

    def quantize(self, choice: Choice, awq: bool) -> QuantizedModel:
        with progress("Quantising layers", total=sum(settings is not None for settings in choice.values())) as bar:
            done = 0

            def advance(finished: int, layers: int) -> None:
                nonlocal done
                bar.advance(finished - done)
                done = finished

            return quantize_model(
                self.folder, choice.get, self.calibration, self._quantised(choice, awq), awq, self.job.seed, advance
            )

    def _quantised(self, choice: Choice, awq: bool) -> Path:
        return self.job.work_folder / f"quantised-{_digest(choice, awq)}"

    def try_choice(self, choice: Choice, before: torch.Tensor, allowed: float) -> Rise:
        """Rise of the loss with a choice for the whole model; what was tried before is not tried again."""
        record = self.job.work_folder / f"trial-{_digest(choice, awq=False)}.json"
        judged_by = hashlib.sha256(self.judging.numpy().tobytes()).hexdigest()
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            if found["judged_by"] == judged_by:
                return Rise(found["mean"], found["error"])
        model = self.quantize(choice, awq=False)
        rise = rise_of(before, self.judge("Perplexity of a trial", BlockModel(model)))
        write_text(record, json.dumps({**rise._asdict(), "judged_by": judged_by}))
        if rise.mean > allowed:
            shutil.rmtree(self._quantised(choice, awq=False))
        return rise

    def result(
        self,
        choice: Choice,
        model: QuantizedModel,
        awq: bool,
        before: torch.Tensor,
        measured: Rise,
        sensitivities: Sensitivities | None = None,
        aim: Aim | None = None,
        search: Search | None = None,
    ) -> Quantization:
        layers = []
        for name, settings in choice.items():
            rise = None
            if sensitivities is not None and settings is not None:
                rise = sensitivities.layers[name][settings].rise
            layers.append(
                LayerResult(
                    name,
                    settings,
                    self.costs.weights(name),
                    self.costs.bits(name, settings),
                    model.errors.get(name),
                    rise,
                )
            )
        return Quantization(
            job=self.job,
            awq=awq,
            length=self.length,
            layers=tuple(layers),
            float_bits=sum(self.costs.bits(name, None) for name in choice),
            float_loss=float(before.mean()),
            measured=measured,
            aim=aim,
            search=search,
        )

    def export(self, model: QuantizedModel, choice: Choice, result: Quantization) -> None:
        """Write the model; the writers read it again and check every pattern before it gets its name."""
        job = self.job
        extra = {name: (job.model / name).read_bytes() for name in COMPANIONS if (job.model / name).is_file()}
        extra["recipe.toml"] = Recipe.of_choices("recipe.toml", choice, result.awq).to_toml().encode()
        extra["report.json"] = (json.dumps(result.document(), indent=2, allow_nan=False) + "\n").encode()
        packed = job.format == PACKED
        layers = len(model.layers)
        with progress("Writing layers", total=layers + (len(model.tensors) if packed else layers)) as bar:

            def advance(name: str) -> None:
                bar.advance()

            if packed:
                core = job.core.config
                write_packed(job.output, model.layers, model.tensors, model.config, core, extra, progress=advance)
            else:
                write_compressed_tensors(job.output, model.layers, model.tensors, model.config, extra, progress=advance)


def without(many: torch.Tensor, few: torch.Tensor) -> torch.Tensor:
    """The rows of `many` that are left when those of `few`, which are among them in the same order, are taken out."""
    rest, following = [], iter([*few, None])
    row_of_few = next(following)
    for row in many:
        if row_of_few is not None and torch.equal(row, row_of_few):
            row_of_few = next(following)
        else:
            rest.append(row)
    return torch.stack(rest)


def _digest(choice: Choice, awq: bool) -> str:
    text = json.dumps([awq, {name: settings_document(settings) for name, settings in choice.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
