"""Sequencer, cycle level: the same causes cycle by cycle, but steps are only counted; a group is sent whole."""

from __future__ import annotations

from pymtl3 import Component, OutPort, update_ff

from accel.causes import CAUSES
from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import DelayPipe, GroupSteps, read_command
from accel.interfaces import RecvIfcRTL
from accel.schedule import steps_per_group
from quant import NMPattern

IDLE, BUSY, WAIT_ACTS, WAIT_WEIGHTS, WAIT_WRITE, WAIT_DRAIN = range(len(CAUSES))


class SequencerCL(Component):
    """Walks output tiles, groups and token subtiles, a step a cycle."""

    def construct(s, config: CoreConfig):
        # Constants
        s.config = config

        # Interface
        s.command = RecvIfcRTL(mk_command_msg(config))
        s.cause = OutPort(3)

        # Links
        s.tile_ready = DelayPipe()  # in
        s.block_ready = DelayPipe()  # in
        s.half_free = DelayPipe()  # in
        s.steps = DelayPipe()  # out: GroupSteps

        # State
        s.restart()

        @update_ff
        def ff_sequencer():
            if s.reset:
                s.restart()
            else:
                s.advance()
            s.command.rdy <<= not s.running
            s.cause <<= s.doing

    def restart(s):
        """State after reset."""
        s.now = 0
        s.running = False
        s.cmd = None
        s.doing = IDLE  # cause of the cycle `now`
        s.tiles_left = 0  # output tiles
        s.group = s.subtile = 0
        s.steps_each = s.steps_left = 0  # in a group
        s.chain_free = 0  # first cycle in which a group may end
        s.tiles_ready = s.blocks_ready = 0
        s.halves_free = 2
        for link in (s.tile_ready, s.block_ready, s.half_free, s.steps):
            link.clear()

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        if s.running:
            s.running = s.tiles_left > 0
        elif s.command.val:
            s.take_command()
        while s.tile_ready.arrived(s.now):
            s.tile_ready.take(s.now)
            s.tiles_ready += 1
        while s.block_ready.arrived(s.now):
            s.block_ready.take(s.now)
            s.blocks_ready += 1
        while s.half_free.arrived(s.now):
            s.half_free.take(s.now)
            s.halves_free += 1
        s.doing = s.step() if s.running else IDLE

    def take_command(s):
        s.running = True
        s.cmd = read_command(s.command.msg)
        group = s.cmd.slots // s.cmd.n * s.cmd.m
        pattern = NMPattern(s.cmd.n, s.cmd.m)
        s.steps_each = s.steps_left = steps_per_group(pattern, group, s.config.lanes, s.config.window)
        s.tiles_left = s.cmd.out_tiles

    def step(s):
        """Issue a step in the cycle `now` if nothing is in its way; the cause of that cycle."""
        if not s.blocks_ready:
            return WAIT_ACTS
        if not s.tiles_ready:
            return WAIT_WEIGHTS
        if not s.halves_free:
            return WAIT_WRITE
        if s.steps_left > 1:
            s.steps_left -= 1
        elif s.now < s.chain_free:
            return WAIT_DRAIN
        else:
            s.end_group()
        return BUSY

    def end_group(s):
        """The last step of a group on a token subtile."""
        rows = s.config.rows
        last_subtile = s.subtile == s.cmd.subtiles - 1
        out_tile_last = last_subtile and s.group == s.cmd.groups - 1
        block_last = out_tile_last and s.tiles_left == 1
        rows_here = s.cmd.last_rows if last_subtile else rows
        length = -(-rows_here // s.config.drain_chains)
        steps = GroupSteps(s.group, s.subtile * rows, rows_here, length, last_subtile, out_tile_last, block_last)
        s.steps.post(s.now + 1, steps)
        # Partials of a group leave their chain in `length` cycles; the next group may end no sooner.
        s.chain_free = s.now + length
        s.steps_left = s.steps_each
        s.subtile += 1
        if last_subtile:
            s.subtile = 0
            s.tiles_ready -= 1
            s.group += 1
        if out_tile_last:
            s.group = 0
            s.halves_free -= 1
            s.tiles_left -= 1
        if block_last:
            s.blocks_ready -= 1

    def line_trace(s):
        return f"{CAUSES[s.doing][-7:]:>7}"
