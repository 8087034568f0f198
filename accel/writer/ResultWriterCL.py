"""Result writer, cycle level: makes the words of a finished output tile at once, and sends them one by one."""

from __future__ import annotations

from collections import deque

import numpy as np
from pymtl3 import Component, mk_bits, update_ff

from accel.config import RESULT_BITS, CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import DelayPipe, command_layout, read_command
from accel.image import pack_results
from accel.interfaces import RecvIfcRTL, SendIfcRTL
from accel.writer.ResultWriterRTL import queue_words


class ResultWriterCL(Component):
    """Reads a word a cycle while its queue has room; a word may leave `CoreConfig.read_delay` cycles after."""

    def construct(s, config: CoreConfig):
        # Constants
        s.config = config

        # Interface
        s.command = RecvIfcRTL(mk_command_msg(config))
        s.results = SendIfcRTL(mk_bits(RESULT_BITS * config.result_lanes))

        # Links
        s.finished_tile = [DelayPipe() for _ in range(config.columns)]  # in: a column's results, int64 [tokens]
        s.half_free = DelayPipe()  # out: the last result of an output tile has been read
        s.finished = DelayPipe()  # out: the last result word of a command has left

        # State
        s.restart()

        @update_ff
        def ff_writer():
            if s.reset:
                s.restart()
            else:
                s.advance()
            s.results.val <<= s.val
            s.results.msg <<= s.queue[0][1] if s.val else 0
            s.command.rdy <<= not s.busy

    def restart(s):
        """State after reset."""
        s.now = 0
        s.busy = False
        s.cmd = None
        s.tiles_left = 0  # output tiles
        s.words = deque()  # of the output tile that is read, those that are left
        s.queue = deque()  # words read: from which cycle on each may leave, the word, is it the command's last
        s.credits = queue_words(s.config)
        s.val = False
        s.issue = False  # a read in the cycle `now`
        for link in (*s.finished_tile, s.half_free, s.finished):
            link.clear()

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        if s.val and s.results.rdy:
            _, _, last = s.queue.popleft()
            s.credits += 1
            if last:
                s.finished.post(s.now + 1)
        if s.busy:
            s.busy = s.tiles_left > 0
        elif s.command.val:
            s.busy = True
            s.cmd = read_command(s.command.msg)
            s.tiles_left = s.cmd.out_tiles
        # All columns have finished a tile when the last one has.
        s.issue = s.busy and s.credits > 0 and (bool(s.words) or s.finished_tile[-1].arrived(s.now))
        if s.issue:
            s.read()
        s.val = bool(s.queue) and s.queue[0][0] <= s.now

    def read(s):
        if not s.words:
            s.words.extend(s.tile_words())
        word = s.words.popleft()
        s.credits -= 1
        if not s.words:
            s.half_free.post(s.now + 1)
            s.tiles_left -= 1
        s.queue.append((s.now + s.config.read_delay, word, s.tiles_left == 0))

    def tile_words(s):
        """Words of the output tile that all columns have finished."""
        y = np.stack([link.take(s.now) for link in s.finished_tile], axis=1)
        image = pack_results(s.config, command_layout(s.config, s.cmd, 1), y, wide=bool(s.cmd.wide))
        size = s.config.result_lanes * (8 if s.cmd.wide else 4)
        return [int.from_bytes(image[i : i + size], "little") for i in range(0, len(image), size)]

    def line_trace(s):
        return f"w{'*' if s.issue else '#' if s.busy else '.'}"
