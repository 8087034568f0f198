"""`nimble info`: what it says holds on packed bytes and on the schedule, and bad cores are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.config import CoreConfig, load_preset, preset_names
from accel.schedule import schedule
from accel.stream import pack
from flows.core_choice import read_core
from flows.info import pattern_facts, patterns_to_show
from quant import NMPattern, prune_magnitude, quantize_rtn


def toml(values: dict[str, Any]) -> str:
    """Write flat values as TOML."""
    words = {name: str(value).lower() if isinstance(value, bool) else repr(value) for name, value in values.items()}
    return "".join(f"{name} = {word}\n" for name, word in words.items())


def test_keys_and_values_for_edge(nimble_json: Any) -> None:
    document = nimble_json("info", "--preset", "edge")
    assert document["core"] == "edge"
    assert document["parameters"] == load_preset("edge").as_dict()
    assert document["derived"]["multipliers"] == 1024
    assert document["multipliers"] == document["macs_per_cycle"] == 1024
    by_pattern = {fact["pattern"]: fact for fact in document["patterns"]}
    assert list(by_pattern) == ["dense", "3:4", "5:8", "2:4", "4:8", "1:4", "2:8"]
    assert by_pattern["2:4"] == {
        "pattern": "2:4",
        "lane_use": 1.0,
        "group": 128,
        "steps": 16,
        "code": "rank",
        "bits_per_weight": 2.8125,
        "ratio_to_fp16": 16 / 2.8125,
        "dense_macs_per_cycle": 2048.0,
    }
    assert by_pattern["dense"]["bits_per_weight"] == 4.0625
    assert by_pattern["dense"]["code"] == "none"
    assert all(fact["lane_use"] == 1 for fact in document["patterns"])


def test_edge_is_the_default_and_tables_say_the_same(nimble: Any) -> None:
    result = nimble("info")
    assert result.exit_code == 0
    assert "edge: 16 × 16 PEs, 4 lanes each, 1,024 MAC/cycle" in result.stdout
    line = next(line for line in result.stdout.splitlines() if line.startswith(" 2:4 "))
    assert line.replace("│", "").split() == ["2:4", "rank", "128", "16", "100.0%", "2,048", "2.8125", "5.69×"]


def test_the_window_limits_lane_use(nimble_json: Any) -> None:
    document = nimble_json("info", "--preset", "edge", "--all")
    limited = {fact["pattern"]: fact["lane_use"] for fact in document["patterns"] if fact["lane_use"] < 1}
    assert limited == {"1:5": 0.75, "1:6": 0.5, "1:7": 0.5, "1:8": 0.5}
    names = [fact["pattern"] for fact in document["patterns"]]
    assert names == ["dense", *(f"{n}:{m}" for m in range(2, 9) for n in range(1, m))]


@pytest.mark.parametrize(("preset", "scale_bits"), [*((name, 8) for name in preset_names()), ("tiny", 16)])
def test_bits_per_weight_are_those_of_packed_bytes(preset: str, scale_bits: int) -> None:
    config = load_preset(preset).replace(scale_bits=scale_bits)
    longer = config.replace(k_max=8192, act_words=8192 // config.window)  # no matter to the stream
    rng = np.random.default_rng(0)
    for pattern in patterns_to_show(config, every=True):
        facts = pattern_facts(config, pattern)
        # So many groups that the stream ends with a whole word.
        weights = rng.standard_normal((config.columns, config.slice_bytes * facts.group))
        stream = pack(quantize_rtn(prune_magnitude(weights, pattern), pattern, facts.group), longer)
        assert 8 * len(stream.payload) == pytest.approx(facts.bits_per_weight * weights.size, rel=1e-12)
        assert stream.layout.code == facts.code


@pytest.mark.parametrize("preset", preset_names())
def test_steps_are_those_of_the_schedule(preset: str) -> None:
    config = load_preset(preset)
    for pattern in patterns_to_show(config, every=True):
        facts = pattern_facts(config, pattern)
        tiles = -(-facts.group // config.group_max)
        while facts.group % tiles or facts.group // tiles % pattern.m:
            tiles += 1
        steps = schedule(pattern, facts.group // tiles, config.lanes, config.window)
        assert facts.steps == tiles * len(steps)


def test_two_of_four_is_stored_in_a_fifth_of_fp16() -> None:
    assert pattern_facts(load_preset("edge"), NMPattern(2, 4)).ratio_to_fp16 >= 5.6


def test_the_help_names_every_preset(nimble: Any) -> None:
    text = nimble("info", "--help").stdout
    for name in preset_names():
        assert name in text


def test_a_group_shorter_than_a_block(refusal: Any) -> None:
    assert refusal("info", "--group", 6) == ("A group of 6 weights holds no block of pattern 5:8; m is 8.")


# Cores from a file


def test_a_core_with_wide_scales(tmp_path: Path, nimble: Any, nimble_json: Any) -> None:
    file = tmp_path / "wide_scales.toml"
    file.write_text(toml(load_preset("edge").replace(scale_bits=16).as_dict()), encoding="utf-8")
    facts = {fact["pattern"]: fact for fact in nimble_json("info", "--config", file)["patterns"]}
    assert (facts["dense"]["bits_per_weight"], facts["2:4"]["bits_per_weight"]) == (4.125, 2.875)
    assert "Patterns (INT4 weights, 16-bit scales, symmetric)" in nimble("info", "--config", file).stdout


def test_a_file_gives_the_same_as_the_preset(tmp_path: Path, nimble_json: Any) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml(load_preset("wide").as_dict()), encoding="utf-8")
    assert nimble_json("info", "--config", file) == {
        **nimble_json("info", "--preset", "wide"),
        "core": "mine",
    }


def test_every_preset_survives_a_file(tmp_path: Path) -> None:
    for name in preset_names():
        config = load_preset(name)
        file = tmp_path / f"{name}.toml"
        file.write_text(toml(config.as_dict()), encoding="utf-8")
        assert read_core(file) == config
        assert isinstance(read_core(file), CoreConfig)


def test_a_preset_and_a_file(tmp_path: Path, refusal: Any) -> None:
    assert refusal("info", "--preset", "edge", "--config", "mine.toml") == (
        "Both --preset edge and --config mine.toml were given; a core comes from one of them."
    )


def test_an_unknown_preset(refusal: Any) -> None:
    assert refusal("info", "--preset", "edgy") == (
        "There is no preset named 'edgy'; the presets are tiny, ulx3s, edge, wide."
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rows 16", "mine.toml is not TOML: Expected '=' after a key"),
        (b"rows = \xff", "mine.toml is not TOML: byte 7 is not part of any UTF-8 text."),
        (b"rows = 4\nstripes = 2\n", "missing: columns, lanes,"),
        (b"rows = 4\nstripes = 2\n", "unknown: stripes."),
        (b"[edge]\nrows = 4\n", "unknown: edge."),
    ],
)
def test_a_file_that_states_no_core(content: bytes, words: str, tmp_path: Path, refusal: Any) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    sentence = refusal("info", "--config", "mine.toml")
    assert sentence.startswith("mine.toml")
    assert words in sentence


def test_a_file_with_an_impossible_value(tmp_path: Path, refusal: Any) -> None:
    values = {**load_preset("tiny").as_dict(), "rows": 65}
    (tmp_path / "mine.toml").write_text(toml(values), encoding="utf-8")
    assert refusal("info", "--config", "mine.toml") == ("mine.toml: rows must be between 1 and 64, but 65 was given.")


def test_a_file_that_is_not_there(refusal: Any) -> None:
    assert refusal("info", "--config", "mine.toml") == "Cannot use mine.toml: No such file or directory."
