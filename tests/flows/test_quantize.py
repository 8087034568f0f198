"""`nimble quantize` on a trained model of two small blocks: what it writes, and that what it says of it is so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from accel.packed_checkpoint import PackedCheckpoint
from flows import cli
from quant import NMPattern, NMWeight
from quant.formats.folder import read_quantized_folder
from quant.model_folder import ModelFolder
from quant.text import read_tokens

#: Options of every run here: few and short samples.
SHORT = ("--samples", 12, "--held-out", 6, "--length", 48, "--group", 16)
#: And of a search.
SEARCH = ("--candidates", "dense/8,dense,2:4,1:4", "--max-loss", "0.4%")


def weight_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def packed_weights(folder: Path) -> dict[str, NMWeight]:
    return {name: linear.weight for name, linear in PackedCheckpoint.open(folder).layers.items()}


def whole_perplexity(model: Path, weights: dict[str, NMWeight]) -> float:
    """By transformers, on the samples of `SHORT` from the evaluation part of the text."""
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    whole = loader.from_pretrained(model, dtype=torch.float32).eval()
    tokens = read_tokens(ModelFolder.open(model), None, 6, 48, 0, "evaluation")
    with torch.no_grad():
        for name, weight in weights.items():
            whole.get_submodule(name).weight.copy_(torch.from_numpy(weight.to_dense()))
        logits = whole(tokens).logits[:, :-1]
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def test_by_hand(trained_model: Path, nimble: Any, nimble_json: Any, tmp_path: Path) -> None:
    output = tmp_path / "out" / "packed"
    document = nimble_json("quantize", trained_model, "-o", output, *SHORT, "--pattern", "2:4", "--asymmetric")
    assert json.loads((output / "report.json").read_text()) == document
    assert [file.name for file in output.parent.iterdir()] == ["packed"]  # the work folder is gone
    weights = packed_weights(output)
    assert tuple(weights) == ModelFolder.open(trained_model).linears
    assert {(weight.pattern, weight.group_size, weight.symmetric) for weight in weights.values()} == {
        (NMPattern(2, 4), 16, False)
    }
    perplexity = document["perplexity"]
    assert perplexity["float"] == pytest.approx(whole_perplexity(trained_model, {}), rel=1e-5)
    assert perplexity["quantised"] == pytest.approx(whole_perplexity(trained_model, weights), rel=1e-5)
    assert perplexity["rise"] == pytest.approx(perplexity["quantised"] / perplexity["float"] - 1)
    assert {layer["pattern"] for layer in document["layers"]} == {"2:4"}
    assert all(0 < layer["error"] < 1 for layer in document["layers"])
    stored = {name: tensor.shape[0] for name, tensor in PackedCheckpoint.open(output).manifest.tensors.items()}
    for layer in document["layers"]:
        assert layer["bits"] == 8 * stored[f"{layer['name']}.stream"] + 32 * stored[f"{layer['name']}.channel_scale"]
    assert document["search"] is None

    # The same again from the recipe that was written, printed for people.
    again = tmp_path / "again"
    result = nimble("quantize", trained_model, "-o", again, *SHORT, "--recipe", output / "recipe.toml")
    assert result.exit_code == 0
    assert weight_files(again) == weight_files(output)
    lines = result.stdout.splitlines()
    assert f"Wrote {again} (packed)." in lines
    assert f"Loss: measured {perplexity['rise']:.3%} ± {perplexity['standard_error']:.3%}." in lines
    rows = [line.split() for line in lines if line.strip().startswith("down_proj")]
    assert [row[:4] for row in rows] == [["down_proj", "0-1", "2:4/16/joint,", "asymmetric"]]


@pytest.fixture(scope="module")
def searched(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What an undisturbed search writes, and the lines that it prints in 80 columns."""
    output = tmp_path_factory.mktemp("searched") / "packed"
    work = output.with_name("work")
    asked = ("quantize", trained_model, "-o", output, *SHORT, *SEARCH, "--work", work)
    result = CliRunner().invoke(cli.app, [str(argument) for argument in asked], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    assert [file.name for file in output.parent.iterdir()] == ["packed"]
    return output, result.stdout.splitlines()


def test_within_an_allowed_loss(
    trained_model: Path, searched: tuple[Path, list[str]], nimble_json: Any, tmp_path: Path
) -> None:
    output, lines = searched
    document = json.loads((output / "report.json").read_text())
    search, layers = document["search"], document["layers"]
    assert search["allowed"] == 0.004
    assert search["measured"] <= 0.004
    assert search["measured"] == pytest.approx(document["perplexity"]["rise"])
    alone = math.fsum(max(0.0, math.log1p(layer["alone"]["rise"])) for layer in layers)
    assert search["predicted"] == pytest.approx(math.expm1(alone))
    kept = [trial for trial in search["trials"] if trial["measured"] <= 0.004]
    assert min(trial["cost"] for trial in kept) == sum(layer["bits"] for layer in layers) == document["bits"]
    perplexity = whole_perplexity(trained_model, packed_weights(output))
    assert document["perplexity"]["quantised"] == pytest.approx(perplexity, rel=1e-5)

    # It says why, within 80 columns.
    assert max(len(line.rstrip()) for line in lines) <= 80
    sentence = "Loss: allowed 0.400%, predicted {predicted:.3%}, measured {measured:.3%} ±".format(**search)
    assert any(line.startswith(sentence) for line in lines)
    for number, trial in enumerate(search["trials"], 1):
        verdict = "too much" if trial["measured"] > 0.004 else "taken" if trial["cost"] == document["bits"] else "kept"
        row = f"{number} {trial['cost'] / 8e6:.3f} {trial['predicted']:.3%} {trial['measured']:.3%} {verdict}"
        assert row in (" ".join(line.split()) for line in lines)
    for layer in layers:
        kind = layer["name"].rpartition(".")[2]
        settings = f" {layer['pattern']}/{layer['group_size']}/joint "
        assert any(line.strip().startswith(kind) and settings in line for line in lines)

    # The recipe gives the same weights again.
    again = tmp_path / "again"
    nimble_json("quantize", trained_model, "-o", again, *SHORT, "--recipe", output / "recipe.toml")
    assert weight_files(again) == weight_files(output)


def test_layers_are_measured_on_samples_of_their_own(trained_model: Path, nimble: Any, tmp_path: Path) -> None:
    import flows.quantize

    seen: list[Any] = []

    def stop(
        folder: Any, settings: Any, calibration: torch.Tensor, held_out: torch.Tensor, *more: Any, **rest: Any
    ) -> None:
        seen.extend([calibration, held_out])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.quantize, "measure_sensitivities", stop)
        nimble("quantize", trained_model, "-o", tmp_path / "packed", *SHORT, *SEARCH)
    folder = ModelFolder.open(trained_model)
    assert torch.equal(seen[0], read_tokens(folder, None, 12, 48, 0, "calibration"))
    assert seen[1].shape == (6, 48)
    assert not {tuple(sample) for sample in seen[0].tolist()} & {tuple(sample) for sample in seen[1].tolist()}


