"""`nimble explore`: the front, figures that are the estimator's, resuming, workers, the page, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import CoreConfig
from flows import area_points, explore, parallel
from flows.area_model import Area, Placing, Point, scale_dsp
from flows.explore import pareto_front
from flows.explore_page import exploration_page

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

#: 2 × 2 × 2 × 2 cores, of which those of more lanes than the window holds are not possible.
GRID = (
    *("--rows", "1,4", "--columns", "2", "--lanes", "2,16", "--window", "8,16", "--chains", "1", "--tiles", "2"),
    *("--prefill", "6", "--decode", "3", "--group", "16"),
)


def points_file(file: Path) -> Path:
    """Points with invented areas that grow with a core's sizes: what is tested here does not depend on them."""
    points = {}
    for number in range(8):
        config, choice = area_points.drawn(number)
        placing = Placing.of_choice(config, choice)
        lut = 50 * config.rows * config.columns * config.lanes
        total = Area(lut + 900, placing.scale * scale_dsp(config) + placing.lanes, 0)
        points[number] = Point(config, choice, {"": 900, "column.pe": lut}, total)
    tools = ({"name": "yosys", "version": "Yosys of a test", "ran": "native"},)
    area_points.write_points(file, area_points.AreaPoints(area_points.sources_digest(), tools, points))
    return file


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Arguments of an exploration of a few cores."""
    folder = tmp_path_factory.mktemp("explore")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY_LLAMA), encoding="utf-8")
    return ("explore", "--model", model, "--points", points_file(folder / "points.json"), *GRID, "--jobs", 1)


# -- the front -----------------------------------------------------------------------------------------------


def beats(one: Sequence[int], other: Sequence[int]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


@given(
    st.integers(1, 3).flatmap(
        lambda measures: st.lists(st.lists(st.integers(0, 5), min_size=measures, max_size=measures), max_size=25)
    )
)
def test_the_front_is_what_nothing_beats(costs: list[list[int]]) -> None:
    assert pareto_front(costs) == [
        index for index, point in enumerate(costs) if not any(beats(other, point) for other in costs)
    ]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.randoms())
def test_the_front_does_not_depend_on_the_order(costs: list[tuple[int, int]], chance: Any) -> None:
    shuffled = chance.sample(costs, len(costs))
    assert sorted(costs[index] for index in pareto_front(costs)) == sorted(
        shuffled[index] for index in pareto_front(shuffled)
    )


# -- figures -------------------------------------------------------------------------------------------------


def test_speeds_are_what_nimble_estimate_prints(asked: Any, nimble_json: Any, tmp_path: Path) -> None:
    document = nimble_json(*asked, "--pattern", "dense,1:4", "--clock", 80, "--memory", "ddr3-1600", "--asymmetric")
    assert document["schema"] == "nimble.exploration"
    assert document["complete"]
    cores = document["cores"]
    assert len(cores) > 8
    for number, core in enumerate(cores[:: len(cores) // 3]):
        file = tmp_path / f"core{number}.toml"
        lines = (f"{name} = {json.dumps(value)}" for name, value in core["parameters"].items())
        file.write_text("\n".join(lines), encoding="utf-8")
        estimate = nimble_json(
            *("estimate", "--model", asked[2], "--config", file, "--pattern", "dense,1:4", "--clock", 80),
            *("--memory", "ddr3-1600", "--asymmetric", "--prefill", 6, "--decode", 3, "--group", 16),
        )
        for pattern in estimate["patterns"]:
            found = core["speeds"][pattern["pattern"]]
            assert found["decode"]["tokens_per_second"] == pattern["tokens_per_second"]
            assert found["prefill"]["tokens_per_second"] == pattern["prefill_tokens_per_second"]
            for phase in ("decode", "prefill"):
                for name in ("cycles", "seconds", "bound"):
                    assert found[phase][name] == pattern["phases"][phase][name]


def test_every_core_of_the_grid_is_counted(asked: Any, nimble_json: Any) -> None:
    everything = nimble_json(*asked, "--luts", 10**9, "--bram", 10**9)
    counts = everything["counts"]
    # 16 lanes do not fit a window of 8: half of half the cores.
    assert counts == {
        **{"grid": 16, "invalid": 4, "over_luts": 0, "over_bram": 0, "unable": 0, "priced": 12},
    }
    [reason] = everything["invalid"]
    assert reason["count"] == 4
    assert reason["reason"].startswith("lanes = 16 is more than window = 8")
    luts = sorted(core["area"]["lut"] for core in everything["cores"])
    brams = [core["area"]["bram"] for core in everything["cores"]]
    assert luts[0] < luts[-1]
    small = nimble_json(*asked, "--luts", luts[5], "--bram", max(brams))
    assert sorted(core["area"]["lut"] for core in small["cores"]) == [lut for lut in luts if lut <= luts[5]]
    assert small["counts"]["over_luts"] == sum(lut > luts[5] for lut in luts)
    assert min(brams) < max(brams)
    narrow = nimble_json(*asked, "--luts", 10**9, "--bram", min(brams))
    assert narrow["counts"]["over_bram"] == sum(bram > min(brams) for bram in brams)


def test_multiplier_blocks_are_used_up_to_the_budget(asked: Any, nimble_json: Any) -> None:
    for budget in (0, 3, 1000):
        for core in nimble_json(*asked, "--dsp", budget, "--luts", 10**9)["cores"]:
            config = CoreConfig.from_dict(core["parameters"])
            placing = Placing.within(config, budget)
            assert core["area"]["dsp"] == placing.scale * scale_dsp(config) + placing.lanes <= budget
            assert core["multipliers_in_blocks"] == placing.multipliers


def test_fronts_are_of_the_cores(asked: Any, nimble_json: Any) -> None:
    document = nimble_json(*asked, "--pattern", "2:4,1:4", "--luts", 10**9, "--objective", "prefill")
    assert list(document["fronts"]) == ["2:4", "1:4"]
    for pattern, fronts in document["fronts"].items():
        assert list(fronts) == ["prefill", "decode"]
        for objective, front in fronts.items():
            costs = [
                (core["area"]["lut"], -core["speeds"][pattern][objective]["tokens_per_second"])
                for core in document["cores"]
            ]
            assert sorted(front) == [
                index for index, cost in enumerate(costs) if not any(beats(other, cost) for other in costs)
            ]
            assert [costs[index] for index in front] == sorted(costs[index] for index in front)


def test_a_core_that_cannot_run_the_model_is_told_of(asked: Any, nimble_json: Any) -> None:
    document = nimble_json(*asked, "--pattern", "1:16", "--support", "any", "--luts", 10**9)
    assert document["counts"]["unable"] == 2  # windows of 8
    [reason] = document["unable"]
    assert "does not run on this core" in reason["reason"]


def test_a_core_for_listed_patterns_has_those_and_dense(asked: Any, nimble_json: Any) -> None:
    document = nimble_json(*asked, "--pattern", "2:4,dense", "--support", "listed")
    assert {tuple(core["parameters"]["patterns"]) for core in document["cores"]} == {("1:1", "2:4")}
    dense = nimble_json(*asked, "--pattern", "dense", "--support", "listed")
    assert {tuple(core["parameters"]["codes"]) for core in dense["cores"]} == {()}


# -- resuming and workers ------------------------------------------------------------------------------------


def stopping_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[CoreConfig]:
    """Interrupt the estimate after so many cores; the list takes those that were estimated."""
    done: list[CoreConfig] = []
    real = explore.estimate_model

    def estimate(core: str, workload: Any, *arguments: Any) -> Any:
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(workload.config)
        return real(core, workload, *arguments)

    monkeypatch.setattr(explore, "estimate_model", estimate)
    return done


def test_a_stopped_exploration_goes_on(asked: Any, nimble: Any, tmp_path: Path, monkeypatch: Any) -> None:
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    assert nimble(*asked, "-o", whole).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        stopping_after(7, patch)
        result = nimble(*asked, "-o", cut)
    assert result.exit_code == 130
    # The first core is a batch of its own, and others are kept by batches.
    assert f"5 of 12 cores are kept in {cut}; the same command goes on with them." in result.stderr
    rest = stopping_after(100, monkeypatch)
    assert nimble(*asked, "-o", cut).exit_code == 0
    assert len(rest) == 7
    assert cut.read_bytes() == whole.read_bytes()
    assert nimble(*asked, "-o", cut).exit_code == 0
    assert len(rest) == 7  # nothing was left to do
    assert cut.read_bytes() == whole.read_bytes()


def test_the_file_is_the_object_that_is_printed(asked: Any, nimble_json: Any, tmp_path: Path) -> None:
    document = nimble_json(*asked, "-o", tmp_path / "explore.json")
    kept = json.loads((tmp_path / "explore.json").read_text(encoding="utf-8"))
    del kept["speeds"]
    assert kept == document


@pytest.mark.parametrize(
    ("arguments", "other"),
    [(("--luts", 5000), "luts"), (("--clock", 99), "clock_mhz"), (("--rows", "1,4,8"), "grid")],
)
def test_another_exploration_s_file_is_refused(
    asked: Any, nimble: Any, refusal: Any, tmp_path: Path, arguments: Any, other: str
) -> None:
    file = tmp_path / "explore.json"
    assert nimble(*asked, "-o", file).exit_code == 0
    before = file.read_bytes()
    assert f"is an exploration with other {other}" in refusal(*asked, *arguments, "-o", file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("change", [{"program": "x"}, {"area_model": {"points_digest": "x"}}, {"area_model": None}])
def test_other_versions_and_points_do_not_mix(
    asked: Any, nimble: Any, refusal: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "explore.json"
    assert nimble(*asked, "-o", file).exit_code == 0
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    assert "by another version of this program or with other measured cores" in refusal(*asked, "-o", file)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "nimble.validation", "version": 1}'])
def test_other_files_are_not_overwritten(asked: Any, refusal: Any, tmp_path: Path, text: str) -> None:
    file = tmp_path / "explore.json"
    file.write_text(text, encoding="utf-8")
    assert "exists and holds no exploration of version 1; name another file." in refusal(*asked, "-o", file)
    assert file.read_text(encoding="utf-8") == text


def test_processes_find_the_same(asked: Any, nimble: Any, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    assert nimble(*asked, "-o", alone).exit_code == 0
    assert nimble(*asked, "--jobs", 2, "-o", together).exit_code == 0
    assert together.read_bytes() == alone.read_bytes()


def is_empty(group: int) -> bool:
    """Whether a process group is or soon will be without processes: Python's tracker of resources ends last."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_all_processes(asked: Any, tmp_path: Path) -> None:
    file = tmp_path / "explore.json"
    # Long enough to be interrupted.
    arguments = [*asked[:-2], "--pattern", "dense,2:4", "--rows", "1,2,3,4,5,6", "--luts", 10**9, "-o", file]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, arguments), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and len(json.loads(file.read_text(encoding="utf-8"))["speeds"]) > 1:
            break
        time.sleep(0.02)
    # As a terminal does: to all processes.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert re.search(r"\d+ of 36 cores are kept in .*; the same command goes on with them\.", errors)
    assert "Traceback" not in errors
    assert is_empty(process.pid)


