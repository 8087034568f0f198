"""RTL level: PyMTL3's Python simulation of the core, with streams driven cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from accel.causes import CAUSES
from accel.command import Command
from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreRTL import CoreRTL
from accel.image import act_port_bytes
from verify.stimulus import NO_STALLS, Stalls


class HangError(RuntimeError):
    """A simulation that made no progress within the cycles that any correct core needs."""


@dataclass(frozen=True)
class LevelRun:
    """What a timed level gives back: the result image, active cycles, and their causes."""

    image: bytes
    cycles: int
    counters: dict[str, int]


@lru_cache(maxsize=8)
def _simulator(config: CoreConfig) -> Any:
    from pymtl3 import DefaultPassGroup

    core = CoreRTL(config)
    core.elaborate()
    core.apply(DefaultPassGroup())
    return core


def cycle_limit(config: CoreConfig, commands: list[Command], stalls: Stalls) -> int:
    """Cycles after which a run is given up: a generous multiple of all work done one item at a time."""
    work = 500
    for command in commands:
        tiles = command.out_tiles * command.groups
        steps = command.slots * command.subtiles + command.subtiles * config.rows
        beats = 4 + (command.code_bytes + command.value_bytes) // config.slice_bytes
        results = command.out_tiles * command.subtiles * config.rows * config.column_groups
        work += tiles * (steps + beats + config.columns + 20) + results + command.block_words * config.rows
    return int(work * stalls.slowdown)


def run_rtl(
    config: CoreConfig,
    commands: list[Command],
    weights: bytes,
    acts: bytes,
    result_words: int,
    stalls: Stalls = NO_STALLS,
) -> LevelRun:
    """Run the commands of one GEMM; the weight stream is read once for each.

    Raises
    ------
    HangError
        When results stay away.
    """
    core = _simulator(config)
    core.sim_reset()
    return drive(core, config, commands, weights, acts, result_words, stalls)


def drive(
    core: Any,
    config: CoreConfig,
    commands: list[Command],
    weights: bytes,
    acts: bytes,
    result_words: int,
    stalls: Stalls = NO_STALLS,
) -> LevelRun:
    """Drive a simulated core that has just been reset, port by port; arguments as for `run_rtl`."""
    slice_bytes, columns = config.slice_bytes, config.columns
    port_bytes, ports = act_port_bytes(config), config.act_ports
    Message = mk_command_msg(config)
    messages = [Message(**command.fields()) for command in commands]
    weight_words = [
        [int.from_bytes(weights[i + c * slice_bytes : i + (c + 1) * slice_bytes], "little") for c in range(columns)]
        for i in range(0, len(weights), config.word_bytes)
    ] * len(commands)
    act_words = [
        [int.from_bytes(acts[i + p * port_bytes : i + (p + 1) * port_bytes], "little") for p in range(ports)]
        for i in range(0, len(acts), ports * port_bytes)
    ]
    image = bytearray()
    result_bytes = config.result_lanes * (8 if commands[0].wide else 4)
    sent_commands = sent_weights = sent_acts = got = 0
    limit = cycle_limit(config, commands, stalls)
    cycle = 0
    while got < result_words:
        if cycle > limit:
            raise HangError(
                f"After {cycle} cycles {got} of {result_words} result words have come; the core hangs "
                f"({core.line_trace()})."
            )
        command_val = sent_commands < len(messages) and not stalls.blocks("command", cycle)
        weights_val = sent_weights < len(weight_words) and not stalls.blocks("weights", cycle)
        acts_val = sent_acts < len(act_words) and not stalls.blocks("acts", cycle)
        results_rdy = not stalls.blocks("results", cycle)
        core.command.val @= command_val
        core.weights.val @= weights_val
        core.acts.val @= acts_val
        core.results.rdy @= results_rdy
        if command_val:
            core.command.msg @= messages[sent_commands]
        if weights_val:
            for port, value in zip(core.weights.msg, weight_words[sent_weights], strict=True):
                port @= value
        if acts_val:
            for port, value in zip(core.acts.msg, act_words[sent_acts], strict=True):
                port @= value
        # Every val and rdy that the core drives follows from its registers, so it stands since the last edge.
        sent_commands += bool(command_val and core.command.rdy)
        sent_weights += bool(weights_val and core.weights.rdy)
        sent_acts += bool(acts_val and core.acts.rdy)
        if results_rdy and core.results.val:
            image += int(core.results.msg).to_bytes(8 * config.result_lanes, "little")[:result_bytes]
            got += 1
        core.sim_tick()
        cycle += 1
    counters = {cause: int(count) for cause, count in zip(CAUSES, core.counters, strict=True)}
    return LevelRun(bytes(image), sum(counters.values()), counters)
