"""Cycle count of a GEMM without simulating it: the core's own timing rules, tile by tile.

Equal to RTL and CL in cycles and counters when every stream always has, or takes, a word, and with a memory of
fixed latency and bandwidth (`accel.memory` has its rules); tests hold them against each other. Cycle 0 is the
one in which the core accepts the first command. The rules of the core, in cycles:

* A unit whose command was accepted in cycle a works from a + 2 on, and takes its next one two cycles after
  its last item. A command is accepted when all four units have room for it in their queues of two.
* Activations: one word a cycle, or when they arrive; 2 cycles after the last one the block is usable. Its room in
  the buffer is free again 4 + `CoreConfig.window_registers` cycles after its last step was issued.
* Weights: one beat a cycle, and a beat that needs a new word waits for it; a tile starts when its predecessor
  has ended and the buffer has room, which a tile gives back C + 2 cycles after its last step was issued (it has
  passed all columns by then); a tile is usable `CoreConfig.tile_delay` cycles after its last beat.
* Steps: one a cycle. The last step of a group waits until the chain is free: as many cycles after the last
  step of the group before it as that one had partials on a chain.
* An output tile's results are readable after its last step + partials + C + 6 + `CoreConfig.result_registers`; the
  writer reads one word a cycle, and gives the accumulators back with its last read: the tile after the next may
  start one cycle later. A word leaves `CoreConfig.read_delay` cycles after its read.

`gemm_timings` walks many GEMMs side by side, one tile of each at a time: every state below is an array with
one entry a GEMM, and NumPy's cost of a call is shared by all of them. The rules only add and take maxima, so once
all times of a GEMM have moved on together by the same amount from one output tile to the next, or from one token
block to the next, every later one repeats that: the rest is a multiplication, not a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from types import SimpleNamespace
from typing import Any

import numpy as np

from accel.causes import CAUSES
from accel.command import block_subtiles, wide_results
from accel.config import ConfigError, CoreConfig
from accel.image import act_port_bytes
from accel.memory import Memory
from accel.schedule import steps_per_group
from accel.stream import StreamLayout
from quant import NMPattern

#: Before, and after, every cycle of a GEMM.
_PAST, _FUTURE = -(1 << 40), 1 << 40

#: In place of a run's number: the period of a state is the same in all.
_ANY_RUN = -1

#: Causes that the walk counts, in the order of its counters; the rest of a GEMM's cycles are idle.
_COUNTED = ("busy", "wait_acts", "wait_weights", "wait_write", "wait_drain")
_BUSY, _ACTS, _WEIGHTS, _WRITE, _DRAIN = range(len(_COUNTED))


@dataclass(frozen=True)
class GemmTiming:
    """What a GEMM costs on the core."""

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
    #: Cycles until the last result is in memory; without a memory, ``cycles``.
    written: int
    #: Cycles in which the memory port moves words; 0 without a memory.
    memory_cycles: float

    @property
    def utilisation(self) -> float:
        """Share of lane cycles that had a value slot to work on, at most 1."""
        return self.ideal_cycles / self.cycles

    @property
    def bytes(self) -> int:
        """Bytes that memory moves, either way."""
        return self.weight_bytes + self.act_bytes + self.result_bytes


def gemm_timing(
    config: CoreConfig,
    layout: StreamLayout,
    tokens: int,
    *,
    wide: bool | None = None,
    memory: Memory | None = None,
) -> GemmTiming:
    """Cycles of a GEMM of ``tokens`` tokens with weights of the given layout; see `gemm_timings`."""
    return gemm_timings(config, [(layout, tokens)], wide=wide, memory=memory)[0]


def gemm_timings(
    config: CoreConfig,
    gemms: Sequence[tuple[StreamLayout, int]],
    *,
    wide: bool | None = None,
    memory: Memory | None = None,
) -> list[GemmTiming]:
    """Cycles of each of many GEMMs, every one on its own.

    Parameters
    ----------
    gemms
        Layout of the weights, and tokens, of each.
    wide
        As for `accel.command.commands_for`.
    memory
        The memory behind the streams; by default they never hold the core back.

    Raises
    ------
    ConfigError
        When a GEMM has no tokens, or ``wide`` is False but 32-bit results could overflow.
    """
    if not gemms:
        return []
    walk = _Walk(config, memory, [_facts(config, layout, tokens, wide) for layout, tokens in gemms])
    walk.run()
    return walk.timings()


# -- what the rules need to know of a GEMM -------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """A weight tile, whatever its place in the matrix."""

    steps: int
    slots: int
    beats: int
    #: Tiles that the weight buffer holds at once.
    room: int
    tile_bytes: int
    #: Entry h is for h bytes that each column holds over from the tile before: how many words the tile takes
    #: from the stream, the beat that takes the last one, and the number and beat of another word that beats
    #: after it may wait for.
    takes: tuple[tuple[int, int, int, int], ...]


@lru_cache(maxsize=4096)
def _tile(config: CoreConfig, pattern: NMPattern, group: int, header_bytes: int, code_bytes: int, slots: int) -> _Tile:
    width = config.slice_bytes
    value_bytes = -(-slots // 2)
    headers, codes, values = (-(-size // width) for size in (header_bytes, code_bytes, value_bytes))
    room = [config.header_slots, config.value_words // values]
    if codes:
        room.append(config.code_words // codes)
    sections = (header_bytes, code_bytes, value_bytes)
    return _Tile(
        steps=steps_per_group(pattern, group, config.lanes, config.window),
        slots=slots,
        beats=headers + codes + values,
        room=min(room),
        tile_bytes=sum(sections),
        takes=tuple(_takes(sections, width, held) for held in range(width)),
    )


def _takes(sections: tuple[int, ...], width: int, held: int) -> tuple[int, int, int, int]:
    """One entry of `_Tile.takes`.

    A beat moves up to ``width`` bytes of one section, and takes a word unless enough bytes are held. Words come at
    most one a cycle, so of the words that beats in a row take, the last is the latest. A row ends before a
    section's last beat if that finds its bytes held: before the header there is nothing, and after
    the values there is nothing to wait, so at most one row, that of header and codes, ends early. It ends within the
    header where slices of 2 bytes cut one of 3; then nothing is held at its end, and the codes' last beat takes a word.
    """
    taking = []
    beat = 0
    for size in sections:
        for start in range(0, size, width):
            amount = min(width, size - start)
            if held < amount:
                taking.append(beat)
                held += width
            held -= amount
            beat += 1
    if not taking:
        return 0, 0, 0, 0
    last = len(taking) - 1
    # Where no row ends early, the last word stands in: it holds nothing up that it does not hold up anyway.
    early = next((i for i in range(last) if taking[i + 1] != taking[i] + 1), last)
    return len(taking), taking[last], early, taking[early]


def _facts(config: CoreConfig, layout: StreamLayout, tokens: int, wide: bool | None) -> tuple[_Tile, tuple[int, ...]]:
    """A GEMM's tile, and its sizes in the order of `_SIZES`."""
    if tokens < 1:
        raise ConfigError(f"A GEMM needs at least one token, but {tokens} were given.")
    tile = _tile(config, layout.pattern, layout.group, layout.header_bytes, layout.code_bytes, layout.slots)
    return tile, (
        layout.groups,
        layout.out_tiles,
        tokens,
        config.k_words(layout.k_padded),
        block_subtiles(config, layout),
        wide_results(config, layout, wide),
    )


