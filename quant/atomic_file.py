"""Files that are either absent, the old ones or complete, whatever stops the writer."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: What ends the name of a file that is being written.
PART = ".part"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a temporary file beside `path`, which takes that name when the block ends without an exception.

    By then its content is on disk. After an exception nothing of it is left; a process that is killed leaves at most
    a hidden file that ends in `PART` behind.

    Parameters
    ----------
    path
        File to create or replace, in a folder that exists.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    # The rename is atomic only inside one file system, hence the same folder.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes the file private; a result is as readable as any file the user creates.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt may come right after the rename
            os.unlink(temporary)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file through `new_file`."""
    with new_file(path) as stream:
        stream.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file in UTF-8 through `new_file`; its folder is created if it is missing.

    Raises
    ------
    OSError
        The folder cannot be created or the file cannot be written; `path` is then as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a directory; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())