def test_ray_finds_the_same(asked: Any, nimble: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'nimble[ray]'")
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    assert nimble(*asked, "-o", alone).exit_code == 0
    assert nimble(*asked, "--ray", "local", "-o", together).exit_code == 0
    assert together.read_bytes() == alone.read_bytes()


def test_ray_may_be_missing(asked: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refusal(*asked, "--ray", "auto") == (
        "--ray needs Ray, which is not installed; install it with: pip install 'nimble[ray]', or leave --ray out to "
        "use the cores of this machine."
    )


def test_a_worker_of_another_version_is_refused(asked: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = explore.price

    def other(batch: Any) -> Any:
        return real(batch)._replace(program="x" * 64)

    monkeypatch.setattr(explore, "price", other)
    assert "A worker has another version of nimble" in refusal(*asked)


def test_results_come_from_every_item() -> None:
    assert sorted(parallel.Workers(1).run(abs, [-1, 2, -3])) == [1, 2, 3]
    assert sorted(parallel.Workers(2).run(abs, [-1, 2, -3])) == [1, 2, 3]
    assert list(parallel.Workers(2).run(abs, [])) == []


def test_a_worker_that_dies_is_told_of() -> None:
    with pytest.raises(OSError, match=r"A worker process has ended before its work was done.* fewer --jobs\."):
        list(parallel.Workers(2).run(os._exit, [1, 2, 3]))


# -- what people see -----------------------------------------------------------------------------------------


def test_tables_fit_80_columns(asked: Any, nimble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = nimble(*asked, "--pattern", "2:4,1:4", "--luts", 10**9).stdout
    assert "16 cores in the grid: 4 not possible" in printed
    assert "  4 × lanes = 16 is more than window = 8" in printed
    assert "off by" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed


def test_the_page_shows_every_core(asked: Any, nimble_json: Any, tmp_path: Path) -> None:
    import plotly.graph_objects as go

    file = tmp_path / "explore.html"
    document = nimble_json(*asked, "--pattern", "dense,1:4", "--html", file)
    page = exploration_page(document, "/* plotly */")
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=", page)
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page)
    assert found is not None
    figures = json.loads(found[1])
    assert list(figures) == ["dense decode", "dense prefill", "1:4 decode", "1:4 prefill"]
    for name, figure in figures.items():
        go.Figure(figure)  # refuses what Plotly does not know
        pattern, objective = name.split(" ")
        shown = sorted(point for trace in figure["data"] for point in zip(trace["x"], trace["y"], strict=True))
        assert shown == sorted(
            (core["area"]["lut"], core["speeds"][pattern][objective]["tokens_per_second"]) for core in document["cores"]
        )
        assert len(figure["data"][1]["x"]) == len(document["fronts"][pattern][objective])
    assert len(file.read_text(encoding="utf-8")) > 1e6  # Plotly is inside


def test_nothing_left_is_said(asked: Any, nimble: Any) -> None:
    result = nimble(*asked, "--luts", 1)
    assert result.exit_code == 0
    assert "12 above 1 LUTs" in result.stdout
    assert "No core is left." in result.stdout


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--luts", 0), "The budget luts is 0; it is a number from 1 on."),
        (("--dsp", -1), "The budget dsp is -1; it is a number from 0 on."),
        (("--rows", "4,0"), "'0' stands in --rows; a list such as 1,16 of numbers from 1 on is expected."),
        (("--rows", "4,4"), "rows is 4, 4; each value is named once."),
        (("--support", "all"), "support is 'all'; it must be one of any, listed."),
        (("--objective", "speed"), "The objective is 'speed'; it must be one of decode, prefill."),
        (("--decode", 0), "The objective is decode, but there are 0 tokens of it."),
        (("--jobs", 0), "0 jobs were asked for; at least one is needed."),
        (("--pattern", "2:4,2:4"), "The patterns '2:4,2:4' were given; each is named once."),
        (("--measure", 3), "--chains has no meaning with --measure, which synthesises cores and explores none."),
        (("--lm-head", "skip", "--attention", "none"), "attention is 'none'; it must be one of"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(asked: Any, refusal: Any, arguments: Any, sentence: str) -> None:
    assert sentence in refusal(*asked, *arguments)


def test_a_model_is_needed(refusal: Any) -> None:
    assert refusal("explore") == "No model was given; --model names one, and --measure needs none."
    assert refusal("explore", "--measure", 0) == "0 cores were asked for; at least one is measured."
