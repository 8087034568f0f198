"""A folder appears whole or not at all, and an old one stays until then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quant.atomic_folder import new_folder


def fill(path: Path, text: str) -> None:
    with new_folder(path, lambda found: None) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)


def entries(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def test_it_has_its_name_only_when_it_is_done(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    with new_folder(target) as folder:
        (folder / "file").write_text("x")
        (folder / "file").chmod(0o600)
        assert not target.exists()
        assert folder.parent == target.parent
    assert entries(target.parent) == ["model"]
    assert entries(target) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~umask
    assert (target / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_old_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    fill(target, "old")
    (target / "old-file").touch()
    fill(target, "new")
    assert entries(tmp_path) == ["model"]
    assert entries(target) == ["deep"]
    assert (target / "deep" / "file").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("full")])
@pytest.mark.parametrize("old", [True, False])
def test_nothing_is_left_of_a_folder_that_was_stopped(tmp_path: Path, error: type[BaseException], old: bool) -> None:
    target = tmp_path / "model"
    if old:
        fill(target, "old")

    def stopped() -> None:
        with new_folder(target, lambda found: None) as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        stopped()
    assert entries(tmp_path) == (["model"] if old else [])
    if old:
        assert (target / "deep" / "file").read_text() == "old"


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_folder_comes_back_when_a_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    target = tmp_path / "model"
    fill(target, "old")
    rename, calls = os.rename, []

    def stopped(source: Path, to: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise KeyboardInterrupt
        rename(source, to)

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        fill(target, "new")
    assert entries(tmp_path) == ["model"]
    assert (target / "deep" / "file").read_text() == "old"


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")

    def refuse(path: Path) -> None:
        raise FileExistsError(f"{path.name} is somebody's.")

    for name, sentence in (
        ("file", f"Cannot write the folder {tmp_path / 'file'}: there is a file of that name."),
        ("link", f"Cannot write the folder {tmp_path / 'link'}: there is a file of that name."),
        ("dangling", f"Cannot write the folder {tmp_path / 'dangling'}: there is a file of that name."),
        ("folder", "folder is somebody's."),
    ):
        with pytest.raises(FileExistsError) as error, new_folder(tmp_path / name, refuse):
            raise AssertionError("the block must not begin")
        assert str(error.value) == sentence
    with pytest.raises(FileExistsError, match="it exists; give the name of a new one"), new_folder(tmp_path / "folder"):
        raise AssertionError("the block must not begin")
    assert entries(tmp_path) == ["dangling", "file", "folder", "link"]
