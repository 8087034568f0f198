"""Files that are either absent, the old ones or complete, whatever stops the writer."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8 through a temporary file beside it and a rename.

    Parameters
    ----------
    path
        File to create or replace. Its folder is created if it is missing.
    text
        The whole content.

    Raises
    ------
    OSError
        The folder cannot be created or the file cannot be written; `path` is then as it was.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a directory; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The rename is atomic only inside one file system, hence the same folder.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes the file private; a result is as readable as any file the user creates.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
