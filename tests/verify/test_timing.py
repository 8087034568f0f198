"""The timing model against the simulated core, behind a memory and without one: not a cycle of difference."""

from __future__ import annotations

import os
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import load_preset
from accel.config import ConfigError
from accel.memory import DEPTH_MAX, Memory
from accel.stream import layout_for
from accel.timing import gemm_timing, gemm_timings
from quant import NMPattern, prune_magnitude, quantize_rtn
from verify.cases import Case
from verify.gemm import execute, prepare
from verify.strategies import cases, core_configs, memories

EXAMPLES = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci")).max_examples
TINY, EDGE, WIDE = (load_preset(name) for name in ("tiny", "edge", "wide"))


def equals_the_core(case, level):
    """Hold the model against a run of the case, which must not stall; returns the model's answer."""
    x, weight = case.build()
    job = prepare(case.config, x, weight, code=case.code)
    run = execute(job, level, memory=case.memory)
    timing = gemm_timing(case.config, job.stream.layout, case.tokens, memory=case.memory)
    assert (timing.cycles, timing.counters, timing.written) == (run.cycles, run.counters, run.written)
    assert timing.ideal_cycles == job.ideal_cycles <= timing.cycles
    assert timing.act_bytes == len(job.acts)
    assert timing.weight_bytes == len(job.stream.payload) * len(job.commands)
    assert timing.result_bytes == job.result_words * case.config.result_lanes * (8 if job.commands[0].wide else 4)
    if case.memory is None:
        assert (timing.written, timing.memory_cycles) == (timing.cycles, 0)
    else:
        assert float(timing.bytes / case.memory.bytes_per_cycle) <= timing.memory_cycles <= timing.written
    return timing


@pytest.mark.parametrize(("level", "share"), [("cl", 6), ("rtl", 0.5)])
def test_the_model_is_the_core(level, share):
    met = Counter()

    @settings(max_examples=int(share * EXAMPLES))
    @given(cases(core_configs(), max_tokens=20, max_outputs=20))
    def one_case(case):
        met.update(cause for cause, cycles in equals_the_core(case.without_stalls(), level).counters.items() if cycles)
        met["memory"] += case.memory is not None

    one_case()
    reached = {"memory", "idle", "busy", "wait_acts", "wait_weights", "wait_write"}
    if level == "cl":  # the few cases that RTL has time for need not reach the rarest cause
        reached.add("wait_drain")
    assert reached <= set(met)


@settings(max_examples=2 * EXAMPLES)
@given(cases(core_configs(rows=2, columns=2, lanes=3, window=6), max_tokens=40, max_features=24, max_outputs=40))
def test_what_repeats_is_left_out_rightly(case):
    """Many output tiles and token blocks: most of them are not walked but multiplied."""
    equals_the_core(case.without_stalls(), "cl")


# Where a state that leaves something out is taken for steady, which is rare: for each such thing, one case.
SMALL = {"act_bits": 4, "codes": ("rank",), "scale_bits": 2, "subtiles": 1, "drain_chains": 1, "act_ports": 1}
RARE = {
    "a read of this cycle and one of the last": (
        {"rows": 2, "lanes": 2, "window": 2, "k_max": 15, "group_max": 5, "slice_bytes": 2, "weight_tiles": 3},
        (4, 13, 4, None),
    ),
    "words that hold up reads": (
        {"rows": 2, "lanes": 1, "window": 2, "k_max": 10, "group_max": 5, "slice_bytes": 2, "weight_tiles": 2},
        (2, 9, 5, Memory(Fraction(1, 2), 8, 0)),
    ),
    "steps that hold up tiles": (
        {"rows": 1, "lanes": 1, "window": 1, "k_max": 3, "group_max": 1, "slice_bytes": 1, "weight_tiles": 2},
        (1, 3, 4, None),
    ),
    "headers of two slices": (
        {"rows": 1, "lanes": 2, "window": 2, "k_max": 8, "group_max": 2, "slice_bytes": 2, "weight_tiles": 2}
        | {"scale_bits": 16},
        (1, 8, 5, Memory(Fraction(3, 2), 3, 0)),
    ),
}


@pytest.mark.parametrize(("core", "sizes"), RARE.values(), ids=RARE)
def test_all_that_makes_a_state(core, sizes):
    asymmetric = core["slice_bytes"] > 1
    config = TINY.replace(**{**SMALL, **core}, columns=1, asymmetric=asymmetric, act_words=16)
    tokens, features, outputs, memory = sizes
    case = Case(config, NMPattern(1, 1), tokens, features, outputs, -1, symmetric=not asymmetric, memory=memory)
    equals_the_core(case, "rtl")


