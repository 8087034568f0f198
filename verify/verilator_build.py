"""Compiles a Verilog file and a C++ testbench into a shared library, and keeps it for the next time.

The testbench includes `Vtop.h`, whatever the Verilog module is called, and exports `extern "C"` functions.
Python loads the library with ctypes and crosses into it once per GEMM, not once per cycle.

An entry of the cache is a folder `verilated/<top>-<hash>` with `lib.so`, the sources it was made from and
`build.log`. It is built in a folder beside it and renamed, so an entry is either whole or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from verify.toolchain import (
    ToolError,
    Verilator,
    cache_dir,
    compiler,
    compiler_version,
    environment,
    find_verilator,
    require_command,
)

#: Options that give the fastest model. `--x-initial fast` starts every register at 0, as PyMTL3 does.
FAST_VERILATOR_FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert")

#: Options for the parts that run in every cycle.
FAST_CXXFLAGS = ("-O3", "-march=native")

#: Warnings that mean hardware other than the one described. PyMTL3 flags none of them: a combinational
#: loop, a latch, two drivers, a forgotten pin, an index out of range, a mixture of assignments. Width
#: warnings stay warnings, as PyMTL3 has checked widths by stricter rules.
FATAL_WARNINGS = (
    "UNOPTFLAT",
    "LATCH",
    "MULTIDRIVEN",
    "PINMISSING",
    "SELRANGE",
    "BLKANDNBLK",
    "COMBDLY",
    "IMPLICIT",
    "ALWCOMBORDER",
)

#: Bytes above which the least recently used entries are removed after a build.
CACHE_LIMIT_BYTES = 2 * 1024**3

#: Entries used within this many seconds are never removed: their path may just have been handed out.
KEEP_SECONDS = 3600.0

#: Raised when the build's own procedure changes, so that older entries are not taken for new ones.
_RECIPE = 1

#: Smaller files than Verilator's default of 20000, so that two compilers finish at the same time.
_SPLIT = ("--output-split", "5000", "--output-split-cfuncs", "5000")

#: Options for every C++ file. A unique symbol would be shared with every other library of the process.
_ALL_CXXFLAGS = "-fPIC -fno-gnu-unique -pthread"

#: Options for Verilator's runtime library, which a model hardly calls unless it traces.
_RUNTIME_CXXFLAGS = "-O1"

#: Variables that make would pass on to the compiler, but that do not count for the cache.
_IGNORED_VARIABLES = ("CPPFLAGS", "CXXFLAGS", "LDFLAGS", "LDLIBS", "OPT", "USER_CPPFLAGS", "USER_LDFLAGS")

#: No build takes this long.
_ABANDONED_SECONDS = 24 * 3600.0

_LOG_LINES = 30


class BuildError(RuntimeError):
    """Verilator or the C++ compiler refused the design; the message ends with the log's last lines."""


