"""Cycle count of a GEMM without simulating it: the core's own timing rules, tile by tile.

Equal to the RTL's cycles and counters when every stream always has, or takes, a word (a test holds the two
against each other). Cycle 0 is the one in which the core accepts the first command. The rules, in cycles:

* A unit whose command was accepted in cycle a works from a + 2 on, and takes its next one two cycles after
  its last item.
* Activations: one word a cycle; after the last one the block is usable 2 cycles later.
* Weights: one beat a cycle; a tile starts when its predecessor has ended and the buffer has room, which a
  tile gives back C + 2 cycles after its last step was issued (it has passed all columns by then); a tile
  is usable 2 cycles after its last beat.
* Steps: one a cycle. The last step of a group waits until the chain is free: as many cycles after the last
  step of the group before it as that one had partials on a chain.
* An output tile's results are readable after its last step + partials + C + 6; the writer reads one word a
  cycle, and gives the accumulators back with its last read: the tile after the next may start one cycle
  later. A word leaves 2 cycles after its read.

The rules only add and take maxima, so once the times of all units have moved on together by the same amount
from one tile to the next, every later tile repeats that: the rest is a multiplication, not a loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from accel.causes import CAUSES
from accel.command import Command, commands_for, ideal_cycles
from accel.config import CoreConfig
from accel.image import act_port_bytes, result_words
from accel.schedule import steps_per_group
from accel.stream import StreamLayout


@dataclass(frozen=True)
class GemmTiming:
    """What a GEMM costs on the core with streams that never hold back."""

    #: Cycles from the first command's acceptance to the departure of the last result word.
    cycles: int
    #: Cycles by cause; they sum to ``cycles``.
    counters: dict[str, int]
    #: Cycles if every lane of a PE worked in every cycle.
    ideal_cycles: int
    #: Bytes of the weight words, read once for each token block.
    weight_bytes: int
    #: Bytes of the activation words.
    act_bytes: int
    #: Bytes of the result words.
    result_bytes: int

    @property
    def utilisation(self) -> float:
        """Share of lane cycles that had a value slot to work on, at most 1."""
        return self.ideal_cycles / self.cycles


@dataclass
class _Unit:
    """When a unit is free to take commands: its queue holds two of them."""

    free: int = 0
    taken: list[int] = field(default_factory=list)

    def take(self, accepted: int) -> int:
        """Cycle in which the unit's work on a newly accepted command begins."""
        taken = max(accepted + 1, self.free)
        self.taken.append(taken)
        return taken + 1

    def accepts_after(self) -> int:
        """First cycle in which the unit's queue has room for one more command."""
        return self.taken[-2] + 1 if len(self.taken) >= 2 else 0


