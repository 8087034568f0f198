"""Sensitivities: transformers' whole model, with one weight replaced, tells what each must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant import LayerSettings, NMPattern, sensitivity
from quant.layer import layer_error, quantize_layer
from quant.model_folder import ModelFolder
from quant.sensitivity import Sensitivities, measure_sensitivities, worth_measuring
from quant.statistics import InputStatistics

SETTINGS = (
    LayerSettings(NMPattern(1, 1), group_size=8),
    LayerSettings(NMPattern(1, 4), group_size=8),
    LayerSettings(NMPattern(1, 4), group_size=8, method="magnitude-rtn"),
    LayerSettings(NMPattern(2, 4), group_size=-1),
)
#: Bits that grow with the kept weights; the second and third settings cost the same.
COSTS = dict(zip(SETTINGS, (16, 4, 4, 8), strict=True))

Measure = Callable[..., Sensitivities]


def draw(seed: int, samples: int) -> torch.Tensor:
    return torch.randint(0, 256, (samples, 12), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def run(folder: Path, **changes: Any) -> Sensitivities:
        arguments: dict[str, Any] = {
            "settings": SETTINGS,
            "calibration": draw(0, 5),
            "held_out": draw(1, 3),
            "cost": lambda name, settings: COSTS[settings],
            "work": tmp_path / "work",
            **changes,
        }
        return measure_sensitivities(ModelFolder.open(folder), **arguments)

    return run


def mean_loss(model: Any, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize("name", ["llama-grouped", "neox"])
def test_rises_are_those_of_the_whole_model_with_one_weight_replaced(
    name: str, tiny_folders: dict[str, Path], measure: Measure
) -> None:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(tiny_folders[name], dtype=torch.float32).eval()
    found = measure(tiny_folders[name])
    folder = ModelFolder.open(tiny_folders[name])
    assert found.float_loss == pytest.approx(mean_loss(model, draw(1, 3)), rel=1e-6)
    assert tuple(found.layers) == folder.linears

    statistics = {layer: InputStatistics(model.get_submodule(layer).in_features) for layer in folder.linears}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs, seen=seen: seen.add(inputs[0]))
        for layer, seen in statistics.items()
    ]
    mean_loss(model, draw(0, 5))
    for hook in hooks:
        hook.remove()
    measured = 0
    float_losses = torch.tensor([mean_loss(model, sample[None]) for sample in draw(1, 3)])
    for layer, row in found.layers.items():
        assert tuple(row) == SETTINGS
        weight = model.get_submodule(layer).weight
        original = weight.detach().clone()
        for settings, sensitivity_found in row.items():
            quantised = quantize_layer(original, statistics[layer], settings)
            assert sensitivity_found.error == pytest.approx(layer_error(original, quantised, statistics[layer]), 1e-3)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(quantised.to_dense()))
            differences = torch.tensor([mean_loss(model, sample[None]) for sample in draw(1, 3)]) - float_losses
            if sensitivity_found.rise is not None:
                measured += 1
                assert sensitivity_found.rise.mean == pytest.approx(float(differences.mean()), rel=2e-3, abs=2e-5)
                error = float(differences.var()) ** 0.5 / 3**0.5
                assert sensitivity_found.rise.error == pytest.approx(error, rel=2e-3, abs=2e-5)
        with torch.no_grad():
            weight.copy_(original)
        # Of two that cost the same only the one with the smaller error was measured.
        one, other = row[SETTINGS[1]], row[SETTINGS[2]]
        assert [one.rise is None, other.rise is None] == [one.error > other.error, one.error <= other.error]
    assert measured >= 2 * len(folder.linears)


def test_a_stopped_measurement_goes_on_where_it_was(
    tiny_folders: dict[str, Path], measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(tiny_folders["llama"], work=tmp_path / "other")
    done: list[str] = []

    def stop_after_nine(name: str) -> None:
        done.append(name)
        if len(done) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny_folders["llama"], progress=stop_after_nine)
    quantised = 0

    def counted(*arguments: Any) -> Any:
        nonlocal quantised
        quantised += 1
        return quantize_layer(*arguments)

    monkeypatch.setattr(sensitivity, "quantize_layer", counted)
    assert measure(tiny_folders["llama"]) == whole
    assert quantised == (14 - 9) * len(SETTINGS)
    assert measure(tiny_folders["llama"]) == whole
    assert quantised == (14 - 9) * len(SETTINGS)
    assert not list((tmp_path / "work").glob("activations*"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"settings": SETTINGS[:2]}, "candidates and costs"),
        ({"held_out": draw(2, 3)}, "held-out text"),
        ({"calibration": draw(2, 5)}, "calibration text"),
    ],
)
def test_other_arguments_need_another_folder(
    changes: dict[str, Any], what: str, tiny_folders: dict[str, Path], measure: Measure, tmp_path: Path
) -> None:
    measure(tiny_folders["llama"])
    with pytest.raises(ValueError, match=f"holds the work of another run, with a different {what}; give another"):
        measure(tiny_folders["llama"], **changes)


def test_a_damaged_file_is_named(tiny_folders: dict[str, Path], measure: Measure, tmp_path: Path) -> None:
    measure(tiny_folders["llama"])
    file = tmp_path / "work" / "layers" / "model.layers.1.mlp.up_proj.json"
    for content in (
        "[[0.1, 0.",
        "{}",
        "[[0.1, [0.2, 0.1]]]",
        "[[0, 0], [0, 0], [0, 0], [0, 0]]",
        '[["a", null], [0, 0], [0, 0], [0, 0]]',
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"^{file} is damaged: .*; delete it to have it measured again\\.$"):
            measure(tiny_folders["llama"])


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5).map(float)), min_size=1, max_size=8)


@given(pairs=PAIRS)
def test_what_is_not_measured_is_beaten_by_something_that_is(pairs: list[tuple[int, float]]) -> None:
    worth = worth_measuring([cost for cost, _ in pairs], [error for _, error in pairs])

    def rivals(pair: tuple[int, float]) -> Iterator[tuple[int, float]]:
        return (pairs[number] for number in worth if pairs[number] != pair)

    for number, (cost, error) in enumerate(pairs):
        beaten = any(other[0] <= cost and other[1] <= error for other in rivals((cost, error)))
        repeated = (cost, error) in pairs[:number]
        assert (number in worth) == (not beaten and not repeated)
