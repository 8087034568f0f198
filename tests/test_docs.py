"""What the documentation says is so: its code runs and prints what it shows, its commands and files exist.

A Python block whose fence is marked ``python run`` is executed, all of a page in one session, and what it prints must
be the ``text`` block that follows. A ``console run`` block holds one ``$ nimble`` command and its output.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
from typer.testing import CliRunner

from flows.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FOLDERS = ("accel", "docs", "flows", "golden", "quant", "tests", "verify")


class Block(NamedTuple):
    """A fenced block of a page."""

    #: Line of the opening fence.
    line: int
    #: Words of the opening fence, such as ``["python", "run"]``.
    words: list[str]
    text: str
    #: Whether only blank lines are between this block and the one before it.
    follows: bool


def blocks_of(markdown: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    blocks: list[Block] = []
    end = 0
    for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", markdown, re.MULTILINE):
        between = markdown[end : match.start()]
        line = markdown.count("\n", 0, match.start()) + 1
        blocks.append(Block(line, match[1].split(), match[2], bool(blocks) and not between.strip()))
        end = match.end()
    return blocks


def same(printed: str, shown: str) -> None:
    """Assert that two texts are equal but for blanks at the ends of lines."""
    assert [line.rstrip() for line in printed.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def run_python(markdown: str, name: str) -> int:
    """Run a page's blocks and return how many ran."""
    blocks, ran = blocks_of(markdown), 0
    session: dict[str, Any] = {"__name__": "__docs__"}
    for number, block in enumerate(blocks):
        if block.words[:1] != ["python"]:
            continue
        # Lines are those of the page, so that a traceback points there.
        code = compile("\n" * block.line + block.text, name, "exec")
        if "run" not in block.words:
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, session)
        after = blocks[number + 1] if number + 1 < len(blocks) else None
        if after is None or not after.follows or after.words != ["text"]:
            raise AssertionError(f"line {block.line} shows no output")
        same(output.getvalue(), after.text)
        ran += 1
    return ran


def command_lines(markdown: str) -> Iterator[str]:
    """Commands that stand on a line of their own in a block, continued lines joined."""
    for block in blocks_of(markdown):
        if block.words[:1] in (["sh"], ["console"]):
            for line in block.text.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:\$ )?(?:\.venv/bin/)?nimble (.*)", line):
                    yield match[1]


def without_blocks(markdown: str) -> str:
    """Return a page less its fenced blocks."""
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", markdown, flags=re.MULTILINE)


def check_command(line: str) -> None:
    """Parse a whole command as the command line does, and do not run it."""
    name, *arguments = shlex.split(line, comments=True)
    assert name in COMMANDS, f"there is no command nimble {name}"
    COMMANDS[name].make_context(name, arguments)


def options_of(name: str) -> set[str]:
    """Return all options of a command."""
    parameters = COMMANDS[name].params
    return {option for one in parameters for option in (*one.opts, *one.secondary_opts)} | {"--help"}


def check_inline(markdown: str) -> None:
    """Check ``nimble …`` and ``--option`` in running text; below a heading ``nimble x`` options are those of x."""
    for section in re.split(r"^#+ ", without_blocks(markdown), flags=re.MULTILINE):
        heading = section.partition("\n")[0].removeprefix("nimble ")
        known = options_of(heading) if heading in COMMANDS else {o for name in COMMANDS for o in options_of(name)}
        for code in re.findall(r"`([^`]+)`", section):
            words = code.split()
            if words[0].startswith("--"):
                assert words[0] in known, f"{words[0]} is no option here: {heading}"
            if words[0] == "nimble" and len(words) > 1 and words[1] != "…":
                assert words[1] in COMMANDS, f"there is no command {code}"
                unknown = {word for word in words if word.startswith("--")} - options_of(words[1])
                assert not unknown, f"{code} has no {unknown}"


def anchors_of(markdown: str) -> set[str]:
    """Return the names that headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_places(page: Path, markdown: str) -> list[str]:
    """Return the files and links that a page names and that are not there."""
    text = without_blocks(markdown)
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text(encoding="utf-8"))):
            missing.append(link)
    return missing


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def markdown(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_python_blocks_print_what_is_shown(page: Path, markdown: str) -> None:
    run_python(markdown, page.name)


def test_commands_print_what_is_shown(markdown: str) -> None:
    for block in blocks_of(markdown):
        if block.words == ["console", "run"]:
            command, _, shown = block.text.partition("\n")
            result = CliRunner().invoke(app, shlex.split(command.removeprefix("$ nimble ")))
            assert result.exit_code == 0, result.stderr
            same(result.stdout, shown)


def test_commands_exist_with_their_options(markdown: str) -> None:
    for line in command_lines(markdown):
        check_command(line)
    check_inline(markdown)


def test_named_files_and_links_exist(page: Path, markdown: str) -> None:
    assert missing_places(page, markdown) == []


def test_every_command_is_in_the_user_guide() -> None:
    headings = anchors_of((ROOT / "docs" / "user-guide.md").read_text(encoding="utf-8"))
    assert [name for name in COMMANDS if f"nimble-{name}" not in headings] == []


# The checks themselves: each has to see its mistake.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```python run\nprint(1 + 1)\n```\n\n```text\n3\n```\n", "2"),
        ("```python run\nx = 2\n```\n\n```text\n```\n\n```python run\nprint(x)\n```\n\n```text\n3\n```\n", "2"),
        ("```python run\nprint(2)\n```\n\nwords\n\n```text\n2\n```\n", "line 1 shows no output"),
        ("```python run\nprint(2)\n```\n", "line 1 shows no output"),
    ],
)
def test_a_wrong_output_is_seen(text: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        run_python(text, "page")


def test_right_outputs_pass_and_other_blocks_do_not_run() -> None:
    text = "```python run\nprint(2)\n```\n\n```text\n2\n```\n\n```python\n1 / 0\n```\n"
    assert run_python(text, "page") == 1
    with pytest.raises(SyntaxError):
        run_python("```python\n1 +\n```\n", "page")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("trase --model llama-7b", "there is no command"),
        ("trace --modell llama-7b", "modell"),
        ("trace", "model"),
        ("verify --examples many", "integer"),
    ],
)
def test_a_wrong_command_is_seen(line: str, error: str) -> None:
    (found,) = command_lines(f"```console\n$ nimble {line}\n1 case\n```\n")
    assert found == line
    with pytest.raises(Exception, match=f"(?i){error}"):
        check_command(found)


@pytest.mark.parametrize(
    "text", ["`nimble trase`", "`nimble trace --modell X`", "`--modell`", "## nimble info\n\n`--levels`"]
)
def test_a_wrong_option_in_running_text_is_seen(text: str) -> None:
    with pytest.raises(AssertionError):
        check_inline(text)


@pytest.mark.parametrize("text", ["`accel/nowhere.py`", "[x](nowhere.md)", "[x](numerics.md#nowhere)", "[x](#nowhere)"])
def test_a_missing_place_is_seen(text: str) -> None:
    assert len(missing_places(ROOT / "docs" / "page.md", "# Here\n\n" + text)) == 1
