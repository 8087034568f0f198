"""Samples come from disjoint parts of a text, equal for equal arguments; unusable texts are refused in a sentence."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from quant.model_folder import ModelFolder
from quant.text import CALIBRATION_SHARE, read_text, read_tokens


@pytest.fixture(scope="module")
def folder(tiny_folders: dict[str, Path]) -> ModelFolder:
    """A byte-level model."""
    return ModelFolder.open(tiny_folders["llama"])


def add_tokenizer(path: Path, words: list[str]) -> ModelFolder:
    """Give a model's folder a tokenizer of whole words; unknown ones are token 0."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "model_max_length": 4}
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    return ModelFolder.open(path)


def number_lines(count: int) -> str:
    """Text in which each line of 6 bytes is there once."""
    return "".join(f"{line:05}\n" for line in range(count))


@given(
    lines=st.integers(60, 200),
    samples=st.integers(1, 4),
    seed=st.integers(0, 9),
    other_seed=st.integers(0, 9),
)
def test_samples_are_disjoint_windows_of_their_part(
    folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory, lines: int, samples: int, seed: int, other_seed: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "lines.txt"
    file.write_text(number_lines(lines))
    split = int(CALIBRATION_SHARE * 6 * lines)
    drawn = {}
    for part, draw in (("calibration", seed), ("evaluation", other_seed)):
        tokens = read_tokens(folder, file, samples, 12, draw, part)
        assert tokens.shape == (samples, 12)
        assert tokens.dtype == torch.int64
        assert torch.equal(tokens, read_tokens(folder, str(file), samples, 12, draw, part))
        drawn[part] = [bytes(sample.tolist()).decode() for sample in tokens]
    text = number_lines(lines)
    places = {part: [text.index(sample) for sample in found] for part, found in drawn.items()}
    assert all(place + 12 <= split for place in places["calibration"])
    assert all(place >= split for place in places["evaluation"])
    for found in places.values():
        assert found == sorted(found)
        assert all(after - before >= 12 for before, after in pairwise(found))


def test_seeds_draw_other_samples(folder: ModelFolder) -> None:
    first, second = (read_tokens(folder, None, 16, 64, seed) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_the_default_text_is_english_and_ships_with_cpython() -> None:
    from pydoc_data import topics

    text = read_text()
    assert text == read_text(None)
    assert topics.topics["assert"] in text
    assert len(text) > 400_000


def test_exactly_enough_text_is_enough(folder: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("x" * 100)  # 80 and 20 bytes
    assert read_tokens(folder, file, 8, 10).shape == (8, 10)
    with pytest.raises(ValueError, match="for calibration") as caught:
        read_tokens(folder, file, 9, 10)
    assert str(caught.value) == (
        f"The text in {file} has 80 tokens for calibration, but 9 samples of 10 need 90; give a longer text, fewer "
        "samples or shorter ones."
    )
    with pytest.raises(ValueError, match="has 20 tokens for evaluation, but 3 samples of 10 need 30;"):
        read_tokens(folder, file, 3, 10, part="evaluation")
    with pytest.raises(ValueError, match=r"^The text that ships with CPython has"):
        read_tokens(folder, None, 10_000, 2048)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"good\xffbad", "is not UTF-8 text: its byte 4 is 0xff."),
        (b"", "holds no text."),
        (b" \n\t", "holds no text."),
    ],
)
def test_refuses_what_is_no_text(folder: ModelFolder, tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=f"{words}$"):
        read_tokens(folder, tmp_path / "text", 1, 2)


def test_refuses_a_missing_file(folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tokens(folder, tmp_path / "nothing", 1, 2)


@pytest.mark.parametrize(("samples", "length", "part"), [(0, 8, "calibration"), (1, 1, "calibration"), (1, 8, "test")])
def test_refuses_numbers_and_parts(folder: ModelFolder, samples: int, length: int, part: str) -> None:
    with pytest.raises(ValueError, match="asked for"):
        read_tokens(folder, None, samples, length, part=part)


def test_the_folders_tokenizer_is_used_in_silence(
    tiny_folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = add_tokenizer(Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama")), ["a", "b", "c"])
    (tmp_path / "text").write_text("a b c d " * 20)
    tokens = read_tokens(folder, tmp_path / "text", 8, 8)
    assert tokens.tolist() == [[1, 2, 3, 0, 1, 2, 3, 0]] * 8
    assert capfd.readouterr() == ("", "")


def test_refuses_a_tokenizer_beyond_the_vocabulary(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(300)]
    folder = add_tokenizer(Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama")), words)
    (tmp_path / "text").write_text(" ".join(words))
    with pytest.raises(ValueError, match=r"makes token 300, but the model's vocabulary ends at 255\."):
        read_tokens(folder, tmp_path / "text", 1, 4)


@pytest.mark.parametrize(
    "fields",
    [{}, {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}],
)
def test_refuses_a_damaged_tokenizer_and_never_runs_its_code(
    tiny_folders: dict[str, Path], tmp_path: Path, fields: dict[str, object]
) -> None:
    path = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    (path / "tokenizer_config.json").write_text(json.dumps(fields))
    (path / "tokenizer.json").write_text("{")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'code was run')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ValueError, match=f"^transformers cannot use the tokenizer of {path}: "):
        read_tokens(ModelFolder.open(path), None, 1, 4)
    assert not (tmp_path / "code was run").exists()


def test_refuses_a_model_without_a_tokenizer(tiny_model: object, tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=300).save_pretrained(tmp_path / "words")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"has no tokenizer \(.*\); only a model with a vocabulary of 256 bytes"):
        read_tokens(ModelFolder.open(tmp_path / "words"), None, 1, 4)
