"""How far a model's loss differs from another's on the same samples, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from quant.blocks import BlockModel, samples_at_a_time


class Rise(NamedTuple):
    """A rise of the mean loss in nats a token, by which ln(perplexity) rises."""

    mean: float
    #: Standard error of the mean over the samples; infinite for a single one.
    error: float


def sample_losses(model: BlockModel, tokens: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Mean negative log-likelihood of a predicted token, of each sample.

    e to the mean of these is the perplexity, as `quant.blocks.perplexity` gives it.

    Parameters
    ----------
    model
        Whose blocks are loaded one after the other. The hidden states of all samples stay in memory.
    tokens
        int64 [samples, length of 2 or more]; the first token of each sample is not predicted.
    progress
        Called after each block with how many are done and how many there are.

    Returns
    -------
    Tensor
        float64 [samples], in nats.
    """
    batches = tokens.split(samples_at_a_time(tokens.shape[1]))
    states = [model.embed(batch) for batch in batches]
    for index in range(model.blocks):
        block = model.load_block(index)
        states = [model.run_block(block, hidden) for hidden in states]
        del block
        if progress is not None:
            progress(index + 1, model.blocks)
    return torch.cat([losses_of(model, hidden, batch) for hidden, batch in zip(states, batches, strict=True)])


def losses_of(model: BlockModel, hidden: Tensor, tokens: Tensor) -> Tensor:
    """As `sample_losses`, of the last block's output [samples, length, H]."""
    losses = []
    for row, sample in zip(hidden, tokens, strict=True):
        total, predicted = model.loss(row[None], sample[None])
        losses.append(total / predicted)
    return torch.tensor(losses, dtype=torch.float64)


def rise_of(before: Tensor, after: Tensor) -> Rise:
    """Rise from losses of samples, [samples], to those of the same samples."""
    differences = after - before
    samples = len(differences)
    error = float(differences.std()) / math.sqrt(samples) if samples > 1 else math.inf
    return Rise(float(differences.mean()), error)
