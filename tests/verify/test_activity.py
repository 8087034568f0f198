"""Switching activity: the counts equal those of PyMTL3's own simulation, and follow from the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.config import load_preset
from accel.core.CoreRTL import CoreRTL
from quant import NMPattern, prune_magnitude, quantize_rtn
from verify.activity import core_design, drivers_of, duration, measure_activity, read_activity, read_saif, run_counted
from verify.gemm import GemmJob, execute, prepare
from verify.rtl import drive
from verify.synthesis.expectations import expectations
from verify.synthesis.hierarchy import Design

TINY = load_preset("tiny")
MEMORIES = expectations(TINY).memories
PATHS = [memory.path for memory in MEMORIES]


def job(pattern: str = "2:4", *, tokens: int = 3, seed: int = 0, scale: int = 127) -> GemmJob:
    """Return a small GEMM on the tiny core; activations within ±scale."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-scale, scale, (tokens, 32), endpoint=True)
    chosen = NMPattern.parse(pattern)
    weight = quantize_rtn(prune_magnitude(rng.standard_normal((4, 32)).astype(np.float32), chosen), chosen, 16)
    return prepare(TINY, x, weight)


class CountingCore:
    """A simulated core that counts how often each bit of each register changes from cycle to cycle."""

    def __init__(self, core: Any, registers: dict[str, Callable[[], int]]) -> None:
        self._core = core
        self._registers = registers
        self._last = {path: read() for path, read in registers.items()}
        self.toggles: Counter[tuple[str, int]] = Counter()
        self.cycles = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def sim_tick(self) -> None:
        """Count what changed up to the cycle that this edge ends."""
        for path, read in self._registers.items():
            value = read()
            changed = value ^ self._last[path]
            self._last[path] = value
            for bit in range(changed.bit_length()):
                self.toggles[path, bit] += changed >> bit & 1
        self.cycles += 1
        self._core.sim_tick()


def simulated_core() -> tuple[Any, dict[str, Callable[[], int]]]:
    """Return PyMTL3's simulation of the tiny core and how to read what its update_ff blocks write.

    PyMTL3 itself says which signals these are: nothing of the Verilog and of its reader is used.
    """
    from pymtl3 import DefaultPassGroup
    from pymtl3.dsl import Signal

    core = CoreRTL(TINY)
    core.elaborate()
    found = core.get_all_object_filter(lambda thing: isinstance(thing, Signal) and thing._dsl.needs_double_buffer)
    paths = sorted({repr(signal.get_top_level_signal()).removeprefix("s.") for signal in found})
    core.apply(DefaultPassGroup())

    def reader(path: str) -> Callable[[], int]:
        code = compile(f"core.{path}", path, "eval")

        def read() -> int:
            value = eval(code, {"core": core})
            return int(value.to_bits() if hasattr(value, "to_bits") else value)

        return read

    return core, {path: reader(path) for path in paths}


def test_every_register_bit_toggles_as_often_as_in_python(tmp_path: Path) -> None:
    work = job()
    core, registers = simulated_core()
    # As long as the testbench in C++ holds reset: registers without one follow others meanwhile.
    core.reset @= 1
    core.sim_eval_combinational()
    for _ in range(4):
        core.sim_tick()
    core.reset @= 0
    core.sim_eval_combinational()
    counting = CountingCore(core, registers)
    ran = drive(counting, TINY, work.commands, work.stream.payload, work.acts, work.result_words)

    file = tmp_path / "activity.saif"
    counted = run_counted(work, file)
    assert counted.cycles == ran.cycles
    assert counted.image == ran.image
    assert duration(file) == counting.cycles
    design = core_design(TINY)
    modules = {"": design.top, **design.instances()}
    drivers = {name: drivers_of(design, name) for name in design.modules}
    toggles = {
        (f"{bit.instance}.{bit.net}".lstrip("."), bit.bit): bit.toggles
        for bit in read_saif(file)
        if bit.variable in drivers[modules[bit.instance]].registers
    }
    assert len(toggles) > 2000
    assert sum(toggles.values()) > 10_000
    assert {key: count for key, count in toggles.items() if count} == {k: n for k, n in counting.toggles.items() if n}
    # What is not a memory's is what the sums have.
    inside = {path: count for path, count in toggles.items() if not any(path[0].startswith(at + "[") for at in PATHS)}
    summed = read_activity(file, design, PATHS)
    assert summed.register_toggles == sum(inside.values())
    assert sum(block.register_bits for block in summed.blocks.values()) == len(inside)


def test_memories_count_their_words(tmp_path: Path) -> None:
    work = job(tokens=2)
    run, activity = measure_activity(work, PATHS)
    written = activity.blocks["column.buffer.values.even.column0", _module("column[0].buffer.values.even.column0")]
    odd = activity.blocks["column.buffer.values.odd.column0", _module("column[0].buffer.values.odd.column0")]
    # Every word of the stream's values is written once, to one of both banks, in each column.
    layout = work.stream.layout
    values = layout.out_tiles * layout.groups * layout.value_bytes
    assert written.writes + odd.writes == TINY.columns * -(-values // TINY.slice_bytes)
    # Without a read enable, a memory reads in every cycle: one in each column here.
    assert written.reads == TINY.columns * activity.cycles
    assert activity.cycles >= run.cycles


def _module(path: str) -> str:
    return core_design(TINY).instances()[path]


def test_counting_changes_neither_results_nor_cycles() -> None:
    work = job("3:4", tokens=4, seed=5)
    run, _ = measure_activity(work, PATHS)
    plain = execute(work, "verilog")
    assert np.array_equal(work.results(run.image), plain.y)
    assert (run.cycles, run.counters) == (plain.cycles, plain.counters)


def test_the_same_run_counts_the_same() -> None:
    first, again, other = (measure_activity(job(seed=seed), PATHS)[1] for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("pattern", ["1:1", "2:4", "1:4"])
def test_zero_activations_change_less(pattern: str) -> None:
    _, some = measure_activity(job(pattern), PATHS)
    _, none = measure_activity(job(pattern, scale=0), PATHS)
    assert none.cycles == some.cycles
    assert none.register_toggles < some.register_toggles
    assert none.logic_toggles < some.logic_toggles
    pe = next(key for key in some.blocks if key[0] == "column.pe")
    assert none.blocks[pe].register_toggles < some.blocks[pe].register_toggles / 10


def test_drivers_tell_registers_from_logic_and_wires() -> None:
    text = """
module Small
(
  input  logic [0:0] clk ,
  input  logic [3:0] a ,
  output logic [3:0] q ,
  output logic [3:0] y
);
  logic [3:0] words [0:1];
  logic [3:0] pair [0:1];
  logic [3:0] wire_only;
  logic [3:0] __tmpvar__up_y_t;

  // x <= 1 in a comment
  always_comb begin : up_y
    __tmpvar__up_y_t = a + 4'd1;
    for ( int unsigned i = 1'd0; i < 2'd2; i += 1'd1 )
      pair[1'(i)] = a;
    if ( a == 4'd3 ) begin
      y = a;
    end
    else
      y = __tmpvar__up_y_t;
  end

  always_ff @(posedge clk) begin : ff_q
    if ( a <= 4'd2 ) begin
      words[a[0]] <= a;
    end
    q[1:0] <= a[1:0];
  end

  assign wire_only = y;

endmodule
"""
    drivers = drivers_of(Design(text, "Small"), "Small")
    assert drivers.registers == {"words", "q"}
    assert drivers.logic == {"y", "pair"}


def test_a_file_that_is_no_saif_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a SAIF file: it has no DURATION"):
        duration(file)
