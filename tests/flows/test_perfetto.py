"""The trace of an estimate: what its format asks for, and that nothing is lost or counted twice."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.estimate import COUNTERS
from flows.perfetto import TRACKS, trace

SMALL = ("--preset", "tiny", "--group", 16, "--prefill", 5, "--decode", 3)

UNIT = "1 cycle of the core is shown as 1 µs"


@st.composite
def layers(draw: st.DrawFn, phase: str) -> dict[str, Any]:
    """One entry of ``layers``, of any size, on the core or on the host."""
    on_host = draw(st.booleans())
    calls = draw(st.integers(1, 10**6))
    counters = dict.fromkeys(COUNTERS, 0)
    if not on_host:
        counters = {cause: draw(st.integers(0, 10**12)) for cause in COUNTERS}
        counters["busy"] += 1
    cycles = sum(counters.values())
    return {
        "phase": phase,
        "name": draw(st.text(min_size=1, max_size=8)),
        "role": draw(st.sampled_from(["linear", "head", "attention"])),
        "where": "host" if on_host else "core",
        "tokens": draw(st.integers(1, 4096)),
        "in_features": draw(st.integers(1, 4096)),
        "out_features": draw(st.integers(1, 4096)),
        "pattern": "2:4",
        "calls": calls,
        "cycles": cycles / calls,
        "seconds": draw(st.floats(1e-12, 1e4)) if on_host else cycles / 500e6,
        "bytes": draw(st.integers(1, 10**9)),
        "macs": draw(st.integers(1, 10**15)),
        "dense_macs": 10**15,
        "counters": counters,
        "lane_use": None if on_host else draw(st.floats(0, 1)),
        "bound": "memory",
    }


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """As much of an estimate's JSON object as a trace is made of."""
    phases = draw(st.sampled_from([("prefill",), ("decode",), ("prefill", "decode")]))

    def pattern(name: str) -> dict[str, Any]:
        return {
            "pattern": name,
            "layers": [layer for phase in phases for layer in draw(st.lists(layers(phase), min_size=1, max_size=6))],
        }

    return {
        "model": draw(st.text(max_size=5)),
        "core": "edge",
        "clock_mhz": 500.0,
        "clock_source": "assumed",
        "memory": {"name": "custom", "bandwidth_gb_s": draw(st.floats(0.1, 1000)), "latency_ns": 100.0},
        "prefill": 5,
        "decode": 3,
        "batch": 1,
        "group_size": 128,
        "patterns": [pattern(name) for name in draw(st.lists(st.text(max_size=4), min_size=1, max_size=3))],
        "assumptions": ["One."],
        "sources": {"cycles": "exact model"},
    }


def slices_by_track(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Slices by process and track's name."""
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], names[event["pid"], event["tid"]]].append(event)
    return tracks


def check_event(event: dict[str, Any]) -> None:
    """Assert what Chrome's trace event format asks of the three kinds of events that we write."""
    assert isinstance(event["name"], str)
    assert isinstance(event["args"], dict)
    for field in ("pid", "tid", "ts"):
        assert type(event[field]) is int
        assert event[field] >= 0
    allowed = {"name", "ph", "pid", "tid", "ts", "args"}
    if event["ph"] == "X":
        assert type(event["dur"]) is int
        assert event["dur"] > 0
        assert set(event) == allowed | {"cat", "dur"}
    elif event["ph"] == "C":
        assert all(type(value) is int for value in event["args"].values())
        assert set(event) == allowed
    else:
        assert event["ph"] == "M"
        argument = {
            "process_name": ("name", str),
            "process_sort_index": ("sort_index", int),
            "thread_name": ("name", str),
            "thread_sort_index": ("sort_index", int),
        }
        name, kind = argument[event["name"]]
        assert list(event["args"]) == [name]
        assert type(event["args"][name]) is kind


@given(documents())
def test_events_keep_to_the_format(document: dict[str, Any]) -> None:
    made = trace(document)
    for event in made["traceEvents"]:
        check_event(event)
    assert json.loads(json.dumps(made, allow_nan=False)) == made


@given(documents())
def test_slices_on_a_track_never_overlap(document: dict[str, Any]) -> None:
    for slices in slices_by_track(trace(document)["traceEvents"]).values():
        for before, after in pairwise(slices):
            assert before["ts"] + before["dur"] <= after["ts"]


