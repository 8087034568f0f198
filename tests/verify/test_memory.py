"""The memory environment: arrivals and writes worked out by hand from the contract of `accel.memory`."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel import load_preset
from accel.command import commands_for
from accel.memory import Memory
from accel.stream import layout_for
from quant import NMPattern
from verify.memory import StreamMemory, act_burst_words, tile_column_bytes, write_burst_words
from verify.strategies import cases, core_configs

# Words of 4 bytes of weights, 8 of activations, 4 of results; an activation row of K = 64 has 8 words.
TINY = load_preset("tiny")


def commands(config=TINY, tokens=1, out_features=2, in_features=64, group=32, asymmetric=False):
    """2:4 with rank codes: 12 bytes of each column in a tile of G = 32, 13 with zero points."""
    layout = layout_for(config, NMPattern(2, 4), out_features, in_features, group, asymmetric=asymmetric, code="rank")
    return commands_for(config, layout, tokens)


class Greedy:
    """A core that takes every word in the first cycle in which it is there, from given cycles on."""

    def __init__(self, config, job, memory, weights_from=0, acts_from=0):
        self.environment = StreamMemory(config, job, memory)
        self.cycle = 0
        self.from_cycle = {"weights": weights_from, "acts": acts_from}
        self.weights, self.acts = [], []

    def run(self, cycles, results_in=()):
        """Go on for some cycles; ``results_in`` are those in which a result word leaves."""
        environment = self.environment
        for _ in range(cycles):
            environment.begin(self.cycle, self.cycle >= self.from_cycle["acts"])
            if self.cycle >= self.from_cycle["weights"] and environment.weight_there:
                environment.take_weight()
                self.weights.append(self.cycle)
            if self.cycle >= self.from_cycle["acts"] and environment.act_there:
                environment.take_act()
                self.acts.append(self.cycle)
            if self.cycle in results_in:
                environment.take_result()
            self.cycle += 1
        return self


def test_words_come_at_the_rate_of_the_port_one_latency_later():
    job = commands()
    core = Greedy(TINY, job, Memory(4, latency=3)).run(60)
    # An activation word takes two cycles, the weight words after them one each.
    assert core.acts == [5, 7, 9, 11, 13, 15, 17, 19]
    assert core.weights == list(range(20, 32))


def test_a_word_takes_at_least_a_cycle_however_fast_the_memory():
    core = Greedy(TINY, commands(), Memory(1000)).run(60)
    assert core.acts == list(range(1, 9))
    assert core.weights == list(range(9, 21))


def test_nothing_is_read_before_the_core_is_ready_for_activations():
    core = Greedy(TINY, commands(), Memory(8), acts_from=10).run(60)
    assert core.acts == list(range(11, 19))
    assert core.weights == list(range(19, 31))


def test_port_time_is_exact_between_the_tiles_of_an_output_tile():
    # 7 and 6 words in the two tiles, 3/2 cycles each: the second tile starts at 24 + 10 1/2.
    core = Greedy(TINY, commands(asymmetric=True), Memory(Fraction(8, 3))).run(80)
    assert core.acts == list(range(3, 25, 3))
    assert core.weights == [26, 27, 29, 30, 32, 33, 35] + [36, 38, 39, 41, 42, 44]


def test_port_time_is_rounded_up_between_output_tiles():
    # The same tiles, of two output tiles of one group each, whose activations are four words.
    core = Greedy(TINY, commands(out_features=4, in_features=32, asymmetric=True), Memory(Fraction(8, 3))).run(80)
    assert core.acts == list(range(3, 13, 3))
    assert core.weights == [14, 15, 17, 18, 20, 21, 23] + [25, 26, 28, 29, 31, 32]


def test_two_tiles_are_in_flight_however_small_the_buffer():
    core = Greedy(TINY, commands(out_features=4), Memory(4, latency=5, buffer_bytes=0), weights_from=100).run(160)
    # Two tiles wait for the core, which takes the last word of the first one in cycle 105: the third is issued in
    # 106, and the fourth when the last word of the second has been taken, behind the third at the port.
    assert core.weights[:12] == list(range(100, 112))
    assert core.weights[12:] == list(range(106 + 1 + 5, 106 + 7 + 5)) + list(range(112 + 1 + 5, 112 + 7 + 5))


def test_the_buffer_holds_as_many_tiles_as_fit():
    # A tile has 24 bytes in both columns.
    core = Greedy(TINY, commands(out_features=4), Memory(4, latency=50, buffer_bytes=95)).run(300)
    three = 16 + 18
    assert core.weights[:18] == list(range(16 + 1 + 50, three + 1 + 50))
    # The last word of the first tile comes in cycle 16 + 6 + 50.
    assert core.weights[18:] == list(range(72 + 1 + 1 + 50, 72 + 1 + 7 + 50))


def test_the_next_block_is_read_when_all_words_of_this_one_are_taken():
    # Five tokens are two blocks: four rows in two subtiles, then one.
    job = commands(tokens=5)
    assert [act_burst_words(TINY, command) for command in job] == [32, 8]
    core = Greedy(TINY, job, Memory(8, latency=50)).run(300)
    assert core.acts[:32] == list(range(51, 83))
    # The two weight tiles pass the port right behind them, until cycle 44; the next block is issued in 83, and its
    # weights follow it.
    assert core.weights[:12] == list(range(32 + 1 + 50, 44 + 1 + 50))
    assert core.acts[32:] == list(range(83 + 1 + 50, 91 + 1 + 50))
    assert core.weights[12:] == list(range(91 + 1 + 50, 103 + 1 + 50))


def test_tiles_in_flight_are_counted_over_all_commands():
    job = commands(tokens=5, out_features=4)
    core = Greedy(TINY, job, Memory(8, latency=20, buffer_bytes=0), weights_from=100).run(300)
    # Tiles 0 and 1 are there early. Each of the others is issued when the last word of the tile two before it has
    # been taken; the second block's activations follow tile 3 at once, and the port.
    assert core.weights[:12] == list(range(100, 112))
    for tile, issued in enumerate((106, 112, 133, 139, 160, 166), start=2):
        assert core.weights[6 * tile : 6 * tile + 6] == list(range(issued + 21, issued + 27))
    assert core.acts == list(range(21, 53)) + list(range(118 + 21, 118 + 29))


def test_a_write_is_served_before_reads_of_its_cycle_and_delays_them():
    job = commands(tokens=3, out_features=4)
    assert write_burst_words(TINY, job[0]) == 6
    memory = Memory(4, latency=0, buffer_bytes=0)
    quiet = Greedy(TINY, job, memory).run(200)
    # 24 activation words of two cycles; the last word of the first tile is taken in cycle 54, so that the third
    # tile is issued in 55, but the second one occupies the port until 60.
    assert quiet.weights == list(range(49, 73))
    first_tile = 54
    busy = Greedy(TINY, job, memory).run(200, results_in=range(first_tile - 5, first_tile + 1))
    # Issued in the same cycle as the third tile: six words from 60 to 66.
    assert busy.environment.written == 66
    assert busy.weights == list(range(49, 61)) + list(range(67, 79))


def test_a_write_goes_before_reads_that_wait_but_not_into_one():
    # Activations until 64, then four tiles of 24 cycles, all of them issued in cycle 0.
    job, memory = commands(out_features=4), Memory(1)
    core = Greedy(TINY, job, memory).run(300, results_in=(90, 91))
    # Issued in 92, while the second tile passes: two words of 4 cycles from 112 on.
    assert core.environment.written == 120
    assert core.weights == list(range(68, 113, 4)) + list(range(124, 169, 4))


def test_no_read_comes_between_writes_that_wait():
    core = Greedy(TINY, commands(out_features=4), Memory(1)).run(300, results_in=(90, 91, 94, 95))
    assert core.environment.written == 128
    assert core.weights == list(range(68, 113, 4)) + list(range(132, 177, 4))


@pytest.mark.parametrize(
    ("results", "written", "second_tile"),
    [
        # Issued in 34: the second tile, which could start at 34 1/2, waits until 38.
        ((32, 33), 38, [40, 41, 43, 44, 46, 47]),
        # Issued in 35: the second tile has started, and passes until 43 1/2.
        ((33, 34), 47, [36, 38, 39, 41, 42, 44]),
    ],
)
def test_a_write_that_waits_for_a_whole_cycle_holds_back_a_read(results, written, second_tile):
    # 7 words of 3/2 cycles from 24 on, then 6.
    core = Greedy(TINY, commands(asymmetric=True), Memory(Fraction(8, 3))).run(80, results_in=results)
    assert core.weights == [26, 27, 29, 30, 32, 33, 35] + second_tile
    assert core.environment.written == written


def test_a_write_between_two_tiles_cuts_exact_port_time():
    # Four tiles of one output tile, 13 bytes each: 7, 6, 7 and 6 words of 4/3 cycles. Two are in flight.
    job = commands(in_features=128, asymmetric=True)
    memory = Memory(3, buffer_bytes=0)
    core = Greedy(TINY, job, memory).run(300)
    # 16 activation words until 42 2/3, so tiles from 43 on. The third one is issued in 54, when the port is busy
    # until 60 1/3.
    assert core.weights[:14] == [45, 46, 47, 49, 50, 51, 53] + [54, 55, 57, 58, 59, 61] + [62]
    # A write issued in 54 comes before it: from 61 to 63 2/3.
    core = Greedy(TINY, job, memory).run(300, results_in=(52, 53))
    assert core.weights[:14] == [45, 46, 47, 49, 50, 51, 53] + [54, 55, 57, 58, 59, 61] + [66]
    assert core.environment.written == 64


def test_a_write_is_in_memory_after_a_whole_cycle():
    # Two words of 4/3 cycles; the port is free since 16 + 64/3 cycles.
    core = Greedy(TINY, commands(), Memory(3)).run(80, results_in=(60, 61))
    assert core.environment.written == 62 + 3


def test_the_last_writes_pass_after_the_last_result_word():
    # Writes of 2 × 4 cycles, one behind the other; the last one is issued when the core is through.
    core = Greedy(TINY, commands(out_features=6), Memory(1)).run(400, results_in=(350, 351, 396, 397, 398, 399))
    assert core.environment.written == 398 + 8
    core.environment.finish(400)
    assert core.environment.written == 398 + 8 + 8


def test_tiles_without_a_word_have_no_burst_but_count():
    # 4 bytes in each column of a tile of eight weights, slices of 8 bytes: every second tile has no word.
    config = TINY.replace(slice_bytes=8)
    job = commands(config, group=8, in_features=32)
    assert tile_column_bytes(config, job[0]) == 4
    assert tile_column_bytes(config.replace(scale_bits=16), job[0]) == 5
    assert job[0].groups == 4
    core = Greedy(config, job, Memory(16, buffer_bytes=0), weights_from=50).run(100)
    # Tiles 0 and 1 have one word, which is there early. Tile 2 waits for tile 0 and has the second word.
    assert core.acts == list(range(1, 5))
    assert core.weights == [50, 52]


def test_a_tile_without_a_word_holds_nothing_back():
    # As above, in blocks of four tokens and one; three tiles in flight. The last tile of the first block has no
    # word: if it had to wait for its place among the three, the second block's activations would be read after 50.
    config = TINY.replace(slice_bytes=8)
    job = commands(config, group=8, in_features=32, tokens=5)
    core = Greedy(config, job, Memory(16, buffer_bytes=24), weights_from=50).run(100)
    assert core.acts == list(range(1, 17)) + list(range(19, 23))


def test_without_a_memory_port_words_are_there_and_results_are_in_memory_at_once():
    job = commands()
    core = Greedy(TINY, job, None).run(20, results_in=(7, 9))
    core.environment.finish(20)
    assert core.weights == core.acts == list(range(20))
    assert core.environment.written == 10


@given(cases(core_configs()), st.integers(0, 40))
def test_all_words_come_and_never_faster_than_the_port(case, weights_from):
    if case.memory is None:
        case = replace(case, memory=Memory(Fraction(7, 3), 4, 0))
    config, memory = case.config, case.memory
    layout = layout_for(
        config, case.pattern, case.out_features, case.in_features, case.group_size,
        asymmetric=not case.symmetric, code=case.code,
    )  # fmt: skip
    job = commands_for(config, layout, case.tokens)
    core = Greedy(config, job, memory, weights_from=weights_from)
    words = layout.words * len(job), sum(act_burst_words(config, command) for command in job)
    while (len(core.weights), len(core.acts)) != words:
        core.run(1)
        assert core.cycle < 100_000
    weight_time = memory.word_cycles(config.word_bytes)
    act_time = memory.word_cycles(config.act_ports * -(-config.act_port_bits // 8))
    for cycle in range(0, core.cycle, 7):
        moved = weight_time * sum(taken <= cycle for taken in core.weights)
        moved += act_time * sum(taken <= cycle for taken in core.acts)
        assert moved <= max(0, cycle - memory.latency)


@pytest.mark.parametrize(("tokens", "words"), [(1, 2), (2, 4), (3, 6), (4, 8)])
def test_a_write_has_the_results_of_an_output_tile(tokens, words):
    assert write_burst_words(TINY, commands(tokens=tokens)[0]) == words
