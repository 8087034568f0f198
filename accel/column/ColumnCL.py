"""One column of the core, cycle level: a whole group on a token subtile at a time, exact integers."""

from __future__ import annotations

import numpy as np
from pymtl3 import Component, update_ff

from accel.config import CoreConfig
from accel.core.CoreMsgCL import DelayPipe


class ColumnCL(Component):
    """Gathers the activations that its weights point at, and adds the scaled partial sums to its accumulators.

    Groups come from the left and leave to the right one cycle later. The arithmetic is done in the cycle
    in which the weight buffer answers the group's last step; results bear the cycle from which on they can be read.
    """

    def construct(s, config: CoreConfig):
        # Constants
        s.registers = config.result_registers

        # Links
        s.tile = DelayPipe()  # in: TileColumn
        s.windows = DelayPipe()  # in: GroupSteps, and their activations int64 [K of a group, rows]
        s.windows_out = DelayPipe()  # out: the same
        s.results = DelayPipe()  # out: accumulators of a finished output tile, int64 [tokens]

        # State
        s.sums = np.empty(config.rows * config.subtiles, np.int64)
        s.restart()

        @update_ff
        def ff_column():
            if s.reset:
                s.restart()
            else:
                s.advance()

    def restart(s):
        """State after reset."""
        s.now = 0
        s.present = None
        s.worked = False
        for link in (s.tile, s.windows, s.windows_out, s.results):
            link.clear()

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        s.worked = s.windows.arrived(s.now)
        if s.worked:
            steps, acts = s.windows.take(s.now)
            s.windows_out.post(s.now + 1, (steps, acts))
            s.add_group(steps, acts)

    def add_group(s, steps, acts):
        if s.present is None:
            s.present = s.tile.take(s.now)
        scaled = (s.present.weight @ acts[s.present.position]) * s.present.scale
        end = steps.row + steps.rows
        if steps.group == 0:
            s.sums[steps.row : end] = scaled
        else:
            s.sums[steps.row : end] += scaled
        if steps.tile_last:
            s.present = None
        if steps.out_tile_last:
            # Decode, place and multiply; a partial of each chain a cycle; scale and accumulate: length + 4 cycles.
            s.results.post(s.now + s.registers + steps.length + 5, s.sums[:end].copy())

    def line_trace(s):
        return "*" if s.worked else "."
