"""What tests of several commands share: the command line in this process, and a small model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import cli

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture
def nimble() -> Callable[..., Any]:
    """Run ``nimble`` with the given arguments."""

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


@pytest.fixture
def nimble_json(nimble: Callable[..., Any]) -> Callable[..., Any]:
    """Run ``nimble … --json`` and return what it prints, with the exit code expected."""

    def run(*arguments: object, exit_code: int = 0) -> Any:
        result = nimble(*arguments, "--json")
        assert result.exit_code == exit_code, result.stderr
        return json.loads(result.stdout)

    return run


@pytest.fixture
def refusal(nimble: Callable[..., Any]) -> Callable[..., str]:
    """Run ``nimble`` on bad input and return the sentence that refuses it."""

    def run(*arguments: object) -> str:
        result = nimble(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        command = f"nimble {arguments[0]}: "
        assert result.stderr.startswith(command)
        return str(result.stderr.removeprefix(command).removesuffix("\n"))

    return run


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A directory with the configuration of a model of two small blocks."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TINY_LLAMA), encoding="utf-8")
    return directory


@pytest.fixture
def broken_functional_level() -> Iterator[Callable[[], None]]:
    """Break the functional level: its first result is wrong in the lowest bit. The value mends it."""
    from accel.core import CoreFL

    correct = CoreFL.run_fl

    def run_fl(*arguments: Any) -> bytes:
        image = bytearray(correct(*arguments))
        image[0] ^= 1
        return bytes(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoreFL, "run_fl", run_fl)
        yield patch.undo


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level Llama of two small blocks that has seen a little of the text that ships with CPython; read only."""
    from flows.small_model import SmallModelSettings, train_small_model

    path = tmp_path_factory.mktemp("trained") / "small"
    sizes = SmallModelSettings(
        hidden=32, intermediate=64, blocks=2, heads=2, key_value_heads=2, steps=200, batch=8, length=64
    )
    train_small_model(path, settings=sizes)
    return path
