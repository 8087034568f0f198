"""A work folder belongs to one run and one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quant import LayerSettings, NMPattern
from quant.model_folder import ModelFolder
from quant.run_folder import RunFolder, run_identity


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a" / "work", {"model": 1}).close()
    run = RunFolder(tmp_path / "a" / "work", {"model": 1})
    run.layer("x").write_bytes(b"")
    run.activations(1).write_bytes(b"")
    run.activations(2).write_bytes(b"")
    run.close()
    (run.path / "layers" / ".x.safetensors.abc.part").write_bytes(b"left by a killed process")
    again = RunFolder(run.path, {"model": 1})
    assert [file.name for file in (again.path / "layers").iterdir()] == ["x.safetensors"]
    again.remove_activations(but=2)
    assert not again.activations(1).exists()
    assert again.activations(2).exists()
    again.remove_activations()
    assert not again.activations(2).exists()
    again.close()


def test_another_run_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"model": 1, "calibration text": 2, "seed": 3}).close()
    (tmp_path / "layers" / ".x.part").write_bytes(b"")
    with pytest.raises(ValueError, match="holds the work of another run, with a different calibration text and seed; "):
        RunFolder(tmp_path, {"model": 1, "calibration text": 1, "seed": 1})
    assert (tmp_path / "layers" / ".x.part").exists()
    RunFolder(tmp_path, {"model": 1, "calibration text": 2, "seed": 3}).close()  # the lock is free


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds files, but no run\.json; give a new folder"):
        RunFolder(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b'{"version": 99}'])
def test_a_damaged_or_foreign_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json is (damaged|not of a run of this version)"):
        RunFolder(tmp_path, {})


def test_two_processes_are_kept_apart(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {})
    other = (
        "import fcntl, os, sys\n"
        "handle = os.open(sys.argv[1], os.O_RDWR)\n"
        "try: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print('busy')\n"
    )
    lock = str(tmp_path / "lock")
    command = [sys.executable, "-S", "-c", other, lock]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "busy\n"
    with pytest.raises(BlockingIOError, match="Another process works in"):
        RunFolder(tmp_path, {})
    run.close()
    run.close()
    RunFolder(tmp_path, {}).close()


def test_the_identity_tells_every_argument_and_file_apart(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = ModelFolder.open(tiny_folders["llama"])
    tokens = torch.arange(20).reshape(2, 10)
    chosen = LayerSettings(NMPattern(2, 4))
    plain = run_identity(folder, {"a": chosen}, tokens, False, 0)
    assert json.loads(json.dumps(plain)) == plain == run_identity(folder, {"a": chosen}, tokens.clone(), False, 0)

    copy = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "llama"))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    others = {
        "model": run_identity(ModelFolder.open(copy), {"a": chosen}, tokens, False, 0),
        "settings": run_identity(folder, {"a": None}, tokens, False, 0),
        "calibration text": run_identity(folder, {"a": chosen}, tokens.reshape(4, 5), False, 0),
        "AWQ": run_identity(folder, {"a": chosen}, tokens, True, 0),
        "seed": run_identity(folder, {"a": chosen}, tokens, False, 1),
    }
    for name, other in others.items():
        assert [key for key in plain if plain[key] != other[key]] == [name]
    changes: list[dict[str, Any]] = [{"group_size": 64}, {"symmetric": False}, {"scale_bits": 16}, {"clip": False}]
    for change in [*changes, {"method": "wanda-rtn"}, {"pattern": NMPattern(1, 4)}]:
        other = run_identity(folder, {"a": replace(chosen, **change)}, tokens, False, 0)
        assert other["settings"] != plain["settings"]
