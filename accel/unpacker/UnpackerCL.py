"""Unpacker, cycle level: counts beats as `UnpackerRTL` does, and hands each column its tiles taken apart."""

from __future__ import annotations

import numpy as np
from pymtl3 import Component, mk_bits, update_ff

from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import DelayPipe, TileColumn, command_layout, read_command
from accel.interfaces import RecvIfcRTL, VectorRecvIfcRTL
from accel.stream import take_apart

IDLE, HEADER, CODES, VALUES = range(4)


class UnpackerCL(Component):
    """Takes a beat a cycle; a tile starts when the weight buffers have room for all of it."""

    def construct(s, config: CoreConfig):
        # Constants
        s.config = config

        # Interface
        s.command = RecvIfcRTL(mk_command_msg(config))
        s.weights = VectorRecvIfcRTL(mk_bits(config.slice_bits), config.columns)

        # Links
        s.left_columns = DelayPipe()  # in: GroupSteps that have left the last column
        s.tile = [DelayPipe() for _ in range(config.columns)]  # out: a TileColumn for each column
        s.tile_ready = DelayPipe()  # out: a tile is complete in all columns

        # State
        s.restart()

        @update_ff
        def ff_unpacker():
            if s.reset:
                s.restart()
            else:
                s.advance()
            s.command.rdy <<= s.section == IDLE
            s.weights.rdy <<= s.section != IDLE and s.room and s.need

    def restart(s):
        """State after reset."""
        config = s.config
        s.now = 0
        s.section = IDLE
        s.cmd = None
        s.started = False  # the tile has its room
        s.beat = False  # in the cycle before `now`
        s.left = 0  # bytes left of the section
        s.tiles_left = 0
        s.held = 0  # bytes of the last word that no section has taken yet
        s.take_bytes = 0  # in the next beat
        s.need = s.room = False
        s.code_free, s.value_free, s.header_free = config.code_words, config.value_words, config.header_slots
        s.in_buffer = []  # slices of code words and value words of the tiles that take up room
        s.words = []  # words of the tile, a list of slices each
        s.rest = np.empty((config.columns, 0), np.uint8)  # the held bytes of each column before them
        for link in (s.left_columns, s.tile_ready, *s.tile):
            link.clear()

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        s.beat = s.section != IDLE and s.room and (not s.need or bool(s.weights.val))
        if s.section == IDLE:
            if s.command.val:
                s.take_command()
        elif s.beat:
            s.move()
        while s.left_columns.arrived(s.now):
            steps, _ = s.left_columns.take(s.now)
            if steps.tile_last:
                code_words, value_words = s.in_buffer.pop(0)
                s.code_free += code_words
                s.value_free += value_words
                s.header_free += 1
        if s.section != IDLE:
            s.take_bytes = min(s.left, s.config.slice_bytes)
            s.need = s.held < s.take_bytes
            s.room = s.started or (
                s.code_free >= s.cmd.code_words and s.value_free >= s.cmd.value_words and s.header_free > 0
            )

    def take_command(s):
        s.cmd = read_command(s.command.msg)
        s.layout = command_layout(s.config, s.cmd, 1)
        s.tiles_left = s.cmd.groups * s.cmd.out_tiles
        s.section, s.left = HEADER, s.layout.header_bytes
        # The last word of a GEMM may hold padding bytes, which the next GEMM must not see.
        s.held = 0
        s.rest = s.rest[:, :0]

    def move(s):
        """One beat."""
        if s.need:
            s.words.append([int(port) for port in s.weights.msg])
            s.held += s.config.slice_bytes
        s.held -= s.take_bytes
        s.left -= s.take_bytes
        if not s.started:
            s.started = True
            s.in_buffer.append((s.cmd.code_words, s.cmd.value_words))
            s.code_free -= s.cmd.code_words
            s.value_free -= s.cmd.value_words
            s.header_free -= 1
        if s.left == 0:
            if s.section == VALUES:
                s.finish_tile()
            elif s.section == HEADER and s.cmd.code_bytes:
                s.section, s.left = CODES, s.cmd.code_bytes
            else:
                s.section, s.left = VALUES, s.cmd.value_bytes

    def finish_tile(s):
        """Take the tile apart; it is usable `CoreConfig.tile_delay` cycles after its last beat."""
        columns, slice_bytes = s.config.columns, s.config.slice_bytes
        words = np.array(s.words, f"<u{slice_bytes}").reshape(-1, columns).view(np.uint8)
        words = words.reshape(-1, columns, slice_bytes).transpose(1, 0, 2).reshape(columns, -1)
        streams = np.concatenate([s.rest, words], axis=1)
        size = s.layout.tile_bytes
        parts = take_apart(streams[:, None, :size], s.layout)
        weight = parts.nibble[:, 0].astype(np.int64)
        if s.layout.asymmetric:
            weight -= parts.zero_point
        else:
            weight = np.where(weight > 7, weight - 16, weight)
        scales = parts.scale[:, 0].tolist()
        for column, link in enumerate(s.tile):
            link.post(s.now + 1, TileColumn(weight[column], parts.position[column, 0], scales[column]))
        s.tile_ready.post(s.now + s.config.tile_delay - 1)
        s.words.clear()
        s.rest = streams[:, size:]
        s.started = False
        s.tiles_left -= 1
        s.section, s.left = (HEADER, s.layout.header_bytes) if s.tiles_left else (IDLE, 0)

    def line_trace(s):
        return f"{'.HCV'[s.section]}{'*' if s.beat else '#' if s.section != IDLE else ' '}"
