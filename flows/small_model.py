"""A byte-level Llama trained on a text in minutes, for trying quantisers on weights that mean something.

Random weights have no structure that pruning could keep or lose, and downloaded models need a network. The model
reads bytes, so that its folder needs no tokenizer: vocab_size is 256.

torch and transformers take seconds to import; import this module inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from quant.atomic_folder import new_folder
from quant.blocks import quiet_transformers
from quant.text import CALIBRATION_SHARE, read_text

#: Largest rate of AdamW, its warm-up in steps, and the share of the largest rate at the end of the cosine.
_RATE, _WARM_UP, _LAST_RATE = 2e-3, 40, 0.05


@dataclass(frozen=True)
class SmallModelSettings:
    """Size of the model and of its training.

    Raises
    ------
    ValueError
        If a number is not positive, or the heads do not divide the hidden size.
    """

    #: Features between layers; a multiple of `heads`.
    hidden: int = 256
    #: Features inside the feed-forward network.
    intermediate: int = 512
    #: Decoder blocks.
    blocks: int = 4
    #: Attention heads, and heads of keys and values (fewer: grouped queries).
    heads: int = 4
    key_value_heads: int = 4
    #: Steps of the optimiser; samples of a step; bytes of a sample.
    steps: int = 400
    batch: int = 16
    length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hidden", "intermediate", "blocks", "heads", "key_value_heads", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.length < 2:
            raise ValueError(f"length is {self.length}; a sample needs 2 bytes or more to predict one.")
        if self.hidden % (2 * self.heads) or self.heads % self.key_value_heads:
            raise ValueError(
                f"{self.hidden} features do not make {self.heads} heads of an even number of features, or "
                f"{self.key_value_heads} key and value heads do not divide {self.heads} heads."
            )


@dataclass(frozen=True)
class Training:
    """What a training left behind."""

    #: Weights of the model.
    parameters: int
    #: Bytes of the text that it was trained on; the rest was held out.
    trained_bytes: int
    #: Mean loss of the last tenth of the steps, in nats a byte.
    last_loss: float

    def document(self) -> dict[str, Any]:
        """Return what ``--json`` prints of it."""
        return asdict(self)


def train_small_model(
    output: Path,
    text: Path | None = None,
    settings: SmallModelSettings | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Training:
    """Train a byte-level Llama on the first `CALIBRATION_SHARE` of a text and save it as a transformers folder.

    Equal settings, text, torch and number of threads give equal weights.

    Parameters
    ----------
    output
        Folder to create; it must not exist.
    text
        UTF-8 text; None takes the text that ships with CPython.
    on_step
        Called after each step with its number, from 1, and its loss in nats a byte.

    Raises
    ------
    ValueError
        If the text is too short for the settings.
    OSError
        If the folder exists or cannot be written; nothing is left under its name then.
    """
    settings = SmallModelSettings() if settings is None else settings
    data = torch.frombuffer(bytearray(read_text(text).encode("utf-8")), dtype=torch.uint8)
    data = data[: int(CALIBRATION_SHARE * len(data))]
    if len(data) <= settings.length:
        raise ValueError(
            f"The text has {len(data)} bytes to train on, but samples of {settings.length} bytes need at least "
            f"{settings.length + 1}; give a longer text or a shorter length."
        )
    with new_folder(output) as folder:
        torch.manual_seed(settings.seed)
        with quiet_transformers():
            model = transformers.LlamaForCausalLM(_llama_config(settings))
            losses = _train(model, data, settings, on_step)
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(folder)
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    last = losses[-max(1, len(losses) // 10) :]
    return Training(sum(p.numel() for p in model.parameters()), len(data), sum(last) / len(last))


def _llama_config(settings: SmallModelSettings) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=max(512, settings.length),
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
        dtype="float32",
    )


def _train(
    model: torch.nn.Module,
    data: torch.Tensor,
    settings: SmallModelSettings,
    on_step: Callable[[int, float], None] | None,
) -> list[float]:
    # Norms are not decayed: their weights belong near 1.
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=_RATE,
        betas=(0.9, 0.95),
    )
    draws = torch.Generator().manual_seed(settings.seed)
    offsets = torch.arange(settings.length)
    losses = []
    model.train()
    for step in range(1, settings.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, settings.steps)
        starts = torch.randint(0, len(data) - settings.length, (settings.batch, 1), generator=draws)
        tokens = data[starts + offsets].long()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to `_LAST_RATE` of the largest rate."""
    warm_up = min(_WARM_UP, max(1, steps // 4))
    if step <= warm_up:
        return _RATE * step / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return _RATE * (_LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * done)) / 2)