def build_library(
    verilog: str,
    top: str,
    testbench: str,
    *,
    cxxflags: Sequence[str] = FAST_CXXFLAGS,
    verilator_flags: Sequence[str] = FAST_VERILATOR_FLAGS,
) -> Path:
    """Return the shared library for a design and its testbench, building it unless it is in the cache.

    Parameters
    ----------
    verilog : text of the SystemVerilog file, not its path. Lines that are only a `//` comment do not
        count for the cache (unless they speak to Verilator): PyMTL3 writes source line numbers there.
    top : name of the top module.
    testbench : text of the C++ testbench, which includes `Vtop.h` and exports `extern "C"` functions.
    cxxflags : options for the testbench and the parts of the model that run in every cycle. They must not
        name files, as the contents of files do not count for the cache.
    verilator_flags : options for Verilator, such as `FAST_VERILATOR_FLAGS`. Waive one of `FATAL_WARNINGS`
        with `-Wno-<name>` here. The same holds for files.

    Returns
    -------
    Path of `lib.so`, to be loaded with `ctypes.CDLL`.

    Raises
    ------
    ToolError
        Verilator, make or the C++ compiler is missing.
    BuildError
        The Verilog or the C++ does not compile, or a warning in `FATAL_WARNINGS` was given.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", top):
        raise ValueError(f"The top module's name is '{top}', which is not a Verilog identifier.")
    verilator = find_verilator()
    key = {
        "recipe": _RECIPE,
        "verilog": _without_plain_comments(verilog),
        "top": top,
        "testbench": testbench,
        "cxxflags": list(cxxflags),
        "verilator_flags": list(verilator_flags),
        "verilator": verilator.identity(),
        "compiler": [compiler(), compiler_version()],
        # -march=native means another machine code on another machine, and a cache folder may be shared.
        "processor": _processor() if any("native" in flag for flag in cxxflags) else platform.machine(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    entries = _entries_folder()
    entry = entries / f"{top[:80]}-{digest[:16]}"
    library = entry / "lib.so"
    if _touched(entry):
        return library
    with _lock(entry):
        # Another process may have built it while this one waited.
        if not _touched(entry):
            _remove_leftovers(entry)
            _build(entry, verilator, verilog, top, testbench, cxxflags, verilator_flags)
    prune_cache()
    return library


def prune_cache(max_bytes: int = CACHE_LIMIT_BYTES, *, keep_seconds: float = KEEP_SECONDS) -> int:
    """Remove the least recently used libraries until the rest fits.

    Parameters
    ----------
    max_bytes : bytes that may remain. More remain if entries are too recent to be removed.
    keep_seconds : entries used within this time stay.

    Returns
    -------
    Number of entries removed.
    """
    entries = _entries_folder()
    held = []
    for entry in entries.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if entry.name == ".locks" or not entry.is_dir():
                continue
            if entry.name.startswith("."):
                # A build that was killed and never tried again.
                if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
            else:
                size = sum(file.stat().st_size for file in entry.iterdir())
                held.append((entry.stat().st_mtime, size, entry))
    total = sum(size for _, size, _ in held)
    removed = 0
    for used, size, entry in sorted(held):
        if total <= max_bytes or time.time() - used < keep_seconds:
            break
        # Renamed first: nobody ever sees an entry with half its files gone.
        doomed = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entries))
        with contextlib.suppress(FileNotFoundError):
            entry.rename(doomed / "entry")
            total -= size
            removed += 1
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def _entries_folder() -> Path:
    folder = cache_dir() / "verilated"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"The cache folder '{folder}' cannot be made ({error.strerror}); set NIMBLE_CACHE to a folder "
            "that can be written."
        ) from error
    return folder


def _touched(entry: Path) -> bool:
    """Whether an entry exists; if so, mark it as used now.

    The entry's folder carries the time of use and `lib.so` the time of the build.
    """
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    except PermissionError:
        # A cache that somebody else owns can be read all the same.
        pass
    return (entry / "lib.so").is_file()


@contextlib.contextmanager
def _lock(entry: Path) -> Iterator[None]:
    """Hold an entry's lock; the operating system releases it when the process ends, however it ends.

    The lock file stays: removing it would let two processes lock two files of the same name.
    """
    folder = entry.parent / ".locks"
    folder.mkdir(exist_ok=True)
    with open(folder / entry.name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(entry: Path) -> None:
    """Remove what a killed build of this entry left. Call with the lock held, so that none is alive."""
    for folder in entry.parent.glob(f".{entry.name}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(entry, ignore_errors=True)


def _build(
    entry: Path,
    verilator: Verilator,
    verilog: str,
    top: str,
    testbench: str,
    cxxflags: Sequence[str],
    verilator_flags: Sequence[str],
) -> None:
    require_command("make", "Compiling a Verilated design")
    # The lock is held and leftovers are gone, so that the name is free.
    draft = entry.parent / f".{entry.name}-{os.getpid()}"
    draft.mkdir()
    try:
        (draft / "design.sv").write_text(verilog, encoding="utf-8")
        (draft / "testbench.cpp").write_text(testbench, encoding="utf-8")
        verilate = [
            str(verilator.executable),
            *("--cc", "--exe", "testbench.cpp", "design.sv"),
            *("--top-module", top, "--prefix", "Vtop", "--Mdir", "objects"),
            *("-CFLAGS", _ALL_CXXFLAGS),
            # Symbols bind within the library: several, all with a class Vtop, can be loaded side by side.
            *("-LDFLAGS", "-shared -Wl,-Bsymbolic -pthread"),
            *("-o", "lib.so", *_SPLIT),
            *("-Wno-fatal", *(f"-Werror-{name}" for name in FATAL_WARNINGS)),
            *verilator_flags,
        ]
        _run_logged(verilate, draft, verilator, f"Verilator refused the module '{top}'")
        runtime = _runtime_folder(draft / "objects", verilator)
        for compiled in runtime.glob("*.o"):
            # Copied without its time: make must find it newer than the makefile, or it compiles it again.
            shutil.copyfile(compiled, draft / "objects" / compiled.name)
        compile_command = [
            *("make", "-C", "objects", "-f", "Vtop.mk", "-j2", "lib.so"),
            *(f"CXX={compiler()}", f"LINK={compiler()}"),
            *(f"{name}={value}" for name, value in verilator.make_variables.items()),
            # The slow part runs once, at the start: optimising it takes long and gains nothing.
            *(f"OPT_FAST={shlex.join(cxxflags)}", "OPT_SLOW=-O0", f"OPT_GLOBAL={_RUNTIME_CXXFLAGS}"),
        ]
        _run_logged(compile_command, draft, verilator, f"The testbench of '{top}' does not compile")
        _keep_runtime(draft / "objects", runtime)
        (draft / "objects" / "lib.so").rename(draft / "lib.so")
        shutil.rmtree(draft / "objects")
        draft.rename(entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _runtime_folder(objects: Path, verilator: Verilator) -> Path:
    """Folder of the compiled runtime library that a Verilated design asks for; it need not exist.

    Compiling the runtime takes longer than compiling a small design, and it is the same for all designs
    with the same switches (tracing, coverage, timing), which the generated makefile lists.
    """
    classes = (objects / "Vtop_classes.mk").read_text(encoding="utf-8")
    # Whether the design is split over several files does not matter to the runtime.
    switches = re.findall(r"^VM_(?!PARALLEL_BUILDS)\w+ = .*$", classes, flags=re.MULTILINE)
    sources = re.findall(r"\bverilated\w*", classes)
    makefile = (objects / "Vtop.mk").read_text(encoding="utf-8")
    cflags = re.findall(r"^VM_USER_CFLAGS = \\\n(.*?)\n\n", makefile, flags=re.MULTILINE | re.DOTALL)
    key = [_RECIPE, _RUNTIME_CXXFLAGS, cflags, switches, sources]
    key += [verilator.identity(), compiler(), compiler_version(), platform.machine()]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return cache_dir() / "runtime" / digest[:16]


def _keep_runtime(objects: Path, runtime: Path) -> None:
    """Copy the compiled runtime library of a finished build to its folder, unless another did already."""
    if runtime.exists():
        return
    runtime.parent.mkdir(exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{runtime.name}-", dir=runtime.parent))
    try:
        # mkdtemp's folders are private, and a cache may be shared.
        draft.chmod(runtime.parent.stat().st_mode & 0o777)
        for compiled in objects.glob("verilated*.o"):
            shutil.copyfile(compiled, draft / compiled.name)
        # Another build may have been first; its objects are the same.
        with contextlib.suppress(OSError):
            draft.rename(runtime)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run_logged(command: Sequence[str], folder: Path, verilator: Verilator, complaint: str) -> None:
    """Run a command in a folder, with its output added to build.log there.

    It gets a process group of its own: when this process is interrupted, make's compilers end with it
    instead of writing into a folder that is being removed.
    """
    log = folder / "build.log"
    variables = environment(verilator)
    for name in _IGNORED_VARIABLES:
        variables.pop(name, None)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        # A long log ends with make's own complaints: errors further up say more.
        errors = [line for line in lines if re.search(r"%Error|\berror:|undefined reference", line)]
        tail = lines[-_LOG_LINES:]
        shown = [line for line in errors[:_LOG_LINES] if line not in tail] + tail
        raise BuildError(f"{complaint} (exit status {status}). The log's errors and last lines:\n" + "\n".join(shown))


def _without_plain_comments(verilog: str) -> str:
    """The text less the lines that are only a `//` comment, but for those that speak to a tool."""
    lines = verilog.splitlines()
    return "\n".join(
        line for line in lines if not line.lstrip().startswith("//") or re.search(r"//\s*(verilator|synopsys)\b", line)
    )


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """Model and instruction set extensions of the processor, on which -march=native depends."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return f"{sys.platform} {platform.machine()} {platform.processor()} {platform.node()}"
    told = re.findall(r"^(?:model name|cpu family|model|flags|Features|CPU \w+)\s*:\s*(.*)$", first, flags=re.MULTILINE)
    return " | ".join([platform.machine(), *told])
