"""What `nimble energy` takes LUT outputs to change, held against the mapped netlist itself, simulated gate by gate.

Runs with HYPOTHESIS_PROFILE=long only: it maps, compiles and runs the tiny core twice.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from accel.causes import CAUSES
from accel.config import load_preset
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreRTL import COUNTER_BITS
from flows.energy import MappedCore, changes_of_logic, drawn_job, map_core, measure
from flows.simulate import LayerGemm
from quant import NMPattern
from verify.activity import build_counting_core, core_design, read_saif, run_counted
from verify.gemm import execute
from verify.synthesis.expectations import expectations
from verify.synthesis.mapping import Multipliers, map_blocks
from verify.synthesis.targets import GENERIC
from verify.synthesis.tools import Deadline, find_yosys, run_tool
from verify.toolchain import ToolError

TINY = load_preset("tiny")

pytestmark = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)

#: A LUT as yosys writes it: its table, shifted by its inputs.
LUT = re.compile(r"assign \\?(\S+?) ?(?:\[(\d+)\])? = \d+'h[0-9a-f]+ >> ")


@pytest.fixture(scope="module")
def mapped() -> MappedCore:
    try:
        find_yosys()
    except ToolError as error:
        pytest.skip(str(error))
    return map_core(TINY, "generic", dsp="all", goal_mhz=120.0, deadline=Deadline())


@pytest.fixture(scope="module")
def netlist(mapped: MappedCore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Verilog of the netlist that the blocks' cells are counted in, module by module."""
    expected = expectations(TINY)
    multipliers = Multipliers.parse("all", GENERIC, expected.lane_bits, expected.scale_multipliers)
    folder = tmp_path_factory.mktemp("netlist")
    blocks = map_blocks(core_design(TINY), GENERIC, multipliers, mapped.yosys, Deadline(), 120.0)
    (folder / "design.sv").write_bytes((blocks.folder / "design.sv").read_bytes())
    script = (blocks.folder / "script.ys").read_text(encoding="utf-8") + "write_verilog -noattr netlist.v\n"
    (folder / "script.ys").write_text(script, encoding="utf-8")
    run_tool(mapped.yosys, ["-q", "script.ys"], folder, Deadline(), "writing the netlist", "the tiny core")
    return (folder / "netlist.v").read_text(encoding="utf-8")


def wrapped(netlist: str, top: str) -> str:
    """Give a netlist the core's ports: yosys has made one vector of each list, its first element the highest."""
    command = mk_command_msg(TINY).nbits
    lists = {"acts__msg": (TINY.act_ports, TINY.act_port_bits), "weights__msg": (TINY.columns, TINY.slice_bits)}
    ports = [
        "input logic clk",
        "input logic reset",
        f"input logic [{command - 1}:0] command__msg",
        f"output logic [{64 * TINY.result_lanes - 1}:0] results__msg",
        f"output logic [{COUNTER_BITS - 1}:0] counters [0:{len(CAUSES) - 1}]",
    ]
    ports += [f"input logic [{width - 1}:0] {name} [0:{count - 1}]" for name, (count, width) in lists.items()]
    for stream in ("command", "acts", "weights"):
        ports += [f"input logic {stream}__val", f"output logic {stream}__rdy"]
    ports += ["output logic results__val", "input logic results__rdy"]
    names = [port.split(" [0:")[0].split()[-1] for port in ports]
    pins = {name: name for name in names} | {"counters": "flat"}
    pins |= {name: "{" + ", ".join(f"{name}[{i}]" for i in range(count)) + "}" for name, (count, _) in lists.items()}
    connected = ", ".join(f".{name}({signal})" for name, signal in pins.items())
    pins_of_counters = [
        f"assign counters[{i}] = flat[{COUNTER_BITS * (len(CAUSES) - 1 - i)} +: {COUNTER_BITS}];"
        for i in range(len(CAUSES))
    ]
    body = [f"logic [{COUNTER_BITS * len(CAUSES) - 1}:0] flat;", f"{top} core({connected});", *pins_of_counters]
    return "\n".join([netlist, f"module Wrapped({', '.join(ports)});", *body, "endmodule", ""])


@pytest.fixture(scope="module")
def gates(netlist: str) -> ctypes.CDLL:
    # yosys names LUTs' outputs with an underscore; loops between vectors are none between their bits.
    text = wrapped(netlist, core_design(TINY).top)
    return build_counting_core(TINY, text, "Wrapped", ("--trace-underscore", "-Wno-UNOPTFLAT"))


@pytest.mark.parametrize("pattern", ["dense", "2:4", "1:4"])
def test_luts_change_about_as_often_as_estimated(
    mapped: MappedCore, netlist: str, gates: ctypes.CDLL, tmp_path: Path, pattern: str
) -> None:
    gemm = LayerGemm(TINY, 2, 64, 8, NMPattern.parse(pattern), group_size=32)
    job = drawn_job(gemm, "normal")
    file = tmp_path / "gates.saif"
    run = run_counted(job, file, gates)
    measured = measure(gemm, "normal", mapped.memories)
    # The netlist computes what the core does, in as many cycles.
    assert (job.results(run.image) == execute(job, "golden").y).all()
    assert run.cycles == measured.cycles

    luts = {
        module[1]: {(found[1], int(found[2] or 0)) for found in LUT.finditer(module[0])}
        for module in re.finditer(r"^module (\w+)\(.*?^endmodule", netlist, re.MULTILINE | re.DOTALL)
    }
    design = core_design(TINY)
    modules = {"": design.top, **design.instances()}
    changes: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for bit in read_saif(file):
        path = bit.instance.removeprefix("core").removeprefix(".") if bit.instance.startswith("core") else None
        if path is None:
            continue
        if path not in modules:
            # A part that was cut out of its module.
            parent = modules[path.rpartition(".")[0]]
            [modules[path]] = [name for name in luts if name.startswith(parent + "_")]
        if (bit.net, bit.bit) in luts[modules[path]]:
            changes[modules[path]] += bit.toggles
            counted[modules[path]] += 1
    estimated = {}
    for block in mapped.blocks:
        luts_there = block.own.lut * block.count
        estimated[block.place] = luts_there * changes_of_logic(measured.activity, block)
    assert sum(counted.values()) == sum(block.own.lut * block.count for block in mapped.blocks)
    ratio = sum(estimated.values()) / sum(changes.values())
    assert 0.85 < ratio < 1.15, (ratio, estimated, changes)