class _Core:
    """Times of the core's units, all of them absolute cycles."""

    def __init__(self, config: CoreConfig, layout: StreamLayout) -> None:
        self.config = config
        self.steps = steps_per_group(layout.pattern, layout.group, config.lanes, config.window)
        slices = [-(-size // config.slice_bytes) for size in (layout.code_bytes, layout.value_bytes)]
        self.beats = 1 + sum(slices)
        room = [config.header_slots, config.value_words // slices[1]]
        if slices[0]:
            room.append(config.code_words // slices[0])
        #: Tiles that the weight buffer holds at once.
        self.tiles = min(room)
        self.counters: Counter[str] = Counter()
        self.loader, self.unpacker, self.sequencer, self.writer = (_Unit() for _ in range(4))
        self.accepted = -1  # of the last command
        self.unpacked = 0  # last beat of the last tile
        self.lasts: list[int] = []  # issue of the last step of the tiles that still count for room
        self.next_step = 0
        self.last_step = -(1 << 40)  # of the last group, and its partials on a chain
        self.length = 1
        self.reads: list[int] = [-(1 << 40), -(1 << 40)]  # last read of the two output tiles before
        self.block_freed: list[tuple[int, int]] = []  # when, words
        self.act_free = config.act_words
        self.end = 0

    # -- one command ---------------------------------------------------------------------------------

    def run(self, command: Command) -> None:
        """Advance all units over one token block."""
        units = (self.loader, self.unpacker, self.sequencer, self.writer)
        accepted = max(self.accepted + 1, *(unit.accepts_after() for unit in units))
        self.accepted = accepted
        acts_ready = self._load(command, self.loader.take(accepted))
        self.unpacked = max(self.unpacked, self.unpacker.take(accepted) - 1)
        begin = self.sequencer.take(accepted)
        self.next_step = begin
        write_from = self.writer.take(accepted)
        lengths = [self._chain_length(self.config.rows)] * (command.subtiles - 1)
        lengths.append(self._chain_length(command.last_rows))
        tokens = (command.subtiles - 1) * self.config.rows + command.last_rows
        words = tokens * self.config.column_groups

        tile = 0
        before: tuple[int, ...] | None = None
        while tile < command.out_tiles:
            mark = self.next_step
            counted = self.counters.copy()
            self._out_tile(command, lengths, acts_ready if tile == 0 else 0)
            readable = self.last_step + self.length + self.config.columns + 6
            first_read = max(readable, self.reads[-1] + 1, write_from)
            self.reads = [self.reads[-1], first_read + words - 1]
            tile += 1
            state = self._state()
            if state == before:
                repeats = command.out_tiles - tile
                self._skip(repeats, self.next_step - mark, counted)
                tile += repeats
            before = state
        # The block's activations are given back when the last step has read its windows.
        self.block_freed.append((self.last_step + 4, command.block_words))
        self.unpacker.free = self.unpacked + 1
        self.sequencer.free = self.last_step + 1
        self.writer.free = self.reads[-1] + 1
        self.end = self.reads[-1] + 2

    def _load(self, command: Command, start: int) -> int:
        """Cycle from which the block's activations are usable."""
        words = _act_words(self.config, command)
        while self.act_free < command.block_words:
            freed, amount = self.block_freed.pop(0)
            start = max(start, freed)
            self.act_free += amount
        self.act_free -= command.block_words
        self.loader.free = start + words
        return start + words - 1 + 2

    def _chain_length(self, rows: int) -> int:
        return -(-rows // self.config.drain_chains)

    # -- one output tile -----------------------------------------------------------------------------

    def _out_tile(self, command: Command, lengths: list[int], acts_ready: int) -> None:
        half_ready = self.reads[0] + 1
        group = 0
        before: tuple[int, ...] | None = None
        while group < command.groups:
            mark = self.next_step
            counted = self.counters.copy()
            self._tile(lengths, acts_ready if group == 0 else 0, half_ready if group == 0 else 0)
            group += 1
            state = self._state()
            if state == before:
                repeats = command.groups - group
                self._skip(repeats, self.next_step - mark, counted)
                group += repeats
            before = state

    def _tile(self, lengths: list[int], acts_ready: int, half_ready: int) -> None:
        start = self.unpacked + 1
        if len(self.lasts) >= self.tiles:
            start = max(start, self.lasts[-self.tiles] + self.config.columns + 2)
        self.unpacked = start + self.beats - 1
        tile_ready = self.unpacked + 2

        now = self.next_step
        for cause, ready in (
            ("wait_acts", acts_ready),
            ("wait_weights", tile_ready),
            ("wait_write", half_ready),
        ):
            if ready > now:
                self.counters[cause] += ready - now
                now = ready
        for length in lengths:
            last = max(now + self.steps - 1, self.last_step + self.length)
            self.counters["wait_drain"] += last - (now + self.steps - 1)
            self.counters["busy"] += self.steps
            self.last_step, self.length = last, length
            now = last + 1
        self.next_step = now
        self.lasts = [*self.lasts, self.last_step][-self.tiles :]

    # -- steady state --------------------------------------------------------------------------------

    def _state(self) -> tuple[int, ...]:
        """All times that the future depends on, relative to the next step."""
        now = self.next_step
        return (
            self.unpacked - now,
            self.last_step - now,
            self.length,
            *(max(0, read - now) for read in self.reads),  # a read in the past holds nothing up
            *(last - now for last in self.lasts),
        )

    def _skip(self, repeats: int, period: int, counted: Counter[str]) -> None:
        """Repeat the last period, whose counters are those since ``counted``."""
        move = repeats * period
        for cause in CAUSES:
            self.counters[cause] += repeats * (self.counters[cause] - counted[cause])
        self.next_step += move
        self.unpacked += move
        self.last_step += move
        self.lasts = [last + move for last in self.lasts]
        now = self.next_step - move
        self.reads = [read + move if read > now else read for read in self.reads]


def gemm_timing(config: CoreConfig, layout: StreamLayout, tokens: int, *, wide: bool | None = None) -> GemmTiming:
    """Cycles of a GEMM of ``tokens`` tokens with weights of the given layout.

    Parameters
    ----------
    wide
        As for `accel.command.commands_for`.
    """
    commands = commands_for(config, layout, tokens, wide=wide)
    core = _Core(config, layout)
    for command in commands:
        core.run(command)
    cycles = core.end + 1
    counters = {cause: core.counters[cause] for cause in CAUSES}
    counters["idle"] = cycles - sum(counters.values())
    act_words = sum(_act_words(config, command) for command in commands)
    return GemmTiming(
        cycles=cycles,
        counters=counters,
        ideal_cycles=ideal_cycles(config, layout, commands),
        weight_bytes=layout.payload_bytes * len(commands),
        act_bytes=act_words * config.act_ports * act_port_bytes(config),
        result_bytes=result_words(config, layout, tokens) * config.result_lanes * (8 if commands[0].wide else 4),
    )


def _act_words(config: CoreConfig, command: Command) -> int:
    """Activation words of one token block."""
    full = -(-config.rows // config.act_ports)
    last = -(-command.last_rows // config.act_ports)
    return ((command.subtiles - 1) * full + last) * command.row_words
