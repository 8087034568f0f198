"""A quantised model against layers quantised one by one by hand, and runs that are stopped at every write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import quant.quantize_model
from quant import LayerSettings, NMPattern, NMWeight
from quant.blocks import BlockModel, perplexity
from quant.calibration import Activations, collect_statistics, embed_samples, run_samples
from quant.layer import layer_error, quantize_layer
from quant.layer_file import read_layer, write_layer
from quant.model_folder import ModelFolder
from quant.pattern_check import PatternBreach, check_pattern
from quant.quantize_model import QuantizedModel, quantize_model
from quant.statistics import InputStatistics

NAMES = ["llama", "llama-grouped", "mistral", "neox", "neox-sequential"]
SETTINGS = LayerSettings(NMPattern(2, 4), 8)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (4, 40), generator=torch.Generator().manual_seed(5))


def mixed_settings(name: str) -> LayerSettings | None:
    """Other patterns, groups and methods for different layers; one stays float; tails where m does not divide K."""
    if name.endswith(("k_proj", "0.mlp.dense_h_to_4h")):
        return None
    if name.endswith(("o_proj", "attention.dense")):
        return LayerSettings(NMPattern(3, 5), -1, symmetric=False, method="wanda-gptq")
    if name.endswith(("down_proj", "dense_4h_to_h")):
        return LayerSettings(NMPattern(1, 1), 16, method="magnitude-rtn", clip=False)
    return SETTINGS


@pytest.mark.parametrize("name", ["llama-grouped", "neox"])
def test_each_layer_is_calibrated_on_what_the_quantised_ones_before_give(
    tiny_folders: dict[str, Path], tiny_model: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path, name: str
) -> None:
    """The oracle runs transformers' whole model anew for each group of layers and changes its weights in place."""
    folder = ModelFolder.open(tiny_folders[name])
    quantised = quantize_model(folder, mixed_settings, tokens, tmp_path / "work")
    whole = tiny_model(name)
    modules = dict(whole.named_modules())
    for block in range(2):
        for group in folder.architecture.groups(folder.sizes):
            names = [f"{folder.architecture.block(block)}.{linear}" for linear in group.linears]
            statistics = InputStatistics(modules[names[0]].in_features)
            hook = modules[names[0]].register_forward_pre_hook(lambda _, inputs, to=statistics: to.add(inputs[0]))
            with torch.no_grad():
                whole(tokens)
            hook.remove()
            for layer in names:
                settings = mixed_settings(layer)
                assert (layer in quantised.layers) == (settings is not None)
                if settings is None:
                    assert torch.equal(quantised.tensors[f"{layer}.weight"], modules[layer].weight)
                    continue
                found = quantised.layers[layer]
                expected = quantize_layer(modules[layer].weight, statistics, settings)
                # transformers' results agree to rounding, after which a near tie may fall otherwise.
                differs = found.weight.to_dense() != expected.to_dense()
                assert differs.mean() < 0.02, layer
                assert quantised.errors[layer] == pytest.approx(
                    layer_error(modules[layer].weight, found.weight, statistics), rel=1e-3
                )
                bias = modules[layer].bias
                assert (found.bias is None) == (bias is None)
                assert bias is None or np.array_equal(found.bias, bias.detach().numpy())
                modules[layer].weight = nn.Parameter(torch.from_numpy(found.weight.to_dense()), requires_grad=False)
    assert quantised.errors.keys() == quantised.layers.keys()
    assert list(quantised.layers) == [layer for layer in folder.linears if mixed_settings(layer) is not None]
    with torch.no_grad():
        logits = whole(tokens).logits
    source = BlockModel(quantised)
    hidden = source.embed(tokens)
    for index in range(2):
        hidden = source.run_block(source.load_block(index), hidden)
    assert torch.equal(source.logits(hidden), logits)


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_obeys_its_patterns(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path, name: str
) -> None:
    calls: list[tuple[int, int]] = []
    folder = ModelFolder.open(tiny_folders[name])
    quantised = quantize_model(
        folder, mixed_settings, tokens, tmp_path / "work", progress=lambda *call: calls.append(call)
    )
    count = len(quantised.layers)
    assert calls == [(done, count) for done in range(count + 1)]
    for layer, linear in quantised.layers.items():
        settings = mixed_settings(layer)
        assert settings is not None
        check_pattern(linear.weight, settings.pattern, layer, "test")
        assert linear.weight.pattern == settings.pattern
        assert linear.weight.group_size == settings.group_size
        assert linear.weight.symmetric == settings.symmetric
    gone = {f"{layer}.{part}" for layer in quantised.layers for part in ("weight", "bias")}
    assert set(quantised.tensors) == folder.tensor_names - gone
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["layers", "lock", "run.json", "scales"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_awq_folds_and_changes_nothing_but_rounding(
    tiny_model: Callable[..., Any],
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
) -> None:
    """With a quantiser that keeps the weights as they are, the model computes what it did.

    A layer that stays float would be rounded anew to float16; in that type none does.
    """
    tiny_model(name).to(dtype).save_pretrained(tmp_path / "model")
    folder = ModelFolder.open(tmp_path / "model")
    kept: dict[str, torch.Tensor] = {}
    asked: list[str] = []

    def keep(weight: torch.Tensor, statistics: InputStatistics, settings: LayerSettings) -> NMWeight:
        made = quantize_layer(weight, statistics, settings)
        kept[made.to_dense().tobytes().hex()] = weight.detach().clone()
        return made

    def scales(layers: Any, statistics: InputStatistics, settings: LayerSettings) -> torch.Tensor:
        asked.append(str(settings.pattern))
        return torch.linspace(0.3, 3.0, statistics.in_features)

    monkeypatch.setattr(quant.quantize_model, "quantize_layer", keep)
    monkeypatch.setattr(quant.quantize_model, "awq_scales", scales)
    settings_of = mixed_settings if dtype == torch.float32 else lambda _: SETTINGS
    quantised = quantize_model(folder, settings_of, tokens, tmp_path / "work", awq=True)
    groups = folder.architecture.groups(folder.sizes)
    without = 1 if name.startswith("neox") and dtype == torch.float32 else 0  # a group that stays float
    assert len(asked) == sum(group.scaled_by is not None for group in groups) * 2 - without

    class Unrounded(QuantizedModel):
        def tensor(self, key: str) -> torch.Tensor:
            found = super().tensor(key)
            return kept.get(found.numpy().tobytes().hex(), found) if key.endswith("weight") else found

    quantised.__class__ = Unrounded
    float_model, folded = BlockModel(folder), BlockModel(quantised)
    before, after = float_model.embed(tokens), folded.embed(tokens)
    for index in range(2):
        before = float_model.run_block(float_model.load_block(index), before)
        after = folded.run_block(folded.load_block(index), after)
    changed = [key for key in quantised.tensors if not torch.equal(quantised.tensors[key], folder.tensor(key))]
    assert any("layernorm" in key for key in changed)
    assert all(quantised.tensors[key].dtype == dtype for key in quantised.tensors)
    # GPT-NeoX's norms have biases, which the scales cannot make exact in float16.
    limit = 5e-3 if dtype == torch.float16 and name.startswith("neox") else 1e-5
    scale = float(before.abs().max())
    assert torch.allclose(after, before, rtol=0, atol=limit * scale)


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_what_stays_float_is_calibrated_with_as_it_is_stored(
    tiny_model: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last layer's statistics, gathered again from the result, have the same bits."""
    tiny_model(name).to(torch.float16).save_pretrained(tmp_path / "model")
    folder = ModelFolder.open(tmp_path / "model")
    seen: list[InputStatistics] = []

    def record(weight: torch.Tensor, statistics: InputStatistics, settings: LayerSettings) -> NMWeight:
        seen.append(statistics)
        return quantize_layer(weight, statistics, settings)

    monkeypatch.setattr(quant.quantize_model, "quantize_layer", record)
    quantised = quantize_model(folder, mixed_settings, tokens, tmp_path / "work", awq=True)
    model = BlockModel(quantised)
    hidden = Activations(tmp_path / "hidden", (*tokens.shape, folder.sizes.hidden))
    hidden.write(embed_samples(model, tokens))
    hidden.write(run_samples(model, model.load_block(0), hidden))
    last = folder.architecture.split_name(folder.linears[-1])[1]
    again = collect_statistics(model, model.load_block(1), hidden, last)
    assert seen[-1].hessian is not None
    assert again.hessian is not None
    assert torch.equal(again.hessian, seen[-1].hessian)


def test_awq_searches_scales_that_lower_the_loss_of_rounding(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    """Inputs of very unequal size: scaling must help plain rounding."""
    path = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    tensors = load_file(path / "model.safetensors")
    for key in tensors:
        if key.endswith("layernorm.weight"):
            tensors[key][::6] *= 30
    save_file(tensors, path / "model.safetensors")
    folder = ModelFolder.open(path)
    settings = LayerSettings(NMPattern(1, 1), -1, method="magnitude-rtn", clip=False)
    plain = quantize_model(folder, lambda _: settings, tokens, tmp_path / "plain")
    scaled = quantize_model(folder, lambda _: settings, tokens, tmp_path / "scaled", awq=True)
    layer = "model.layers.0.self_attn.q_proj"
    assert scaled.errors[layer] < 0.9 * plain.errors[layer]
    for quantised in (plain, scaled):
        check = BlockModel(quantised)
        assert perplexity(check, tokens) == pytest.approx(perplexity(BlockModel(folder), tokens), rel=0.1)


class Stopped(BaseException):
    """Stands for whatever ends a process."""


def snapshot(work: Path) -> dict[str, bytes]:
    return {str(file.relative_to(work)): file.read_bytes() for file in sorted(work.rglob("*")) if file.is_file()}


def test_a_run_stopped_at_any_write_ends_with_the_same_bits(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder.open(tiny_folders["neox"])
    written = 0
    stop_after = -1
    replace = os.replace

    def count(source: str, target: Path) -> None:
        nonlocal written
        if written == stop_after:
            raise Stopped
        replace(source, target)
        written += 1
        if written == stop_after:
            raise Stopped

    monkeypatch.setattr(os, "replace", count)

    def run(work: Path) -> None:
        quantize_model(folder, lambda _: SETTINGS, tokens[:2, :16], work, awq=True)

    run(tmp_path / "whole")
    expected, total = snapshot(tmp_path / "whole"), written
    assert total == 1 + 8 + 2 + 2  # run.json, layers, hidden states, scales
    for stop in range(total):
        written, stop_after = 0, stop
        work = tmp_path / f"stopped after {stop}"
        with pytest.raises(Stopped):
            run(work)
        before = sorted(snapshot(work))
        written, stop_after = 0, -1
        run(work)
        assert snapshot(work) == expected, f"stopped after {stop} files, which left {before}"
        assert written == total - stop, "a finished file was written again"


#: Makes a run, then forks a process for each of several moments, which kills itself there, and continues each run in
#: another process.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from quant import LayerSettings, NMPattern
from quant.model_folder import ModelFolder
from quant.quantize_model import quantize_model

torch.set_num_threads(1)
settings = LayerSettings(NMPattern(2, 4), 8)
tokens = torch.arange(160).reshape(4, 40)

def quantize(work):
    quantize_model(ModelFolder.open(sys.argv[1]), lambda name: settings, tokens, Path(work))

def run_killed(work, kill_at):
    child = os.fork()
    if child == 0:
        writes = 0
        sync = os.fsync
        def count(handle):
            nonlocal writes
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(handle)
        os.fsync = count
        try:
            quantize(work)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]

quantize("whole")
for moment in (1, 3, 6, 7, 10):
    assert run_killed(f"work-{moment}", moment) == signal.SIGKILL
    assert list(Path(f"work-{moment}").rglob("*.part")), "nothing was half written"
    quantize(f"work-{moment}")
"""


def test_a_killed_run_ends_with_the_same_bits(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", KILLED, str(tiny_folders["neox"])], check=True, env=environment)
    expected = snapshot(tmp_path / "whole")
    assert len(expected) == 10
    for moment in (1, 3, 6, 7, 10):
        assert snapshot(tmp_path / f"work-{moment}") == expected


def test_finished_layers_are_not_done_again(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder.open(tiny_folders["llama"])
    quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")
    expected = snapshot(tmp_path / "work")
    done: list[str] = []

    def record(weight: torch.Tensor, *rest: Any) -> NMWeight:
        done.append(str(tuple(weight.shape)))
        return quantize_layer(weight, *rest)

    monkeypatch.setattr(quant.quantize_model, "quantize_layer", record)
    (tmp_path / "work" / "layers" / "model.layers.0.mlp.down_proj.safetensors").unlink()
    calls: list[tuple[int, int]] = []
    quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work", progress=lambda *call: calls.append(call))
    assert done == ["(24, 40)"]
    assert calls == [(13, 14), (14, 14)]
    assert snapshot(tmp_path / "work") == expected


def test_a_layer_that_is_missing_before_where_the_run_stopped_is_done(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder.open(tiny_folders["neox"])

    def stop_at(done: int, _: int) -> None:
        if done == 6:
            raise Stopped

    with pytest.raises(Stopped):
        quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work", progress=stop_at)
    assert (tmp_path / "work" / "activations-1.bin").exists()
    (tmp_path / "work" / "layers" / "gpt_neox.layers.0.attention.dense.safetensors").unlink()
    quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")
    quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "whole")
    assert snapshot(tmp_path / "work") == snapshot(tmp_path / "whole")


def test_a_damaged_layer_file_stops_the_run_and_the_reader(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    folder = ModelFolder.open(tiny_folders["neox"])
    quantised = quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")
    damaged = tmp_path / "work" / "layers" / "gpt_neox.layers.0.attention.dense.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (tmp_path / "work" / "layers" / "gpt_neox.layers.1.mlp.dense_4h_to_h.safetensors").unlink()
    with pytest.raises(ValueError, match=r"dense\.safetensors is damaged: .* delete it to have it made again\."):
        quantised.layers["gpt_neox.layers.0.attention.dense"]
    with pytest.raises(ValueError, match=r"dense\.safetensors is damaged: .* delete it to have it made again\."):
        quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")


def test_a_breach_stops_the_run_with_layer_row_and_block(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refill(weight: torch.Tensor, statistics: InputStatistics, settings: LayerSettings) -> NMWeight:
        made = quantize_layer(weight, statistics, settings)
        if weight.shape != (24, 40):
            return made
        mask = made.mask.copy()
        mask[3, 8:12] = True
        return NMWeight(made.values, mask, made.group_scale, made.channel_scale, NMPattern(1, 1), made.group_size)

    monkeypatch.setattr(quant.quantize_model, "quantize_layer", refill)
    folder = ModelFolder.open(tiny_folders["llama"])
    layer = "model.layers.0.mlp.down_proj"
    with pytest.raises(PatternBreach) as caught:
        quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")
    assert str(caught.value) == (
        f"After stage quantise, {layer} breaks its pattern: row 3, block 2 (columns 8 to 11) keeps 4 weights, but 2:4 "
        "allows at most 2."
    )
    assert (caught.value.layer, caught.value.row, caught.value.block) == (layer, 3, 2)
    assert not (tmp_path / "work" / "layers" / f"{layer}.safetensors").exists()


def test_a_breach_on_reload_is_found(tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path) -> None:
    """A file with a right checksum whose layer obeys another pattern than the run's."""
    folder = ModelFolder.open(tiny_folders["llama"])
    quantised = quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")
    layer = "model.layers.1.mlp.up_proj"
    path = tmp_path / "work" / "layers" / f"{layer}.safetensors"
    stored = read_layer(path)
    settings = LayerSettings(NMPattern(1, 1), 8, method="magnitude-rtn")
    dense = quantize_layer(folder.tensor(f"{layer}.weight"), None, settings)
    write_layer(path, type(stored.linear)(dense), 0.0)
    with pytest.raises(PatternBreach, match=f"^After stage reload, {layer} breaks its pattern: row 0, block 0"):
        quantised.layers[layer]
    (tmp_path / "work" / "layers" / "model.layers.1.mlp.down_proj.safetensors").unlink()
    with pytest.raises(PatternBreach, match="stage reload"):
        quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")


def test_nothing_to_quantise_is_the_float_model(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    folder = ModelFolder.open(tiny_folders["llama"])
    quantised = quantize_model(folder, lambda _: None, tokens, tmp_path / "work", awq=True)
    assert dict(quantised.layers) == quantised.errors == {}
    assert set(quantised.tensors) == folder.tensor_names


def test_a_block_without_quantised_layers_is_left_unscaled(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    folder = ModelFolder.open(tiny_folders["llama"])
    quantised = quantize_model(
        folder, lambda name: SETTINGS if ".0." in name else None, tokens, tmp_path / "work", awq=True
    )
    assert len(quantised.layers) == 7
    for key in quantised.tensors:
        if ".1." in key:
            assert torch.equal(quantised.tensors[key], folder.tensor(key))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), r"must be int64 \[samples, length\]"),
        (torch.zeros(2, 3), r"type torch\.float32; they must be int64"),
        (torch.zeros(0, 3, dtype=torch.int64), r"shape \[0, 3\]"),
        (torch.full((1, 3), 256), r"range from 256 to 256; the model's vocabulary is 0 to 255\."),
        (torch.full((1, 3), -1), r"range from -1 to -1"),
    ],
)
def test_refuses_tokens(tiny_folders: dict[str, Path], tmp_path: Path, bad: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quantize_model(ModelFolder.open(tiny_folders["llama"]), lambda _: SETTINGS, bad, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_refuses_bad_weights_before_any_work(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][2, 3] = float("nan")
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1\.mlp\.down_proj\.weight of .* holds nan in row 2, column 3"):
        quantize_model(ModelFolder.open(path), lambda _: SETTINGS, tokens, tmp_path / "work")
    assert list((tmp_path / "work" / "layers").iterdir()) == []


def test_refuses_a_quantised_folder_and_another_runs_work(
    tiny_folders: dict[str, Path], tokens: torch.Tensor, tmp_path: Path
) -> None:
    folder = ModelFolder.open(tiny_folders["llama"])
    quantize_model(folder, lambda _: SETTINGS, tokens, tmp_path / "work")
    with pytest.raises(ValueError, match="holds the work of another run, with a different settings and seed; "):
        quantize_model(folder, mixed_settings, tokens, tmp_path / "work", seed=1)
    path = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**fields, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="llama is quantised already; give the folder of the float model"):
        quantize_model(ModelFolder.open(path), lambda _: SETTINGS, tokens, tmp_path / "other")
