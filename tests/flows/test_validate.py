"""`nimble validate`: whole layers through the verilated core, held against the timing model, row by row."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accel.config import load_preset
from flows import validate as flow
from flows.validate import Plan, Row

ROOT = Path(flow.__file__).resolve().parents[1]


@pytest.fixture
def arguments(tiny_model: Path) -> tuple[object, ...]:
    """Eight short runs on the tiny core."""
    return (
        *("validate", "--preset", "tiny", "--model", tiny_model, "--group", 16),
        *("--layers", "q_proj,down_proj", "--patterns", "dense,2:4", "--tokens", "1,5"),
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text("utf-8"))["rows"])


def test_a_smaller_version_of_the_table_in_the_readme(nimble_json: Any) -> None:
    """LLaMA-7B's layers on the edge core, with all their input features and a few output tiles."""
    document = nimble_json("validate", "--outputs", 40, "--tokens", "1,16")
    assert document["parameters"]["core"] == "edge"
    assert document["complete"] is True
    assert document["match"] is True
    assert document["largest_difference"] == 0
    assert len(document["rows"]) == 3 * 4 * 2
    sizes = {(row["layer"], row["in_features"], row["out_features"]) for row in document["rows"]}
    assert sizes == {("q_proj", 4096, 40), ("gate_proj", 4096, 40), ("down_proj", 11008, 40)}
    for row in document["rows"]:
        assert row["rtl_cycles"] == row["model_cycles"] == sum(row["rtl_counters"].values())
        assert row["rtl_counters"] == row["model_counters"]
        assert row["results"] == 40 * row["tokens"]
        assert row["wrong_results"] == 0
        assert row["rtl_written"] is row["model_written"] is None
    assert document["cycles"] == sum(row["rtl_cycles"] for row in document["rows"])


def test_with_a_memory_the_last_result_s_arrival_is_compared_too(arguments: Any, nimble_json: Any) -> None:
    memory = ("--memory", "ddr3-1600", "--clock", 1600)
    document = nimble_json(*arguments, *memory)
    assert document["match"] is True
    assert document["parameters"]["memory"] == {
        "name": "ddr3-1600",
        "bandwidth_gb_s": 12.8,
        "latency_ns": 100.0,
        "clock_mhz": 1600.0,
    }
    fast = nimble_json(*arguments)
    for row, other in zip(document["rows"], fast["rows"], strict=True):
        assert row["rtl_written"] == row["model_written"] > row["rtl_cycles"] > other["rtl_cycles"]


