"""Broken designs: each block's rules are broken once, and the differential harness has to find it.

A mutant is a copy of the `accel` package with one place of its source changed, run in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import accel

PACKAGE = Path(accel.__file__).parent
ROOT = PACKAGE.parent

# (file, what stands there, what the mutant has instead). Nearly all show within a few random cases on random cores;
# the hunts for two of them are on cores where what they break happens often: groups of one step on one row need
# forwarding, and one lane leaves the unpacker far ahead, with full rings.
CORES = {"if s.forward:": "core_configs(rows=1, columns=2, lanes=4, window=4)"}
CORES["s.value_free >="] = "core_configs(rows=2, columns=1, lanes=1, window=6)"
MUTANTS = [
    ("pe/PERTL.py", "s.acc_next @= s.acc + s.total", "s.acc_next @= s.total"),
    ("pe/PERTL.py", "if s.val & s.last:", "if s.last:"),
    ("pe/PERTL.py", "sext(weight, product_bits)", "zext(weight, product_bits)"),
    ("scale_unit/ScaleUnitRTL.py", "sext(s.scale, scaled_bits)", "zext(s.scale, scaled_bits)"),
    ("accumulator/AccumulatorRTL.py", "            if s.forward:", "            if s.forward & s.reset:"),
    ("accumulator/AccumulatorRTL.py", "if s.add.first:", "if s.add.first & s.reset:"),
    ("column_feeder/ColumnFeederRTL.py", "s.remainder[i] >= s.binomial", "s.remainder[i] > s.binomial"),
    ("column_feeder/ColumnFeederRTL.py", "if s.step_decode.asymmetric:", "if s.step_decode.first:"),
    ("column_feeder/ColumnFeederRTL.py", "if s.seen[i] == s.wanted:", "if s.seen[i] >= s.wanted:"),
    ("column_feeder/ColumnFeederRTL.py", "if s.step_decode.lane_val[lane]:", "if s.val_decode:"),
    ("row_feeder/RowFeederRTL.py", "if s.swapped:", "if s.swapped & s.shift[0]:"),
    ("row_feeder/RowFeederRTL.py", "min(i + step, inputs - 1)", "min(i + 1, inputs - 1)"),
    ("ram/RamRTL.py", "if s.row == last:", "if s.row == last - 1:"),
    ("unpacker/UnpackerRTL.py", "(s.value_free >= s.cmd.value_words)", "(s.value_free != 0)"),
    ("act_buffer/ActBufferRTL.py", "(s.free >= s.cmd.block_words)", "(s.free != 0)"),
    ("sequencer/SequencerRTL.py", "s.drain_timer <<= s.length - 1", "s.drain_timer <<= 0"),
    ("sequencer/SequencerRTL.py", "elif s.halves_free == 0:", "elif s.halves_free == 3:"),
    ("sequencer/SequencerRTL.py", "elif s.tiles_ready == 0:", "elif s.reset:"),
    ("sequencer/SequencerRTL.py", "s.half <<= ~s.half", "s.half <<= s.half"),
    ("sequencer/SequencerRTL.py", "if s.place_[lane] + 1 == s.n:", "if s.place_[lane] + 2 == s.n:"),
    ("writer/ResultWriterRTL.py", " & (s.credits != 0)", ""),
    ("writer/ResultWriterRTL.py", "if s.subtile_left == 2:", "if s.subtile_left == 1:"),
    # These keep every result and only take other cycles.
    ("sequencer/SequencerRTL.py", "s.drain_timer <<= s.length - 1", "s.drain_timer <<= s.length"),
    ("writer/ResultWriterRTL.py", "QUEUE_WORDS = 4", "QUEUE_WORDS = 2"),
    ("unpacker/UnpackerRTL.py", "s.header_free <<= header_slots", "s.header_free <<= 2"),
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
            case = case.without_stalls()  # the timing model speaks of these
        job, runs = compare(case, levels)
        if case == case.without_stalls():
            timing = gemm_timing(case.config, job.stream.layout, case.tokens)
            if (timing.cycles, timing.counters) != (runs["rtl"].cycles, runs["rtl"].counters):
                raise harness.MismatchError(f"rtl takes {runs['rtl'].cycles} cycles instead of {timing.cycles}")
    except Exception as error:
        # The first failure ends the hunt: nobody reads the shrunk case.
        print(f"found in case {count}: {error}", flush=True)
        os._exit(0)
    count += 1
    return job, runs

harness.compare = find
harness.run_campaign(RANDOM_CORES, ("fl", "rtl"), 150, 1)
harness.run_campaign(st.just(load_preset("tiny")), ("fl", "rtl"), 50, 2)
print("not found in", count, "cases")
os._exit(1)
"""


@pytest.mark.parametrize(
    ("file", "before", "after"), MUTANTS, ids=[f"{f.split('/')[0]}-{i}" for i, (f, _, _) in enumerate(MUTANTS)]
)
def test_a_broken_design_is_found(file, before, after, tmp_path):
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
    hunt = subprocess.run(
        [sys.executable, "-c", HUNT.replace("RANDOM_CORES", cores)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert hunt.returncode == 0, hunt.stdout + hunt.stderr[-2000:]
    assert hunt.stdout.startswith("found")
