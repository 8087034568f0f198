"""`nimble estimate` on bad input: one full sentence each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from flows import estimate
from flows.trace import trace_model

SMALL = ("--preset", "tiny", "--group", 16, "--prefill", 5, "--decode", 3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prefill", -1), "prefill is -1; it is a number of tokens from 0 on."),
        (
            ("--prefill", 0, "--decode", 0),
            "Both prefill and decode are 0; at least one of them has a token.",
        ),
        (("--batch", 0), "batch is 0; a pass has at least 1 sequence."),
        (("--clock", 0), "The clock is 0.0 MHz; it must be positive and finite."),
        (("--clock", "nan"), "The clock is nan MHz; it must be positive and finite."),
        (("--bandwidth", 0), "The bandwidth is 0.0 GB/s; it must be positive and finite."),
        (("--bandwidth", "inf"), "The bandwidth is inf GB/s; it must be positive and finite."),
        (("--bandwidth", 9, "--latency", -1), "The latency is -1.0 ns; it must be 0 or more, and finite."),
        (
            ("--latency", 80),
            "A latency of 80.0 ns was given without a bandwidth; give --bandwidth with --latency, or --memory.",
        ),
        (
            ("--memory", "ddr4-3200", "--bandwidth", 20),
            "Both --memory ddr4-3200 and figures of a memory were given; a memory is a name, or a bandwidth with a "
            "latency.",
        ),
        (
            ("--memory", "ddr5"),
            "There is no memory named 'ddr5'; the memories are ddr3-1600, ddr4-3200, lpddr5-6400, hbm2-u280. Others "
            "are given by --bandwidth and --latency.",
        ),
        (("--lm-head", "fp16"), "lm_head is 'fp16'; it must be one of int4, pruned, fp16-host, skip."),
        (("--attention", "core"), "attention is 'core'; it must be one of core-int8, core-int4, host, skip."),
        (("--pattern", "2:4,2:4"), "The patterns '2:4,2:4' were given; each is named once."),
        (
            ("--prefill", 62, "--decode", 3),
            "prefill and decode are 65 tokens together; tiny is made for at most 64 (its max_position_embeddings).",
        ),
        (
            ("--prefill", 64, "--decode", 1),
            "prefill and decode are 65 tokens together; tiny is made for at most 64 (its max_position_embeddings).",
        ),
        (
            ("--prefill", 0, "--decode", 65),
            "prefill and decode are 65 tokens together; tiny is made for at most 64 (its max_position_embeddings).",
        ),
        (
            ("--pattern", "3:5"),
            "q_proj of tiny does not run on this core: Group size 16 is not a multiple of m = 5 of pattern 3:5.",
        ),
    ],
)
def test_bad_input(arguments: tuple[object, ...], sentence: str, tiny_model: Path, refusal: Any) -> None:
    assert refusal("estimate", *SMALL, "--model", tiny_model, *arguments) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no", "{file} is not JSON: Expecting value: line 1 column 1 (char 0)."),
        ("[500]", "{file} has no fmax_mhz; a synthesis report is a JSON object with that key."),
        ('{"fmax": 500}', "{file} has no fmax_mhz; a synthesis report is a JSON object with that key."),
        ('{"fmax_mhz": "500"}', "fmax_mhz of {file} is '500'; it must be a positive, finite number of MHz."),
        ('{"fmax_mhz": true}', "fmax_mhz of {file} is True; it must be a positive, finite number of MHz."),
        ('{"fmax_mhz": 0}', "fmax_mhz of {file} is 0; it must be a positive, finite number of MHz."),
        ('{"fmax_mhz": Infinity}', "fmax_mhz of {file} is inf; it must be a positive, finite number of MHz."),
    ],
)
def test_a_report_that_states_no_clock(
    text: str, sentence: str, tmp_path: Path, tiny_model: Path, refusal: Any
) -> None:
    file = tmp_path / "synth.json"
    file.write_text(text, encoding="utf-8")
    given = ("estimate", *SMALL, "--model", tiny_model, "--clock-from", file)
    assert refusal(*given) == sentence.format(file=file)
    assert refusal(*given, "--clock", 400) == (
        f"Both --clock 400 and --clock-from {file} were given; a clock comes from one of them."
    )


def test_a_report_that_is_not_there(tmp_path: Path, tiny_model: Path, refusal: Any) -> None:
    file = tmp_path / "none.json"
    complaint = refusal("estimate", *SMALL, "--model", tiny_model, "--clock-from", file)
    assert complaint == f"Cannot use {file}: No such file or directory."


def test_a_layer_beyond_the_core(tiny_model: Path, refusal: Any) -> None:
    fields = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    (tiny_model / "config.json").write_text(json.dumps({**fields, "intermediate_size": 256}), encoding="utf-8")
    assert refusal("estimate", *SMALL, "--model", tiny_model) == (
        "down_proj of tiny does not run on this core: The weights have 256 input features (256 after padding "
        "to whole groups), but this core's accumulators are sized for k_max = 128."
    )


def test_nothing_left_to_estimate(tiny_model: Path, refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_head(*arguments: Any, **options: Any) -> Any:
        trace = trace_model(*arguments, **options)
        return dataclasses.replace(trace, layers=tuple(layer for layer in trace.layers if layer.block is None))

    monkeypatch.setattr(estimate, "trace_model", only_the_head)
    given = ("estimate", *SMALL, "--model", tiny_model, "--lm-head", "skip", "--attention", "skip")
    assert refusal(*given) == (
        f"{tiny_model} has no linear layers in blocks, and lm_head and attention are 'skip'; nothing is left to "
        "estimate."
    )
