"""Folders that are either absent, the old ones or complete, whatever stops the writer."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(path: str | Path, may_replace: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Fill a temporary folder beside `path`, which takes that name when the block ends without an exception.

    By then everything in it is on disk. After an exception, Ctrl-C included, nothing of it is left. A process that
    is killed leaves at most a hidden folder ``.<name>.….part`` behind.

    Parameters
    ----------
    path
        Folder to make. The folders above it are created if they are missing.
    may_replace
        Called with `path` where that exists, before anything is written: raises unless it is a folder that may be
        replaced. By default nothing may.

    Yields
    ------
    Path
        The temporary folder.

    Raises
    ------
    OSError
        If `path` exists and may not be replaced, or a folder cannot be written.
    """
    path = Path(path)
    name = path.name or path.resolve().name
    if os.path.lexists(path):
        if path.is_symlink() or not path.is_dir():
            raise FileExistsError(f"Cannot write the folder {path}: there is a file of that name.")
        if may_replace is None:
            raise FileExistsError(f"Cannot write the folder {path}: it exists; give the name of a new one.")
        may_replace(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The rename is atomic only inside one file system, hence the same folder above.
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{name}.", suffix=".part"))
    aside = temporary.with_suffix(".old")
    try:
        yield temporary
        # mkdtemp makes the folder private, and safetensors its files; a result is as readable as what the user creates.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for folder, _, files in os.walk(temporary):
            for file in files:
                os.chmod(Path(folder) / file, 0o666 & ~umask)
                _flush(Path(folder) / file)
            _flush(Path(folder))
        if os.path.lexists(path) and may_replace is not None:
            may_replace(path)  # once more: hours may have passed
            os.rename(path, aside)
        os.rename(temporary, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if aside.exists() and os.path.lexists(path):
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            os.rename(aside, path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
