"""Unpacker, cycle level against RTL: the same words in the same cycles, tiles ready in the same cycles."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import GroupSteps
from accel.unpacker.UnpackerCL import UnpackerCL
from accel.unpacker.UnpackerRTL import UnpackerRTL
from verify.gemm import GemmJob, prepare
from verify.strategies import cases, core_configs

STEPS = GroupSteps(0, 0, 1, 1, tile_last=True, out_tile_last=False, block_last=False)


def tile_is_ready(dut: Any, cycle: int) -> bool:
    if isinstance(dut, UnpackerRTL):
        return bool(dut.tile_ready)
    ready = dut.tile_ready.arrived(cycle + 1)
    if ready:
        dut.tile_ready.take(cycle + 1)
    return ready


def free_tile(dut: Any, cycle: int, command: Any) -> None:
    """Room that the tile of a command gives back is there in the next cycle; no command: nothing is given back."""
    if isinstance(dut, UnpackerRTL):
        dut.tile_freed @= command is not None
        dut.freed_code_words @= command.code_words if command else 0
        dut.freed_value_words @= command.value_words if command else 0
    elif command:
        dut.left_columns.post(cycle + 1, (STEPS, None))


def drive(dut: Any, jobs: list[GemmJob], seed: int) -> list[tuple[bool, ...]]:
    """Handshakes and finished tiles of every cycle; words come and tiles go at random, the same at both levels."""
    rng = random.Random(seed)
    config = jobs[0].config
    weights_share, held = rng.choice([0.0, 0.3, 0.9]), rng.choice([0, 1, 12, 40])
    Command = mk_command_msg(config)
    commands, words = [], []
    for job in jobs:
        stream = np.frombuffer(job.stream.payload, f"<u{config.slice_bytes}").reshape(-1, config.columns).tolist()
        for command in job.commands:
            commands.append(command)
            words += stream
    tiles = [command for command in commands for _ in range(command.groups * command.out_tiles)]
    log, readable = [], []
    sent = taken = done = freed = 0
    while freed < len(tiles):
        cycle = len(log)
        assert cycle < 20000, f"{freed} of {len(tiles)} tiles after {cycle} cycles: {dut.line_trace()}"
        ready = tile_is_ready(dut, cycle)
        if ready:
            readable.append(cycle + rng.randint(0, held))
            done += 1
        free = freed < done and readable[freed] <= cycle
        free_tile(dut, cycle, tiles[freed] if free else None)
        freed += free
        dut.command.val @= sent < len(commands)
        if sent < len(commands):
            dut.command.msg @= Command(**commands[sent].fields())
        val = taken < len(words) and rng.random() >= weights_share
        dut.weights.val @= val
        if val:
            for port, value in zip(dut.weights.msg, words[taken], strict=True):
                port @= value
        log.append((bool(dut.command.rdy), bool(dut.weights.rdy), ready))
        sent += bool(dut.command.val and dut.command.rdy)
        taken += bool(val and dut.weights.rdy)
        dut.sim_tick()
    assert (sent, taken) == (len(commands), len(words))
    return log


@given(data=st.data(), config=core_configs(), seed=st.integers(0, 1 << 16))
def test_beats_are_those_of_the_rtl(data: Any, config: Any, seed: int, simulated: Callable) -> None:
    jobs = []
    for case in data.draw(st.lists(cases(st.just(config)), min_size=1, max_size=3)):
        x, weight = case.build()
        jobs.append(prepare(config, x, weight, code=case.code))
    rtl, cl = (drive(simulated(Unpacker(config)), jobs, seed) for Unpacker in (UnpackerRTL, UnpackerCL))
    assert cl == rtl


@given(case=cases(core_configs()), seed=st.integers(0, 1 << 16))
def test_tiles_hold_the_weights(case: Any, seed: int, simulated: Callable) -> None:
    x, weight = case.build()
    job = prepare(case.config, x, weight, code=case.code)
    dut = simulated(UnpackerCL(case.config))
    drive(dut, [job], seed)
    layout = job.stream.layout
    found = np.zeros((layout.out_tiles * layout.columns, layout.k_padded))
    for command in job.commands:
        found[:] = 0
        for tile in range(layout.out_tiles * layout.groups):
            out_tile, group = divmod(tile, layout.groups)
            for column, link in enumerate(dut.tile):
                part = link.take(dut.now + 1)
                row = found[out_tile * layout.columns + column, group * layout.group :]
                np.add.at(row, part.position, part.weight * part.scale)
        assert command.out_tiles == layout.out_tiles
        # Channel scales of a case are 1, so dense weights are the integers times their scales.
        assert np.array_equal(found[: case.out_features, : case.in_features], weight.to_dense())
        assert not found[case.out_features :].any()
        assert not found[:, case.in_features :].any()
    assert not any(link.arrived(1 << 40) for link in dut.tile)
