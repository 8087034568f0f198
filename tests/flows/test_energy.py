"""Energy estimates: what they are made of, how they scale, and that they say that they are estimates."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.config import load_preset
from flows.cell_energy import CellLibrary, cell_library
from flows.energy import (
    KINDS,
    CoreEnergy,
    MappedCore,
    Measured,
    RunEnergy,
    Scaling,
    map_core,
    measure,
    measure_energy,
    run_energy,
    scaling,
)
from flows.energy_constants import read_constants
from flows.memories import MEMORIES
from flows.simulate import LayerGemm
from flows.terminal import ProgressBar
from quant import NMPattern
from verify.synthesis.expectations import expectations
from verify.synthesis.liberty import read_liberty
from verify.synthesis.tools import Deadline, find_yosys
from verify.toolchain import ToolError

TINY = load_preset("tiny")
LIBRARY = Path(__file__).parent.parent / "verify" / "small.lib"
CONSTANTS = read_constants().of("ddr4-3200", cells=False)
PATTERNS = [NMPattern.parse(text) for text in ("1:1", "2:4", "1:4")]
GEMM = LayerGemm(TINY, 2, 64, 8, PATTERNS[0], group_size=32)

LONG = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "long", reason="takes a while: runs with HYPOTHESIS_PROFILE=long"
)


@pytest.fixture(scope="module")
def mapped() -> MappedCore:
    """The tiny core's blocks on ECP5."""
    try:
        find_yosys()
    except ToolError as error:
        pytest.skip(str(error))
    return map_core(TINY, "ecp5", dsp="all", goal_mhz=120.0, deadline=Deadline())


@pytest.fixture(scope="module")
def energy(mapped: MappedCore) -> CoreEnergy:
    bar = ProgressBar(None, "", None)
    return measure_energy("tiny", GEMM, PATTERNS, mapped, activations="normal", memory="ddr4-3200", bar=bar)


# -- the model ---------------------------------------------------------------------------------------------------


def test_sums_are_the_counts_times_the_constants(energy: CoreEnergy, mapped: MappedCore) -> None:
    whole = mapped.blocks[0].each
    pj = {name.partition(".")[2]: constant.pj for name, constant in CONSTANTS.values.items()}
    assert whole.ff > 1000
    for pattern in energy.patterns:
        run = pattern.many
        counts = run.measured.activity
        assert run.kinds["clock"] == pytest.approx(whole.ff * counts.cycles * pj["clock_cycle"])
        assert run.kinds["registers"] == pytest.approx(counts.register_toggles * pj["net_toggle"])
        accesses = sum(
            (block.reads + block.writes) * mapped.memory_widths.get(block.place, 0) for block in counts.blocks.values()
        )
        assert accesses > 0
        assert run.kinds["memories"] == pytest.approx(accesses * pj["memory_bit"])
        assert run.external_pj == 8 * run.measured.timing.bytes * pj["ddr4-3200"]
        # No LUT changes more often than once a cycle.
        assert 0 < run.kinds["logic"] < (whole.lut - whole.lut_ram) * counts.cycles * pj["net_toggle"]
        assert run.kinds["multipliers"] > 0
        assert run.total_pj == pytest.approx(run.core_pj + run.external_pj)
        assert run.measured.cycles == pattern.many.measured.timing.cycles


