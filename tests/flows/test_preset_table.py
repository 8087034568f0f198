"""The README's table of presets: what it says of a run, and that it replaces nothing but itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import CoreConfig, load_preset, preset_names
from flows import preset_table
from flows.preset_table import BEGIN, CAPACITIES, END, Choices, Row, main, preset_row, replace_block, table_text
from flows.synth import synthesize_core
from flows.terminal import ProgressBar
from verify.synthesis.targets import ECP5, Resources
from verify.synthesis.tools import SynthesisTool, TimeLimitError, find_nextpnr, find_yosys
from verify.toolchain import ToolError

TINY, EDGE = load_preset("tiny"), load_preset("edge")
YOSYS = SynthesisTool("yosys", ("yosys",), "Yosys 1.0", "native")
NEXTPNR = SynthesisTool("nextpnr-ecp5", ("nextpnr",), "nextpnr-2.0", "yowasp")
BAR = ProgressBar(None, "", None)

#: The smallest core there is, to be placed and routed in seconds.
SMALLEST = TINY.replace(
    rows=1,
    columns=1,
    lanes=1,
    window=4,
    asymmetric=False,
    codes=("bitmask",),
    scale_bits=4,
    k_max=16,
    group_max=16,
    subtiles=1,
    slice_bytes=1,
    act_words=4,
)

ROUTED = Row("tiny", TINY, Resources(lut=4000, ff=2000, dsp=10), (90.0, 100.0, 105.5), "", (YOSYS, NEXTPNR))
TOO_LARGE = Row("edge", EDGE, Resources(lut=300_000, ff=70_000, dsp=64, bram=256), None, "It does not fit.", (YOSYS,))

LONG = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_table_of_two_presets() -> None:
    text = table_text([ROUTED, TOO_LARGE], Choices(seeds=5, goal_mhz=130))
    assert text.startswith(BEGIN + "\n")
    assert text.endswith(END + "\n")
    heading, _, head, rule, *rows = text.splitlines()[1:-1]
    for part in ("Yosys 1.0 (native)", "nextpnr-2.0 (yowasp)", "target ecp5", "device 85k", "speed grade 6",
                 "seeds 1, 2, 3, 4, 5", "130 MHz"):  # fmt: skip
        assert part in heading
    assert len(columns(head)) == len(columns(rule)) == len(columns(rows[0])) == len(columns(rows[1])) == 10
    # 8 multipliers at 100 MHz do 0.8 G a second, of the unpruned product twice and four times as much at 2:4 and 1:4.
    assert columns(rows[0]) == ["tiny", "8", "8", "4,000", "2,000", "10", "0", "100.0 (90.0 to 105.5)",
                                "0.8, 1.6, 3.2", "0.2, 0.4, 0.8"]  # fmt: skip
    assert columns(rows[1]) == ["edge", "1,024", "16", "300,000 ¹", "70,000 ¹", "64 ¹", "256 ¹", "–", "–", "–"]
    assert rows[3].startswith("¹ Sum of the blocks")
    assert rows[4].strip() == "edge: It does not fit."


def test_a_table_without_routing_names_no_seeds() -> None:
    heading = table_text([TOO_LARGE], Choices()).splitlines()[1]
    assert "seed" not in heading
    assert "MHz" not in heading


def test_what_guards_found_is_said() -> None:
    found = Row("tiny", TINY, ROUTED.cells, ROUTED.fmax_mhz, "", (YOSYS,), findings=2)
    assert "tiny: guards found 2." in table_text([found], Choices())


prose = st.text(st.characters(exclude_characters="<>\r", exclude_categories=["Cs"]), max_size=40)


@given(before=prose, old=prose, after=prose)
def test_only_the_block_is_replaced(before: str, old: str, after: str) -> None:
    block = table_text([ROUTED], Choices())
    text = f"{before}\n{BEGIN}\n{old}\n{END}\n{after}"
    changed = replace_block(text, block, Path("README.md"))
    assert changed == f"{before}\n{block}{after}"
    assert replace_block(changed, block, Path("README.md")) == changed


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_readme_without_the_comments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"README\.md must have the lines .* once each, in this order"):
        replace_block(text, "", Path("README.md"))


def test_what_a_device_lacks() -> None:
    lacking = preset_table._lacking(Resources(lut=167_280, ff=83_640, dsp=156, bram=260), CAPACITIES["85k"], "85k")
    assert lacking == (
        "It does not fit the 85k: block by block it takes 167,280 LUTs of 83,640 (100 % too many), 260 block RAMs of "
        "208 (25 % too many)."
    )
    # Mapped as one, a core is smaller than its blocks: what is slightly too large is tried.
    assert not preset_table._lacking(Resources(lut=90_000), CAPACITIES["85k"], "85k")


# -- the script --------------------------------------------------------------------------------------------------


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text(f"# Core\n\n{BEGIN}\n{END}\n\nMore.\n", encoding="utf-8")
    return file


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Row], None]:
    """Let all presets give one row."""

    def set_row(row: Row) -> None:
        def fake(name: str, config: CoreConfig, choices: Choices, bar: Any) -> Row:
            return Row(name, config, row.cells, row.fmax_mhz, row.reason, row.tools, row.findings)

        monkeypatch.setattr(preset_table, "preset_row", fake)

    return set_row


def test_write_check_and_check_again(readme: Path, runs: Callable[[Row], None], capsys: Any) -> None:
    runs(ROUTED)
    assert main(["--readme", str(readme), "--check"]) == 1
    assert f"{readme} is another one" in capsys.readouterr().out
    assert readme.read_text(encoding="utf-8").count("\n") == 6
    assert main(["--readme", str(readme)]) == 0
    written = readme.read_text(encoding="utf-8")
    assert written.startswith("# Core\n\n")
    assert written.endswith("\n\nMore.\n")
    for name in preset_names():
        assert f"\n| {name} | " in written
    assert main(["--readme", str(readme), "--check"]) == 0
    assert readme.read_text(encoding="utf-8") == written
    runs(Row("", TINY, ROUTED.cells, (90.0, 100.1, 105.5), "", ROUTED.tools))
    assert main(["--readme", str(readme), "--check"]) == 1


def test_printing_needs_no_readme(runs: Callable[[Row], None], capsys: Any) -> None:
    runs(ROUTED)
    assert main(["--presets", "tiny", "--print"]) == 0
    assert capsys.readouterr().out == table_text([ROUTED], Choices())


def test_findings_are_an_error(readme: Path, runs: Callable[[Row], None]) -> None:
    runs(Row("", TINY, ROUTED.cells, None, "", ROUTED.tools, findings=1))
    assert main(["--readme", str(readme)]) == 1


def test_what_is_not_in_the_cache_in_time_does_not_match(readme: Path, monkeypatch: Any, capsys: Any) -> None:
    def late(*arguments: Any) -> Row:
        raise TimeLimitError("The time limit of 1 s was reached while mapping.")

    monkeypatch.setattr(preset_table, "preset_row", late)
    assert main(["--readme", str(readme), "--check"]) == 1
    assert main(["--readme", str(readme)]) == 2
    assert capsys.readouterr().err.count("The time limit of 1 s was reached while mapping.") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--presets", "huge"], "There is no preset named 'huge'"),
        (["--readme", "nowhere.md"], "nowhere.md"),
        (["--target", "abacus", "--presets", "tiny", "--print"], "There is no target 'abacus'"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_input(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


# -- real runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _tools() -> None:
    try:
        find_yosys()
        find_nextpnr()
    except ToolError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_tools")
def test_a_core_that_is_not_routed() -> None:
    row = preset_row("smallest", SMALLEST, Choices(blocks_only=("smallest",)), BAR)
    assert row.fmax_mhz is None
    assert row.cells.dsp == 2
    assert row.cells.lut > 100
    assert row.reason == "Not placed and routed."


@LONG
@pytest.mark.usefixtures("_tools")
def test_a_core_that_is_routed() -> None:
    choices = Choices(seeds=2)
    row = preset_row("smallest", SMALLEST, choices, BAR)
    document = synthesize_core(
        "smallest", SMALLEST, target="ecp5", device="85k", speed=6, seeds=2, route=True, dsp="all", goal_mhz=120.0,
        time_limit=None, bar=BAR,
    ).document()  # fmt: skip
    clocks = document["routed"]["fmax_mhz"]
    assert row.fmax_mhz == (clocks["min"], clocks["median"], clocks["max"])
    assert row.cells.document() == document["total"]
    # nextpnr's own numbers of what there is.
    there = {kind: sites["available"] for kind, sites in document["utilisation"].items()}
    capacity = CAPACITIES["85k"]
    assert (there["TRELLIS_COMB"], there["TRELLIS_FF"], there["MULT18X18D"]) == (
        capacity.lut,
        capacity.ff,
        capacity.dsp,
    )


def test_all_devices_have_capacities() -> None:
    assert tuple(CAPACITIES) == ECP5.devices