@settings(max_examples=EXAMPLES)
@given(core=core_configs(), data=st.data())
def test_each_gemm_of_a_batch_is_as_on_its_own(core, data):
    memory = data.draw(memories(core))
    gemms = []
    for case in data.draw(st.lists(cases(st.just(core), max_tokens=30, max_outputs=30), min_size=2, max_size=6)):
        layout = layout_for(
            core, case.pattern, case.out_features, case.in_features, case.group_size, asymmetric=not case.symmetric
        )
        gemms.append((layout, case.tokens))
    alone = [gemm_timing(core, layout, tokens, memory=memory) for layout, tokens in gemms]
    assert gemm_timings(core, gemms, memory=memory) == alone


# Layers of real widths: those of the tests above are narrow.
WHOLE = [
    # core, pattern, K, O, group, tokens, memory
    (EDGE, "2:4", 4096, 256, 128, 1, Memory.at_clock(25.6, 100, 500)),
    (EDGE, "3:4", 1024, 512, 128, 80, Memory.at_clock(12.8, 90, 437)),
    (EDGE, "1:4", 11008, 64, 32, 16, Memory.at_clock(51.2, 115, 800)),
    (EDGE, "dense", 2048, 160, 64, 33, Memory.at_clock(460, 120, 300)),
    (WIDE, "2:4", 4096, 256, 128, 1, Memory.at_clock(25.6, 100, 500)),
    (WIDE, "5:8", 1000, 300, 40, 21, Memory.at_clock(19.2, 60, 650)),
]


@pytest.mark.parametrize(("core", "pattern", "k", "o", "group", "tokens", "memory"), WHOLE)
def test_whole_layers_on_the_verilated_core(core, pattern, k, o, group, tokens, memory):
    rng = np.random.default_rng(5)
    n_m = NMPattern.parse(pattern)
    matrix = rng.standard_normal((o, k), dtype=np.float32)
    weight = quantize_rtn(prune_magnitude(matrix, n_m), n_m, group_size=group)
    job = prepare(core, rng.integers(-128, 128, (tokens, k)), weight)
    run = execute(job, "verilog", memory=memory)
    timing = gemm_timing(core, job.stream.layout, tokens, memory=memory)
    assert (timing.cycles, timing.counters, timing.written) == (run.cycles, run.counters, run.written)


def test_a_memory_is_never_faster_than_its_bandwidth_or_the_lanes():
    layout = layout_for(EDGE, NMPattern(2, 4), 4096, 4096, 128)
    for gigabytes in (1, 5, 12.8, 25.6, 51.2, 460):
        timing = gemm_timing(EDGE, layout, 1, memory=Memory.at_clock(gigabytes, 100, 500))
        assert timing.written >= max(timing.ideal_cycles, timing.bytes / (gigabytes * 2))


def test_nothing_to_time():
    assert gemm_timings(TINY, []) == []


@pytest.mark.parametrize("tokens", [0, -3])
def test_a_gemm_has_tokens(tokens):
    layout = layout_for(TINY, NMPattern(2, 4), 2, 16, -1)
    with pytest.raises(ConfigError, match=f"A GEMM needs at least one token, but {tokens} were given."):
        gemm_timing(TINY, layout, tokens)


# -- the memory port's own numbers ---------------------------------------------------------------------------


def test_a_memory_in_cycles_of_a_clock():
    memory = Memory.at_clock(25.6, 100, 500)
    assert memory == Memory(Fraction(256, 5), 50)
    assert memory.word_cycles(64) == Fraction(5, 4)
    assert memory.word_cycles(16) == 1  # the port is one word wide
    assert Memory.at_clock(25.6, 100.1, 500).latency == 51
    assert [memory.depth(size) for size in (1, 256, 720, 8192, 100_000)] == [DEPTH_MAX, 64, 22, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 100, 500), "The bandwidth is 0 GB/s; it must be positive and finite."),
        ((float("nan"), 100, 500), "The bandwidth is nan GB/s; it must be positive and finite."),
        ((25.6, 100, -1), "The clock is -1 MHz; it must be positive and finite."),
        ((25.6, -1, 500), "The latency is -1 ns; it must be 0 or more, and finite."),
        ((25.6, float("inf"), 500), "The latency is inf ns; it must be 0 or more, and finite."),
    ],
)
def test_a_memory_that_cannot_be(arguments, sentence):
    with pytest.raises(ValueError, match="must be") as error:
        Memory.at_clock(*arguments)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bytes_per_cycle": 0}, "A memory moves more than 0 bytes a cycle, but 0 was given."),
        ({"bytes_per_cycle": -2.5}, "A memory moves more than 0 bytes a cycle, but -2.5 was given."),
        ({"bytes_per_cycle": 8, "latency": -1}, "latency of a memory is a whole number from 0 on, but -1 was given."),
        (
            {"bytes_per_cycle": 8, "buffer_bytes": 1.5},
            "buffer_bytes of a memory is a whole number from 0 on, but 1.5 was given.",
        ),
    ],
)
def test_a_port_that_cannot_be(fields, sentence):
    with pytest.raises(ValueError, match="memory") as error:
        Memory(**fields)
    assert str(error.value) == sentence
