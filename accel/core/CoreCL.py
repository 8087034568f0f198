"""The compute core, cycle level: ports, blocks and cycles of `CoreRTL`, moving whole tiles, groups and blocks.

Connections are those of `CoreRTL`, but between blocks they carry

* token blocks from the loader to the activation buffer, and tiles from the unpacker to the columns;
* groups from the sequencer to the activation buffer, which adds their windows, and on through the columns;
* results of finished output tiles from the columns to the writer.
"""

from __future__ import annotations

from collections import deque

from pymtl3 import Component, OutPort, mk_bits, update_ff

from accel.act_buffer.ActBufferCL import ActBufferCL, ActLoaderCL
from accel.causes import CAUSES
from accel.column.ColumnCL import ColumnCL
from accel.config import RESULT_BITS, CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreMsgCL import DelayPipe
from accel.core.CoreRTL import COUNTER_BITS
from accel.interfaces import RecvIfcRTL, SendIfcRTL, VectorRecvIfcRTL
from accel.sequencer.SequencerCL import SequencerCL
from accel.unpacker.UnpackerCL import UnpackerCL
from accel.writer.ResultWriterCL import ResultWriterCL

QUEUE_COMMANDS = 2  # for each unit


class CommandQueuesCL(Component):
    """A queue for each unit; a command is taken when all of them have room, and goes into all of them."""

    def construct(s, config: CoreConfig, units: int):
        # Interface
        Command = mk_command_msg(config)
        s.recv = RecvIfcRTL(Command)
        s.send = [SendIfcRTL(Command) for _ in range(units)]

        # State
        s.queue: list[deque] = [deque() for _ in range(units)]
        s.restart()

        @update_ff
        def ff_queues():
            if s.reset:
                s.restart()
            else:
                s.advance()
            s.recv.rdy <<= s.room
            for unit in range(units):
                s.send[unit].val <<= s.filled[unit]
                if s.filled[unit]:
                    s.send[unit].msg <<= s.head[unit]

    def restart(s):
        """State after reset."""
        for queue in s.queue:
            queue.clear()
        s.look()

    def advance(s):
        """The edge that ends a cycle."""
        for queue, send in zip(s.queue, s.send, strict=True):
            if send.val and send.rdy:
                queue.popleft()
        if s.recv.val and s.recv.rdy:
            message = s.recv.msg.clone()
            for queue in s.queue:
                queue.append(message)
        s.look()

    def look(s):
        """What the queues show in the next cycle."""
        s.room = all(len(queue) < QUEUE_COMMANDS for queue in s.queue)
        s.filled = [len(queue) > 0 for queue in s.queue]
        s.head = [queue[0] if queue else None for queue in s.queue]


class CoreCL(Component):
    """N:M sparse INT4 tensor core. Interface as of `CoreRTL`."""

    def construct(s, config: CoreConfig, ColumnType=ColumnCL, WriterType=ResultWriterCL):
        # Interface
        s.command = RecvIfcRTL(mk_command_msg(config))
        s.weights = VectorRecvIfcRTL(mk_bits(config.slice_bits), config.columns)
        s.acts = VectorRecvIfcRTL(mk_bits(config.act_port_bits), config.act_ports)
        s.results = SendIfcRTL(mk_bits(RESULT_BITS * config.result_lanes))
        s.counters = [OutPort(COUNTER_BITS) for _ in range(len(CAUSES))]

        # State
        s.finished = DelayPipe()  # in: the last result word of a command has left
        s.restart()

        # Components
        s.queues = CommandQueuesCL(config, 4)
        s.loader = ActLoaderCL(config)
        s.acts_buffer = ActBufferCL(config)
        s.unpacker = UnpackerCL(config)
        s.sequencer = SequencerCL(config)
        s.column = [ColumnType(config) for _ in range(config.columns)]
        s.writer = WriterType(config)

        # Connections: streams
        s.queues.recv //= s.command
        for send, unit in zip(s.queues.send, (s.loader, s.unpacker, s.sequencer, s.writer), strict=True):
            send //= unit.command
        s.loader.acts //= s.acts
        s.unpacker.weights //= s.weights
        s.writer.results //= s.results

        # Connections: links, each of which is its receiver's
        s.loader.block = s.acts_buffer.block
        s.loader.block_ready = s.sequencer.block_ready
        s.sequencer.steps = s.acts_buffer.steps
        s.acts_buffer.freed = s.loader.freed
        s.acts_buffer.windows = s.column[0].windows
        for c in range(1, config.columns):
            s.column[c - 1].windows_out = s.column[c].windows
        s.column[config.columns - 1].windows_out = s.unpacker.left_columns
        for c in range(config.columns):
            s.unpacker.tile[c] = s.column[c].tile
            s.column[c].results = s.writer.finished_tile[c]
        s.unpacker.tile_ready = s.sequencer.tile_ready
        s.writer.half_free = s.sequencer.half_free
        s.writer.finished = s.finished

        @update_ff
        def ff_counters():
            for i in range(len(CAUSES)):
                s.counters[i] <<= 0 if s.reset else s.count[i]  # of all cycles before the last one
            if s.reset:
                s.restart()
            else:
                s.advance()

    def restart(s):
        """State after reset."""
        s.now = 0
        s.finished.clear()
        s.outstanding = 0  # commands taken and not finished
        s.count = [0] * len(CAUSES)

    def advance(s):
        """The edge that ends a cycle."""
        s.now += 1
        while s.finished.arrived(s.now):
            s.finished.take(s.now)
            s.outstanding -= 1
        accept = bool(s.command.val and s.command.rdy)
        if accept or s.outstanding:
            s.count[int(s.sequencer.cause)] += 1
        s.outstanding += accept

    def line_trace(s):
        return (
            f"{s.command} {s.loader.line_trace()} {s.unpacker.line_trace()} {s.sequencer.line_trace()} "
            f"[{' '.join(c.line_trace() for c in s.column)}] {s.writer.line_trace()} {s.results}"
        )
