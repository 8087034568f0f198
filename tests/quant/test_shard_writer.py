"""Tensors come back from the files that they were collected into, and a full disk is told in a sentence."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quant import shard_writer
from quant.shard_writer import ShardWriter, write_tensors


def test_tensors_lie_where_the_writer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 100)
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": table, "tied": table, "turned": table.T, "large": torch.ones(100), "none": torch.empty(0, 2)}
    writer = ShardWriter(tmp_path, "{}.safetensors".format)
    for name, tensor in tensors.items():
        copy = writer.add(name, tensor)
        assert copy.is_contiguous()
        assert torch.equal(copy, tensor)
    writer.finish()
    writer.finish()
    assert writer.files == ["1.safetensors", "2.safetensors", "3.safetensors", "4.safetensors"]
    assert writer.total_bytes == 3 * 48 + 400
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / writer.file_of[name])[name], tensor)
    with pytest.raises(ValueError, match=r"^Two tensors have the name a\.$"):
        writer.add("a", table)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Cannot write .*full\.safetensors: .*too large"), files_of_at_most(1000):
        write_tensors(tmp_path / "full.safetensors", {"a": torch.ones(1000)})
