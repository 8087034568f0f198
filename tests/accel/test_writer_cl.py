"""Result writer, cycle level against RTL: the same words in the same cycles, halves free in the same cycles."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accel.command import Command
from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import command_tokens
from accel.writer.ResultWriterCL import ResultWriterCL
from accel.writer.ResultWriterRTL import ResultWriterRTL
from verify.gemm import prepare
from verify.strategies import cases, core_configs


class Results:
    """Accumulators of every output tile, as columns would have them, for a writer of either level."""

    def __init__(self, dut: Any, config: CoreConfig, tiles: list[np.ndarray]) -> None:
        self._dut, self._config, self._tiles = dut, config, tiles
        self._done = 0
        self._halves = [tiles[0], tiles[0]]
        # What was read waits: one cycle, or as many as the registers before and after the read add.
        waiting = 2 if "results" in config.registers else 0
        self._read: deque[list[int]] = deque([[0] * config.columns] * waiting)

    def finish(self, cycle: int, tile: int | None) -> None:
        """An output tile that may be read from the next cycle on."""
        if isinstance(self._dut, ResultWriterRTL):
            self._dut.tile_done @= tile is not None
            if tile is not None:
                self._halves[tile % 2] = self._tiles[tile]
        elif tile is not None:
            for column, link in enumerate(self._dut.finished_tile):
                link.post(cycle + 1, self._tiles[tile][:, column])

    def read(self) -> list[int] | None:
        """What comes from the accumulators in the next cycle; at the cycle level they came with the tile."""
        if not isinstance(self._dut, ResultWriterRTL):
            return None
        config, read = self._config, self._dut.read
        subtile, place = divmod(int(read.addr), config.chain_rows)
        token = subtile * config.rows + place * config.drain_chains + int(read.chain)
        tile = self._halves[int(read.half)]
        self._read.append([int(value) % (1 << config.acc_bits) for value in tile[min(token, len(tile) - 1)]])
        return self._read.popleft()

    def answer(self, values: list[int] | None) -> None:
        if values is not None:
            for port, value in zip(self._dut.result, values, strict=True):
                port @= value


def half_is_free(dut: Any, cycle: int) -> bool:
    if isinstance(dut, ResultWriterRTL):
        return bool(dut.half_free)
    free = dut.half_free.arrived(cycle + 1)
    if free:
        dut.half_free.take(cycle + 1)
    return free


def has_finished(dut: Any, cycle: int) -> bool:
    """The last word of a command leaves in this cycle, whose inputs have been set."""
    if isinstance(dut, ResultWriterRTL):
        dut.sim_eval_combinational()
        finished = bool(dut.finished)
        dut.sim_tick()
        return finished
    dut.sim_tick()
    finished = dut.finished.arrived(cycle + 2)
    if finished:
        dut.finished.take(cycle + 2)
    return finished


def drive(
    dut: Any, config: CoreConfig, commands: list[Command], tiles: list[np.ndarray], seed: int
) -> list[tuple[Any, ...]]:
    """Handshakes, words and events of every cycle; tiles and the sink's readiness at random, alike at both levels."""
    rng = random.Random(seed)
    finishing, stalled = rng.choice([0.1, 0.5, 1.0]), rng.choice([0.0, 0.3, 0.8])
    message = mk_command_msg(config)
    results = Results(dut, config, tiles)
    log: list[tuple[Any, ...]] = []
    sent = done = halves = finished = 0
    while finished < len(commands):
        cycle = len(log)
        assert cycle < 40000, f"{finished} of {len(commands)} commands after {cycle} cycles: {dut.line_trace()}"
        free = half_is_free(dut, cycle)
        # Both halves may hold results that are not read yet.
        finish = done < min(len(tiles), halves + 2) and rng.random() < finishing
        halves += free
        results.finish(cycle, done if finish else None)
        done += finish
        answer = results.read()
        dut.command.val @= sent < len(commands)
        if sent < len(commands):
            dut.command.msg @= message(**commands[sent].fields())
        dut.results.rdy @= rng.random() >= stalled
        word = int(dut.results.msg) if dut.results.val else None
        ready = bool(dut.command.rdy)
        sent += sent < len(commands) and ready
        end = has_finished(dut, cycle)
        results.answer(answer)
        log.append((ready, word, free, end))
        finished += end
    assert halves == done == len(tiles)
    return log


@given(data=st.data(), config=core_configs(), seed=st.integers(0, 1 << 16))
def test_words_leave_as_from_the_rtl(data: Any, config: CoreConfig, seed: int, simulated: Callable) -> None:
    commands: list[Command] = []
    for case in data.draw(st.lists(cases(st.just(config), max_tokens=9), min_size=1, max_size=2)):
        x, weight = case.build()
        commands += prepare(config, x, weight, code=case.code).commands
    rng = np.random.default_rng(seed)
    # Commands for 32 bits come with results that fit them, or the lower half of a larger one.
    low, high = -(1 << (config.acc_bits - 1)), (1 << (config.acc_bits - 1)) - 1
    tiles = [
        rng.choice(
            [low, high, -1, 0, 1, int(rng.integers(low, high + 1))], (command_tokens(config, command), config.columns)
        )
        for command in commands
        for _ in range(command.out_tiles)
    ]
    rtl, cl = (
        drive(simulated(Writer(config)), config, commands, tiles, seed) for Writer in (ResultWriterRTL, ResultWriterCL)
    )
    assert cl == rtl
