"""Tensors are written into safetensors files of limited length, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

#: Bytes of tensors after which a new file begins. One file's tensors are in memory while they are collected.
SHARD_BYTES = 1 << 30


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors that are contiguous and share no memory into a safetensors file.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"Cannot write {path}: {error}.") from None


class ShardWriter:
    """Collects tensors, and writes them whenever there are `SHARD_BYTES` of them.

    Parameters
    ----------
    folder
        Folder that exists.
    name_of
        Name of a file by its number, from 1.
    """

    def __init__(self, folder: Path, name_of: Callable[[int], str]) -> None:
        #: File of each tensor.
        self.file_of: dict[str, str] = {}
        #: Bytes of all tensors.
        self.total_bytes = 0
        #: Files that are written.
        self.files: list[str] = []
        self._folder, self._name_of = folder, name_of
        self._held: dict[str, torch.Tensor] = {}
        self._held_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Take a copy of a tensor, contiguous and on the CPU, and return it: it is not to be changed.

        Raises
        ------
        ValueError
            If there was a tensor of that name.
        OSError
            If a file was full and cannot be written.
        """
        if name in self.file_of:
            raise ValueError(f"Two tensors have the name {name}.")
        if self._held_bytes and self._held_bytes + tensor.nbytes > SHARD_BYTES:
            self.finish()
        # A copy: safetensors refuses tensors that share memory, as a tied head does.
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        self._held[name] = copy
        self._held_bytes += copy.nbytes
        self.total_bytes += copy.nbytes
        self.file_of[name] = self._name_of(len(self.files) + 1)
        return copy

    def finish(self) -> None:
        """Write what is held.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        if self._held:
            file = self._name_of(len(self.files) + 1)
            write_tensors(self._folder / file, self._held)
            self.files.append(file)
            self._held, self._held_bytes = {}, 0