def test_fewest_cycles_are_those_of_an_estimate(trained_model: Path, nimble_json: Any, tmp_path: Path) -> None:
    output = tmp_path / "packed"
    passes = ("--prefill", 3, "--decode", 2, "--memory", "lpddr5-6400", "--clock", 800)
    document = nimble_json("quantize", trained_model, "-o", output, *SHORT, *SEARCH, "--objective", "cycles", *passes)
    estimate = nimble_json(
        *("estimate", "--model", trained_model, "--recipe", output / "recipe.toml", *passes),
        *("--lm-head", "skip", "--attention", "skip"),
    )
    layers = estimate["patterns"][0]["layers"]
    taken = min(trial["cost"] for trial in document["search"]["trials"] if trial["measured"] <= 0.004)
    assert taken == sum(layer["cycles"] * layer["calls"] for layer in layers)
    assert {layer["pattern"] for layer in layers} == {layer["pattern"] for layer in document["layers"]}


def test_float_layers_and_awq_by_a_recipe_for_other_tools(
    trained_model: Path, nimble_json: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "some.toml"
    recipe.write_text(
        'default = "2:4"\nawq = true\n[[layer]]\nmatch = "*.1.mlp.down_proj"\npattern = "float"\n'
        '[[layer]]\nmatch = "o_proj"\npattern = "dense"\ngroup = -1\nmethod = "wanda-rtn"\nclip = false\n'
    )
    documents = {
        name: nimble_json(
            "quantize", trained_model, "-o", tmp_path / name, *SHORT, "--recipe", recipe, "--format", name
        )
        for name in ("packed", "compressed-tensors")
    }
    assert documents["packed"]["layers"] == documents["compressed-tensors"]["layers"]
    assert documents["packed"]["awq"]
    found = {layer["name"]: layer for layer in documents["packed"]["layers"]}
    down, out = found.pop("model.layers.1.mlp.down_proj"), found["model.layers.0.self_attn.o_proj"]
    assert (down["pattern"], down["error"], down["bits_per_weight"]) == ("float", None, 32)
    assert (out["pattern"], out["group_size"], out["method"], out["clip"]) == ("dense", -1, "wanda-rtn", False)
    weights = packed_weights(tmp_path / "packed")
    assert tuple(weights) == tuple(found)
    foreign = dict(read_quantized_folder(ModelFolder.open(tmp_path / "compressed-tensors")))
    assert set(foreign) == set(weights)
    for name, weight in weights.items():
        assert (foreign[name].weight.to_dense() == weight.to_dense()).all()
    for name in documents:
        assert "awq = true" in (tmp_path / name / "recipe.toml").read_text()
        assert json.loads((tmp_path / name / "report.json").read_text()) == documents[name]


def test_layers_that_stay_float_as_a_last_resort_are_told_of(
    trained_model: Path, nimble: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.quantize
    from quant.judgement import Rise

    rises = iter([0.05, 0.04, 0.03, 0.002])  # of a choice, of the gentlest, of those with a quarter and a half float
    monkeypatch.setattr(flows.quantize, "rise_of", lambda before, after: Rise(next(rises), 0.0))
    output = tmp_path / "packed"
    asked = ("quantize", trained_model, "-o", output, *SHORT, "--max-loss", "1%", "--rounds", 1)
    result = nimble(*asked, "--candidates", "dense/8,dense")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert (
        "7 of 14 layers stay float: INT4 for all of them, even with the gentlest settings, was over the allowed loss."
        in text
    )
    layers = json.loads((output / "report.json").read_text())["layers"]
    floats = [layer["name"] for layer in layers if layer["pattern"] == "float"]
    assert len(floats) == 7
    assert set(PackedCheckpoint.open(output).layers) == {layer["name"] for layer in layers} - set(floats)
    assert {f"{name}.weight" for name in floats} <= set(PackedCheckpoint.open(output).others)
    for name in floats:
        assert any(
            line.split()[:1] == [name.rpartition(".")[2]] and " float " in line for line in result.stdout.splitlines()
        )


class TestStopped:
    """A run that is stopped leaves nothing under its output's name, and goes on where it was."""

    @pytest.mark.parametrize("stage", ["measuring", "quantising", "writing"])
    def test_it_goes_on_where_it_was(
        self,
        stage: str,
        trained_model: Path,
        searched: tuple[Path, list[str]],
        nimble: Any,
        nimble_json: Any,
        tmp_path: Path,
    ) -> None:
        import flows.quantize
        import quant.quantize_model
        import quant.sensitivity

        where, name, calls = {
            "measuring": (quant.sensitivity, "quantize_layer", 30),
            "quantising": (quant.quantize_model, "quantize_layer", 9),
            "writing": (flows.quantize, "write_packed", 1),
        }[stage]
        original, seen = getattr(where, name), 0

        def stop(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == calls:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        asked = ("quantize", trained_model, "-o", tmp_path / "packed", *SHORT, *SEARCH)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(where, name, stop)
            result = nimble(*asked)
        assert result.exit_code == 130
        assert [file.name for file in tmp_path.iterdir()] == [".packed.work"]
        with pytest.MonkeyPatch.context() as patch:
            again = {
                module: Counted(patch, module, "quantize_layer") for module in (quant.sensitivity, quant.quantize_model)
            }
            document = nimble_json(*asked)
        trials = len(document["search"]["trials"])
        finished = {"measuring": (28, 0), "quantising": (56, 8), "writing": (56, 14 * trials)}[stage]
        assert again[quant.sensitivity].calls == 56 - finished[0]
        assert again[quant.quantize_model].calls == 14 * trials - finished[1]
        assert weight_files(tmp_path / "packed") == weight_files(searched[0])
        assert [file.name for file in tmp_path.iterdir()] == ["packed"]

    def test_a_breach_of_the_pattern_stops_it(self, trained_model: Path, refusal: Any, tmp_path: Path) -> None:
        import quant.quantize_model

        original = quant.quantize_model.quantize_layer

        def ignores_the_pattern(weight: Any, statistics: Any, settings: Any) -> NMWeight:
            return original(weight, statistics, replace(settings, pattern=NMPattern(1, 1)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quant.quantize_model, "quantize_layer", ignores_the_pattern)
            complaint = refusal("quantize", trained_model, "-o", tmp_path / "packed", *SHORT, "--pattern", "2:4")
        assert complaint == (
            "After stage quantise, model.layers.0.self_attn.q_proj breaks its pattern: row 0, block 0 (columns 0 to "
            "3) keeps 4 weights, but 2:4 allows at most 2."
        )
        assert not (tmp_path / "packed").exists()


class Counted:
    """Counts the calls of a module's function."""

    def __init__(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.calls = 0
        original = getattr(module, name)

        def count(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            return original(*arguments, **options)

        patch.setattr(module, name, count)