def test_a_blocks_energy_by_hand(energy: CoreEnergy, mapped: MappedCore) -> None:
    run = energy.patterns[0].many
    counts = next(block for block in run.measured.activity.blocks.values() if block.place == "column.pe")
    [block] = [block for block in mapped.blocks if block.place == "column.pe"]
    changes = counts.logic_toggles / counts.logic_bits
    kinds = run.blocks["column.pe"]
    own, pes = block.own, TINY.rows * TINY.columns
    assert kinds["logic"] == pytest.approx((own.lut - own.lut_ram) * pes * changes * 0.643)
    bit_pairs = TINY.act_bits * TINY.weight_bits
    assert kinds["multipliers"] == pytest.approx(own.dsp * pes * bit_pairs * changes / 0.5 * 0.00467)
    # LUTs that are memory are not logic.
    memory = run.blocks["acts_buffer.even_bank.column0"]
    assert memory["logic"] == 0 < memory["memories"]
    # A PE's multiplexers have no nets of their own and change as it does.
    [part] = [block for block in mapped.blocks if block.place == "column.pe.window_multiplexers"]
    assert run.blocks[part.place]["logic"] == pytest.approx(part.own.lut * pes * changes * 0.643)


def test_energy_is_linear_in_the_constants_together(energy: CoreEnergy) -> None:
    shares = energy.sensitivity
    assert set(shares) == set(CONSTANTS.values)
    for pattern in ("dense", "2:4", "1:4"):
        assert sum(share[pattern] for share in shares.values()) == pytest.approx(1)
        assert all(share[pattern] > 0 for share in shares.values())


def test_sparser_patterns_take_less_for_each_product_of_the_unpruned_layer(energy: CoreEnergy) -> None:
    dense, half, quarter = (p.many.core_pj / p.many.measured.dense_macs for p in energy.patterns)
    assert quarter < half < dense
    dense, half, quarter = (p.many.total_pj / p.many.measured.dense_macs for p in energy.patterns)
    assert quarter < half < dense


def test_zero_activations_take_less(energy: CoreEnergy, mapped: MappedCore) -> None:
    gemm = dataclasses.replace(GEMM, pattern=PATTERNS[1])
    none = run_energy(mapped, measure(gemm, "zero", mapped.memories), CONSTANTS)
    uniform = run_energy(mapped, measure(gemm, "uniform", mapped.memories), CONSTANTS)
    normal = energy.patterns[1].many
    assert none.measured.cycles == uniform.measured.cycles == normal.measured.cycles
    for kind in ("registers", "logic", "multipliers"):
        assert none.kinds[kind] < min(normal.kinds[kind], uniform.kinds[kind])
    for kind in ("clock", "memories"):
        assert none.kinds[kind] == normal.kinds[kind] == uniform.kinds[kind]


def test_the_seed_decides(energy: CoreEnergy, mapped: MappedCore) -> None:
    again, other = (
        run_energy(mapped, measure(dataclasses.replace(GEMM, seed=seed), "normal", mapped.memories), CONSTANTS)
        for seed in (0, 1)
    )
    assert again.document() == energy.patterns[0].many.document()
    assert other.document() != again.document()


# -- other sizes -------------------------------------------------------------------------------------------------


def test_scaling_predicts_a_run_that_it_has_not_seen(energy: CoreEnergy) -> None:
    for pattern in energy.patterns:
        assert pattern.check.measured.busy not in (pattern.few.measured.busy, pattern.many.measured.busy)
        assert abs(pattern.check_error) < 0.05
        # And the runs that it is made from exactly.
        for run in (pattern.few, pattern.many):
            counts = run.measured
            predicted = pattern.scaling.core_pj(counts.activity.cycles, counts.busy, counts.macs)
            assert predicted == pytest.approx(run.core_pj, rel=0.01)


@dataclasses.dataclass
class Counted:
    """Activity of which only the length is asked for."""

    cycles: int


@given(
    cycle=st.floats(0, 1e4),
    busy=st.floats(0, 1e4),
    mac=st.floats(1, 1e3),
    rows=st.integers(2, 64),
    steps=st.integers(10, 10**5),
)
def test_scaling_finds_the_numbers_that_made_two_runs(
    cycle: float, busy: float, mac: float, rows: int, steps: int
) -> None:
    def run(tokens: int) -> RunEnergy:
        macs, cycles = 8 * tokens * steps, steps + 40
        kinds = {"clock": cycle * cycles, "registers": busy * steps, "logic": mac * macs}
        measured = Measured(tokens, Counted(cycles), cycles, steps, macs, macs, None)  # type: ignore[arg-type]
        return RunEnergy(measured, {"": {**dict.fromkeys(KINDS, 0.0), **kinds}}, 0.0, 0.0)

    found = scaling(run(1), run(rows))
    for at in (1, rows, 2 * rows):
        want = run(at)
        counts = want.measured
        assert found.core_pj(counts.activity.cycles, counts.busy, counts.macs) == pytest.approx(want.core_pj, rel=1e-6)


