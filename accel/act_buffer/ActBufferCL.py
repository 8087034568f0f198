"""Activation buffer and its loader, cycle level: whole token blocks in, the windows of a whole group out."""

from __future__ import annotations

import numpy as np
from pymtl3 import Component, mk_bits, update_ff

from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import DelayPipe, command_layout, command_tokens, read_command
from accel.image import act_port_bytes, read_activations
from accel.interfaces import RecvIfcRTL, VectorRecvIfcRTL


class ActLoaderCL(Component):
    """Takes activation words; a token block starts to load when the ring has room for all of it."""

    def construct(s, config: CoreConfig):
        # Constants
        s.config = config
        s.port_bytes = act_port_bytes(config)

        # Interface
        s.command = RecvIfcRTL(mk_command_msg(config))
        s.acts = VectorRecvIfcRTL(mk_bits(config.act_port_bits), config.act_ports)

        # Links
        s.freed = DelayPipe()  # in: words of a token block that nobody reads again
        s.block = DelayPipe()  # out: int64 [K of a group, tokens] of each group of a token block
        s.block_ready = DelayPipe()  # out: a token block is complete

        # State
        s.restart()

        @update_ff
        def ff_loader():
            if s.reset:
                s.restart()
            else:
                s.advance()
            s.command.rdy <<= not s.busy
            s.acts.rdy <<= s.busy and s.room

    def restart(s):
        """State after reset."""
        s.now = 0
        s.busy = False
        s.cmd = None
        s.started = False  # the block has its room
        s.room = False
        s.took = False  # a word in the cycle before `now`
        s.free = s.config.act_words
        s.words_left = 0
        s.image = bytearray()
        for link in (s.freed, s.block, s.block_ready):
            link.clear()

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        s.took = s.busy and s.room and bool(s.acts.val)
        if s.took:
            s.take_word()
        elif not s.busy and s.command.val:
            s.take_command()
        while s.freed.arrived(s.now):
            s.free += s.freed.take(s.now)
        s.room = s.busy and (s.started or s.free >= s.cmd.block_words)

    def take_command(s):
        s.busy, s.started = True, False
        s.cmd = read_command(s.command.msg)
        full, last = -(-s.config.rows // s.config.act_ports), -(-s.cmd.last_rows // s.config.act_ports)
        s.words_left = ((s.cmd.subtiles - 1) * full + last) * s.cmd.row_words

    def take_word(s):
        if not s.started:
            s.started = True
            s.free -= s.cmd.block_words
        for port in s.acts.msg:
            s.image += int(port).to_bytes(s.port_bytes, "little")
        s.words_left -= 1
        if s.words_left == 0:
            s.finish_block()

    def finish_block(s):
        """The block is usable two cycles after its last word."""
        layout = command_layout(s.config, s.cmd, s.cmd.groups)
        acts = read_activations(s.config, layout, command_tokens(s.config, s.cmd), bytes(s.image))
        by_group = acts[:, : layout.k_padded].T.reshape(layout.groups, layout.group, -1)
        s.block.post(s.now + 1, (np.ascontiguousarray(by_group), s.cmd.block_words))
        s.block_ready.post(s.now + 1)
        s.image.clear()
        s.busy = False

    def line_trace(s):
        return f"a{'*' if s.took else '#' if s.busy else '.'}"


class ActBufferCL(Component):
    """Gives the windows of a group's steps on a token subtile, and the block's room back after its last."""

    def construct(s, config: CoreConfig):
        # Constants
        s.registers = config.window_registers

        # Links
        s.block = DelayPipe()  # in: token blocks, from the loader
        s.steps = DelayPipe()  # in: GroupSteps
        s.windows = DelayPipe()  # out: GroupSteps, and their activations int64 [K of a group, rows]
        s.freed = DelayPipe()  # out: words of a token block that nobody reads again

        # State
        s.restart()

        @update_ff
        def ff_buffer():
            if s.reset:
                s.restart()
            else:
                s.advance()

    def restart(s):
        """State after reset."""
        s.now = 0
        s.present = None
        for link in (s.block, s.steps, s.windows, s.freed):
            link.clear()

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        while s.steps.arrived(s.now):
            steps = s.steps.take(s.now)
            if s.present is None:
                s.present = s.block.take(s.now)
            acts, words = s.present
            s.windows.post(s.now + 1, (steps, acts[steps.group, :, steps.row : steps.row + steps.rows]))
            if steps.block_last:
                # The address of the last window is out three cycles after its step, and as many more as weights
                # take to be decoded; room is there a cycle later.
                s.freed.post(s.now + 3 + s.registers, words)
                s.present = None