_SIZES = ("groups", "out_tiles", "tokens", "row_words", "block_subtiles", "wide")


# -- the walk ------------------------------------------------------------------------------------------------


class _Walk:
    """Walks the GEMMs to their ends, an output tile of each at a time.

    ``g`` holds what does not change, ``t`` where a GEMM stands; each of their members is an array with an
    entry or a row for each GEMM still on its way, those with most groups first.
    """

    #: Members of ``t`` that are cycles and move on with every output tile.
    TIMES = (
        "unpacked",  # last beat of the last weight tile
        "next_step",
        "last_step",  # of the last group
        "read_before",  # last read of the output tile before the last
        "read",  # last read of the last output tile
        "lasts",  # ring: last step of each tile that may still hold room in the weight buffer
        "issued",  # the last read burst
        "taken",  # last weight word taken so far
        "takes",  # ring: the same after each tile that may still hold room in the DMA
        "next_write",  # issue of the write burst that is the next to be served
        "writes",  # ring: issue of each write burst that waits
    )
    #: Cycles that move on with every token block only: of the last command, or of the last two; see `_take`.
    COMMAND_TIMES = ("accepted", "loader", "unpacker", "sequencer", "writer", "freed", "freed_before")

    def __init__(self, config: CoreConfig, memory: Memory | None, facts: list[tuple[_Tile, tuple[int, ...]]]) -> None:
        self.config, self.memory = config, memory
        sizes = np.array([sizes for _, sizes in facts], np.int64)
        order = np.argsort(-sizes[:, 0], kind="stable")
        tiles = [facts[i][0] for i in order]
        g: Any = SimpleNamespace(number=order)
        for name, column in zip(_SIZES, sizes[order].T, strict=True):
            setattr(g, name, np.ascontiguousarray(column))
        for name in ("steps", "slots", "beats", "room", "tile_bytes", "takes"):
            setattr(g, name, np.array([getattr(tile, name) for tile in tiles], np.int64))
        block_tokens = config.rows * g.block_subtiles
        g.blocks = -(-g.tokens // block_tokens)
        last_tokens = g.tokens - (g.blocks - 1) * block_tokens
        g.last_subtiles = -(-last_tokens // config.rows)
        g.last_rows = last_tokens - (g.last_subtiles - 1) * config.rows
        if memory is not None:
            g.depth = np.array([memory.depth(tile.tile_bytes * config.columns) for tile in tiles], np.int64)
        self.g = g
        self._clock_memory()
        self.all = SimpleNamespace(**vars(g))
        count = len(facts)
        self.ends = np.zeros((count, 2 + len(_COUNTED)), np.int64)  # cycles, written, counters
        self._start(count)

    def _clock_memory(self) -> None:
        """Ticks of the memory port: whole parts of a cycle, and words take whole numbers of them."""
        config, memory = self.config, self.memory
        sizes = (config.word_bytes, config.act_ports * act_port_bytes(config), *_result_word_bytes(config))
        self.word_bytes = np.array(sizes)
        if memory is None:
            return
        cycles = [memory.word_cycles(size) for size in sizes]
        self.ticks = lcm(*(word.denominator for word in cycles))
        self.weight_ticks, self.act_ticks, narrow, wide = (int(word * self.ticks) for word in cycles)
        self.g.result_ticks = np.where(self.g.wide, wide, narrow)

    def _start(self, count: int) -> None:
        def every(value: int, width: int | None = None) -> np.ndarray:
            return np.full(count if width is None else (count, width), value, np.int64)

        t: Any = SimpleNamespace()
        t.block, t.out_tile, t.walked = every(0), every(0), every(0)
        t.counters = every(0, len(_COUNTED))
        t.subtiles, t.rows, t.tokens = every(0), every(0), every(0)  # of the token block; rows of its last subtile
        t.unpacked, t.next_step, t.last_step = every(0), every(0), every(_PAST)
        t.length = every(1)  # partials on a chain, of the last group
        t.read_before, t.read = every(_PAST), every(_PAST)
        room = int(self.g.room.max())
        t.lasts = every(_PAST, room)
        t.accepted = every(-1)
        t.loader, t.unpacker, t.sequencer, t.writer = (every(_PAST, 3) for _ in range(4))
        t.freed, t.freed_before = every(_PAST), every(_PAST)  # when the last blocks' activations gave room back
        t.acts_ready, t.write_from = every(0), every(0)
        if self.memory is not None:
            depth = int(self.g.depth.max())
            t.port = every(0)  # tick at which it is free
            t.follows = np.zeros(count, bool)  # its last burst was of weights of the same output tile
            t.issued, t.taken, t.takes = every(0), every(_PAST), every(_PAST, depth)
            # As many writes wait as output tiles whose weights may have been asked for before them.
            waiting = room + depth + 8
            t.next_write, t.writes, t.write_ticks = every(_FUTURE), every(_FUTURE, waiting), every(0, waiting)
            t.served, t.queued = every(0), every(0)
        # States that a GEMM was in after an output tile, and before a token block; see `_skip`.
        t.tile_states, t.block_states = (np.array([{} for _ in range(count)], object) for _ in range(2))
        self.t = t

    def run(self) -> None:
        while len(self.g.number):
            self._begin_blocks(np.flatnonzero(self.t.out_tile == 0))
            self._walk_groups()
            self._end_out_tiles()
            self._end_blocks(np.flatnonzero(self.t.out_tile == self.g.out_tiles))

    # -- token blocks --------------------------------------------------------------------------------------

    def _begin_blocks(self, i: np.ndarray) -> None:
        """Accept the command of the next block of GEMMs ``i``, and load its activations."""
        if not len(i):
            return
        g, t, config = self.g, self.t, self.config
        self._skip_blocks(i)
        last = t.block[i] == g.blocks[i] - 1
        t.subtiles[i] = np.where(last, g.last_subtiles[i], g.block_subtiles[i])
        t.rows[i] = np.where(last, g.last_rows[i], config.rows)
        t.tokens[i] = (t.subtiles[i] - 1) * config.rows + t.rows[i]
        units = (t.loader, t.unpacker, t.sequencer, t.writer)
        # A queue of two has room again once the command before the last has been taken.
        accepted = np.maximum.reduce([t.accepted[i] + 1, *(unit[i, 0] + 1 for unit in units)])
        t.accepted[i] = accepted
        load_from, unpack_from, step_from, write_from = (self._take(unit, i, accepted) for unit in units)

        # Room in the activation buffer: how many whole blocks may stay in it beside this one.
        stay = (config.act_words - t.subtiles[i] * g.row_words[i]) // (g.block_subtiles[i] * g.row_words[i])
        load_from = np.where(stay < 1, np.maximum(load_from, t.freed[i]), load_from)
        load_from = np.where(stay < 2, np.maximum(load_from, t.freed_before[i]), load_from)
        words = _act_words(config, t.subtiles[i], t.rows[i], g.row_words[i])
        if self.memory is None:
            loaded = load_from + words - 1
        else:
            t.issued[i] = issue = np.maximum(t.issued[i], load_from)
            t.follows[i] = False
            t.port[i] = self._read_from(i, issue) + words * self.act_ticks
            loaded = self._cycle(t.port[i]) + self.memory.latency
        t.loader[i, 2] = loaded + 1
        t.acts_ready[i] = loaded + 2
        t.unpacked[i] = np.maximum(t.unpacked[i], unpack_from - 1)
        t.next_step[i] = step_from
        t.write_from[i] = write_from

    @staticmethod
    def _take(unit: np.ndarray, i: np.ndarray, accepted: np.ndarray) -> np.ndarray:
        """Cycle in which a unit's work on a command begins; its columns: the last two commands taken, when free."""
        taken = np.maximum(accepted + 1, unit[i, 2])
        unit[i, 0] = unit[i, 1]
        unit[i, 1] = taken
        return taken + 1

    def _end_blocks(self, i: np.ndarray) -> None:
        if not len(i):
            return
        g, t = self.g, self.t
        t.unpacker[i, 2] = t.unpacked[i] + 1
        t.sequencer[i, 2] = t.last_step[i] + 1
        t.writer[i, 2] = t.read[i] + 1
        t.freed_before[i] = t.freed[i]
        t.freed[i] = t.last_step[i] + 4 + self.config.window_registers
        t.block[i] += 1
        t.out_tile[i] = 0
        ended = i[t.block[i] == g.blocks[i]]
        if not len(ended):
            return
        number = g.number[ended]
        self.ends[number, 0] = self.ends[number, 1] = t.read[ended] + self.config.read_delay + 1
        self.ends[number, 2:] = t.counters[ended]
        if self.memory is not None:
            waiting = ended
            while len(waiting := waiting[t.served[waiting] < t.queued[waiting]]):
                self._serve_write(waiting)
            self.ends[number, 1] = self._cycle(t.port[ended])
        going = np.ones(len(g.number), bool)
        going[ended] = False
        for members in (g, t):
            for name, value in vars(members).items():
                setattr(members, name, value[going])

    # -- output tiles --------------------------------------------------------------------------------------

    def _walk_groups(self) -> None:
        """Walk an output tile of every GEMM, group by group."""
        groups = self.g.groups
        for group, count in enumerate(np.searchsorted(-groups, -np.arange(groups[0]), side="left")):
            self._walk_tile(group, int(count))

    def _walk_tile(self, group: int, count: int) -> None:
        """Walk weight tile ``group`` of the output tile of the first ``count`` GEMMs."""
        g, t, n = self.g, self.t, slice(0, count)
        number = np.arange(count)
        walked = t.walked[n]
        held_by = t.lasts[number, (walked - g.room[n]) % t.lasts.shape[1]]
        start = np.maximum(t.unpacked[n] + 1, held_by + self.config.columns + 2)
        end = start + g.beats[n] - 1 if self.memory is None else self._fetch(group, n, number, start)
        t.unpacked[n] = end

        now = t.next_step[n]
        waits = [(_WEIGHTS, end + self.config.tile_delay)]
        if group == 0:
            acts_ready = np.where(t.out_tile[n] == 0, t.acts_ready[n], _PAST)
            waits = [(_ACTS, acts_ready), *waits, (_WRITE, t.read_before[n] + 1)]
        for cause, ready in waits:
            late = np.maximum(ready - now, 0)
            t.counters[n, cause] += late
            now = now + late
        # The last steps of a tile's groups, one a subtile, follow each other by the steps or by the partials of
        # a chain, whichever are more; the first one follows the last one of the tile before.
        steps, subtiles = g.steps[n], t.subtiles[n]
        begin = now + steps - 1
        first = np.maximum(begin, t.last_step[n] + t.length[n])
        lost = np.maximum(self._chain(self.config.rows) - steps, 0)
        t.counters[n, _DRAIN] += first - begin + (subtiles - 1) * lost
        t.counters[n, _BUSY] += subtiles * steps
        last = first + (subtiles - 1) * (steps + lost)
        t.last_step[n] = last
        t.length[n] = self._chain(t.rows[n])
        t.next_step[n] = last + 1
        t.lasts[number, walked % t.lasts.shape[1]] = last
        t.walked[n] += 1

    def _fetch(self, group: int, n: slice, number: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Fetch the weight tile's words from memory; returns its last beat when it may start at ``start``."""
        g, t, memory, width = self.g, self.t, self.memory, self.config.slice_bytes
        assert memory is not None
        place = t.out_tile[n] * g.groups[n] + group
        words, last_beat, early, early_beat = g.takes[number, -place * g.tile_bytes[n] % width].T
        some = words > 0
        ring, walked = t.takes.shape[1], t.walked[n]
        issue = np.maximum(t.issued[n], t.takes[number, (walked - g.depth[n]) % ring] + 1)
        if group == 0:
            t.follows[n] = False
        begin = self._read_from(number, issue, some)
        last_word = self._cycle(begin + words * self.weight_ticks) + memory.latency
        early_word = self._cycle(begin + (early + 1) * self.weight_ticks) + memory.latency
        taken = np.maximum(np.maximum(start + last_beat, last_word), early_word + last_beat - early_beat)
        t.port[n] = np.where(some, begin + words * self.weight_ticks, t.port[n])
        t.issued[n] = np.where(some, issue, t.issued[n])
        t.taken[n] = np.where(some, taken, t.taken[n])
        t.follows[n] |= some
        t.takes[number, walked % ring] = t.taken[n]
        return np.where(some, taken + g.beats[n] - 1 - last_beat, start + g.beats[n] - 1)

    def _end_out_tiles(self) -> None:
        """Write the output tile of every GEMM, and leave out those that repeat it."""
        g, t, config = self.g, self.t, self.config
        readable = t.last_step + config.result_registers + t.length + config.columns + 6
        words = t.tokens * config.column_groups
        first = np.maximum(np.maximum(readable, t.read + 1), t.write_from)
        t.read_before = t.read
        t.read = first + words - 1
        if self.memory is not None:
            number = np.arange(len(t.queued))
            place = t.queued % t.writes.shape[1]
            t.writes[number, place] = t.read + config.read_delay + 1
            t.write_ticks[number, place] = words * g.result_ticks
            t.next_write = np.where(t.served == t.queued, t.read + config.read_delay + 1, t.next_write)
            t.queued += 1
        t.out_tile += 1
        self._skip_out_tiles(np.flatnonzero(t.out_tile < g.out_tiles - 1))

    def _chain(self, rows: Any) -> Any:
        """Partials on a chain."""
        return -(-rows // self.config.drain_chains)

    # -- memory --------------------------------------------------------------------------------------------

    def _read_from(self, i: np.ndarray, issue: np.ndarray, some: np.ndarray | bool = True) -> np.ndarray:
        """Tick at which reads that GEMMs ``i`` issue begin, after all writes that wait by then.

        Where ``some`` is False there is no read, and writes go on waiting.
        """
        t = self.t
        while True:
            begin = np.maximum(t.port[i], issue * self.ticks)
            begin = np.where(t.follows[i], begin, self._whole(begin))
            first = (t.next_write[i] * self.ticks <= begin) & some
            if not first.any():
                return begin
            self._serve_write(i[first])

    def _serve_write(self, i: np.ndarray) -> None:
        """Serve the next write of GEMMs ``i``."""
        t = self.t
        ring = t.writes.shape[1]
        begin = self._whole(np.maximum(t.port[i], t.next_write[i] * self.ticks))
        t.port[i] = begin + t.write_ticks[i, t.served[i] % ring]
        t.follows[i] = False
        t.served[i] += 1
        t.next_write[i] = np.where(t.served[i] < t.queued[i], t.writes[i, t.served[i] % ring], _FUTURE)

    def _cycle(self, ticks: np.ndarray) -> np.ndarray:
        """The cycle that begins at or after a tick."""
        return -(-ticks // self.ticks)

    def _whole(self, ticks: np.ndarray) -> np.ndarray:
        """The tick at which that cycle begins."""
        return self._cycle(ticks) * self.ticks

    # -- steady state --------------------------------------------------------------------------------------

    def _skip_out_tiles(self, i: np.ndarray) -> None:
        """Leave out the output tiles of GEMMs ``i`` that only repeat what has been."""
        t = self.t
        state = np.column_stack([self._state(i), t.subtiles[i], t.rows[i]])
        left = self.g.out_tiles[i] - t.out_tile[i]
        t.out_tile[i] += self._skip(i, state, t.block[i], t.out_tile[i], left, t.tile_states, self.TIMES)

    def _skip_blocks(self, i: np.ndarray) -> None:
        """Leave out the token blocks of GEMMs ``i`` that only repeat what has been; the very last may differ."""
        t = self.t
        state = np.concatenate([self._state(i), self._command_state(i)], axis=1)
        left = self.g.blocks[i] - 1 - t.block[i]
        whole = np.zeros(len(i), np.int64)
        times = self.TIMES + self.COMMAND_TIMES
        t.block[i] += self._skip(i, state, whole, t.block[i], left, t.block_states, times)

    def _skip(
        self,
        i: np.ndarray,
        state: np.ndarray,
        run: np.ndarray,
        done: np.ndarray,
        left: np.ndarray,
        seen: np.ndarray,
        times: tuple[str, ...],
    ) -> np.ndarray:
        """Move GEMMs ``i`` on by whole periods if they have been in their state before; returns by how much.

        Parameters
        ----------
        state
            All that their future depends on, one row each.
        run
            Which run of output tiles or blocks without a break this is.
        done, left
            Output tiles or blocks of the run before, and from here to the last that may be left out.
        seen
            For each GEMM the states that it was in, by their hash. With a state that came again in one run, the
            period in which it does; with any other the run, and done, next step and counters then.
        """
        t = self.t
        # Two sums with random factors modulo 2^64 tell states apart; that two differ and their sums do not has
        # a chance of about 2^-126.
        factors = np.random.default_rng(0).integers(-(1 << 63), 1 << 63, (state.shape[1], 2))
        moves = []
        keys = map(tuple, (state @ factors).tolist())
        stands = np.column_stack([done, t.next_step[i], t.counters[i]])
        rows = zip(keys, run.tolist(), left.tolist(), stands, seen[i], strict=True)
        for row, (key, this_run, more, stand, states) in enumerate(rows):
            if more <= 0:
                continue
            earlier_run, period = states.get(key, (None, None))
            if earlier_run == this_run:
                earlier_run, period = states[key] = (_ANY_RUN, stand - period)
            if earlier_run != _ANY_RUN:
                states[key] = (this_run, stand)
            elif repeats := more // period[0]:
                moves.append((row, repeats, *period))
        skipped = np.zeros(len(i), np.int64)
        if moves:
            row, repeats, period, cycles, *counted = np.array(moves).T
            skipped[row] = repeats * period
            i, move = i[row], repeats * cycles
            t.counters[i] += (repeats * counted).T
            for name in times:
                if hasattr(t, name):
                    values = getattr(t, name)
                    values[i] += move if values.ndim == 1 else move[:, None]
            if self.memory is not None:
                t.port[i] += move * self.ticks
        return skipped

    def _state(self, i: np.ndarray) -> np.ndarray:
        """All that the future of GEMMs ``i`` depends on, in cycles from the next step.

        A time that can no longer hold anything up counts as the latest one of that kind.
        """
        g, t = self.g, self.t
        now = t.next_step[i]
        unpacked = t.unpacked[i]
        lasts = _by_age(t.lasts, i, t.walked[i])
        parts = [
            unpacked - now,
            t.last_step[i] + t.length[i] - now,
            np.maximum(t.read_before[i] - now, -1),
            np.maximum(t.read[i] - now, -1),
            *(np.maximum(lasts, unpacked - self.config.columns - 1) - now),
        ]
        if self.memory is not None:
            port = self._cycle(t.port[i])
            issued = np.maximum(t.issued[i], port)
            waiting = np.arange(t.writes.shape[1])[:, None]
            place = (t.served[i] + waiting) % t.writes.shape[1]
            waits = waiting < t.queued[i] - t.served[i]
            parts += [
                np.maximum(port, np.minimum(t.issued[i], t.next_write[i])) - now,
                issued - now,
                g.groups[i] * g.tile_bytes[i] * t.out_tile[i] % self.config.slice_bytes,  # how far into a word
                *(np.maximum(_by_age(t.takes, i, t.walked[i]), issued - 1) - now),
                *np.where(waits, np.maximum(t.writes[i, place], port) - now, _PAST),
                *np.where(waits, t.write_ticks[i, place], 0),
            ]
        return np.stack(parts, axis=1)

    def _command_state(self, i: np.ndarray) -> np.ndarray:
        """The same of their commands."""
        t = self.t
        accepted = t.accepted[i]
        parts = [accepted]
        for unit in (t.loader, t.unpacker, t.sequencer, t.writer):
            parts += [np.maximum(unit[i, column], accepted + column) for column in range(3)]
        parts += [np.maximum(freed[i], accepted + 3) for freed in (t.freed, t.freed_before)]
        return np.column_stack(parts) - t.next_step[i][:, None]

    # -- the result ----------------------------------------------------------------------------------------

    def timings(self) -> list[GemmTiming]:
        """The timings, in the order in which the GEMMs were given."""
        config, g = self.config, self.all
        order = np.argsort(g.number)
        subtiles = (g.blocks - 1) * g.block_subtiles + g.last_subtiles
        ideal = -(-g.out_tiles * g.groups * g.slots * subtiles // config.lanes)
        weights = -(-g.out_tiles * g.groups * g.tile_bytes // config.slice_bytes) * g.blocks
        acts = (g.blocks - 1) * _act_words(config, g.block_subtiles, config.rows, g.row_words)
        acts += _act_words(config, g.last_subtiles, g.last_rows, g.row_words)
        results = g.tokens * g.out_tiles * config.column_groups
        weight_bytes, act_bytes, *result_bytes = self.word_bytes
        sizes = np.column_stack(
            [ideal, weights * weight_bytes, acts * act_bytes, results * np.where(g.wide, *reversed(result_bytes))]
        )
        ports = np.zeros(len(order))
        if self.memory is not None:
            ports = (weights * self.weight_ticks + acts * self.act_ticks + results * g.result_ticks) / self.ticks
        timings = []
        for (cycles, written, *counted), (ideal_cycles, weight, act, result), port in zip(
            self.ends.tolist(), sizes[order].tolist(), ports[order].tolist(), strict=True
        ):
            counters = dict(zip(CAUSES, (cycles - sum(counted), *counted), strict=True))
            timings.append(GemmTiming(cycles, counters, ideal_cycles, weight, act, result, written, port))
        return timings


def _by_age(ring: np.ndarray, i: np.ndarray, entered: np.ndarray) -> np.ndarray:
    """Entries of the rings of GEMMs ``i``, the last one entered first, one row for each age."""
    return ring[i, (entered - 1 - np.arange(ring.shape[1])[:, None]) % ring.shape[1]]


def _act_words(config: CoreConfig, subtiles: Any, last_rows: Any, row_words: Any) -> Any:
    """Activation words of a token block."""
    full, last = (-(-rows // config.act_ports) for rows in (config.rows, last_rows))
    return ((subtiles - 1) * full + last) * row_words


def _result_word_bytes(config: CoreConfig) -> tuple[int, int]:
    """Bytes of a result word in memory: of 32 and of 64 bits a result."""
    return 4 * config.result_lanes, 8 * config.result_lanes
