"""The cache of Verilated libraries: right results, one build each, and nothing half-written."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verify import verilator_build
from verify.verilator_build import FAST_VERILATOR_FLAGS, BuildError, build_library, prune_cache

COUNTER = """
module counter(input logic clk, input logic reset, input logic enable, output logic [15:0] count);
  // At counter.py:12
  always_ff @(posedge clk)
    if (reset) count <= 16'd0;
    else if (enable) count <= count + 16'd3;
endmodule
"""

TESTBENCH = """
#include "Vtop.h"
#include "verilated.h"

extern "C" unsigned run(unsigned cycles) {
    VerilatedContext context;
    Vtop top{&context};
    auto tick = [&] { top.clk = 0; top.eval(); top.clk = 1; top.eval(); };
    top.reset = 1;
    tick();
    top.reset = 0;
    for (unsigned cycle = 0; cycle < cycles; ++cycle) {
        top.enable = cycle % 2 == 0;
        tick();
    }
    return top.count;
}
"""


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that the tests of this file share, so that each design is built once."""
    monkeypatch.setenv("NIMBLE_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture
def empty_cache(shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without any design; only Verilator's runtime library is compiled already."""
    (shared_cache / "runtime").mkdir(exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "runtime").symlink_to(shared_cache / "runtime")
    monkeypatch.setenv("NIMBLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the compiler; holds the name of each entry that would have been built."""
    names: list[str] = []

    def build(entry: Path, *_: object) -> None:
        names.append(entry.name)
        entry.mkdir()
        (entry / "lib.so").write_bytes(b"x" * 1000)

    monkeypatch.setattr(verilator_build, "_build", build)
    return names


def visible_entries(cache: Path) -> list[str]:
    """What lies in the cache besides the locks, drafts of unfinished builds included."""
    return sorted(name for name in os.listdir(cache / "verilated") if name != ".locks")


def test_the_library_counts_and_is_built_once(cache: Path) -> None:
    library = build_library(COUNTER, "counter", TESTBENCH)
    run = ctypes.CDLL(str(library)).run
    assert run(7) == 12
    assert run(50_000) == 75_000 % 65_536
    built = library.stat().st_mtime_ns
    started = time.perf_counter()
    assert build_library(COUNTER, "counter", TESTBENCH) == library
    assert time.perf_counter() - started < 1.0
    assert library.stat().st_mtime_ns == built
    assert sorted(os.listdir(library.parent)) == ["build.log", "design.sv", "lib.so", "testbench.cpp"]


def test_two_designs_live_in_one_process(cache: Path) -> None:
    """Both have a class Vtop, whose symbols must not be mixed up."""
    three = ctypes.CDLL(str(build_library(COUNTER, "counter", TESTBENCH)))
    five_counter = COUNTER.replace("16'd3", "16'd5")
    five = ctypes.CDLL(str(build_library(five_counter, "counter", TESTBENCH)))
    assert (three.run(8), five.run(8), three.run(8)) == (12, 20, 12)


def test_the_runtime_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIMBLE_CACHE", str(tmp_path / "cache"))
    commands = []
    for increment, flags in ((3, ()), (5, ()), (7, ("-CFLAGS", "-DVL_DEBUG=1"))):
        library = build_library(
            COUNTER.replace("16'd3", f"16'd{increment}"),
            "counter",
            TESTBENCH,
            cxxflags=("-O0",),
            verilator_flags=flags,
        )
        assert ctypes.CDLL(str(library)).run(4) == 2 * increment
        commands.append((library.parent / "build.log").read_text())
    assert ["-o verilated.o" in log for log in commands] == [True, False, True]
    assert len(os.listdir(tmp_path / "cache" / "runtime")) == 2


def test_a_design_in_many_files_is_compiled(empty_cache: Path) -> None:
    """Large designs are compiled file by file with a precompiled header, small ones are not."""
    library = build_library(COUNTER, "counter", TESTBENCH, cxxflags=("-O0",), verilator_flags=("--output-split", "1"))
    assert ctypes.CDLL(str(library)).run(7) == 12
    assert "pch.h.fast" in (library.parent / "build.log").read_text()


def test_compiler_flags_in_the_environment_change_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPPFLAGS", "CXXFLAGS", "LDFLAGS", "LDLIBS"):
        monkeypatch.setenv(name, "-no-such-flag")
    assert build_library(COUNTER, "counter", TESTBENCH, cxxflags=("-O0",)).is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"verilog": COUNTER.replace("16'd3", "16'd4")},
        {"testbench": TESTBENCH.replace("% 2", "% 3")},
        {"cxxflags": ("-O1",)},
        {"verilator_flags": ("-O0",)},
        {"top": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_ingredient_gives_an_entry_of_its_own(
    change: dict[str, str], empty_cache: Path, builds: list[str]
) -> None:
    arguments: dict = {"verilog": COUNTER, "top": "counter", "testbench": TESTBENCH}
    first = build_library(**arguments)
    assert build_library(**{**arguments, **change}) != first
    assert build_library(**arguments) == first
    assert len(builds) == 2


@pytest.mark.parametrize("name", ["compiler_version", "_processor"])
def test_another_compiler_or_processor_builds_anew(
    name: str, empty_cache: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_library(COUNTER, "counter", TESTBENCH)
    monkeypatch.setattr(verilator_build, name, lambda: "another")
    assert build_library(COUNTER, "counter", TESTBENCH) != first


def test_the_processor_does_not_count_for_portable_code(
    empty_cache: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_library(COUNTER, "counter", TESTBENCH, cxxflags=("-O2",))
    monkeypatch.setattr(verilator_build, "_processor", lambda: "another")
    assert build_library(COUNTER, "counter", TESTBENCH, cxxflags=("-O2",)) == first


def test_plain_comments_do_not_count_but_pragmas_do(empty_cache: Path, builds: list[str]) -> None:
    first = build_library(COUNTER, "counter", TESTBENCH)
    assert build_library(COUNTER.replace("counter.py:12", "counter.py:13"), "counter", TESTBENCH) == first
    waived = COUNTER.replace("// At", "// verilator lint_off WIDTH\n  // At")
    assert build_library(waived, "counter", TESTBENCH) != first


def test_a_syntax_error_is_shown(empty_cache: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build_library(COUNTER.replace("endmodule", "endmodul"), "counter", TESTBENCH)
    first, *rest = str(caught.value).splitlines()
    assert first == ("Verilator refused the module 'counter' (exit status 1). The log's errors and last lines:")
    assert any("syntax error" in line and "design.sv" in line for line in rest)
    assert visible_entries(empty_cache) == []


def test_an_error_in_the_testbench_is_shown(empty_cache: Path) -> None:
    with pytest.raises(BuildError, match=r"^The testbench of 'counter' does not compile \(exit") as caught:
        build_library(COUNTER, "counter", TESTBENCH.replace("top.count", "top.no_such_pin"))
    assert "no_such_pin" in str(caught.value)
    assert visible_entries(empty_cache) == []


@pytest.mark.parametrize(
    ("warning", "body"),
    [
        ("UNOPTFLAT", "logic [15:0] t; always_comb t = count ^ {16{enable}}; always_comb count = t + 16'd1;"),
        ("LATCH", "always_comb if (enable) count = 16'd1;"),
        ("MULTIDRIVEN", "always_ff @(posedge clk) count <= 1; always_ff @(posedge reset) count <= 2;"),
        ("SELRANGE", "logic [3:0] t; assign t = 4'd3; assign count = {15'd0, t[7]};"),
        ("IMPLICIT", "assign forgotten = enable; assign count = {15'd0, forgotten};"),
    ],
)
def test_a_warning_about_wrong_hardware_is_an_error(warning: str, body: str, empty_cache: Path) -> None:
    interface = "input logic clk, input logic reset, input logic enable, output logic [15:0] count"
    module = f"module wrong({interface}); {body} endmodule\n"
    with pytest.raises(BuildError, match=f"%Error-{warning}"):
        build_library(module, "wrong", TESTBENCH)


def test_a_warning_can_be_waived(empty_cache: Path) -> None:
    module = (
        "module loop(input logic clk, input logic reset, input logic enable, output logic [15:0] count);\n"
        "logic [15:0] t; always_comb t = count ^ {16{enable}}; always_comb count = t + 16'd1; endmodule\n"
    )
    with pytest.raises(BuildError, match="UNOPTFLAT"):
        build_library(module, "loop", TESTBENCH)
    flags = (*FAST_VERILATOR_FLAGS, "-Wno-UNOPTFLAT")
    library = build_library(module, "loop", TESTBENCH, cxxflags=("-O0",), verilator_flags=flags)
    assert library.is_file()


def test_a_name_that_is_no_identifier_is_refused(empty_cache: Path) -> None:
    with pytest.raises(ValueError, match=r"The top module's name is '\.\./x', which is not a Verilog iden"):
        build_library(COUNTER, "../x", TESTBENCH)


def build_and_tell(queue: multiprocessing.Queue) -> None:
    library = build_library(COUNTER, "counter", TESTBENCH)
    queue.put((str(library), library.stat().st_ino))


def test_two_processes_build_once(empty_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=build_and_tell, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert answers[0] == answers[1], "the same file, not one that replaced the other"
    assert len(visible_entries(empty_cache)) == 1
    logs = list((empty_cache / "verilated").glob("*/build.log"))
    assert logs[0].read_text().count("--top-module counter") == 1


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_half_written(
    kind: signal.Signals, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler waits for ever; after the interruption the next build finds the way free."""
    started = tmp_path / "started"
    slow = tmp_path / "slow-g++"
    slow.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho $$ > {started}\nexec sleep 99\n')
    slow.chmod(0o755)
    script = f"from verify.verilator_build import build_library\nbuild_library({COUNTER!r}, 'counter', {TESTBENCH!r})\n"
    root = Path(verilator_build.__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "CXX": str(slow), "PYTHONPATH": str(root)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text().strip()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(kind)
    assert process.wait(timeout=30) != 0
    drafts = visible_entries(empty_cache)
    assert all(name.startswith(".") for name in drafts), "no entry under its final name"
    if kind == signal.SIGINT:
        assert drafts == []
        compiler = Path(f"/proc/{started.read_text().strip()}/stat")
        # A process that has ended stays as a zombie until the first process of the machine reaps it.
        assert not compiler.exists() or compiler.read_text().rpartition(")")[2].split()[0] in "ZX"
    else:
        # Nobody could tidy up after SIGKILL; make and its compilers are this test's to end.
        os.killpg(os.getpgid(int(started.read_text())), signal.SIGKILL)
    slow.write_text('#!/bin/sh\nexec g++ "$@"\n')
    monkeypatch.setenv("CXX", str(slow))
    assert ctypes.CDLL(str(build_library(COUNTER, "counter", TESTBENCH))).run(7) == 12
    assert [name for name in visible_entries(empty_cache) if name.startswith(".")] == []


def test_pruning_removes_the_least_recently_used(empty_cache: Path, builds: list[str]) -> None:
    libraries = [build_library(COUNTER, f"counter{index}", TESTBENCH) for index in range(4)]
    for age, library in zip((400, 300, 200, 100), libraries, strict=True):
        os.utime(library.parent, (time.time() - age, time.time() - age))
    build_library(COUNTER, "counter0", TESTBENCH)
    assert prune_cache(2500, keep_seconds=0) == 2
    assert [library.is_file() for library in libraries] == [True, False, False, True]
    assert prune_cache(2500, keep_seconds=0) == 0


def test_pruning_spares_what_was_just_used(empty_cache: Path, builds: list[str]) -> None:
    library = build_library(COUNTER, "counter", TESTBENCH)
    assert prune_cache(0) == 0
    assert library.is_file()
    assert prune_cache(0, keep_seconds=0) == 1
    assert visible_entries(empty_cache) == []


def test_pruning_removes_builds_abandoned_long_ago(empty_cache: Path, builds: list[str]) -> None:
    build_library(COUNTER, "counter", TESTBENCH)
    for name, age in ((".old-1", 2 * 24 * 3600), (".new-1", 60)):
        (empty_cache / "verilated" / name).mkdir()
        os.utime(empty_cache / "verilated" / name, (time.time() - age, time.time() - age))
    prune_cache()
    assert [name for name in visible_entries(empty_cache) if name.startswith(".")] == [".new-1"]
