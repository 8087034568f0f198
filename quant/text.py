"""Tokens for calibration and evaluation, from disjoint parts of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from quant.model_folder import ModelFolder

#: Share of a text's tokens, from its beginning, that calibration (and training) draws from; evaluation has the rest.
CALIBRATION_SHARE = 0.8

#: Parts of a text.
PARTS = ("calibration", "evaluation")

#: Files of which a folder with a tokenizer has one.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def read_text(path: str | Path | None = None) -> str:
    """Read a UTF-8 text; None is the English text that ships with CPython, the topics of its help.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not UTF-8, or empty.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: its byte {error.start} is {data[error.start]:#04x}.") from None
    if not text.strip():
        raise ValueError(f"{path} holds no text.")
    return text


def tokenize(folder: ModelFolder, text: str) -> torch.Tensor:
    """Token numbers of a text by the folder's own tokenizer, without special tokens.

    A folder without one is read as a byte-level model if its vocabulary has 256 entries.

    Returns
    -------
    Tensor
        int64 [tokens].

    Raises
    ------
    ValueError
        If there is no tokenizer, transformers refuses it, or it makes a token beyond the vocabulary.
    """
    vocabulary = folder.sizes.vocabulary
    if not any((folder.path / name).exists() for name in _TOKENIZER_FILES):
        if vocabulary == 256:
            return torch.frombuffer(bytearray(text.encode("utf-8")), dtype=torch.uint8).long()
        raise ValueError(
            f"{folder.path} has no tokenizer ({', '.join(_TOKENIZER_FILES)}); only a model with a vocabulary of "
            f"256 bytes needs none, and this one has {vocabulary} entries."
        )
    from transformers import AutoTokenizer

    from quant.blocks import quiet_transformers

    tokenizer_class: Any = AutoTokenizer
    try:
        with quiet_transformers():
            tokenizer = tokenizer_class.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
            numbers = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"transformers cannot use the tokenizer of {folder.path}: {reason}") from error
    tokens = torch.tensor(numbers, dtype=torch.int64)
    if len(tokens) and int(tokens.max()) >= vocabulary:
        raise ValueError(
            f"The tokenizer of {folder.path} makes token {int(tokens.max())}, but the model's vocabulary ends at "
            f"{vocabulary - 1}."
        )
    return tokens


def read_tokens(
    folder: ModelFolder,
    text: str | Path | None,
    samples: int,
    length: int,
    seed: int = 0,
    part: str = "calibration",
) -> torch.Tensor:
    """Draw samples from one part of a text; no token is in two samples, nor in samples of both parts.

    The part is cut into windows of `length` tokens, of which `samples` are drawn and kept in the text's order.

    Parameters
    ----------
    folder
        Model whose tokenizer is used.
    text
        UTF-8 file; None is the text that ships with CPython.
    part
        ``"calibration"``, the first `CALIBRATION_SHARE` of the tokens, or ``"evaluation"``, the rest.

    Returns
    -------
    Tensor
        int64 [samples, length]. Equal arguments give equal samples.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If a number is out of range, the text is no text or too short, or the tokenizer is missing or unusable.
    """
    if part not in PARTS:
        raise ValueError(f"The part {part!r} of a text was asked for; it must be {' or '.join(PARTS)}.")
    if samples < 1 or length < 2:
        raise ValueError(f"{samples} samples of {length} tokens were asked for; 1 of 2 is the least.")
    tokens = tokenize(folder, read_text(text))
    split = int(CALIBRATION_SHARE * len(tokens))
    tokens = tokens[:split] if part == "calibration" else tokens[split:]
    windows = len(tokens) // length
    if windows < samples:
        source = "that ships with CPython" if text is None else f"in {text}"
        raise ValueError(
            f"The text {source} has {len(tokens)} tokens for {part}, but {samples} samples of {length} need "
            f"{samples * length}; give a longer text, fewer samples or shorter ones."
        )
    drawn = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))[:samples].sort().values
    return tokens[: windows * length].reshape(windows, length)[drawn]
