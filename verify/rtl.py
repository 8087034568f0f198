"""CL and RTL level: PyMTL3's Python simulation of the core, with streams driven cycle by cycle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from accel.causes import CAUSES
from accel.command import Command
from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.image import act_port_bytes
from accel.memory import Memory
from verify.memory import StreamMemory, act_burst_words, ticks_of, write_burst_words
from verify.stimulus import NO_STALLS, STREAMS, Stalls


class HangError(RuntimeError):
    """A simulation that made no progress within the cycles that any correct core needs."""


@dataclass(frozen=True)
class LevelRun:
    """What a timed level gives back. Cycle 0 is the first one in which a command may be offered."""

    #: Result image.
    image: bytes
    #: Active cycles of the core, and their causes.
    cycles: int
    counters: dict[str, int]
    #: Cycle in which each result word left the core.
    word_cycles: tuple[int, ...]
    #: Cycles until all results are in memory: without a memory port, one more than the last word's cycle.
    written: int


@lru_cache(maxsize=16)
def _simulator(config: CoreConfig, level: str) -> Any:
    from pymtl3 import DefaultPassGroup

    if level == "cl":
        from accel.core.CoreCL import CoreCL as Core
    else:
        from accel.core.CoreRTL import CoreRTL as Core
    core = Core(config)
    core.elaborate()
    core.apply(DefaultPassGroup())
    return core


def cycle_limit(config: CoreConfig, commands: list[Command], stalls: Stalls, memory: Memory | None = None) -> int:
    """Cycles after which a run is given up: a generous multiple of all work done one item at a time."""
    work = 500
    ticks = None if memory is None else ticks_of(config, commands, memory)
    for command in commands:
        tiles = command.out_tiles * command.groups
        steps = command.slots * command.subtiles + command.subtiles * config.rows
        beats = 5 + (command.code_bytes + command.value_bytes) // config.slice_bytes
        results = command.out_tiles * command.subtiles * config.rows * config.column_groups
        work += tiles * (steps + beats + config.columns + 20) + results + command.block_words * config.rows
        if memory is not None and ticks is not None:
            port = tiles * beats * ticks.weight + act_burst_words(config, command) * ticks.act
            port += command.out_tiles * write_burst_words(config, command) * ticks.result
            work += math.ceil(port / ticks.cycle) + (tiles + command.out_tiles + 1) * (memory.latency + 3)
    return int(work * stalls.slowdown)


def run_simulated(
    level: str,
    config: CoreConfig,
    commands: list[Command],
    weights: bytes,
    acts: bytes,
    result_words: int,
    stalls: Stalls = NO_STALLS,
    memory: Memory | None = None,
) -> LevelRun:
    """Run the commands of one GEMM at level ``cl`` or ``rtl``; the weight stream is read once for each.

    Parameters
    ----------
    stalls
        When streams hold back, beside what the memory does.
    memory
        Memory port behind the streams; by default words are always there, and results always taken.

    Raises
    ------
    HangError
        When results stay away.
    """
    core = _simulator(config, level)
    core.sim_reset()
    return drive(core, config, commands, weights, acts, result_words, stalls, memory)


def drive(
    core: Any,
    config: CoreConfig,
    commands: list[Command],
    weights: bytes,
    acts: bytes,
    result_words: int,
    stalls: Stalls = NO_STALLS,
    memory: Memory | None = None,
) -> LevelRun:
    """Drive a simulated core that has just been reset, port by port; arguments as for `run_simulated`."""
    Message = mk_command_msg(config)
    messages = [Message(**command.fields()) for command in commands]
    weight_words = np.frombuffer(weights, f"<u{config.slice_bytes}").reshape(-1, config.columns)
    all_weights = len(weight_words) * len(commands)
    port_bytes = act_port_bytes(config)
    act_starts = range(0, len(acts), config.act_ports * port_bytes)
    result_bytes = config.result_lanes * (8 if commands[0].wide else 4)
    environment = StreamMemory(config, commands, memory)
    limit = cycle_limit(config, commands, stalls, memory)
    image = bytearray()
    word_cycles: list[int] = []
    sent_commands = sent_weights = sent_acts = 0
    command_stalls, weight_stalls, act_stalls, result_stalls = (getattr(stalls, name) for name in STREAMS)
    # Words that the ports of the core hold.
    on_weights = on_acts = -1
    command_val = weights_val = acts_val = results_rdy = False
    core.command.val @= 0
    core.weights.val @= 0
    core.acts.val @= 0
    core.results.rdy @= 0
    cycle = 0
    # Every val and rdy that the core drives follows from its registers, so it stands since the last edge.
    while len(word_cycles) < result_words:
        if cycle > limit:
            raise HangError(
                f"After {cycle} cycles {len(word_cycles)} of {result_words} result words have come; the core hangs "
                f"({core.line_trace()})."
            )
        environment.begin(cycle, bool(core.acts.rdy))

        val = sent_commands < len(messages) and not (command_stalls and command_stalls[cycle % len(command_stalls)])
        if val != command_val:
            command_val = val
            core.command.val @= val
        if command_val:
            core.command.msg @= messages[sent_commands]
            sent_commands += bool(core.command.rdy)

        val = (
            sent_weights < all_weights
            and environment.weight_there
            and not (weight_stalls and weight_stalls[cycle % len(weight_stalls)])
        )
        if val != weights_val:
            weights_val = val
            core.weights.val @= val
        if weights_val:
            if on_weights != sent_weights:
                on_weights = sent_weights
                word = weight_words[sent_weights % len(weight_words)].tolist()
                for port, value in zip(core.weights.msg, word, strict=True):
                    port @= value
            if core.weights.rdy:
                sent_weights += 1
                environment.take_weight()

        val = (
            sent_acts < len(act_starts)
            and environment.act_there
            and not (act_stalls and act_stalls[cycle % len(act_stalls)])
        )
        if val != acts_val:
            acts_val = val
            core.acts.val @= val
        if acts_val:
            if on_acts != sent_acts:
                on_acts, start = sent_acts, act_starts[sent_acts]
                for port in core.acts.msg:
                    port @= int.from_bytes(acts[start : start + port_bytes], "little")
                    start += port_bytes
            if core.acts.rdy:
                sent_acts += 1
                environment.take_act()

        val = not (result_stalls and result_stalls[cycle % len(result_stalls)])
        if val != results_rdy:
            results_rdy = val
            core.results.rdy @= val
        if results_rdy and core.results.val:
            image += int(core.results.msg).to_bytes(8 * config.result_lanes, "little")[:result_bytes]
            word_cycles.append(cycle)
            environment.take_result()

        core.sim_tick()
        cycle += 1
    core.sim_tick()  # counters tell of the cycle before
    environment.finish(cycle)
    assert environment.written is not None
    counters = {cause: int(count) for cause, count in zip(CAUSES, core.counters, strict=True)}
    return LevelRun(bytes(image), sum(counters.values()), counters, tuple(word_cycles), environment.written)