# -- standard cells ----------------------------------------------------------------------------------------------


def library(tmp_path: Path, change: Any) -> CellLibrary:
    """Return the energies of the small library with its text changed."""
    file = tmp_path / "changed.lib"
    file.write_text(change(LIBRARY.read_text(encoding="utf-8")), encoding="utf-8")
    return cell_library(read_liberty(file))


CELLS = {"INV": 3, "NAND2": 5, "DFF": 2, "Other": 7}


def test_cells_by_hand(tmp_path: Path) -> None:
    cells = library(tmp_path, lambda text: text).block(CELLS)
    # 3 + 2·5 + 2 inputs of 2 fF drive 10 outputs; the clock's two of 2 fF charge and discharge in each cycle, at 1 V.
    load = 0.5 * 15 * 0.002 / 10
    assert cells.clock_pj == pytest.approx(2 * 0.002)
    assert cells.register_toggle_pj == pytest.approx(2 * load)
    assert cells.logic_toggle_pj == pytest.approx(8 * load)


@given(factor=st.floats(0.1, 10))
def test_cells_are_linear_in_capacitance(tmp_path_factory: pytest.TempPathFactory, factor: float) -> None:
    folder = tmp_path_factory.mktemp("library")
    plain = library(folder, lambda text: text).block(CELLS)
    scaled = library(
        folder, lambda text: re.sub(r"capacitance : 0\.002", f"capacitance : {0.002 * factor!r}", text)
    ).block(CELLS)
    for field in dataclasses.fields(plain):
        assert getattr(scaled, field.name) == pytest.approx(factor * getattr(plain, field.name))


@pytest.mark.parametrize(
    ("old", "new", "factor"),
    [
        ("capacitive_load_unit (1, pf)", "capacitive_load_unit (1, ff)", 1e-3),
        ("capacitive_load_unit (1, pf)", "capacitive_load_unit (10, ff)", 1e-2),
        ("nom_voltage : 1;", "nom_voltage : 2;", 4),
    ],
)
def test_cells_follow_units_and_voltage(tmp_path: Path, old: str, new: str, factor: float) -> None:
    plain = library(tmp_path, lambda text: text).block(CELLS)
    changed = library(tmp_path, lambda text: text.replace(old, new)).block(CELLS)
    assert changed.clock_pj == pytest.approx(factor * plain.clock_pj)
    assert changed.logic_toggle_pj == pytest.approx(factor * plain.logic_toggle_pj)


def test_internal_energies_are_added(tmp_path: Path) -> None:
    tables = """internal_power () { related_pin : "CK"; rise_power (t2) { values ("0.1, 0.2", "0.3, 0.4"); }
      fall_power (t2) { values ("0.5, 0.6", "0.7, 0.8"); } }"""
    plain = library(tmp_path, lambda text: text).block({"DFF": 1})
    changed = library(
        tmp_path,
        lambda text: text.replace('function : "IQ";', f'function : "IQ"; {tables}').replace(
            "clock : true;", f"clock : true; {tables}"
        ),
    ).block({"DFF": 1})
    assert changed.register_toggle_pj == pytest.approx(plain.register_toggle_pj + 0.45)
    assert changed.clock_pj == pytest.approx(plain.clock_pj + 2 * 0.45)


def test_a_library_without_voltage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the library 'small' has no nom_voltage; no energy follows from it"):
        library(tmp_path, lambda text: text.replace("nom_voltage : 1;", ""))


