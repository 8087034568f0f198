"""Activation loader and buffer, cycle level: words in the RTL's cycles, and every window where it belongs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accel.act_buffer.ActBufferCL import ActBufferCL, ActLoaderCL
from accel.act_buffer.ActBufferRTL import ActLoaderRTL
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import GroupSteps
from accel.image import act_port_bytes
from verify.gemm import GemmJob, prepare
from verify.strategies import cases, core_configs


def block_is_ready(dut: Any, cycle: int) -> bool:
    if isinstance(dut, ActLoaderRTL):
        return bool(dut.block_ready)
    ready = dut.block_ready.arrived(cycle + 1)
    if ready:
        dut.block_ready.take(cycle + 1)
    return ready


def free_block(dut: Any, cycle: int, words: int) -> None:
    """Room for so many words is there in the next cycle."""
    if isinstance(dut, ActLoaderRTL):
        dut.freed_words @= words
    elif words:
        dut.freed.post(cycle + 1, words)


def drive(dut: Any, jobs: list[GemmJob], seed: int) -> list[tuple[bool, ...]]:
    """Handshakes and loaded blocks of every cycle; words come and blocks go at random, the same at both levels."""
    rng = random.Random(seed)
    config = jobs[0].config
    stalled, held = rng.choice([0.0, 0.3, 0.9]), rng.choice([0, 1, 12, 40])
    Command = mk_command_msg(config)
    size = act_port_bytes(config)
    commands = [command for job in jobs for command in job.commands]
    image = b"".join(job.acts for job in jobs)
    ports = [int.from_bytes(image[i : i + size], "little") for i in range(0, len(image), size)]
    words = [ports[i : i + config.act_ports] for i in range(0, len(ports), config.act_ports)]
    log, readable = [], []
    sent = taken = freed = 0
    while freed < len(commands):
        cycle = len(log)
        assert cycle < 20000, f"{freed} of {len(commands)} blocks after {cycle} cycles: {dut.line_trace()}"
        ready = block_is_ready(dut, cycle)
        if ready:
            readable.append(cycle + rng.randint(0, held))
        free = freed < len(readable) and readable[freed] <= cycle
        free_block(dut, cycle, commands[freed].block_words if free else 0)
        freed += free
        dut.command.val @= sent < len(commands)
        if sent < len(commands):
            dut.command.msg @= Command(**commands[sent].fields())
        val = taken < len(words) and rng.random() >= stalled
        dut.acts.val @= val
        if val:
            for port, value in zip(dut.acts.msg, words[taken], strict=True):
                port @= value
        log.append((bool(dut.command.rdy), bool(dut.acts.rdy), ready))
        sent += bool(dut.command.val and dut.command.rdy)
        taken += bool(val and dut.acts.rdy)
        dut.sim_tick()
    assert (sent, taken) == (len(commands), len(words))
    return log


@given(data=st.data(), config=core_configs(), seed=st.integers(0, 1 << 16))
def test_words_are_taken_as_by_the_rtl(data: Any, config: Any, seed: int, simulated: Callable) -> None:
    jobs = []
    for case in data.draw(st.lists(cases(st.just(config), max_tokens=20), min_size=1, max_size=3)):
        x, weight = case.build()
        jobs.append(prepare(config, x, weight, code=case.code))
    rtl, cl = (drive(simulated(Loader(config)), jobs, seed) for Loader in (ActLoaderRTL, ActLoaderCL))
    assert cl == rtl


@given(case=cases(core_configs(), max_tokens=20), seed=st.integers(0, 1 << 16))
def test_windows_of_a_group_are_its_activations(case: Any, seed: int, simulated: Callable) -> None:
    x, weight = case.build()
    job = prepare(case.config, x, weight, code=case.code)
    loader, buffer = simulated(ActLoaderCL(case.config)), simulated(ActBufferCL(case.config))
    drive(loader, [job], seed)
    layout, rows = job.stream.layout, case.config.rows
    padded = np.zeros((case.tokens, layout.k_padded), np.int64)
    padded[:, : case.in_features] = x
    first = 0
    for command in job.commands:
        buffer.block.post(buffer.now + 1, loader.block.take(loader.now + 1))
        tokens = min(case.tokens - first, rows * command.subtiles)
        ends = [(group, row) for group in range(layout.groups) for row in range(0, tokens, rows)]
        for group, row in ends:
            here = min(rows, tokens - row)
            last = (group, row) == ends[-1]
            steps = GroupSteps(group, row, here, 1, tile_last=False, out_tile_last=last, block_last=last)
            buffer.steps.post(buffer.now + 1, steps)
            buffer.sim_tick()
            assert buffer.windows.arrived(buffer.now + 1)
            sent, acts = buffer.windows.take(buffer.now + 1)
            assert sent is steps
            begin = group * layout.group
            wanted = padded[first + row : first + row + here, begin : begin + layout.group]
            assert np.array_equal(acts.T, wanted)
        # The block's room is there four cycles after its last step, which was sent in the cycle before; reads wait
        # as long as codes take to be decoded.
        there = buffer.now + 3 + case.config.window_registers
        assert not buffer.freed.arrived(there - 1)
        assert buffer.freed.arrived(there)
        assert buffer.freed.take(there) == command.block_words
        first += tokens
