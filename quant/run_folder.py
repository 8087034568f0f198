"""The work folder of a quantisation run: whose it is, and what is finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from quant.atomic_file import PART, write_bytes
from quant.linear import LayerSettings
from quant.model_folder import ModelFolder

_RUN = "run.json"
_LOCK = "lock"
_VERSION = 1


class RunFolder:
    """A folder that belongs to one run, as its run.json says, and to one process at a time.

    Parameters
    ----------
    path
        Folder to create or to continue in.
    identity
        What the run depends on, as JSON values by a name for each.

    Raises
    ------
    ValueError
        If the folder belongs to another run or holds other files.
    BlockingIOError
        If another process works in it.
    OSError
        If it cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        #: The folder.
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        run = path / _RUN
        if not run.exists() and any(file.suffix != PART and file.name != _LOCK for file in path.iterdir()):
            raise ValueError(f"{path} holds files, but no {_RUN}; give a new folder for the run's work.")
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BlockingIOError(f"Another process works in {path}; wait for it or give another folder.") from None
        try:
            self._take_over(run, identity)
        except BaseException:
            self.close()
            raise

    def _take_over(self, run: Path, identity: Mapping[str, Any]) -> None:
        if run.exists():
            _check_same_run(run, identity)
        for file in self.path.rglob(f".*{PART}"):
            file.unlink()  # of a process that was killed
        if not run.exists():
            document = {"version": _VERSION, **identity}
            write_bytes(run, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        (self.path / "layers").mkdir(exist_ok=True)
        (self.path / "scales").mkdir(exist_ok=True)

    def close(self) -> None:
        """Let another process work in the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def layer(self, name: str) -> Path:
        """File of a finished layer, by its full name."""
        return self.path / "layers" / f"{name}.safetensors"

    def scales(self, block: int) -> Path:
        """File of a block's AWQ scales."""
        return self.path / "scales" / f"block-{block}.safetensors"

    def activations(self, block: int) -> Path:
        """File of what a block reads."""
        return self.path / f"activations-{block}.bin"

    def remove_activations(self, but: int | None = None) -> None:
        """Remove the files of what blocks read, but for one block's."""
        for file in self.path.glob("activations-*.bin"):
            if but is None or file != self.activations(but):
                file.unlink()


def run_identity(
    folder: ModelFolder,
    settings: Mapping[str, LayerSettings | None],
    tokens: torch.Tensor,
    awq: bool,
    seed: int,
) -> dict[str, Any]:
    """All that the result of a run depends on: the model's files, settings, tokens, code and libraries.

    The weights' files are read in full.
    """
    import transformers

    code = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        code.update(source.read_bytes())
    return {
        "model": {file.name: _hash_file(file) for file in (folder.path / "config.json", *folder.files)},
        "settings": {
            name: None if chosen is None else {**asdict(chosen), "pattern": str(chosen.pattern)}
            for name, chosen in settings.items()
        },
        "calibration text": {
            "shape": list(tokens.shape),
            "sha256": hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest(),
        },
        "AWQ": awq,
        "seed": seed,
        "code": code.hexdigest(),
        "libraries": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_same_run(run: Path, identity: Mapping[str, Any]) -> None:
    try:
        found = json.loads(run.read_bytes())
    except ValueError as error:
        raise ValueError(f"{run} is damaged ({error}); delete the folder to start again.") from None
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise ValueError(f"{run} is not of a run of this version; give another folder.")
    other = [name for name, value in identity.items() if found.get(name) != value]
    if other:
        raise ValueError(
            f"{run.parent} holds the work of another run, with a different {' and '.join(other)}; give another "
            "folder, or delete it to start again."
        )