@LONG
def test_a_core_of_standard_cells(nimble_json: Any) -> None:
    document = nimble_json("energy", "--preset", "tiny", "--target", f"liberty:{LIBRARY}", "--inputs", 64)
    assert document["library"]["name"] == "small"
    assert {constant["name"] for constant in document["constants"]} == {"cells.memory_bit", "external.ddr4-3200"}
    for pattern in document["patterns"]:
        assert sum(shares[pattern["pattern"]] for shares in document["sensitivity"].values()) == pytest.approx(1)
        assert min(pattern["pj"][kind] for kind in ("clock", "registers", "logic")) > 0
        assert abs(pattern["scaling"]["check_error"]) < 0.05


# -- constants ---------------------------------------------------------------------------------------------------


def test_every_constant_has_a_source_and_an_assumption() -> None:
    constants = read_constants().values
    assert {name.partition(".")[2] for name in constants if name.startswith("external")} == {*MEMORIES, "custom"}
    for name, constant in constants.items():
        assert constant.name == name
        assert 0 < constant.pj < 100
        assert re.search(r"(19|20)\d\d", constant.source)
        assert len(constant.assumption) > 20


def test_constants_that_are_scaled_follow_from_their_sources() -> None:
    shrink = 40 / 150 * (1.1 / 1.5) ** 2
    volts = (1.1 / 0.9) ** 2
    pj = {name: constant.pj for name, constant in read_constants().values.items()}
    assert pj["fpga.net_toggle"] == pytest.approx(5.9 * (0.60 + 0.16) / 8 / 0.125 * shrink, rel=2e-3)
    assert pj["fpga.clock_cycle"] == pytest.approx(5.9 * 0.14 / 8 * shrink, rel=2e-3)
    assert pj["fpga.multiply_bit_pair"] == pytest.approx(0.2 / 64 * volts, rel=2e-3)
    assert pj["fpga.memory_bit"] == pytest.approx(10 / 64 * volts, rel=3e-3)
    assert pj["cells.memory_bit"] == pytest.approx(10 / 64, rel=3e-3)
    assert pj["external.ddr4-3200"] == pytest.approx(1300 / 64, rel=1e-3)


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command(nimble: Any, mapped: MappedCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.terminal.PIPE_WIDTH", 80)
    file = tmp_path / "energy.json"
    result = nimble("energy", "--preset", "tiny", "--inputs", 64, "-o", file)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if not line.startswith("Wrote"))
    assert "estimates, no energy was measured" in result.stdout
    titles = [line.strip() for line in result.stdout.splitlines() if "pJ" in line and "Estimate" in line]
    assert len(titles) == 3
    for constant in CONSTANTS.values.values():
        assert constant.source.split(",")[0] in result.stdout
    document = json.loads(file.read_text(encoding="utf-8"))
    assert (document["schema"], document["version"], document["kind"]) == ("nimble.energy", 1, "estimate")
    assert [pattern["pattern"] for pattern in document["patterns"]] == ["dense", "2:4", "1:4"]
    assert document["parameters"] == json.loads(json.dumps(TINY.as_dict()))
    for pattern in document["patterns"]:
        blocks = sum(block[kind] for block in pattern["blocks"] for kind in KINDS)
        assert blocks == pytest.approx(pattern["pj"]["core"])
        assert pattern["core_pj_per_dense_mac"] * pattern["dense_macs"] == pytest.approx(pattern["pj"]["core"])
        assert pattern["pj_per_mac"] * pattern["macs"] == pytest.approx(pattern["pj"]["total"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--activations", "ones"], "Activations are normal, uniform, zero, but 'ones' was given."),
        (["--memory", "ddr9"], "There is no memory named 'ddr9'; the memories are ddr3-1600, ddr4-3200, lpddr5-6400"),
        (["--pattern", "2:4,2:4"], "The patterns '2:4,2:4' were given; each is named once."),
        (["--target", "abacus"], "There is no target 'abacus'; the targets are ecp5"),
        (["--target", "liberty:nothing.lib"], "nothing.lib"),
        (["--tokens", "0"], "A GEMM needs at least one token, but 0 were given."),
        (["--inputs", "999"], "999"),
    ],
)
def test_bad_input(refusal: Any, mapped: MappedCore, arguments: list[str], sentence: str) -> None:
    assert sentence in refusal("energy", "--preset", "tiny", *arguments)


