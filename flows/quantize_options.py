"""What a quantisation is asked for: the model, the texts and the output, and what a search may choose from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.core_choice import ChosenCore
from flows.layer_costs import Pass
from quant import LayerSettings, NMPattern

PACKED, COMPRESSED_TENSORS = FORMATS = ("packed", "compressed-tensors")

#: Tokens of a sample unless the model is made for fewer.
LENGTH = 512


@dataclass(frozen=True)
class Job:
    """What is quantised, with which text, and where it goes.

    Raises
    ------
    ValueError
        If a number or a name is not possible.
    OSError
        If the output exists.
    """

    model: Path
    output: Path
    core: ChosenCore
    #: UTF-8 text; None is the text that ships with CPython.
    text: Path | None = None
    #: Samples that calibrate, and samples of each of the other two texts.
    samples: int = 64
    held_out: int = 16
    #: Tokens of a sample; None is `LENGTH`, or what the model is made for.
    length: int | None = None
    seed: int = 0
    #: None is a hidden folder beside the output.
    work: Path | None = None
    #: One of `FORMATS`.
    format: str = PACKED

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"The format is {self.format!r}; it must be one of {', '.join(FORMATS)}.")
        for option, value in (("--samples", self.samples), ("--held-out", self.held_out)):
            if value < 1:
                raise ValueError(f"{option} is {value}; it must be 1 or more.")
        if os.path.lexists(self.output):
            raise FileExistsError(f"{self.output} exists already; give the name of a new folder.")
        output, work = Path(os.path.abspath(self.output)), Path(os.path.abspath(self.work_folder))
        if output in (work, *work.parents):
            raise ValueError(
                f"--work {self.work} lies in {self.output}, which is made at the end; give another folder."
            )

    @property
    def work_folder(self) -> Path:
        """Where a run keeps what it has finished."""
        output = Path(os.path.abspath(self.output))
        return output.with_name(f".{output.name}.work") if self.work is None else self.work


@dataclass(frozen=True)
class Aim:
    """What a search allows and makes small."""

    #: Allowed relative rise of the perplexity: 0.005 for 0.5 %.
    max_loss: float
    candidates: tuple[LayerSettings, ...]
    #: One of `flows.layer_costs.OBJECTIVES`.
    objective: str = "size"
    counted: Pass = field(default_factory=Pass)
    #: Whole models to try before settling for gentle settings.
    rounds: int = 4

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"--rounds is {self.rounds}; it must be 1 or more.")


def sample_length(config: Mapping[str, Any], model: Path, length: int | None) -> int:
    """Return the tokens of a sample: as given, or `LENGTH`, or fewer if the model is made for fewer.

    Raises
    ------
    ValueError
        The model, as its config.json says, is made for fewer than are given.
    """
    longest = config.get("max_position_embeddings", LENGTH)
    if not isinstance(longest, int):
        raise ValueError(f"{model} has max_position_embeddings {longest!r}; it must be an integer.")
    if length is None:
        return min(LENGTH, longest)
    if length > longest:
        raise ValueError(f"--length is {length}, but {model} is made for at most {longest} tokens.")
    return length


def read_max_loss(text: str) -> float:
    """Return 0.005 for ``0.5%``.

    Raises
    ------
    ValueError
        It is no positive percentage.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / 100
    except ValueError:
        value = math.nan
    if not text.strip().endswith("%") or not 0 < value < math.inf:
        raise ValueError(
            f"--max-loss is {text!r}; it is the allowed rise of the perplexity as a positive percentage, such as 0.5%."
        )
    return value


def read_candidates(text: str, others: Mapping[str, Any]) -> tuple[LayerSettings, ...]:
    """Return the settings of a list such as ``dense/32,2:4,2:4/64/wanda-gptq``: pattern, group and method of each.

    Parameters
    ----------
    others
        Fields of `LayerSettings` for what an item leaves out, and for all else.

    Raises
    ------
    ValueError
        An item is not possible, or stands twice.
    """
    settings: list[LayerSettings] = []
    for item in text.split(","):
        pattern, *more = item.strip().split("/")
        if len(more) > 2:
            raise ValueError(f"The candidate {item!r} was given; it is a pattern, and perhaps a group and a method.")
        fields = dict(others)
        if more:
            if not more[0].removeprefix("-").isdigit():
                raise ValueError(f"The candidate {item!r} has the group {more[0]!r}; it must be an integer.")
            fields["group_size"] = int(more[0])
        if more[1:]:
            fields["method"] = more[1]
        try:
            chosen = LayerSettings(NMPattern.parse(pattern), **fields)
        except ValueError as error:
            raise ValueError(f"The candidate {item!r} is not possible: {error}") from None
        if chosen in settings:
            raise ValueError(f"The candidate {item!r} was given twice.")
        settings.append(chosen)
    return tuple(settings)


def fitting_candidates(settings: Sequence[LayerSettings], core: ChosenCore) -> tuple[LayerSettings, ...]:
    """Return those whose blocks fit the core's window."""
    return tuple(one for one in settings if one.pattern.is_dense or one.pattern.m <= core.config.m_max)
