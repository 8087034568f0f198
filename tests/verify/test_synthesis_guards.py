"""Guards: each broken design is found, by the guard that it breaks, and a sound one by none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from accel.config import CoreConfig, load_preset
from accel.naming import module_name
from accel.verilog import core_verilog
from verify.strategies import core_configs
from verify.synthesis.expectations import ConstantBits, Expectations, ExpectedMemory, expectations
from verify.synthesis.guards import GUARDS, Finding, check_design, check_memories, listed
from verify.synthesis.hierarchy import Design
from verify.synthesis.inspection import inspect
from verify.synthesis.lint import lint
from verify.synthesis.mapping import Multipliers, map_flat
from verify.synthesis.targets import TARGETS
from verify.synthesis.tools import Deadline, SynthesisTool
from verify.verilator_build import FATAL_WARNINGS

LONG = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)

#: Of a design without multipliers.
NOTHING = Expectations(0, ((8, 5),), 0, (17, 8))

SOUND = """
module adder(input logic [3:0] a, input logic [3:0] b, output logic [3:0] sum);
  assign sum = a + b;
endmodule

module top(input logic clk, input logic reset, input logic [3:0] d, output logic [3:0] q, output logic busy);
  logic [3:0] sum;
  adder a__0(.a(d), .b(q), .sum(sum));
  always_ff @(posedge clk) begin
    q <= sum;
    if (reset) busy <= 1'b0;
    else if (d == 4'd0) busy <= 1'b1;
  end
endmodule
"""

# One line of SOUND, what breaks it, the guard, and what the finding must say.
BROKEN = [
    pytest.param(
        "assign sum = a + b;",
        "always_comb begin if (a[0]) sum = b; end",
        "latch",
        ["a[0].sum[3:0] keeps its value", "(adder, line 3)"],
        id="a value that is not always assigned",
    ),
    pytest.param(
        "assign sum = a + b;",
        "always @(*) if (a[0]) sum = b;",
        "latch",
        ["a[0].sum[3:0] is a latch"],
        id="the same in old Verilog",
    ),
    pytest.param(
        "adder a__0(.a(d), .b(q), .sum(sum));",
        "adder a__0(.a(d), .b(busy ? q : sum), .sum(sum));",
        "loop",
        ["a[0].sum", "sum[3]"],
        id="a loop through a module",
    ),
    pytest.param(
        "adder a__0(.a(d), .b(q), .sum(sum));",
        "adder a__0(.a(d), .b(q), .sum(sum)); adder a__1(.a(q), .b(q), .sum(sum));",
        "drivers",
        ["sum[3:0] has 2 drivers: cell"],
        id="two modules drive a net",
    ),
    pytest.param(
        "q <= sum;",
        "q <= {sum[3], 1'b0, sum[1], 1'b0};",
        "constant",
        ["The register q[2,0] is always 0"],
        id="bits that are constant",
    ),
    pytest.param(
        "busy <= 1'b1;", "busy <= 1'b0;", "constant", ["The register busy is always 0"], id="a flag that is never set"
    ),
    pytest.param(
        "busy <= 1'b1;", "busy <= busy;", "constant", ["The register busy is always 0"], id="one that keeps its value"
    ),
    pytest.param(
        "q <= sum;", "q <= q;", "constant", ["The register q[3:0] is never written"], id="a register without input"
    ),
    pytest.param(
        "output logic busy);",
        "output logic busy, output logic [1:0] more); assign more = {1'b1, d[0]};",
        "constant",
        ["The output more[1] is always 1"],
        id="an output that is constant",
    ),
    pytest.param(
        "output logic busy);",
        "output logic busy, output logic more);",
        "constant",
        ["The output more is not driven"],
        id="an output that nothing drives",
    ),
    pytest.param(
        "q <= sum;",
        "q <= 4'((({8{d[3]}} << 4) | {d, d} ^ {sum, sum}) * {d, sum, sum} >> 8);",
        "multiplier width",
        ["× 12 bits", "a lane needs 8 × 5 and a scale unit 17 × 8", "(top, line"],
        id="a multiplier of 12 bits",
    ),
]


def found_in(text: str, yosys: SynthesisTool, expected: Expectations = NOTHING) -> list[Finding]:
    design = Design(text, "top")
    return check_design(design, inspect(design, yosys, Deadline()), expected)


def test_a_sound_design(yosys: SynthesisTool) -> None:
    assert found_in(SOUND, yosys) == []


@pytest.mark.parametrize(("line", "broken", "guard", "says"), BROKEN)
def test_a_broken_design(line: str, broken: str, guard: str, says: list[str], yosys: SynthesisTool) -> None:
    assert SOUND.count(line) == 1
    findings = [finding for finding in found_in(SOUND.replace(line, broken), yosys)]
    assert guard in GUARDS
    assert {finding.guard for finding in findings} == {guard}
    text = "\n".join(f"{finding.where}: {finding.what}" for finding in findings)
    for words in says:
        assert words in text


def test_constants_that_the_configuration_explains(yosys: SynthesisTool) -> None:
    broken = SOUND.replace("q <= sum;", "q <= {2'b00, sum[1:0]};")
    explained = Expectations(0, ((8, 5),), 0, (17, 8), constants=(ConstantBits(r"q\[3\]", "As an example."),))
    assert [finding.what for finding in found_in(broken, yosys, explained)] == ["The register q[2] is always 0."]


def test_bits_are_joined_as_verilog_writes_them(yosys: SynthesisTool) -> None:
    text = "module top(input logic clk, output logic [9:0] q); always_ff @(posedge clk) q <= 10'b0001001010; endmodule"
    assert [finding.what for finding in found_in(text, yosys)] == [
        "The register q[9:7,5:4,2,0] is always 0.",
        "The register q[6,3,1] is always 1.",
    ]


# -- memories ----------------------------------------------------------------------------------------

RAM = """
module ram(input logic clk, input logic [8:0] at, input logic we, input logic [31:0] d, output logic [31:0] q);
  logic [31:0] words [0:511];
  always_ff @(posedge clk) begin
    q <= words[at];
    if (we) words[at] <= d;
  end
endmodule

module top(input logic clk, input logic [8:0] at, input logic we, input logic [31:0] d, output logic [31:0] q);
  ram bank__1(.clk(clk), .at(at), .we(we), .d(d), .q(q));
endmodule
"""


@pytest.mark.parametrize(
    ("line", "broken", "says"),
    [
        ("q <= words[at];", "q <= words[at];", None),
        # Block RAM answers at a clock edge only.
        (
            "q <= words[at];",
            "end\n assign q = words[at];\n always_ff @(posedge clk) begin",
            "mapped to TRELLIS_DPR16X4",
        ),
    ],
    ids=["registered", "read at once"],
)
def test_memories_that_should_be_block_ram(line: str, broken: str, says: str | None, yosys: SynthesisTool) -> None:
    design = Design(RAM.replace(line, broken), "top")
    target = TARGETS["ecp5"]
    mapped = map_flat(design, target, Multipliers(), yosys, Deadline())
    memories = (ExpectedMemory("bank[1].words", 512, 32), ExpectedMemory("bank[1].small", 64, 4))
    expected = Expectations(0, ((8, 5),), 0, (17, 8), memories=memories)
    findings = check_memories(inspect(design, yosys, Deadline()), mapped.log, target, expected)
    # Found without being told of it, too.
    assert check_memories(inspect(design, yosys, Deadline()), mapped.log, target, NOTHING) == findings
    if says is None:
        assert findings == []
        assert mapped.statistics.whole("top", target).bram == 1
    else:
        [finding] = findings
        assert (finding.guard, finding.where) == ("block RAM", "bank[1].words")
        assert "A memory of 512 words of 32 bits was " + says in finding.what


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("", "single registers, for it is no memory of the netlist"),
        ("using FF mapping for memory top.bank__0.words", "flip-flops"),
    ],
)
def test_a_memory_of_single_registers(log: str, kind: str, yosys: SynthesisTool) -> None:
    design = Design(SOUND, "top")
    expected = Expectations(0, ((8, 5),), 0, (17, 8), memories=(ExpectedMemory("bank[0].words", 128, 32),))
    inspection = inspect(design, yosys, Deadline())
    [finding] = check_memories(inspection, log, TARGETS["ecp5"], expected)
    assert finding.what == f"A memory of 128 words of 32 bits was mapped to {kind}, not to block RAM."
    assert check_memories(inspection, log, TARGETS["generic"], expected) == []


# -- the core ----------------------------------------------------------------------------------------


def core_design(config: CoreConfig) -> Design:
    return Design(core_verilog(config), module_name("CoreRTL", config))


def check_core(config: CoreConfig, yosys: SynthesisTool, text: str | None = None) -> list[Finding]:
    design = core_design(config)
    design = Design(text or design.text, design.top)
    return check_design(design, inspect(design, yosys, Deadline()), expectations(config))


def test_the_tiny_core_is_sound(yosys: SynthesisTool) -> None:
    config = load_preset("tiny")
    design = core_design(config)
    inspection = inspect(design, yosys, Deadline())
    expected = expectations(config)
    assert check_design(design, inspection, expected) == []
    assert lint(design, Deadline()) == []
    # What the guards compare with is there.
    sizes = inspection.memories()
    for memory in expected.memories:
        assert sizes[memory.path] == (memory.words, memory.width)
    assert (expected.lane_multipliers, expected.scale_multipliers) == (8, 2)


@pytest.mark.parametrize(
    ("line", "broken", "guard", "says"),
    [
        # The lanes of all four PEs multiply by one bit of the weight.
        (r"(\* \{ \{ \d+ \{ )(\w+)(\[4\] \} \}, )\w+( \})", r"\1\2\3\2 & 5'b00001\4", "multiplier count", "8 multipl"),
        # The accumulator takes its own value instead of the sum.
        (r"acc <= acc_next;", "acc <= acc;", "constant", "column[0].pe[0].acc"),
        (r"drain <= chain_in;", "drain <= {chain_in[16:1], 1'b0} & drain | drain;", None, ""),
    ],
    ids=["lanes of one bit", "accumulators that stand still", "another function"],
)
def test_a_mutated_core(line: str, broken: str, guard: str | None, says: str, yosys: SynthesisTool) -> None:
    config = load_preset("tiny")
    text, count = re.subn(line, broken, core_design(config).text)
    assert count >= 1
    findings = check_core(config, yosys, text)
    assert {finding.guard for finding in findings} == ({guard} if guard else set())
    assert says in "".join(finding.where + finding.what for finding in findings)


@pytest.mark.slow
@settings(
    max_examples=settings().max_examples // 50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(config=core_configs())
def test_small_cores_are_sound(config: CoreConfig, yosys: SynthesisTool) -> None:
    assert check_core(config, yosys) == []
    assert lint(core_design(config), Deadline()) == []


# -- lint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["edge", "wide"])
def test_presets_with_fewer_rows_and_columns_are_clean(preset: str) -> None:
    """The modules are those of the whole preset, of which there are many times more."""
    config = load_preset(preset).replace(rows=4, columns=2, act_ports=2, result_lanes=2)
    assert lint(core_design(config), Deadline()) == []


@LONG
@pytest.mark.parametrize("preset", ["edge", "wide"])
def test_whole_presets_are_clean(preset: str) -> None:
    assert lint(core_design(load_preset(preset)), Deadline()) == []


def test_every_waiver_has_a_reason_and_hides_nothing_fatal() -> None:
    from verify.synthesis.lint import WAIVERS

    paragraphs = WAIVERS.read_text(encoding="utf-8").split("\n\n")[1:]
    assert len(paragraphs) > 5
    for paragraph in paragraphs:
        reason, *waivers = paragraph.splitlines()
        assert reason.startswith("// ")
        assert reason.endswith(".")
        assert waivers
        for waiver in waivers:
            match = re.fullmatch(
                r'lint_off -rule (\w+) -file "\*" -match "([^"]+)"|lint_off -rule DECLFILENAME', waiver
            )
            assert match is not None
            assert match[1] not in FATAL_WARNINGS
            # A pattern that takes any message would hide the next defect.
            assert match[2] is None or len(match[2].replace("*", "")) > 8


@pytest.mark.parametrize(
    ("line", "broken", "guard", "says"),
    [
        ("assign sum = a + b;", "always_comb begin if (a[0]) sum = b; end", "latch", "LATCH"),
        ("assign sum = a + b;", "logic [1:0] spare; assign spare = a[1:0]; assign sum = a + b;", "lint", "'spare'"),
        ("assign sum = a + b;", "assign sum = a + {b, 1'b0};", "lint", "WIDTHTRUNC"),
        ("q <= sum;", "q <= nothing;", "lint", "error: "),
    ],
    ids=["latch", "not used", "width", "an error"],
)
def test_what_lint_finds(line: str, broken: str, guard: str, says: str, tmp_path: Path) -> None:
    assert lint(Design(SOUND, "top"), Deadline()) == []
    findings = lint(Design(SOUND.replace(line, broken), "top"), Deadline())
    assert guard in {finding.guard for finding in findings}
    assert any(says in finding.what for finding in findings)


def test_long_lists_are_counted() -> None:
    findings = [Finding("constant", str(i), "") for i in range(30)] + [Finding("latch", "x", "")]
    shown, counts = listed(findings)
    assert counts == {"constant": 30, "latch": 1}
    assert [finding.guard for finding in shown] == ["constant"] * 20 + ["latch"]
