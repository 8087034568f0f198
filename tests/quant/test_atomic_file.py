"""A file is absent, the old one or complete, whenever its writer is stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from quant.atomic_file import write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_at_any_call_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, when: str
) -> None:
    file = tmp_path / "result.json"
    write_text(file, "old")
    original = getattr(os, function)

    def interrupted(*arguments: Any) -> None:
        if when == "after":
            original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_text(file, "new")
    assert names(tmp_path) == ["result.json"]
    assert file.read_text() == ("new" if (function, when) == ("replace", "after") else "old")


def test_a_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_bytes(tmp_path / "ours", b"1")
    (tmp_path / "any").write_bytes(b"1")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="it is a directory; give the name of a file"):
        write_text(tmp_path, "text")
    assert names(tmp_path) == []