def test_the_table(arguments: Any, nimble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = nimble(*arguments)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "tiny on the verilated tiny core streams that never hold back" in text
    assert "Largest difference: 0 cycles in 8 runs; " in text
    assert "Cycles by cause: equal in every run." in text
    # 32 and 32 output features, of 1 and 5 tokens, with two patterns.
    assert f"Results: all {2 * 2 * 6 * 32} equal PyTorch's." in text
    assert "finished before" not in text
    with_memory = nimble(*arguments, "--memory", "hbm2-u280")
    assert "hbm2-u280 (460 GB/s, 120 ns) at 500 MHz" in " ".join(with_memory.stdout.split())
    assert max(map(len, (result.stdout + with_memory.stdout).splitlines())) <= 80


# What must not pass


@pytest.mark.parametrize(
    ("change", "words", "difference"),
    [
        ({"cycles": 7}, "Largest difference: -", None),
        ({"written": 1 << 20}, "Largest difference: ", None),
        ({"counters": {"busy": 1}}, "CAUSES DIFFER: q_proj, dense, 1 tokens; q_proj, dense, 5 tokens; ", 0),
    ],
)
def test_a_wrong_timing_model_is_a_mismatch(
    change: dict[str, Any],
    words: str,
    difference: int | None,
    arguments: Any,
    nimble: Any,
    nimble_json: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    correct = flow.gemm_timing
    monkeypatch.setattr(flow, "gemm_timing", lambda *a, **k: dataclasses.replace(correct(*a, **k), **change))
    memory = ("--memory", "ddr4-3200")
    result = nimble(*arguments, *memory)
    assert result.exit_code == 1
    assert words in " ".join(result.stdout.split())
    document = nimble_json(*arguments, *memory, exit_code=1)
    assert document["match"] is False
    assert (document["largest_difference"] == 0) == (difference == 0)


def test_a_wrong_result_is_a_mismatch(arguments: Any, nimble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = flow.execute

    def execute(job: Any, level: str, **options: Any) -> Any:
        run = correct(job, level, **options)
        if level == "verilog" and job.tokens == 5:
            run.y[4, 3] += 1
        return run

    monkeypatch.setattr(flow, "execute", execute)
    result = nimble(*arguments)
    assert result.exit_code == 1
    assert "RESULTS DIFFER from PyTorch's: q_proj, dense, 5 tokens; q_proj, 2:4, 5 tokens; down_proj" in " ".join(
        result.stdout.split()
    )


def test_the_difference_is_the_larger_one_of_both_ends() -> None:
    row = Row("q", 4, 4, "2:4", 1, 10, 10, {}, {}, None, None, 4, 0, 0.1)
    assert (row.difference, row.match) == (0, True)
    assert dataclasses.replace(row, model_cycles=8).difference == -2
    assert dataclasses.replace(row, rtl_written=20, model_written=19).difference == -1
    assert dataclasses.replace(row, model_cycles=13, rtl_written=20, model_written=19).difference == 3
    assert not dataclasses.replace(row, wrong_results=1).match
    assert not dataclasses.replace(row, rtl_counters={"busy": 1}).match


# Going on where it was


def test_an_interrupted_validation_goes_on(
    arguments: Any, nimble: Any, nimble_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("rows.json")
    correct, runs = flow.execute, [0]

    def execute(job: Any, level: str, **options: Any) -> Any:
        runs[0] += level == "verilog"
        if runs[0] == 4:
            raise KeyboardInterrupt
        return correct(job, level, **options)

    monkeypatch.setattr(flow, "execute", execute)
    result = nimble(*arguments, "-o", file)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == (
        "3 of 8 runs are kept in rows.json; the same command goes on with them.\n"
        "Interrupted: nimble validate stopped before it was done.\n"
    )
    stopped = json.loads(file.read_text("utf-8"))
    assert (len(stopped["rows"]), stopped["runs"], stopped["complete"]) == (3, 8, False)

    monkeypatch.setattr(flow, "execute", correct)
    document = nimble_json(*arguments, "-o", file)
    assert document == json.loads(file.read_text("utf-8"))
    assert document["complete"] is True
    # The same rows, wall time and all, and then the others.
    assert document["rows"][:3] == stopped["rows"]
    assert len(document["rows"]) == 8

    # Nothing is left to do, and nothing is done.
    monkeypatch.setattr(flow, "execute", None)
    before = file.stat().st_mtime_ns
    assert "8 of the runs were finished before." in nimble(*arguments, "-o", file).stdout
    assert file.stat().st_mtime_ns == before


def test_ctrl_c_in_the_middle(tiny_model: Path) -> None:
    file = Path("rows.json").resolve()
    command = [
        *(sys.executable, "-m", "flows.cli", "validate", "--preset", "tiny", "--model", str(tiny_model)),
        *("--group", "16", "--patterns", "dense,1:2,2:4,3:4,1:4,3:8,5:8,7:8", "-o", str(file)),
        *("--tokens", ",".join(map(str, range(1, 31)))),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: process.poll() is not None or (file.exists() and len(rows_of(file)) >= 2))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert output == ""
    assert "Traceback" not in errors
    rows = rows_of(file)
    assert 2 <= len(rows) < 3 * 8 * 30
    assert not [path for path in file.parent.iterdir() if path.name.endswith(".part")]
    assert all(row["match"] for row in rows)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--tokens", "1,2"), "tokens"),
        (("--layers", "q_proj"), "layers"),
        (("--patterns", "dense"), "patterns"),
        (("--seed", 1), "seed"),
        (("--outputs", 5, "--group", 32), "outputs and group_size"),
        (("--memory", "ddr4-3200"), "memory"),
    ],
)
def test_other_parameters_are_another_file(
    change: tuple[object, ...], named: str, arguments: Any, nimble: Any, refusal: Any
) -> None:
    file = Path("rows.json")
    assert nimble(*arguments, "-o", file).exit_code == 0
    before = file.read_bytes()
    assert refusal(*arguments, *change, "-o", file) == (
        f"rows.json is a validation with other {named}; name another file, or give the same parameters to go on "
        "with it."
    )
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _: b"Y = X W", "rows.json exists and holds no validation; name another file."),
        (lambda _: b"\xff", "rows.json exists and holds no validation; name another file."),
        (lambda _: b"[]", "rows.json exists and holds no validation; name another file."),
        (
            lambda text: text.replace(b'"version": 1', b'"version": 2'),
            "rows.json is a validation of version 2, but this program writes version 1; name another file.",
        ),
        (
            lambda text: text.replace(b'"program": "', b'"program": "0'),
            "rows.json is a validation by another version of this program; its rows and new ones do not belong "
            "together, so name another file.",
        ),
        (
            lambda text: text.replace(b'"rtl_cycles": ', b'"rtl_cycles": 1', 1),
            "rows.json holds rows that no validation has written; name another file.",
        ),
        (
            lambda text: text.replace(b'"results"', b'"Results"', 1),
            "rows.json holds rows that no validation has written; name another file.",
        ),
        (
            lambda text: text.replace(b'"rows": [', b'"rows": 5, "others": ['),
            "rows.json holds rows that no validation has written; name another file.",
        ),
        (
            lambda text: text.replace(b'"layer": "q_proj"', b'"layer": "k_proj"', 1),
            "The rows in rows.json are not the first ones of this validation; name another file.",
        ),
    ],
)
def test_a_file_that_is_no_validation_of_this_program(
    change: Callable[[bytes], bytes], sentence: str, arguments: Any, nimble: Any, refusal: Any
) -> None:
    file = Path("rows.json")
    assert nimble(*arguments, "-o", file).exit_code == 0
    changed = change(file.read_bytes())
    file.write_bytes(changed)
    assert refusal(*arguments, "-o", file) == sentence
    assert file.read_bytes() == changed


