"""The memory of the core's environment, word by word: the contract of `accel.memory`, stepped cycle by cycle.

Time is counted in ticks, of which a whole number makes a cycle and each kind of word takes a whole number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from accel.command import Command
from accel.config import CoreConfig
from accel.image import act_port_bytes
from accel.memory import Memory


@dataclass(frozen=True)
class Ticks:
    """A memory in whole numbers, for a core and the results of its commands."""

    #: Ticks of a cycle.
    cycle: int
    #: Ticks of the port for a word of each stream.
    weight: int
    act: int
    result: int


def ticks_of(config: CoreConfig, commands: list[Command], memory: Memory) -> Ticks:
    """Port times of the words that the commands move."""
    result_bytes = config.result_lanes * (8 if commands[0].wide else 4)
    sizes = (config.word_bytes, config.act_ports * act_port_bytes(config), result_bytes)
    times = [memory.word_cycles(size) for size in sizes]
    cycle = math.lcm(*(time.denominator for time in times))
    return Ticks(cycle, *(int(time * cycle) for time in times))


def tile_column_bytes(command: Command) -> int:
    """Bytes of each column in a weight tile: header, block codes and values."""
    return 1 + command.asymmetric + command.code_bytes + command.value_bytes


def act_burst_words(config: CoreConfig, command: Command) -> int:
    """Activation words of a command's token block."""
    rows = [config.rows] * (command.subtiles - 1) + [command.last_rows]
    return sum(-(-count // config.act_ports) for count in rows) * command.row_words


def write_burst_words(config: CoreConfig, command: Command) -> int:
    """Result words of one output tile of a command."""
    return ((command.subtiles - 1) * config.rows + command.last_rows) * config.column_groups


@dataclass(frozen=True)
class _Read:
    """A burst of words to the core: the activations of a command, or one weight tile."""

    words: int
    #: Command and output tile that a weight tile belongs to; None for activations.
    output_tile: tuple[int, int] | None = None
    #: Weight words, over all commands, that must have been taken before a weight tile is issued.
    taken_before: int = 0


class StreamMemory:
    """Source and sink of the stream words of some commands, on a memory port or always ready.

    Each cycle: first `begin`, then `weight_there` and `act_there` tell what may be offered to the core, and
    `take_weight`, `take_act` and `take_result` note what was transferred in this cycle.

    Parameters
    ----------
    commands
        Of one GEMM: the weight stream is read once for each.
    memory
        None: every word is there from cycle 0 on, and results are in memory at once.
    """

    def __init__(self, config: CoreConfig, commands: list[Command], memory: Memory | None) -> None:
        self._memory = memory
        self._cycle = 0
        # Result words of the output tiles to come, in order; the first entry counts down.
        self._write_words = deque(
            write_burst_words(config, command) for command in commands for _ in range(command.out_tiles)
        )
        self._left_of_write = self._write_words[0]
        self._write_due = False
        #: Cycle after which all results so far are in memory; None before the first output tile.
        self.written: int | None = None
        if memory is None:
            return
        self._ticks = ticks_of(config, commands, memory)
        self._latency = memory.latency
        self._reads = _reads(config, commands, memory.depth(config.columns * tile_column_bytes(commands[0])))
        self._next_read = next(self._reads, None)
        # Cycles from which the words issued and not taken yet can be taken.
        self._weights: deque[int] = deque()
        self._acts: deque[int] = deque()
        self._weights_taken = 0
        # Port: the tick in which it is free again, and the output tile of the last burst if that was of weights.
        self._free = 0
        self._last_tile: tuple[int, int] | None = None

    def begin(self, cycle: int, acts_rdy: bool) -> None:
        """Start a cycle: issue every burst that may be issued in it.

        Parameters
        ----------
        cycle
            0 in the first call, one more in each call after it.
        acts_rdy
            Whether the core is ready for an activation word in this cycle.
        """
        self._cycle = cycle
        if self._write_due:
            self._write()
        if self._memory is None:
            return
        while (read := self._next_read) is not None:
            if read.output_tile is None:
                if not acts_rdy or self._acts:
                    return
                self._acts.extend(self._arrivals(read, self._ticks.act))
            else:
                if self._weights_taken < read.taken_before:
                    return
                self._weights.extend(self._arrivals(read, self._ticks.weight))
            self._next_read = next(self._reads, None)

    @property
    def weight_there(self) -> bool:
        """Whether the next weight word may be offered in this cycle."""
        return self._memory is None or (bool(self._weights) and self._weights[0] <= self._cycle)

    @property
    def act_there(self) -> bool:
        """Whether the next activation word may be offered in this cycle."""
        return self._memory is None or (bool(self._acts) and self._acts[0] <= self._cycle)

    def take_weight(self) -> None:
        """Note that the core took a weight word in this cycle."""
        if self._memory is not None:
            self._weights.popleft()
            self._weights_taken += 1

    def take_act(self) -> None:
        """Note that the core took an activation word in this cycle."""
        if self._memory is not None:
            self._acts.popleft()

    def take_result(self) -> None:
        """Note that a result word left the core in this cycle."""
        self._left_of_write -= 1
        self._write_due = self._left_of_write == 0

    def _write(self) -> None:
        """Issue the write of the output tile that is complete."""
        words = self._write_words.popleft()
        self._left_of_write = self._write_words[0] if self._write_words else 0
        self._write_due = False
        if self._memory is None:
            self.written = self._cycle
            return
        self._serve(words * self._ticks.result, None)
        self.written = -(-self._free // self._ticks.cycle)

    def _arrivals(self, read: _Read, word_ticks: int) -> list[int]:
        """Serve a read; the cycle from which each of its words can be taken."""
        start = self._serve(read.words * word_ticks, read.output_tile)
        passed = (-(-(start + (k + 1) * word_ticks) // self._ticks.cycle) for k in range(read.words))
        return [cycle + self._latency for cycle in passed]

    def _serve(self, ticks: int, output_tile: tuple[int, int] | None) -> int:
        """Occupy the port with a burst that is issued in this cycle; the tick in which it starts."""
        free = self._free
        if output_tile is None or output_tile != self._last_tile:
            free = -(-free // self._ticks.cycle) * self._ticks.cycle
        start = max(free, self._cycle * self._ticks.cycle)
        self._free = start + ticks
        self._last_tile = output_tile
        return start


def _reads(config: CoreConfig, commands: list[Command], depth: int) -> Iterator[_Read]:
    """All reads of the commands in program order."""
    slice_bytes = config.slice_bytes
    # Weight words, over all commands, up to the end of each tile.
    ends: list[int] = []
    for number, command in enumerate(commands):
        yield _Read(act_burst_words(config, command))
        tile_bytes, before = tile_column_bytes(command), ends[-1] if ends else 0
        for tile in range(command.out_tiles * command.groups):
            first, end = -(-tile * tile_bytes // slice_bytes), -(-(tile + 1) * tile_bytes // slice_bytes)
            ends.append(before + end)
            if end > first:
                waits_for = len(ends) - 1 - depth
                yield _Read(end - first, (number, tile // command.groups), ends[waits_for] if waits_for >= 0 else 0)
