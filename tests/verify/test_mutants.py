"""Broken designs: each block's rules are broken once, and the differential harness has to find it.

A mutant is a copy of the `accel` package with one place of its source changed, run in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import accel

PACKAGE = Path(accel.__file__).parent
ROOT = PACKAGE.parent

# (file, what stands there, what the mutant has instead). Nearly all show within a few random cases on random cores;
# the hunts for some of them are on cores where what they break happens often.
CORES = {
    # Groups of one step on one row need forwarding.
    "if s.add_val & (": "core_configs(rows=1, columns=1, lanes=4, window=4)",
    # One lane leaves the unpacker far ahead, with full rings.
    "~s.value_margin[": 'st.just(load_preset("tiny").replace(columns=1, lanes=1, patterns=("1:1",), codes=()))',
    # Two lanes take three weights a block: a lane goes on by another block in every other step.
    "s.cmd.back[": 'st.just(load_preset("tiny").replace(columns=1, patterns=("3:4",), codes=("rank",)))',
    # Two lanes take ten weights of two blocks in five steps: the third passes a block's end, and others follow.
    "s.over_after - zext": (
        'st.just(load_preset("tiny").replace(columns=1, window=16, patterns=("5:8",), codes=("index",)))'
    ),
    # Short rows give more results than a slow sink takes.
    " & (s.credits": ('st.just(load_preset("tiny").replace(columns=4, lanes=4, slice_bytes=4, group_max=8, k_max=8))'),
    # Groups that are shorter than a chain.
    "s.draining_next @= s.length": "core_configs(rows=4, columns=1, lanes=4, window=4)",
    # Steps wait for tiles: activations of one row come soon.
    "PulseRTL(config.tile_delay": "core_configs(rows=1, columns=2, lanes=2, window=6)",
}
# These keep every result and only take other cycles.
CYCLE_MUTANTS = [
    ("sequencer/SequencerRTL.py", "s.drain_timer <<= s.length - 1", "s.drain_timer <<= s.length"),
    ("writer/ResultWriterRTL.py", "s.credits <<= words", "s.credits <<= words - 2"),
    ("unpacker/UnpackerRTL.py", "s.header_free <<= header_slots", "s.header_free <<= 2"),
    ("unpacker/UnpackerRTL.py", "PulseRTL(config.tile_delay - 1)", "PulseRTL(1)"),
]
# Of the cycle level, which RTL has to give away.
CL_MUTANTS = [
    ("sequencer/SequencerCL.py", "s.chain_free = s.now + length", "s.chain_free = s.now + length + 1"),
    ("sequencer/SequencerCL.py", "s.steps.post(s.now + 1, steps)", "s.steps.post(s.now + 2, steps)"),
    ("sequencer/SequencerCL.py", "if not s.halves_free:", "if s.halves_free < 2:"),
    ("unpacker/UnpackerCL.py", "s.need = s.held < s.take", "s.need = s.held <= s.take"),
    ("unpacker/UnpackerCL.py", "config.value_words, config.header_slots", "config.value_words, 2"),
    ("unpacker/UnpackerCL.py", "s.value_free >= s.cmd.value_words", "s.value_free > s.cmd.value_words"),
    ("act_buffer/ActBufferCL.py", "s.now + 3 + s.registers, words", "s.now + 4 + s.registers, words"),
    ("act_buffer/ActBufferCL.py", "s.room = s.busy and (s.started or", "s.room = s.busy and (True or"),
    ("column/ColumnCL.py", "s.registers + steps.length + 5", "s.registers + steps.length + 4"),
    ("writer/ResultWriterCL.py", "s.credits = queue_words(s.config)", "s.credits = queue_words(s.config) - 2"),
    ("writer/ResultWriterCL.py", "s.half_free.post(s.now + 1)", "s.half_free.post(s.now + 2)"),
    ("core/CoreCL.py", "QUEUE_COMMANDS = 2", "QUEUE_COMMANDS = 1"),
]
# Rows beyond the first copy's get everything a cycle later.
LATER_COPIES = "copy.in_ //= s.earlier.out[0] if copy is s.copy[0] else s.copy[0].out"
MUTANTS = [
    ("pe/PERTL.py", "s.acc_next @= s.acc + s.total", "s.acc_next @= s.total"),
    ("pe/PERTL.py", "if s.val & s.last:", "if s.last:"),
    ("pe/PERTL.py", "sext(s.weight, product_bits)", "zext(s.weight, product_bits)"),
    ("pe/PERTL.py", "sext(s.high_weight, high_bits)", "zext(s.high_weight, high_bits)"),
    ("scale_unit/ScaleUnitRTL.py", "sext(s.scale, scaled_bits)", "zext(s.scale, scaled_bits)"),
    ("accumulator/AccumulatorRTL.py", "if s.add_val & (s.add.addr ==", "if s.reset & (s.add.addr =="),
    ("accumulator/AccumulatorRTL.py", "if s.drain.first:", "if s.drain.first & s.reset:"),
    ("column_feeder/ColumnFeederRTL.py", "s.remainder_at[i] >= s.binomial", "s.remainder_at[i] > s.binomial"),
    ("column_feeder/ColumnFeederRTL.py", "if s.step_decode.asymmetric:", "if s.step_decode.last:"),
    ("column_feeder/ColumnFeederRTL.py", "if s.seen_at[i] == s.wanted:", "if s.seen_at[i] >= s.wanted:"),
    ("column_feeder/ColumnFeederRTL.py", "if s.step_decode.lane_val[lane]:", "if s.val_decode:"),
    ("config.py", "return _power_of_two(gcd(self.slice_bits, *advances))", "return self.slice_bits"),
    ("config.py", "reduce(or_, lane, 0), reduce(and_, lane)", "reduce(or_, lane, 0), reduce(or_, lane, 0)"),
    ("row_feeder/RowFeederRTL.py", "s.swapped ^ (s.shift > i)", "s.swapped ^ (s.shift >= i)"),
    ("row_feeder/RowFeederRTL.py", "(i + step) % values", "(i + 1) % values"),
    ("ram/RamRTL.py", "if s.row == last:", "if (s.row == last) & s.reset:"),
    ("unpacker/UnpackerRTL.py", "~s.value_margin[value_sign]", "(s.value_free != 0)"),
    ("unpacker/UnpackerRTL.py", "s.header_part << 1", "s.header_part"),
    ("act_buffer/ActBufferRTL.py", "~s.margin[sign]", "(s.free != 0)"),
    ("sequencer/SequencerRTL.py", "s.draining_next @= s.length != 1", "s.draining_next @= 0"),
    ("sequencer/SequencerRTL.py", "& s.has_half_next", "& ~s.reset"),
    ("sequencer/SequencerRTL.py", "& s.has_tile_next", "& ~s.reset"),
    ("sequencer/SequencerRTL.py", "elif ~s.has_half:", "elif s.reset:"),
    ("sequencer/SequencerRTL.py", "s.half <<= ~s.half", "s.half <<= s.half"),
    ("sequencer/StepWalkRTL.py", "s.next_last <<= s.steps_left == three", "s.next_last <<= s.steps_left == two"),
    ("sequencer/StepWalkRTL.py", "s.over_after - zext(s.cmd.back", "s.over_after + zext(s.cmd.turn"),
    ("sequencer/StepWalkRTL.py", "s.place[lane] - s.cmd.back[0:position_nbits]", "s.place[lane] + s.cmd.turn"),
    ("countdown/CountdownRTL.py", "s.four_left <<= s.left == 5", "s.four_left <<= s.left == 4"),
    ("countdown/CountdownRTL.py", "s.three_now @= s.three_in_all", "s.three_now @= s.three_left"),
    ("countdown/CountdownRTL.py", "s.left <<= s.again", "s.left <<= s.left - 1"),
    ("countdown/CountdownRTL.py", "s.last <<= s.one_in_all", "s.last <<= 0"),
    ("column/ColumnRTL.py", "HoldRTL(config.scale_bits, 1, config.lane_registers)", "HoldRTL(config.scale_bits, 1, 0)"),
    ("writer/ResultWriterRTL.py", " & (s.credits != 0)", ""),
    ("writer/ResultWriterRTL.py", "if s.next_is_last:", "if s.last_subtile:"),
    # Registers on long ways: columns that are not a cycle apart, copies that differ, and delays that others forget.
    ("unpacker/UnpackerRTL.py", "HoldRTL(slice_bits, 1, (c + 1) * moving)", "HoldRTL(slice_bits, 1, moving)"),
    ("unpacker/UnpackerRTL.py", "s.write_at[c] <<= s.write_at[c - 1]", "s.write_at[c] <<= s.present_write"),
    ("delay/DelayRTL.py", "copy.in_ //= s.earlier.out[0]", LATER_COPIES),
    ("core/CoreRTL.py", 'reading + config.has_register("window"), copies', "reading, copies"),
    ("config.py", 'return 2 + 2 * self.has_register("results")', 'return 2 + self.has_register("results")'),
    *CYCLE_MUTANTS,
]

HUNT = """
import os
from hypothesis import strategies as st
from accel import load_preset
from accel.timing import gemm_timing
from verify import harness
from verify.strategies import core_configs

