"""What every `nimble` command shares: output, progress, errors and exit codes.

A command is a function that does its work and returns a `Report`. It is registered with
``cls=Command``, which prints the report as rich text or, with ``--json``, as exactly one JSON
object. While the command runs, its standard output goes to standard error, so that no library
can put a line of its own between a reader and that object. On an error standard output stays empty.
"""

from __future__ import annotations

import contextlib
import dis
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

#: The command did what was asked and everything agreed.
EXIT_OK = 0
#: The command ran to its end and found results that differ.
EXIT_MISMATCH = 1
#: The input was refused, or a tool is missing; a sentence on standard error says why.
EXIT_BAD_INPUT = 2
#: A defect in Nimble itself (EX_SOFTWARE of sysexits.h); never 1, which means that results differ.
EXIT_DEFECT = 70
#: Ended by Ctrl-C (128 + SIGINT).
EXIT_INTERRUPTED = 130
#: The reader of standard output went away (128 + SIGPIPE).
EXIT_BROKEN_PIPE = 141

#: Seconds a job runs before its progress bar appears, so that short jobs print nothing.
PROGRESS_DELAY = 2.0

#: Columns of a table when standard output is not a terminal; rich's own 80 would fold names.
PIPE_WIDTH = 120

_PACKAGES = frozenset({"accel", "flows", "golden", "quant", "verify"})

#: Declare ``json_output: JsonFlag = False`` in every command; `Command` acts on it.
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@dataclass(frozen=True)
class Report:
    """What a command found out, for a program and for a person."""

    #: What ``--json`` prints. NumPy scalars and paths are allowed as values; NaN and inf are not.
    document: Mapping[str, object]
    #: What is printed otherwise, in order: tables, panels, and strings, as they are.
    view: Sequence[RenderableType]
    #: `EXIT_OK`, or `EXIT_MISMATCH` when results that must be equal are not.
    exit_code: int = EXIT_OK


class Command(typer.core.TyperCommand):
    """A command that prints the `Report` its function returns and turns errors into exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command's function, print its report, and end with the report's exit code.

        Parameters
        ----------
        ctx
            The command's parsed context; its ``json_output`` selects the output.

        Raises
        ------
        typer.Exit
            With any exit code of this module but 0 and `EXIT_DEFECT`: an exception that is not bad
            input passes through, traceback and all.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                report = super().invoke(ctx)
            _print_report(report, as_json=ctx.params["json_output"])
        except KeyboardInterrupt:
            _say(f"Interrupted: nimble {self.name} stopped before it was done.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # Python flushes standard output once more at exit, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except (ValueError, TypeError, OSError) as error:
            sentence = _bad_input(error)
            if sentence is None:
                raise
            _say(f"nimble {self.name}: {sentence}")
            raise typer.Exit(EXIT_BAD_INPUT) from None
        except RuntimeError as error:
            if not _is_about_tools(error):
                raise
            _say(f"nimble {self.name}: {error}")
            raise typer.Exit(EXIT_BAD_INPUT) from None
        if report.exit_code != EXIT_OK:
            raise typer.Exit(report.exit_code)


def examples(*lines: str) -> str:
    """Return a help epilog with one example command per line."""
    # typer joins the lines of a paragraph, so each example is a paragraph.
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


def given_options(ctx: typer.Context) -> set[str]:
    """Return the parameters that stand on the command line, by their names in Python."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


class ProgressBar:
    """Handle on one bar of `progress`; does nothing when there is none."""

    def __init__(self, display: Progress | None, description: str, total: float | None) -> None:
        self._display = display
        self._task = None if display is None else display.add_task(description, total=total)

    def advance(self, amount: float = 1) -> None:
        """Say that `amount` more of the total is done."""
        if self._display is not None and self._task is not None:
            self._display.advance(self._task, amount)

    def describe(self, description: str) -> None:
        """Replace the text before the bar, as when a job goes on to its next part."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, description=description)


@contextlib.contextmanager
def progress(description: str, total: float | None = None) -> Iterator[ProgressBar]:
    """Show a progress bar on standard error while the block runs, if it runs long enough.

    The bar appears after `PROGRESS_DELAY` seconds, even where the job never calls back, and is
    erased at the end. There is none unless standard error is a terminal.

    Parameters
    ----------
    description
        What is going on, e.g. ``"Tracing llama-7b"``.
    total
        Amount of work in any unit; None when it is not known (the bar pulses).

    Yields
    ------
    ProgressBar
        Call its `advance` as work gets done. It may be called from any thread.

    Notes
    -----
    A timer thread waits for the delay: inside the block, start worker processes by ``spawn`` or
    ``subprocess``, not by ``fork``.
    """
    if not sys.stderr.isatty():
        yield ProgressBar(None, description, total)
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn()]
    if total is not None:
        columns.append(MofNCompleteColumn())
    # rich would swap sys.stdout and sys.stderr when the bar appears, which is at any moment here.
    display = Progress(
        *columns,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar = ProgressBar(display, description, total)
    timer = threading.Timer(PROGRESS_DELAY, display.start)
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()
        if display.live.is_started:
            display.stop()


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        # Rendered in full before the first byte goes out: one whole object or none.
        text = json.dumps(report.document, indent=2, allow_nan=False, default=_plain)
        sys.stdout.write(text + "\n")
    else:
        from rich.console import Console

        fits_itself = sys.stdout.isatty() or "COLUMNS" in os.environ
        console = Console(width=None if fits_itself else PIPE_WIDTH, highlight=False)
        for part in report.view:
            console.print(part, markup=False)
    sys.stdout.flush()


def _plain(value: object) -> object:
    """Return the JSON equal of a value that `json` does not know."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)
    if callable(item):  # a NumPy or torch scalar, without importing either
        return item()
    raise TypeError(f"A report holds a {type(value).__name__}, which JSON cannot express.")


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


def _is_about_tools(error: RuntimeError) -> bool:
    """Return whether a tool is missing or unfit, which the user can mend."""
    toolchain = sys.modules.get("verify.toolchain")  # no import: who has not imported it did not raise it
    return toolchain is not None and isinstance(error, toolchain.ToolError)


def _bad_input(error: ValueError | TypeError | OSError) -> str | None:
    """Return the sentence that refuses the user's input, or None if `error` is a defect.

    Nimble's own packages refuse bad input by a ``raise`` statement. The same types also come from
    defects (a wrong call, an operation inside NumPy), and these must keep their traceback.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is not None:
        frame = traceback.tb_frame
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        instruction = dis.opname[frame.f_code.co_code[traceback.tb_lasti]]
        if package in _PACKAGES and instruction == "RAISE_VARARGS":
            return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"Cannot use {os.fsdecode(error.filename)}: {error.strerror}."
    return None
