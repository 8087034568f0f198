"""An estimate as a trace for ui.perfetto.dev, in Chrome's JSON of trace events.

Each pattern is a process. Its tracks are units, with one slice for each layer that the unit works on: a layer here is
a row of the estimate's ``layers``, all calls of a phase one after the other. One cycle of the core is shown as 1 µs,
which is the unit of the format's ``ts`` and ``dur``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quant.atomic_file import write_text

SCALE = "1 cycle of the core is shown as 1 µs"

#: Tracks of a pattern in their order, and what a slice on each of them is.
TRACKS = {
    "core": "A layer on the core, from its first command until its last result is in memory.",
    "lanes": "The cycles of a layer in which the lanes multiply.",
    "memory port": "The time in which memory moves a layer's bytes at its full bandwidth.",
    "host": "A layer on the host, in cycles of the core's clock, rounded to whole ones.",
}

_NOTES = (
    f"{SCALE}.",
    "A slice stands for all calls of a layer in a phase, as if they came one after the other: between them, other "
    "layers run.",
    "On the tracks 'lanes' and 'memory port' a slice starts with its layer and is as long as the unit works for it; "
    "in truth that work is spread over the layer.",
    "The counter tracks hold a layer's cycles by cause for as long as it is shown.",
)


def write_trace(document: Mapping[str, Any], path: str | Path) -> None:
    """Write the trace of an estimate's JSON object.

    Raises
    ------
    OSError
        The file cannot be written; it is then as it was.
    """
    write_text(path, json.dumps(trace(document), allow_nan=False, separators=(",", ":")) + "\n")


def trace(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trace of an estimate's JSON object.

    Returns
    -------
    A JSON object of Chrome's trace event format: metadata (``M``), complete events (``X``), counters (``C``).
    """
    events = [
        event for number, pattern in enumerate(document["patterns"], 1) for event in _events(document, pattern, number)
    ]
    described = ("model", "core", "clock_mhz", "clock_source", "memory", "prefill", "decode", "batch", "group_size")
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "notes": list(_NOTES),
            "tracks": TRACKS,
            **{field: document[field] for field in described},
            "assumptions": document["assumptions"],
            "sources": document["sources"],
        },
    }


def _events(document: Mapping[str, Any], pattern: Mapping[str, Any], pid: int) -> Iterator[dict[str, Any]]:
    # Perfetto names threads by their tid alone, so that no two processes may share one.
    tids = {track: 10 * pid + place for place, track in enumerate(TRACKS, 1)}
    first = tids["core"]
    yield _metadata(pid, first, "process_name", name=f"{document['model']} {pattern['pattern']} ({SCALE})")
    yield _metadata(pid, first, "process_sort_index", sort_index=pid)
    for track, tid in tids.items():
        yield _metadata(pid, tid, "thread_name", name=track)
        yield _metadata(pid, tid, "thread_sort_index", sort_index=tid)
    hertz = document["clock_mhz"] * 1e6
    bytes_a_cycle = document["memory"]["bandwidth_gb_s"] * 1e9 / hertz
    start = 0
    for layer in pattern["layers"]:
        # On the core, the counters of all calls are whole cycles, where those of one call may be a mean.
        cycles = sum(layer["counters"].values()) or max(1, round(layer["seconds"] * hertz))
        spans = {
            layer["where"]: cycles,
            "lanes": layer["counters"]["busy"],
            "memory port": min(cycles, round(layer["calls"] * layer["bytes"] / bytes_a_cycle)),
        }
        for track, span in spans.items():
            if span:
                yield {
                    "name": layer["name"],
                    "cat": layer["phase"],
                    "ph": "X",
                    "pid": pid,
                    "tid": tids[track],
                    "ts": start,
                    "dur": span,
                    "args": _facts(layer),
                }
        yield _counters(pid, first, start, layer["counters"])
        start += cycles
    yield _counters(pid, first, start, dict.fromkeys(pattern["layers"][-1]["counters"], 0))


def _facts(layer: Mapping[str, Any]) -> dict[str, Any]:
    facts = ("phase", "role", "where", "pattern", "tokens", "in_features", "out_features", "calls")
    return {
        **{fact: layer[fact] for fact in facts},
        "cycles_per_call": layer["cycles"],
        "bytes_per_call": layer["bytes"],
        "useful_macs": layer["macs"],
        "seconds": layer["seconds"],
        **({} if layer["lane_use"] is None else {"lane_use": layer["lane_use"]}),
        "bound": layer["bound"],
        **{f"cycles_{cause}": cycles for cause, cycles in layer["counters"].items()},
    }


def _metadata(pid: int, tid: int, kind: str, **args: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": args}


def _counters(pid: int, tid: int, time: int, cycles: Mapping[str, int]) -> dict[str, Any]:
    # Perfetto makes a track of each argument, called "cycles busy" and so on.
    return {"name": "cycles", "ph": "C", "pid": pid, "tid": tid, "ts": time, "args": dict(cycles)}