def test_the_program_is_what_decides_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    here = flow.program_digest()
    for name in ("accel", "golden", "quant", "verify", "flows"):
        Path(name).mkdir()
    Path("verify/testbench.cpp").write_text("int main;")
    monkeypatch.setattr(flow, "__file__", str(Path("flows/validate.py").resolve()))
    digests = [flow.program_digest()]
    for path in ("accel/timing.py", "verify/testbench.cpp", "accel/presets.toml", "flows/cli.py", "accel/notes.txt"):
        Path(path).write_text("x = 1")
        digests.append(flow.program_digest())
    assert here not in digests
    # The last two decide nothing.
    assert len(set(digests)) == 4
    assert digests[3] == digests[4] == digests[5]


# Bad input


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ("--layers", "q_proj,"),
            "tiny runs no linear layer ''; give one of the kinds q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, "
            "down_proj, lm_head, or a full name such as model.layers.0.self_attn.q_proj.",
        ),
        (
            ("--layers", "q_proj,q_proj"),
            "The layers q_proj, q_proj were given; at least one is needed, and each is named once.",
        ),
        (("--tokens", "1,x"), "'x' stands in tokens; a list such as 1,16 of numbers from 1 on is expected."),
        (("--tokens", "0"), "'0' stands in tokens; a list such as 1,16 of numbers from 1 on is expected."),
        (("--tokens", "4,4"), "The tokens 4, 4 were given; at least one is needed, and each is named once."),
        (("--patterns", "2:4,1"), "Pattern '1' is not understood; write n:m with n kept of every m weights, such as "
         '"2:4", or "dense".'),
        (("--patterns", "2:4,2:4"),
         "The patterns 2:4, 2:4 were given; at least one is needed, and each is named once."),
        (("--outputs", 0), "outputs is 0; at least one output feature of each layer is taken."),
        (("--group", 6), "Group size 6 is not a multiple of m = 4 of pattern 2:4; allowed are multiples of 4 or -1 for "
         "one group per row."),
        (("--seed", -1), "The seed is -1; a seed is an integer from 0 on."),
        (("--memory", "ddr9"), "There is no memory named 'ddr9'; the memories are none, ddr3-1600, ddr4-3200, "
         "lpddr5-6400, hbm2-u280."),
        (("--memory", "ddr4-3200", "--clock", 0), "The clock is 0.0 MHz; it must be positive and finite."),
    ],
)  # fmt: skip
def test_bad_input(change: tuple[object, ...], sentence: str, arguments: Any, refusal: Any) -> None:
    assert refusal(*arguments, *change, "-o", "rows.json") == sentence
    assert not os.path.exists("rows.json")


def test_a_file_that_cannot_be_written_is_found_before_the_work(
    arguments: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").write_text("")
    monkeypatch.setattr(flow, "execute", None)
    assert "taken" in refusal(*arguments, "-o", "taken/rows.json")


def test_more_outputs_than_a_layer_has_are_all_of_them(tiny_model: Path) -> None:
    plan = Plan("tiny", load_preset("tiny"), str(tiny_model), ("q_proj", "up_proj"), outputs=40, group_size=16)
    assert [gemm.out_features for _, gemm in plan.cases()[1]] == [32] * 8 + [40] * 8
