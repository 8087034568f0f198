"""Layer lists in SCALE-Sim's format: what is read, what is refused, and their cycles side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import load_preset
from accel.stream import layout_for
from accel.timing import gemm_timing
from flows.memories import choose_memory
from flows.scalesim import Array, output_stationary, weight_stationary
from flows.topology import (
    CONV_COLUMNS,
    Side,
    TopologyLayer,
    default_array,
    estimate_topology,
    read_topology,
)
from quant import NMPattern

DENSE = NMPattern(1, 1)
EDGE = load_preset("edge")

GEMMS = """\
Layer Name, M, N, K, Sparsity,
q_proj, 1, 4096, 4096, 2:4,
head, 128, 96, 64,,
"""


def written(text: str | bytes, name: str = "layers.csv") -> Path:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# What is read


@st.composite
def layer_lists(draw: st.DrawFn) -> tuple[list[TopologyLayer], bytes]:
    """Layers, and a file of them with everything that a file may have between them."""
    blank = st.sampled_from(["", " ", "\t", "   "])
    name = st.text(st.characters(codec="utf-8", exclude_characters=',"\r\n', exclude_categories=["C", "Z"]), min_size=1)
    pattern = st.integers(1, 8).flatmap(lambda m: st.integers(1, m).map(lambda n: NMPattern(n, m)))
    sparse = draw(st.booleans())
    heading = [draw(st.sampled_from(["Layer", "Layer name", "LAYER", "L"])), "M", "N", "K"]
    if sparse:
        heading.append(draw(st.sampled_from(["Sparsity", "sparsity", "N:M", "Sparsity ratio"])))
    layers, lines = [], [[draw(st.sampled_from([word, word.lower()])) for word in heading]]
    for _ in range(draw(st.integers(1, 5))):
        sizes = [draw(st.integers(1, 10**9)) for _ in range(3)]
        kept = draw(pattern) if sparse else DENSE
        tokens, out_features, in_features = sizes
        layers.append(TopologyLayer(draw(name), 0, tokens, in_features, out_features, kept))
        lines.append([layers[-1].name, *map(str, sizes), *([str(kept)] if sparse else [])])
    end = draw(st.sampled_from(["\n", "\r\n"]))
    text, line = draw(st.sampled_from(["", "\ufeff"])), 0
    for index, cells in enumerate(lines):
        for _ in range(draw(st.integers(0, 1))):
            text += draw(st.sampled_from(["", " ", ",,,", " , "])) + end
            line += 1
        line += 1
        text += ",".join(draw(blank) + cell + draw(blank) for cell in cells) + draw(st.sampled_from(["", ",", ", ,"]))
        text += end if index + 1 < len(lines) or draw(st.booleans()) else ""
        if index:
            listed = layers[index - 1]
            layers[index - 1] = TopologyLayer(
                listed.name, line, listed.tokens, listed.in_features, listed.out_features, listed.pattern
            )
    return layers, text.encode()


@given(layer_lists())
def test_a_list_is_read_as_it_was_written(drawn: tuple[list[TopologyLayer], bytes]) -> None:
    layers, data = drawn
    assert read_topology(written(data)) == layers


@given(st.binary(max_size=60) | st.text('Layer,MNK:12340\r\n" \0é', max_size=60).map(str.encode))
def test_any_file_is_a_list_or_refused_in_a_sentence(data: bytes) -> None:
    path, refusal = written(data), None
    try:
        read_topology(path)
    except ValueError as error:
        refusal = str(error)
    assert refusal is None or (refusal.startswith(str(path)) and refusal.endswith("."))


def test_a_file_of_scalesim_as_it_is() -> None:
    # Its own test of sparsity, which names a layer twice and does not end its last line.
    path = written("Layer Name, M, N, K, Sparsity,\nGEMM_1, 3, 5, 16, 3:4,\nGEMM_1, 1, 5, 16, 1:4,")
    assert read_topology(path) == [
        TopologyLayer("GEMM_1", 2, 3, 16, 5, NMPattern(3, 4)),
        TopologyLayer("GEMM_1", 3, 1, 16, 5, NMPattern(1, 4)),
    ]


def test_convolutions_become_the_gemms_that_scalesim_runs() -> None:
    path = written(
        f"{', '.join(CONV_COLUMNS)}, Sparsity,\n"
        "Conv1, 224, 224, 11, 11, 3, 96, 4, 1:4,\n"
        "DP_2, 9, 5, 3, 2, 8, 1, 2,,\n"
        "FC, 1, 1, 1, 1, 4096, 1000, 1,,\n"
    )
    assert read_topology(path) == [
        # ⌈213 / 4⌉ + 1 = 55 places a side.
        TopologyLayer("Conv1", 2, 55 * 55, 11 * 11 * 3, 96, NMPattern(1, 4)),
        # Each of eight channels on its own; 6 / 2 + 1 and ⌈3 / 2⌉ + 1 places.
        TopologyLayer("DP_2", 3, 4 * 3, 6, 1, DENSE, 8),
        TopologyLayer("FC", 4, 1, 4096, 1000, DENSE),
    ]
    twice = written("Layer, IFMAP Width, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,\n"
                    "c, 4, 5, 1, 1, 2, 3, 1,\n")  # fmt: skip
    assert read_topology(twice) == [TopologyLayer("c", 2, 20, 2, 3)]


# What is refused

KNOWN = "the first line names the columns Layer, M, N, K and, where weights are sparse, Sparsity"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: the list ends here, and no layer stands in it."),
        ("Layer,M,N,K,\n\n", "line 2: the list ends here, and no layer stands in it."),
        ("q,1,2,3,\n", f"line 1, column 2: '1' stands where M is expected; {KNOWN} (or, of convolutions, "
         "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides)."),
        ("Layer,N,M,K,\n", f"line 1, column 2: 'N' stands where M is expected; {KNOWN} (or, of convolutions, "
         "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides)."),
        ("Layer,M,N\n", f"line 1, column 4: no such column stands where K is expected; {KNOWN} (or, of convolutions, "
         "Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides)."),
        ("Layer,IFMAP Height,IFMAP Width\n", "line 1, column 4: no such column stands where Filter Height is "
         "expected; the first line names the columns Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter "
         "Width, Channels, Num Filter, Strides and, where weights are sparse, Sparsity."),
        ("Layer,M,N,K,Batch\n", "line 1, column 5: 'Batch' is not known; after K, only the column Sparsity is read, "
         "with n:m (n kept of every m weights)."),
        ("Layer,M,N,K,Sparsity,Batch\n", "line 1, column 6: 'Batch' is not known; after K, only the column Sparsity "
         "is read, with n:m (n kept of every m weights)."),
        ("Layer,M,N,K\nq,1,2,3,2:4\n", "line 2, column 5: '2:4' stands in a column that the first line does not "
         "name; it names Layer, M, N, K."),
        ("Layer,M,N,K\n\nq,1,,3\n", "line 3, column 3 (N): the value is missing."),
        ("Layer,M,N,K\nq,1,2\n", "line 2, column 4 (K): the value is missing."),
        ("Layer,M,N,K\nq,1,2,0\n", "line 2, column 4 (K): '0' is not a whole number from 1 to 1,000,000,000."),
        ("Layer,M,N,K\nq,1,2,-4\n", "line 2, column 4 (K): '-4' is not a whole number from 1 to 1,000,000,000."),
        ("Layer,M,N,K\nq,1e3,2,4\n", "line 2, column 2 (M): '1e3' is not a whole number from 1 to 1,000,000,000."),
        ("Layer,M,N,K\nq,1,1000000001,4\n",
         "line 2, column 3 (N): '1000000001' is not a whole number from 1 to 1,000,000,000."),
        ("Layer,M,N,K\n,1,2,4\n", "line 2, column 1 (Layer): the layer has no name."),
        ("Layer,M,N,K,Sparsity\nq,1,2,4,4:2\n", "line 2, column 5 (Sparsity): Pattern 4:2 has n = 4; n counts the "
         "kept weights and must be 1 to m = 2."),
        ("Layer,M,N,K,Sparsity\nq,1,2,4,half\n", "line 2, column 5 (Sparsity): Pattern 'half' is not understood; "
         'write n:m with n kept of every m weights, such as "2:4", or "dense".'),
        (f"{','.join(CONV_COLUMNS)}\nc,4,4,5,1,1,1,1\n",
         "line 2, column 4 (Filter Height): a filter of 5 does not fit an input of 4."),
    ],
)  # fmt: skip
def test_what_is_no_list(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence is compared
        read_topology(written(text))
    assert str(error.value) == f"layers.csv, {sentence}"


def test_a_file_in_another_encoding() -> None:
    with pytest.raises(ValueError, match=r"layers\.csv is not a CSV file: byte 0 is not part of any UTF-8 text\."):
        read_topology(written("Läyer,M,N,K".encode("utf-16")))


# Cycles


def test_cycles_of_the_core_are_the_timing_model_s() -> None:
    memory = choose_memory("ddr3-1600")
    side = Side("edge", EDGE, memory=memory)
    estimate = estimate_topology(written(GEMMS), side)
    for row in estimate.layers:
        layer = row.layer
        for name, port in (("nimble", None), ("nimble-memory", memory.at_clock(500))):
            model = row.models[name]
            for pattern, cycles in ((layer.pattern, model.cycles.cycles), (DENSE, model.dense_cycles)):
                layout = layout_for(EDGE, pattern, layer.out_features, layer.in_features, 128)
                assert cycles == gemm_timing(EDGE, layout, layer.tokens, memory=port).written
            split = model.cycles
            assert split.useful + split.idle + split.lost == pytest.approx(split.cycles)
            assert min(split.useful, split.idle, split.lost) >= 0
        assert row.timing.written == row.models["nimble-memory"].cycles.cycles == sum(row.counters.values())
        assert 0 < row.lane_use <= 1


def test_both_have_as_many_multipliers() -> None:
    assert default_array(EDGE) == Array(16, 64)
    side = Side("edge", EDGE, compare=("scalesim-os", "scalesim-ws"))
    document = estimate_topology(written(GEMMS), side).document()
    assert (document["schema"], document["version"]) == ("nimble.topology", 1)
    assert document["array"]["multipliers"] == document["multipliers"] == 1024
    first, second = document["layers"]
    for row, pattern in ((first, NMPattern(2, 4)), (second, DENSE)):
        sizes = (row["tokens"], row["out_features"], row["in_features"])
        for name, form in (("scalesim-os", output_stationary), ("scalesim-ws", weight_stationary)):
            model = row["models"][name]
            assert model["cycles"] == form(Array(16, 64), *sizes, pattern).cycles
            assert model["dense_cycles"] == form(Array(16, 64), *sizes, DENSE).cycles
            assert model["ratio"] == model["cycles"] / row["models"]["nimble"]["cycles"]
            # The same multiplications on as many multipliers.
            assert model["useful"] == pytest.approx(row["models"]["nimble"]["useful"])
    (total,) = document["totals"]
    for name, model in total["models"].items():
        assert model["cycles"] == sum(row["models"][name]["cycles"] for row in document["layers"])


def test_where_halving_k_and_the_core_part_ways() -> None:
    """Codes and scales are read beside the values: behind a slow memory 2:4 is 1.44 times as fast, not twice."""
    side = Side("wide", load_preset("wide"), memory=choose_memory("ddr3-1600"), compare=("scalesim-os", "scalesim-ws"))
    (row, _) = estimate_topology(written(GEMMS), side).document()["layers"]
    speedup = {name: model["speedup_over_dense"] for name, model in row["models"].items()}
    assert row["bound"] == "memory"
    assert speedup["scalesim-ws"] == pytest.approx(2, abs=0.001)
    assert 1.9 < speedup["scalesim-os"] < 2
    assert 1.9 < speedup["nimble"] <= 2
    assert 1.40 < speedup["nimble-memory"] < 1.45


def test_patterns_of_the_command_line_replace_those_of_the_file(nimble_json: Any) -> None:
    file = written(GEMMS)
    as_listed = nimble_json("estimate", "--topology", file)
    assert as_listed["patterns"] == "file"
    assert [row["pattern"] for row in as_listed["layers"]] == ["2:4", "dense"]
    document = nimble_json("estimate", "--topology", file, "--pattern", "dense,3:5")
    assert [row["pattern"] for row in document["layers"]] == ["dense", "dense", "3:5", "3:5"]
    # Groups of 128 weights hold no whole number of blocks of five.
    assert [row["group_size"] for row in document["layers"]] == [128, 64, 125, 64]
    assert [total["pattern"] for total in document["totals"]] == ["dense", "3:5"]
    for total, rows in zip(document["totals"], (document["layers"][:2], document["layers"][2:]), strict=True):
        assert total["cycles"] == sum(row["cycles"] for row in rows)
    assert document["totals"][0]["models"]["nimble"]["speedup_over_dense"] == 1


def test_a_depthwise_layer_counts_once_for_each_channel(nimble_json: Any) -> None:
    file = written(f"{','.join(CONV_COLUMNS)}\nDP, 9, 5, 3, 2, 8, 1, 2\n")
    document = nimble_json("estimate", "--topology", file, "--compare", "scalesim-os")
    (row,), (total,) = document["layers"], document["totals"]
    assert row["calls"] == 8
    assert total["cycles"] == 8 * row["cycles"]
    assert total["lane_use"] == pytest.approx(row["lane_use"])
    assert total["dense_equivalent"] == pytest.approx(row["dense_equivalent"])
    assert total["models"]["scalesim-os"]["cycles"] == 8 * row["models"]["scalesim-os"]["cycles"]


def test_tables_fit_eighty_columns(nimble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = written(GEMMS.replace("head", "model.layers.0.mlp.gate_proj").replace("q_proj, 1,", "q_proj, 2048,"))
    result = nimble("estimate", "--topology", file, "--compare", "scalesim-os,scalesim-ws")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    text = " ".join(result.stdout.split())
    assert "Side by side: edge, and SCALE-Sim's array of 16x64" in text
    assert "as many as edge has (16 × 16 PEs of 4 lanes)" in text
    assert "…" not in text


def test_a_table_without_a_comparison(nimble: Any) -> None:
    result = nimble("estimate", "--topology", written(GEMMS), "--array", "16x16")
    assert result.exit_code == 0
    assert "Side by side" not in result.stdout
    assert "SCALE-Sim" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--topology", "layers.csv", "--model", "llama-7b"),
            "Both --model and --topology were given; layers come from one of them.",
        ),
        ((), "Neither --model nor --topology was given; layers come from one of them."),
        (
            ("--topology", "layers.csv", "--lm-head", "skip"),
            "--lm-head belongs to --model and has no meaning with --topology.",
        ),
        (
            ("--model", "llama-7b", "--compare", "scalesim-os"),
            "--compare belongs to --topology and has no meaning with --model.",
        ),
        (
            ("--topology", "layers.csv", "--compare", "stonne"),
            "Nothing named 'stonne' can be compared with; there are scalesim-os, scalesim-ws.",
        ),
        (
            ("--topology", "layers.csv", "--array", "16"),
            "The array '16' is not understood; write its rows and columns, such as 16x64.",
        ),
        (("--topology", "none.csv"), "Cannot use none.csv: No such file or directory."),
        (
            ("--topology", "layers.csv", "--preset", "tiny"),
            "layers.csv, line 2: layer q_proj does not run on this core: The weights have 4096 input features (4096 "
            "after padding to whole groups), but this core's accumulators are sized for k_max = 128.",
        ),
        (
            ("--topology", "layers.csv", "--group", "3"),
            "layers.csv, line 2: layer q_proj does not run on this core: Group size 3 is not a multiple of m = 4 of "
            "pattern 2:4; allowed are multiples of 4 or -1 for one group per row.",
        ),
    ],
)
def test_bad_input(arguments: tuple[object, ...], sentence: str, refusal: Any) -> None:
    written(GEMMS)
    assert refusal("estimate", *arguments) == sentence


def test_a_long_list(nimble_json: Any) -> None:
    lines = "".join(f"l{i}, {1 + i % 96}, {64 + 8 * i}, {64 + 4 * i}, {1 + i % 4}:4,\n" for i in range(300))
    document = nimble_json("estimate", "--topology", written("Layer, M, N, K, Sparsity,\n" + lines))
    assert [row["layer"] for row in document["layers"]] == [f"l{i}" for i in range(300)]
    assert document["totals"][0]["cycles"] == sum(row["cycles"] for row in document["layers"])