compare, count = harness.compare, 0

def find(case, levels):
    global count
    try:
        if count % 2:
            case = case.without_waiting()  # the timing model is asked about these
        job, runs = compare(case, levels)
        if TIMING and case == case.without_waiting():
            timing = gemm_timing(case.config, job.stream.layout, case.tokens)
            if (timing.cycles, timing.counters) != (runs["rtl"].cycles, runs["rtl"].counters):
                raise harness.MismatchError(f"rtl takes {runs['rtl'].cycles} cycles instead of {timing.cycles}")
    except Exception as error:
        # The first failure ends the hunt: nobody reads the shrunk case.
        print(f"found in case {count}: {type(error).__module__}.{type(error).__name__}: {error}", flush=True)
        os._exit(0)
    count += 1
    return job, runs

harness.compare = find
harness.run_campaign(RANDOM_CORES, LEVELS, 150, 1)
harness.run_campaign(st.just(load_preset("tiny")), LEVELS, 50, 2)
print("not found in", count, "cases")
os._exit(1)
"""


def names(mutants):
    return [f"{file.split('/')[0]}-{i}" for i, (file, _, _) in enumerate(mutants)]


# All of them in a long run; each hunt takes 2 to 15 seconds.
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
HUNTED = MUTANTS if LONG else MUTANTS[::3]
CYCLE_HUNTED = CYCLE_MUTANTS if LONG else CYCLE_MUTANTS[::2]
CL_HUNTED = CL_MUTANTS if LONG else CL_MUTANTS[::4]


@pytest.mark.parametrize(("file", "before", "after"), HUNTED, ids=names(HUNTED))
def test_a_broken_design_is_found(file, before, after, tmp_path):
    hunt(file, before, after, tmp_path, ("fl", "rtl"), timing=True)


@pytest.mark.parametrize(("file", "before", "after"), CYCLE_HUNTED, ids=names(CYCLE_HUNTED))
def test_the_cycle_level_finds_rtl_that_takes_other_cycles(file, before, after, tmp_path):
    hunt(file, before, after, tmp_path, ("rtl", "cl"), timing=False)


@pytest.mark.parametrize(("file", "before", "after"), CL_HUNTED, ids=names(CL_HUNTED))
def test_rtl_finds_a_broken_cycle_level(file, before, after, tmp_path):
    hunt(file, before, after, tmp_path, ("rtl", "cl"), timing=False)


def hunt(file, before, after, tmp_path, levels, timing):
    """Break one place of a copy of the design, and look for a case that shows it."""
    copy = tmp_path / "accel"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / file
    text = source.read_text(encoding="utf-8")
    assert before in text, "the mutant's place has gone: rewrite the mutant"
    text = text.replace(before, after)
    if "zext(" in after:
        text = text.replace("import Component,", "import zext, Component,", 1)
    source.write_text(text, encoding="utf-8")
    cores = next((cores for place, cores in CORES.items() if place in before), "core_configs()")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", f"LEVELS, TIMING = {levels}, {timing}\n" + HUNT.replace("RANDOM_CORES", cores)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.startswith("found")
    # A mutant that cannot even be elaborated shows nothing: it names what has gone.
    assert not re.match(r"found in case \d+: (pymtl3\.|builtins\.(Attribute|Name|Type|Syntax)Error)", run.stdout), (
        run.stdout
    )