# -- tokens of a model -------------------------------------------------------------------------------------------

EDGE = load_preset("edge")
NUMBERS = {"dense": Scaling(3.0, 5.0, 7.0), "2:4": Scaling(3.0, 11.0, 13.0)}


def report(folder: Path, **changes: Any) -> Path:
    """Write a report of `nimble energy` with made-up numbers."""
    document = {
        "schema": "nimble.energy",
        "version": 1,
        "target": "ecp5",
        "parameters": EDGE.as_dict(),
        "patterns": [{"pattern": name, "scaling": dataclasses.asdict(numbers)} for name, numbers in NUMBERS.items()],
        **changes,
    }
    file = folder / "energy.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def test_energy_of_tokens(nimble_json: Any, nimble: Any, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["estimate", "--model", tiny_model, "--pattern", "dense,2:4", "--prefill", 8, "--decode", 4,
                 "--group", 8, "--attention", "skip", "--energy-from", report(tmp_path)]  # fmt: skip
    document = nimble_json(*arguments)
    assert document["energy"]["kind"] == "estimate"
    for pattern, found in zip(document["patterns"], document["energy"]["patterns"], strict=True):
        assert found["pattern"] == pattern["pattern"]
        for phase, tokens in (("prefill", 8), ("decode", 4)):
            layers = [layer for layer in pattern["layers"] if layer["phase"] == phase]
            core = 0.0
            for layer in layers:
                numbers = NUMBERS[layer["pattern"]]
                core += numbers.cycle_pj * layer["cycles"] * layer["calls"]
                core += numbers.busy_cycle_pj * layer["counters"]["busy"] + numbers.mac_pj * layer["macs"]
            got = found["phases"][phase]
            assert got["tokens"] == tokens
            assert got["core_joules"] == pytest.approx(1e-12 * core)
            assert got["external_joules"] == pytest.approx(1e-12 * 8 * 20.3 * pattern["phases"][phase]["bytes"])
            assert got["joules_per_token"] * tokens == pytest.approx(got["core_joules"] + got["external_joules"])
    assert "Energy, estimated from" in nimble(*arguments).stdout


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": "nimble.synthesis"}, "is not a report of nimble energy: its schema is not nimble.energy, version"),
        ({"patterns": [{}]}, "is not a whole report of nimble energy: KeyError('pattern')."),
        ({"parameters": {**EDGE.as_dict(), "rows": 3}}, "is a report of another core: rows differ."),
        ({"patterns": []}, "has no energy of the pattern 2:4"),
    ],
)
def test_reports_that_are_refused(
    refusal: Any, tiny_model: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    file = report(tmp_path, **changes)
    said = refusal(
        "estimate", "--model", tiny_model, "--group", 8, "--prefill", 8, "--decode", 4, "--energy-from", file
    )
    assert sentence in said


def test_energy_belongs_to_a_model(refusal: Any, tmp_path: Path) -> None:
    said = refusal("estimate", "--topology", tmp_path / "layers.csv", "--energy-from", tmp_path / "energy.json")
    assert said == "--energy-from belongs to --model and has no meaning with --topology."


def test_expected_memories_are_where_energy_looks_for_them(mapped: MappedCore) -> None:
    places = {re.sub(r"\[\d+\]", "", memory.path.rpartition(".")[0]) for memory in expectations(TINY).memories}
    assert set(mapped.memory_widths) == places
