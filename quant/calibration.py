"""Calibration layer by layer: what the linear layers of a block read, with the hidden states of all samples on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quant.atomic_file import new_file
from quant.blocks import BlockModel, samples_at_a_time
from quant.statistics import InputStatistics

_SHA256_BYTES = 32


class Activations:
    """Hidden states of all samples between two blocks, float32 [samples, length, H], in a file.

    The file is read and written in pieces, not mapped into memory: of a mapped file the pages that were touched stay
    in memory. It ends with its SHA-256.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        #: The file.
        self.path = path
        #: Samples, length and H.
        self.shape = shape

    @property
    def at_a_time(self) -> int:
        """Samples in a piece."""
        return samples_at_a_time(self.shape[1])

    @property
    def _sample_bytes(self) -> int:
        return 4 * self.shape[1] * self.shape[2]

    def write(self, pieces: Iterator[torch.Tensor]) -> None:
        """Write pieces of [any number of samples, length, H], together all samples, as a new file.

        Raises
        ------
        OSError
            If the file cannot be written; nothing is left under its name then.
        """
        digest = hashlib.sha256()
        with new_file(self.path) as stream:
            for piece in pieces:
                data = piece.float().contiguous().numpy().tobytes()
                digest.update(data)
                stream.write(data)
            stream.write(digest.digest())

    def read(self) -> Iterator[torch.Tensor]:
        """Pieces of `at_a_time` samples, float32 [samples, length, H]."""
        with self.path.open("rb") as stream:
            for first in range(0, self.shape[0], self.at_a_time):
                samples = min(self.at_a_time, self.shape[0] - first)
                data = bytearray(stream.read(samples * self._sample_bytes))
                yield torch.frombuffer(data, dtype=torch.float32).reshape(samples, *self.shape[1:])

    def is_complete(self) -> bool:
        """Whether the file is there, with the right length and checksum."""
        if not self.path.is_file():
            return False
        content = self.shape[0] * self._sample_bytes
        if self.path.stat().st_size != content + _SHA256_BYTES:
            return False
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            for _ in range(self.shape[0]):
                digest.update(stream.read(self._sample_bytes))
            return stream.read() == digest.digest()


class _InputSeen(Exception):  # noqa: N818 - it reports no error
    """Ends a block's forward pass once the wanted input has been seen."""


def collect_statistics(
    model: BlockModel, block: nn.Module, activations: Activations, linear: str, full: bool = True
) -> InputStatistics:
    """Statistics of what one linear layer of a block reads, over all samples.

    Parameters
    ----------
    model
        Whose block it is.
    block
        A loaded block; it runs only as far as that layer.
    activations
        The block's input.
    linear
        Name of the layer within the block.
    full
        Whether the whole Hessian is gathered, or only its diagonal.

    Raises
    ------
    ValueError
        If an input is not finite.
    """
    module = block.get_submodule(linear)
    assert isinstance(module, nn.Linear)
    statistics = InputStatistics(module.in_features, full)

    def see(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        statistics.add(inputs[0])
        raise _InputSeen

    hook: Any = module.register_forward_pre_hook(see)
    try:
        for hidden in activations.read():
            try:
                model.run_block(block, hidden)
            except _InputSeen:
                continue
            raise ValueError(f"The block ran without its linear layer {linear}.")
    finally:
        hook.remove()
    return statistics


def embed_samples(model: BlockModel, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the first block reads, in pieces."""
    for samples in tokens.split(samples_at_a_time(tokens.shape[1])):
        yield model.embed(samples)


def run_samples(model: BlockModel, block: nn.Module, activations: Activations) -> Iterator[torch.Tensor]:
    """What a block makes of the hidden states in a file, in pieces."""
    for hidden in activations.read():
        yield model.run_block(block, hidden)
