"""Statistics against inputs recorded in transformers' whole model; hidden states on disk that are whole or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quant.blocks import BlockModel
from quant.calibration import Activations, collect_statistics, embed_samples, run_samples
from quant.model_folder import ModelFolder

SAMPLES, LENGTH = 5, 700  # pieces of 2, 2 and 1 samples


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["llama", "neox-sequential"])
def test_statistics_are_of_what_the_layers_read(
    tiny_folders: dict[str, Path], tiny_model: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path, name: str
) -> None:
    whole = tiny_model(name)
    seen: dict[str, torch.Tensor] = {}
    for key, module in whole.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, key=key: seen.update({key: inputs[0].double()}))
    with torch.no_grad():
        whole(tokens)

    folder = ModelFolder.open(tiny_folders[name])
    model = BlockModel(folder)
    hidden = Activations(tmp_path / "0.bin", (SAMPLES, LENGTH, 24))
    hidden.write(embed_samples(model, tokens))
    for index in range(2):
        block = model.load_block(index)
        for linear in folder.architecture.linears(folder.sizes):
            statistics = collect_statistics(model, block, hidden, linear.name)
            x = seen[f"{folder.architecture.block(index)}.{linear.name}"].reshape(-1, linear.in_features)
            expected = x.T @ x / len(x)
            assert statistics.rows == SAMPLES * LENGTH
            assert statistics.hessian is not None
            assert torch.allclose(statistics.hessian.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
        following = Activations(tmp_path / f"{index + 1}.bin", hidden.shape)
        following.write(run_samples(model, block, hidden))
        hidden = following
        assert not any(module._forward_pre_hooks for module in block.modules())
    diagonal = collect_statistics(model, block, hidden, linear.name, full=False)
    assert diagonal.hessian is None
    assert diagonal.rows == SAMPLES * LENGTH


def test_hidden_states_come_back_bit_for_bit(tmp_path: Path) -> None:
    states = torch.randn(SAMPLES, LENGTH, 3)
    activations = Activations(tmp_path / "a.bin", (SAMPLES, LENGTH, 3))
    assert not activations.is_complete()
    activations.write(iter(states.split(1)))
    assert activations.is_complete()
    pieces = list(activations.read())
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat(pieces), states)
    assert not Activations(tmp_path / "a.bin", (SAMPLES, LENGTH, 4)).is_complete()


@pytest.mark.parametrize("place", [0, 4000, -1])
def test_damaged_hidden_states_are_not_complete(tmp_path: Path, place: int) -> None:
    activations = Activations(tmp_path / "a.bin", (2, 9, 100))
    activations.write(iter(torch.randn(2, 9, 100).split(1)))
    content = bytearray(activations.path.read_bytes())
    activations.path.write_bytes(content[:-1])
    assert not activations.is_complete()
    content[place] ^= 1
    activations.path.write_bytes(content)
    assert not activations.is_complete()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Any:
        yield torch.zeros(1, 9, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Activations(tmp_path / "a.bin", (2, 9, 4)).write(pieces())
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_not_finite_are_named(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    model = BlockModel(ModelFolder.open(tiny_folders["llama"]))
    states = torch.randn(1, 9, 24)
    states[0, 4, 3] = float("nan")
    hidden = Activations(tmp_path / "a.bin", (1, 9, 24))
    hidden.write(iter([states]))
    block = model.load_block(0)
    with pytest.raises(ValueError, match="is nan in row 4, but every calibration input must be finite"):
        collect_statistics(model, block, hidden, "self_attn.q_proj")
    assert not any(module._forward_pre_hooks for module in block.modules())
