"""The `nimble` command: its terminal conventions, and that each command keeps them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows import cli, terminal
from flows.model_trace import load_trace
from flows.terminal import Command, JsonFlag, Report

ROOT = Path(cli.__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "pymtl3", "transformers", "hypothesis", "rich")
COMMANDS = [command.callback.__name__ for command in cli.app.registered_commands if command.callback]


def nimble(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def nimble_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def plain(text: str) -> str:
    """Return text without colours, boxes and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# Conventions that hold for every command


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, flows.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"


def test_help_imports_nothing_heavy_but_the_terminal() -> None:
    heavy = tuple(name for name in HEAVY if name != "rich")
    code = (
        "import atexit, sys, flows.cli; sys.argv = ['nimble', '--help']\n"
        f"atexit.register(lambda: print([name for name in {heavy!r} if name in sys.modules]))\n"
        "flows.cli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_and_json(name: str) -> None:
    result = nimble(name, "--help")
    assert result.exit_code == 0
    text = plain(result.stdout)
    assert "--json" in text
    assert f"Examples nimble {name} " in text


def test_every_command_uses_the_shared_class() -> None:
    assert COMMANDS
    assert {command.cls for command in cli.app.registered_commands} == {Command}


def test_help_lists_commands_and_exit_codes() -> None:
    result = nimble("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.stdout
    assert "0 ok, 1 results differ, 2 bad input" in plain(result.stdout)


def test_an_unknown_option_is_bad_input() -> None:
    result = nimble("trace", "--modell", "llama-7b")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "No such option" in plain(result.stderr)


# The conventions themselves, on a command made for it


def trial_app(body: Any) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def options() -> None:
        pass

    @app.command(cls=Command)
    def trial(json_output: JsonFlag = False) -> Report:
        return body()  # type: ignore[no-any-return]

    return app


def run_trial(body: Any, *arguments: str) -> Any:
    return CliRunner().invoke(trial_app(body), ["trial", *arguments])


def test_a_report_is_printed_for_people_or_as_one_json_object() -> None:
    def body() -> Report:
        print("a library that prints")
        return Report({"cycles": 7}, ["7 [cycles]"])

    result = run_trial(body)
    assert (result.exit_code, result.stdout) == (0, "7 [cycles]\n")
    result = run_trial(body, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"cycles": 7})
    assert result.stderr == "a library that prints\n"


def test_a_report_may_hold_numpy_scalars_and_paths() -> None:
    import numpy as np

    document = {"cycles": np.int64(7), "match": np.True_, "file": Path("a/b")}
    result = run_trial(lambda: Report(document, []), "--json")
    assert json.loads(result.stdout) == {"cycles": 7, "match": True, "file": "a/b"}


def test_a_report_is_one_whole_object_or_none() -> None:
    for value in (float("nan"), object()):
        result = run_trial(lambda value=value: Report({"first": 1, "second": value}, []), "--json")
        assert result.exit_code != 0
        assert result.stdout == ""


def test_a_mismatch_is_printed_and_exits_with_1() -> None:
    result = run_trial(lambda: Report({"match": False}, [], exit_code=terminal.EXIT_MISMATCH), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"match": False}


@pytest.mark.parametrize("arguments", [(), ("--json",)])
@pytest.mark.parametrize("error", [ValueError, TypeError, FileNotFoundError])
def test_bad_input_is_a_sentence_without_traceback(
    error: type[Exception], arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> Report:
        raise error("n is 5 and m is 4; n must be at most m.")

    # The rule looks at the package that raises; here this file stands for one of Nimble's.
    monkeypatch.setattr(terminal, "_PACKAGES", frozenset({__name__.partition(".")[0]}))
    result = run_trial(body, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "nimble trial: n is 5 and m is 4; n must be at most m.\n"


def test_a_file_that_cannot_be_opened_is_bad_input(tmp_path: Path) -> None:
    missing = tmp_path / "weights.safetensors"
    result = run_trial(missing.read_bytes)
    assert result.exit_code == 2
    assert result.stderr == f"nimble trial: Cannot use {missing}: No such file or directory.\n"


def test_a_defect_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_PACKAGES", frozenset({__name__.partition(".")[0]}))
    no_number: Any = None

    def wrong_operation() -> Report:
        return Report({"x": no_number + 1}, [])

    def wrong_call() -> Report:
        return Report()  # type: ignore[call-arg]

    def wrong_value() -> Report:
        return Report({"x": int("seven")}, [])

    for body, error in ((wrong_operation, TypeError), (wrong_call, TypeError), (wrong_value, ValueError)):
        result = run_trial(body)
        assert isinstance(result.exception, error)
        assert result.exit_code != 2


def test_errors_of_other_packages_are_defects() -> None:
    import torch

    # Raised by torch on purpose, but against Nimble, not against its user.
    result = run_trial(lambda: torch.nn.MultiheadAttention(0, 0))
    assert isinstance(result.exception, ValueError)


def test_a_defect_exits_with_its_own_code() -> None:
    code = (
        "import sys, flows.trace, flows.cli; sys.argv = ['nimble', 'trace', '--model', 'x', '--json']\n"
        "flows.trace.trace_model = lambda *arguments: 1 // 0\n"
        "flows.cli.main()"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 70
    assert process.stdout == ""
    assert "ZeroDivisionError" in process.stderr
    assert process.stderr.endswith("nimble: this is a defect in nimble itself, not in its input.\n")


def test_ctrl_c_ends_with_130_and_a_sentence() -> None:
    code = (
        "import sys, time, flows.trace, flows.cli; sys.argv = ['nimble', 'trace', '--model', 'llama-7b']\n"
        "def wait(*arguments): print('waiting', flush=True); time.sleep(60)\n"
        "flows.trace.trace_model = wait\n"
        "flows.cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr == "Interrupted: nimble trace stopped before it was done.\n"


def test_a_reader_that_goes_away_is_not_a_mismatch(tiny_model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "flows.cli", "trace", "--model", str(tiny_model), "--json"]
        process = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (process.returncode, process.stderr) == (141, "")


# Progress bars


#: Up one line and erase it: what a transient bar ends with.
ERASED = "\x1b[1A\x1b[2K"


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTerminal]:
    """Make standard error a terminal. No fixture: pytest replaces the stream between set-up and call."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    screen = FakeTerminal()
    with contextlib.redirect_stderr(screen):
        yield screen


def wait_for(text: str, screen: FakeTerminal) -> None:
    deadline = time.monotonic() + 30
    while text not in plain(screen.getvalue()):
        assert time.monotonic() < deadline, f"{text!r} not on screen: {screen.getvalue()!r}"
        time.sleep(0.01)


def test_a_long_job_shows_a_bar_without_calling_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_DELAY", 0.01)
    with on_a_terminal(monkeypatch) as screen, terminal.progress("Building"):
        wait_for("Building", screen)


def test_a_bar_counts_and_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_DELAY", 0.01)
    with on_a_terminal(monkeypatch) as screen:
        with terminal.progress("Cases", total=4) as bar:
            bar.advance(3)
            wait_for("3/4", screen)
            bar.describe("Shrinking")
            wait_for("Shrinking", screen)
        assert screen.getvalue().endswith(ERASED)


def test_a_job_that_fails_takes_its_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_DELAY", 0.01)
    with on_a_terminal(monkeypatch) as screen:
        with contextlib.suppress(KeyboardInterrupt), terminal.progress("Building"):
            wait_for("Building", screen)
            raise KeyboardInterrupt
        assert screen.getvalue().endswith(ERASED)


def test_a_short_job_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_terminal(monkeypatch) as screen:
        with terminal.progress("Cases", total=4) as bar:
            bar.advance()
        assert screen.getvalue() == ""


def test_no_bar_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_DELAY", 0.0)
    with terminal.progress("Cases", total=4) as bar:
        bar.advance()
        bar.describe("Shrinking")
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_the_delay_is_two_seconds() -> None:
    assert terminal.PROGRESS_DELAY == 2.0


# nimble trace


def test_trace_prints_a_table_and_writes_the_trace(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "tiny.json"
    result = nimble("trace", "--model", tiny_model, "-o", output, "--tokens", 3)
    assert result.exit_code == 0
    text = plain(result.stdout)
    assert "tiny: 15 linear layers, 2 blocks" in text
    assert "q_proj, k_proj, v_proj, o_proj" in text
    assert f"Wrote {output}." in text.replace(" ", "").replace("Wrote", "Wrote ")
    assert load_trace(output).tokens == 3
    assert result.stderr == ""


def test_trace_as_json_is_the_trace_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny.json"
    process = nimble_process("trace", "--model", tiny_model, "-o", output, "--json")
    assert process.returncode == 0
    assert process.stdout == output.read_text(encoding="utf-8")
    assert process.stderr == ""


def test_trace_shows_attention_and_the_cache_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = nimble("trace", "--model", "gpt-neox-20b", "--tokens", 48, "--batch", 64, "--context", 2000)
    assert result.exit_code == 0
    text = plain(result.stdout)
    assert "Attention of each of 64 sequences: new tokens 48, cached 2,000" in text
    # 44 blocks, 64 sequences of 64 heads of 96: 44 · 64 · 64 · 48 · 2048 · 96.
    assert "Q·Kᵀ 64 64 96 48 2,048 44 1,700,807,049,216" in text
    assert "P·V 64 64 96 48 2,048 44 1,700,807,049,216" in text
    assert "of one token 540,672 1,081,344 540,672 270,336" in text
    assert f"after this pass {64 * 2048 * 540_672:,}" in text
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_a_stored_trace_is_moved_to_another_context(tiny_model: Path, tmp_path: Path) -> None:
    stored, moved = tmp_path / "stored.json", tmp_path / "moved.json"
    assert nimble("trace", "--model", tiny_model, "--batch", 2, "-o", stored).exit_code == 0
    assert nimble("trace", "--model", stored, "--context", 7, "-o", moved).exit_code == 0
    assert load_trace(moved).context == 7
    assert {product.context for product in load_trace(moved).attention} == {8}
    assert "cached 7" in plain(nimble("trace", "--model", moved).stdout)


def test_a_trace_of_another_version(tiny_model: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored.json"
    assert nimble("trace", "--model", tiny_model, "-o", stored).exit_code == 0
    text = stored.read_text(encoding="utf-8").replace('"version": 2', '"version": 1')
    stored.write_text(text, encoding="utf-8")
    result = nimble("trace", "--model", stored)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"nimble trace: {stored}: The trace has version 1; this Nimble reads version 2. "
        "Write it again with nimble trace.\n"
    )


def test_a_context_beyond_the_model() -> None:
    result = nimble("trace", "--model", "llama-7b", "--context", 2048)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "nimble trace: context and tokens are 2049 together; llama-7b is made for at most 2048 "
        "(its max_position_embeddings).\n"
    )


def test_trace_of_an_unknown_model() -> None:
    result = nimble("trace", "--model", "llama-9b")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(
        "nimble trace: 'llama-9b' is neither a known model nor a directory; give one of llama-7b, "
    )


def test_trace_of_a_directory_without_config(tmp_path: Path) -> None:
    result = nimble("trace", "--model", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"nimble trace: The directory {tmp_path} has no config.json; a Hugging Face model directory holds one.\n"
    )


def test_trace_into_a_directory_that_is_a_file(tiny_model: Path) -> None:
    result = nimble("trace", "--model", tiny_model, "-o", tiny_model / "config.json" / "trace.json")
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert "config.json" in result.stderr


def test_help_of_trace_names_every_known_model() -> None:
    from flows.trace import NAMED_MODELS

    text = plain(nimble("trace", "--help").stdout)
    for name in NAMED_MODELS:
        assert name in text


def test_a_model_name_is_not_markup(tiny_model: Path) -> None:
    result = nimble("trace", "--model", tiny_model.rename(tiny_model.with_name("[bold]")))
    assert result.exit_code == 0
    assert "[bold]: 15 linear layers" in plain(result.stdout)


@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="needs a pseudo-terminal")
def test_json_on_standard_output_with_a_terminal_on_standard_error(tiny_model: Path) -> None:
    controller, terminal_end = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "trace", "--model", str(tiny_model), "--json"]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal_end, text=True, check=False)
    os.close(terminal_end)
    os.close(controller)
    assert process.returncode == 0
    assert json.loads(process.stdout)["model"] == "tiny"
