from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from flows.small_model import SmallModelSettings, train_small_model
from quant.blocks import BlockModel, perplexity, quiet_transformers
from quant.model_folder import ModelFolder
from quant.text import read_tokens

SMALL = {"hidden": 32, "intermediate": 48, "blocks": 2, "heads": 2, "key_value_heads": 1, "batch": 8, "length": 64}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return file


def test_the_model_learns_its_text_and_opens_as_a_checkpoint(text: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    trained = train_small_model(
        tmp_path / "model", text, SmallModelSettings(**SMALL, steps=150), lambda step, loss: losses.append(loss)
    )
    assert len(losses) == 150
    assert losses[0] == pytest.approx(math.log(256), rel=0.05)
    assert trained.trained_bytes == int(0.8 * 9000)
    assert trained.last_loss == pytest.approx(sum(losses[-15:]) / 15)
    folder = ModelFolder.open(tmp_path / "model")
    folder.check()
    tokens = read_tokens(folder, text, 4, 64, part="evaluation")
    # Random weights give 256; a sentence of 45 bytes repeats.
    assert perplexity(BlockModel(folder), tokens) < 8
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True)
    assert trained.parameters == sum(p.numel() for p in whole.parameters())
    with torch.no_grad():
        assert math.exp(whole(input_ids=tokens, labels=tokens).loss) < 8


def test_a_seed_gives_the_same_weights_and_another_one_others(text: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_small_model(tmp_path / name, text, SmallModelSettings(**SMALL, steps=3, seed=seed))
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_an_interrupted_training_leaves_no_folder(text: Path, tmp_path: Path) -> None:
    def interrupt(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small_model(tmp_path / "model", text, SmallModelSettings(**SMALL, steps=3), interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more."),
        ({"length": 1}, "length is 1; a sample needs 2 bytes or more to predict one."),
        (
            {"heads": 5},
            "32 features do not make 5 heads of an even number of features, or 1 key and value heads do not divide "
            "5 heads.",
        ),
        (
            {"length": 9000},
            "The text has 7200 bytes to train on, but samples of 9000 bytes need at least 9001; give a longer text or "
            "a shorter length.",
        ),
    ],
)
def test_errors_are_sentences(changes: dict[str, int], words: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        train_small_model(tmp_path / "model", text, SmallModelSettings(**{**SMALL, "steps": 3, **changes}))
    assert str(raised.value) == words
    assert not (tmp_path / "model").exists()