@given(documents())
def test_core_and_host_take_turns_and_lose_nothing(document: dict[str, Any]) -> None:
    tracks = slices_by_track(trace(document)["traceEvents"])
    for pid, pattern in enumerate(document["patterns"], 1):
        timeline = sorted(tracks[pid, "core"] + tracks[pid, "host"], key=lambda event: event["ts"])
        assert [event["name"] for event in timeline] == [layer["name"] for layer in pattern["layers"]]
        assert [event["cat"] for event in timeline] == [layer["phase"] for layer in pattern["layers"]]
        end = 0
        for event, layer in zip(timeline, pattern["layers"], strict=True):
            assert event["ts"] == end
            end += event["dur"]
            if layer["where"] == "host":
                assert event["dur"] == pytest.approx(layer["seconds"] * 500e6, abs=1)
                assert event in tracks[pid, "host"]
            else:
                assert event["dur"] == sum(layer["counters"].values())
                assert event in tracks[pid, "core"]


@given(documents())
def test_units_work_no_longer_than_their_layer(document: dict[str, Any]) -> None:
    tracks = slices_by_track(trace(document)["traceEvents"])
    for pid, pattern in enumerate(document["patterns"], 1):
        layers_at = {event["ts"]: event["dur"] for unit in ("core", "host") for event in tracks[pid, unit]}
        for unit in ("lanes", "memory port"):
            for event in tracks[pid, unit]:
                assert event["dur"] <= layers_at[event["ts"]]
        assert sum(event["dur"] for event in tracks[pid, "lanes"]) == sum(
            layer["counters"]["busy"] for layer in pattern["layers"]
        )


@given(documents())
def test_counters_sum_to_those_of_the_estimate(document: dict[str, Any]) -> None:
    events = trace(document)["traceEvents"]
    for pid, pattern in enumerate(document["patterns"], 1):
        counted = [event for event in events if event["ph"] == "C" and event["pid"] == pid]
        for cause in COUNTERS:
            total = sum(layer["counters"][cause] for layer in pattern["layers"])
            assert sum(event["args"][cause] for event in counted) == total
        times = [event["ts"] for event in counted]
        assert times == sorted(set(times))
        assert set(counted[-1]["args"].values()) == {0}


@given(documents())
def test_tracks_are_named_and_the_unit_of_time_is_said(document: dict[str, Any]) -> None:
    made = trace(document)
    events = made["traceEvents"]
    processes = [event for event in events if event["name"] == "process_name"]
    assert [event["pid"] for event in processes] == list(range(1, len(document["patterns"]) + 1))
    assert all(UNIT in event["args"]["name"] for event in processes)
    assert any(UNIT in note for note in made["otherData"]["notes"])
    threads = [event for event in events if event["name"] == "thread_name"]
    assert [event["args"]["name"] for event in threads] == list(TRACKS) * len(processes)
    # Perfetto's importer names threads by tid alone.
    assert len({event["tid"] for event in threads}) == len(threads)


def test_trace_of_a_real_estimate(nimble_json: Any, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    document = nimble_json(
        "estimate", *SMALL, "--model", tiny_model, "--pattern", "dense,2:4", "--lm-head", "fp16-host",
        "--perfetto", path,
    )  # fmt: skip
    made = json.loads(path.read_text(encoding="utf-8"))
    assert made == json.loads(json.dumps(trace(document)))
    tracks = slices_by_track(made["traceEvents"])
    for pid, pattern in enumerate(document["patterns"], 1):
        assert sum(event["dur"] for event in tracks[pid, "core"]) == pattern["phases"]["total"]["cycles"]
        assert [event["name"] for event in tracks[pid, "host"]] == ["lm_head", "lm_head"]
        moved = sum(event["dur"] for event in tracks[pid, "memory port"])
        # 25.6 GB/s at 500 MHz are 51.2 bytes a cycle; each layer is rounded to whole cycles.
        assert moved == pytest.approx(pattern["phases"]["total"]["bytes"] / 51.2, abs=len(pattern["layers"]))
    assert made["otherData"]["assumptions"] == document["assumptions"]


def test_unwritable_trace_is_refused(refusal: Any, tiny_model: Path, tmp_path: Path) -> None:
    assert refusal("estimate", *SMALL, "--model", tiny_model, "--perfetto", tmp_path) == (
        f"Cannot write {tmp_path}: it is a directory; give the name of a file."
    )
