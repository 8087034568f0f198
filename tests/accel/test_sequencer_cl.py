"""Sequencer, cycle level against RTL: the same cause in every cycle, and groups that end in the same cycles."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from accel.causes import CAUSES
from accel.command import Command
from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.sequencer.SequencerCL import SequencerCL
from accel.sequencer.SequencerRTL import SequencerRTL
from verify.gemm import prepare
from verify.strategies import cases, core_configs

INPUTS = ("tile_ready", "block_ready", "half_free")


def credit(dut: Any, cycle: int, name: str, given_: bool) -> None:
    """A tile, block or half that may be used from the next cycle on."""
    if isinstance(dut, SequencerRTL):
        port = getattr(dut, name)
        port @= given_
    elif given_:
        getattr(dut, name).post(cycle + 1)


def group_end(dut: Any, config: CoreConfig, cycle: int) -> tuple[int, ...] | None:
    """Partials on a chain, first accumulator, first group, last of the output tile: of a group that ended."""
    if isinstance(dut, SequencerRTL):
        if not dut.group_val:
            return None
        return tuple(int(field) for field in (dut.group.length, dut.group.addr, dut.group.first, dut.group.done))
    if not dut.steps.arrived(cycle):
        return None
    steps = dut.steps.take(cycle)
    addr = steps.row // config.rows * config.chain_rows
    return steps.length, addr, int(steps.group == 0), int(steps.out_tile_last)


def drive(dut: Any, config: CoreConfig, commands: list[Command], seed: int) -> list[tuple[Any, ...]]:
    """Cause, readiness and group ends of every cycle; tiles, blocks and halves come at random at both levels."""
    rng = random.Random(seed)
    shares = {name: rng.choice([0.1, 0.5, 1.0]) for name in INPUTS}
    message = mk_command_msg(config)
    # What each group on a subtile is the last of: its tile, its output tile, its token block.
    ends = [
        (subtile == 1, subtile == group == 1, subtile == group == out_tile == 1)
        for command in commands
        for out_tile in range(command.out_tiles, 0, -1)
        for group in range(command.groups, 0, -1)
        for subtile in range(command.subtiles, 0, -1)
    ]
    tiles, halves, blocks = (sum(end[i] for end in ends) for i in range(3))
    log: list[tuple[Any, ...]] = []
    sent = ended = tiles_given = halves_given = blocks_given = tiles_done = halves_done = blocks_done = 0
    while ended < len(ends):
        cycle = len(log)
        assert cycle < 40000, f"{ended} of {len(ends)} groups after {cycle} cycles: {dut.line_trace()}"
        end = group_end(dut, config, cycle)
        if end is not None:
            tile_end, out_tile_end, block_end = ends[ended]
            ended += 1
            tiles_done += tile_end
            halves_done += out_tile_end
            blocks_done += block_end
        # No more than the buffers behind the inputs hold.
        offers = {
            "tile_ready": tiles_given < min(tiles, tiles_done + config.header_slots),
            "block_ready": blocks_given < min(blocks, blocks_done + 2),
            "half_free": halves_given < min(halves, halves_done),
        }
        given_ = {name: offers[name] and rng.random() < shares[name] for name in INPUTS}
        for name in INPUTS:
            credit(dut, cycle, name, given_[name])
        tiles_given += given_["tile_ready"]
        blocks_given += given_["block_ready"]
        halves_given += given_["half_free"]
        dut.command.val @= sent < len(commands)
        if sent < len(commands):
            dut.command.msg @= message(**commands[sent].fields())
        log.append((CAUSES[int(dut.cause)], bool(dut.command.rdy), end))
        sent += bool(dut.command.val and dut.command.rdy)
        dut.sim_tick()
    return log


@given(data=st.data(), config=core_configs(), seed=st.integers(0, 1 << 16))
def test_causes_are_those_of_the_rtl(data: Any, config: CoreConfig, seed: int, simulated: Callable) -> None:
    commands = []
    for case in data.draw(st.lists(cases(st.just(config), max_tokens=9), min_size=1, max_size=2)):
        x, weight = case.build()
        commands += prepare(config, x, weight, code=case.code).commands
    rtl, cl = (drive(simulated(Unit(config)), config, commands, seed) for Unit in (SequencerRTL, SequencerCL))
    assert cl == rtl
