"""Cache of synthesis results: each entry is a folder of files, whole or absent.

An entry's name is a digest of everything that its files depend on: the design's text, the scripts, the tools'
versions. It is made in a folder beside it and renamed; a lock, which the operating system releases however a
process ends, keeps two processes from making the same entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from verify.synthesis.tools import Deadline
from verify.toolchain import ToolError, cache_dir

#: Bytes above which the least recently used entries are removed after a new one.
CACHE_LIMIT_BYTES = 2 * 1024**3

#: Entries used within this many seconds are never removed: their path may just have been handed out.
KEEP_SECONDS = 3600.0

#: Drafts older than this belong to no living process.
_ABANDONED_SECONDS = 24 * 3600.0

_POLL_SECONDS = 0.1


def stored(kind: str, key: Mapping[str, object], make: Callable[[Path], None], deadline: Deadline, doing: str) -> Path:
    """Return the folder of an entry, making it unless it is in the cache.

    Parameters
    ----------
    kind : first part of the entry's name.
    key : JSON-ready; everything that the entry's files depend on.
    make : writes the files into the folder that it is given. What it leaves when it fails is removed.
    deadline : also limits the wait for another process that makes the same entry.
    doing : what goes on, to follow "while" when the deadline is reached.

    Returns
    -------
    The folder, which is not to be written to.

    Raises
    ------
    TimeLimitError
        The deadline was reached.
    ToolError
        The cache cannot be written.
    """
    folder = _entries_folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    entry = folder / f"{kind}-{digest[:24]}"
    if _touched(entry):
        return entry
    with _lock(entry, deadline, doing):
        # Another process may have made it while this one waited.
        if _touched(entry):
            return entry
        for leftover in folder.glob(f".{entry.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=folder))
        try:
            # mkdtemp's folders are private, and a cache may be shared.
            draft.chmod(folder.stat().st_mode & 0o777)
            make(draft)
            draft.rename(entry)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    prune()
    return entry


def prune(max_bytes: int = CACHE_LIMIT_BYTES, keep_seconds: float = KEEP_SECONDS) -> int:
    """Remove the least recently used entries until the rest fits, and drafts that nobody works on.

    Returns
    -------
    Number of entries removed.
    """
    held = []
    for entry in _entries_folder().iterdir():
        with contextlib.suppress(FileNotFoundError):
            if entry.name == ".locks" or not entry.is_dir():
                continue
            used = entry.stat().st_mtime
            if entry.name.startswith("."):
                if time.time() - used > _ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
            else:
                held.append((used, sum(file.stat().st_size for file in entry.iterdir()), entry))
    total = sum(size for _, size, _ in held)
    removed = 0
    for used, size, entry in sorted(held):
        if total <= max_bytes or time.time() - used < keep_seconds:
            break
        # Renamed first: nobody ever sees an entry with half its files gone.
        doomed = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
        with contextlib.suppress(FileNotFoundError):
            entry.rename(doomed / "entry")
            total -= size
            removed += 1
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def _entries_folder() -> Path:
    folder = cache_dir() / "synthesis"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"The cache folder '{folder}' cannot be made ({error.strerror}); set NIMBLE_CACHE to a folder "
            "that can be written."
        ) from error
    return folder


def _touched(entry: Path) -> bool:
    """Whether an entry exists; if so, mark it as used now."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    except PermissionError:
        # A cache that somebody else owns can be read all the same.
        pass
    return True


@contextlib.contextmanager
def _lock(entry: Path, deadline: Deadline, doing: str) -> Iterator[None]:
    """Hold an entry's lock. The lock file stays: without it two processes could lock two files of one name."""
    folder = entry.parent / ".locks"
    folder.mkdir(exist_ok=True)
    with open(folder / entry.name, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.left() == 0.0:
                    raise deadline.reached(f"another process was {doing}") from None
                time.sleep(_POLL_SECONDS)
        yield
