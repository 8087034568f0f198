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


def tile_column_bytes(config: CoreConfig, command: Command) -> int:
    """Bytes of each column in a weight tile: scale, zero point, block codes and values."""
    return (2 if config.scale_bits > 8 else 1) + command.asymmetric + command.code_bytes + command.value_bytes


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
        # Writes that wait for the port: ticks, and cycle of issue.
        self._writes: deque[tuple[int, int]] = deque()
        if memory is None:
            return
        self._ticks = ticks_of(config, commands, memory)
        self._latency = memory.latency
        self._reads = _reads(config, commands, memory.depth(config.columns * tile_column_bytes(config, commands[0])))
        self._next_read = next(self._reads, None)
        # Cycles from which the words issued and not taken yet can be taken.
        self._weights: deque[int] = deque()
        self._acts: deque[int] = deque()
        self._acts_asked = False  # a block of activations is issued, but not on its way yet
        self._weights_taken = 0
        self._waiting: deque[_Read] = deque()  # for the port
        # Port: the tick in which it is free again, and the output tile of the last burst if that was of weights.
        self._free = 0
        self._last_tile: tuple[int, int] | None = None

    def begin(self, cycle: int, acts_rdy: bool) -> None:
        """Start a cycle: issue every burst that may be issued in it, and start those whose turn comes in it.

        Parameters
        ----------
        cycle
            0 in the first call, one more in each call after it.
        acts_rdy
            Whether the core is ready for an activation word in this cycle.
        """
        self._cycle = cycle
        if self._write_due:
            self._issue_write()
        if self._memory is None:
            return
        while (read := self._next_read) is not None and self._may_issue(read, acts_rdy):
            self._waiting.append(read)
            self._acts_asked |= read.output_tile is None
            self._next_read = next(self._reads, None)
        while self._serve_one():
            pass

    def _may_issue(self, read: _Read, acts_rdy: bool) -> bool:
        if read.output_tile is None:
            return acts_rdy and not self._acts and not self._acts_asked
        return self._weights_taken >= read.taken_before

    def finish(self, cycle: int) -> None:
        """Let the writes that wait pass, from the cycle after that of the last result word on."""
        self.begin(cycle, acts_rdy=False)
        while self._writes:
            cycle += 1
            self.begin(cycle, acts_rdy=False)

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

    def _issue_write(self) -> None:
        """Issue the write of the output tile that is complete."""
        words = self._write_words.popleft()
        self._left_of_write = self._write_words[0] if self._write_words else 0
        self._write_due = False
        if self._memory is None:
            self.written = self._cycle
        else:
            self._writes.append((words * self._ticks.result, self._cycle))

    def _serve_one(self) -> bool:
        """Start the burst whose turn it is, if it starts within this cycle."""
        if self._writes:
            # A write that waits goes before every read.
            ticks, issued = self._writes[0]
            start = max(self._whole(self._free), issued * self._ticks.cycle)
            if not self._starts_now(start):
                return False
            self._writes.popleft()
            self._free, self._last_tile = start + ticks, None
            self.written = self._whole(self._free) // self._ticks.cycle
            return True
        if not self._waiting:
            return False
        read = self._waiting[0]
        follows = read.output_tile is not None and read.output_tile == self._last_tile
        # It was issued by now; had it been able to start before this cycle, it would have.
        start = max(self._free if follows else self._whole(self._free), self._cycle * self._ticks.cycle)
        if not self._starts_now(start):
            return False
        self._waiting.popleft()
        if read.output_tile is None:
            self._acts_asked, words, word_ticks = False, self._acts, self._ticks.act
        else:
            words, word_ticks = self._weights, self._ticks.weight
        for k in range(1, read.words + 1):
            words.append(self._whole(start + k * word_ticks) // self._ticks.cycle + self._latency)
        self._free, self._last_tile = start + read.words * word_ticks, read.output_tile
        return True

    def _starts_now(self, start: int) -> bool:
        return start < (self._cycle + 1) * self._ticks.cycle

    def _whole(self, ticks: int) -> int:
        """The first tick from this one on at which a cycle begins."""
        return -(-ticks // self._ticks.cycle) * self._ticks.cycle


def _reads(config: CoreConfig, commands: list[Command], depth: int) -> Iterator[_Read]:
    """All reads of the commands in program order."""
    slice_bytes = config.slice_bytes
    # Weight words, over all commands, up to the end of each tile.
    ends: list[int] = []
    for number, command in enumerate(commands):
        yield _Read(act_burst_words(config, command))
        tile_bytes, before = tile_column_bytes(config, command), ends[-1] if ends else 0
        for tile in range(command.out_tiles * command.groups):
            first, end = -(-tile * tile_bytes // slice_bytes), -(-(tile + 1) * tile_bytes // slice_bytes)
            ends.append(before + end)
            if end > first:
                waits_for = len(ends) - 1 - depth
                yield _Read(end - first, (number, tile // command.groups), ends[waits_for] if waits_for >= 0 else 0)
