"""The compute core: commands, weight words and activation words in, result words out, all val/rdy streams.

    command ─┬─> act loader ──> activation buffer ──> row feeders ──(windows)──┐
             ├─> unpacker ────> weight buffers (one a column)                  │
             ├─> sequencer ──(steps, one column a cycle)──> column 0 ──> column 1 ──> … C−1
             └─> result writer <──(finished accumulators)──────┴────────────┴─────────┘

The four units take each command from queues of their own and run decoupled: the next token block loads
while the present one computes. AXI lives outside, in a shell.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, update, update_ff, zext

from accel.act_buffer.ActBufferRTL import ActBufferRTL, ActLoaderRTL
from accel.causes import CAUSES
from accel.column.ColumnRTL import ColumnRTL
from accel.config import RESULT_BITS, CoreConfig, count_bits
from accel.core.CommandQueueRTL import CommandQueueRTL
from accel.core.CoreMsg import mk_command_msg, mk_group_msg, mk_read_msg, mk_step_msg, mk_window_msg, position_bits
from accel.delay.DelayRTL import DelayRTL, FanoutRTL, HoldRTL
from accel.interfaces import RecvIfcRTL, SendIfcRTL, VectorRecvIfcRTL
from accel.row_feeder.RowFeederRTL import BankChoiceRTL, RowFeederRTL
from accel.sequencer.DrainSequencerRTL import DrainSequencerRTL
from accel.sequencer.SequencerRTL import SequencerRTL
from accel.unpacker.UnpackerRTL import UnpackerRTL
from accel.writer.ResultWriterRTL import ResultWriterRTL

COUNTER_BITS = 48

#: Cycles from a step's issue register to the read of its windows: the weight side takes two stages more.
#: `CoreConfig.window_registers` add to it.
WINDOW_DELAY = 2
#: Cycles from a step's issue register to its sum in column 0, without `CoreConfig.sum_registers`.
PE_DELAY = 4


class CountersRTL(Component):
    """Cycles by cause while the core is active; they sum to its active cycles."""

    def construct(s):
        causes = len(CAUSES)
        s.active = InPort()
        s.cause = InPort(3)
        s.count = [OutPort(COUNTER_BITS) for _ in range(causes)]  # of all cycles before the last one
        s.was_active = Wire()
        s.last_cause = Wire(3)

        @update_ff
        def ff_count():
            s.was_active <<= s.active & ~s.reset
            s.last_cause <<= s.cause
            for i in range(causes):
                if s.reset:
                    s.count[i] <<= 0
                elif s.was_active & (s.last_cause == i):
                    s.count[i] <<= s.count[i] + 1


class CoreRTL(Component):
    """N:M sparse INT4 tensor core.

    Interface
    ---------
    command
        `mk_command_msg`: one GEMM of up to ``rows × subtiles`` tokens.
    weights
        Weight words, one slice a column, in the order of `accel.stream`.
    acts
        Activation words of ``act_ports`` windows, in the order of `accel.image`.
    results
        Result words of ``result_lanes`` results.
    counters
        Active cycles by cause, in the order of `CAUSES`, up to the cycle before the last one.
    """

    def construct(s, config: CoreConfig, ColumnType=ColumnRTL, RowFeederType=RowFeederRTL, WriterType=ResultWriterRTL):
        # Constants
        Command, Window, Group = mk_command_msg(config), mk_window_msg(config), mk_group_msg(config)
        rows, columns = config.rows, config.columns
        copies, fanout_rows = config.row_copies, config.fanout_rows
        reading = 1 + config.has_register("read")

        # Interface
        s.command = RecvIfcRTL(Command)
        s.weights = VectorRecvIfcRTL(mk_bits(config.slice_bits), columns)
        s.acts = VectorRecvIfcRTL(mk_bits(config.act_port_bits), config.act_ports)
        s.results = SendIfcRTL(mk_bits(RESULT_BITS * config.result_lanes))
        s.counters = [OutPort(COUNTER_BITS) for _ in range(len(CAUSES))]

        # State and wires
        s.outstanding = Wire(4)  # commands taken and not finished before the last cycle
        s.finished = Wire()  # in the last cycle
        s.accept = Wire()
        s.all_ready = Wire()
        s.active = Wire()
        s.window_read = Wire(Window)  # in the cycle in which the memories have its address
        s.row_on = [Wire() for _ in range(rows)]
        s.last_step_val = Wire()  # what the last column takes
        s.last_step = Wire(mk_step_msg(config))
        s.freed_words = Wire(count_bits(config.act_words))
        s.tile_freed = Wire()
        s.freed_code_words = Wire(count_bits(config.code_words))
        s.freed_value_words = Wire(count_bits(config.value_words))

        # Components
        s.queue = [CommandQueueRTL(Command) for _ in range(4)]
        s.loader = ActLoaderRTL(config)
        s.acts_buffer = ActBufferRTL(config)
        s.row = [RowFeederType(config) for _ in range(rows)]
        s.unpacker = UnpackerRTL(config)
        s.sequencer = SequencerRTL(config)
        # What row feeders need with the pair of words that was read.
        s.shift = FanoutRTL(position_bits(config), reading + config.has_register("window"), copies)
        s.bank_choice = BankChoiceRTL(config)
        s.from_odd = FanoutRTL(config.window, reading, copies)
        s.enable = HoldRTL(1, rows, reading)
        s.window_delay = DelayRTL(Window, WINDOW_DELAY + config.window_registers - 1)
        s.group_delay = DelayRTL(Group, PE_DELAY + config.sum_registers)
        s.drains = DrainSequencerRTL(config)
        s.column = [ColumnType(config) for _ in range(columns)]
        s.writer = WriterType(config)
        s.read = FanoutRTL(mk_read_msg(config), config.has_register("results"), columns)
        s.tally = CountersRTL()

        # Connections: every unit gets every command
        for queue, unit in zip(s.queue, (s.loader, s.unpacker, s.sequencer, s.writer), strict=True):
            queue.recv.msg //= s.command.msg
            queue.recv.val //= s.accept
            queue.send.msg //= unit.command.msg
            queue.send.val //= unit.command.val
            queue.send.rdy //= unit.command.rdy
        s.command.rdy //= s.all_ready

        # Connections: activations
        for port in range(config.act_ports):
            s.loader.acts.msg[port] //= s.acts.msg[port]
        s.loader.acts.val //= s.acts.val
        s.loader.acts.rdy //= s.acts.rdy
        s.loader.wen //= s.acts_buffer.wen
        s.loader.beat //= s.acts_buffer.beat
        s.loader.waddr //= s.acts_buffer.waddr
        for port in range(config.act_ports):
            s.loader.data[port] //= s.acts_buffer.data[port]
        s.loader.block_ready //= s.sequencer.block_ready
        s.window_delay.val //= s.sequencer.window_val
        s.window_delay.msg //= s.sequencer.window
        s.acts_buffer.raddr //= s.window_delay.msg_out.addr
        s.loader.freed_words //= s.freed_words
        for r in range(rows):
            s.row[r].even //= s.acts_buffer.even[r]
            s.row[r].odd //= s.acts_buffer.odd[r]
            s.row[r].from_odd //= s.from_odd.out[r // fanout_rows]
            s.row[r].shift //= s.shift.out[r // fanout_rows]
            s.row[r].enable //= s.enable.out[r]
            s.enable.in_[r] //= s.row_on[r]
            s.row[r].window //= s.column[0].window[r]

        s.shift.in_ //= s.window_read.shift
        s.bank_choice.swapped //= s.acts_buffer.swapped
        s.bank_choice.shift //= s.window_read.shift
        s.from_odd.in_ //= s.bank_choice.from_odd

        # Connections: weights
        for c in range(columns):
            s.unpacker.weights.msg[c] //= s.weights.msg[c]
            s.column[c].data //= s.unpacker.data[c]
            s.column[c].write //= s.unpacker.write[c]
        s.unpacker.weights.val //= s.weights.val
        s.unpacker.weights.rdy //= s.weights.rdy
        s.unpacker.tile_ready //= s.sequencer.tile_ready

        # Connections: steps, windows and drain cycles move right
        s.column[0].step_val //= s.sequencer.step_val
        s.column[0].step //= s.sequencer.step
        s.group_delay.val //= s.sequencer.group_val
        s.group_delay.msg //= s.sequencer.group
        s.drains.group_val //= s.group_delay.val_out
        s.drains.group //= s.group_delay.msg_out
        s.column[0].drain_val //= s.drains.drain_val
        s.column[0].drain //= s.drains.drain
        for c in range(1, columns):
            s.column[c].step_val //= s.column[c - 1].step_val_out
            s.column[c].step //= s.column[c - 1].step_out
            s.column[c].drain_val //= s.column[c - 1].drain_val_out
            s.column[c].drain //= s.column[c - 1].drain_out
            for r in range(rows):
                s.column[c].window[r] //= s.column[c - 1].window_out[r]
        last = s.column[columns - 1]
        s.unpacker.tile_freed //= s.tile_freed
        s.unpacker.freed_code_words //= s.freed_code_words
        s.unpacker.freed_value_words //= s.freed_value_words
        if columns == 1:
            s.last_step_val //= s.sequencer.step_val
            s.last_step //= s.sequencer.step
        else:
            s.last_step_val //= s.column[columns - 2].step_val_out
            s.last_step //= s.column[columns - 2].step_out

        # Connections: results
        s.writer.tile_done //= last.done
        s.writer.half_free //= s.sequencer.half_free
        s.writer.results.msg //= s.results.msg
        s.writer.results.val //= s.results.val
        s.writer.results.rdy //= s.results.rdy
        s.read.in_ //= s.writer.read
        for c in range(columns):
            s.column[c].read //= s.read.out[c]
            s.column[c].result //= s.writer.result[c]

        # Connections: counters
        s.tally.active //= s.active
        s.tally.cause //= s.sequencer.cause
        for i in range(len(CAUSES)):
            s.tally.count[i] //= s.counters[i]

        @update
        def up_accept():
            s.all_ready @= s.queue[0].recv.rdy & s.queue[1].recv.rdy & s.queue[2].recv.rdy & s.queue[3].recv.rdy
            s.accept @= s.command.val & s.all_ready
            s.active @= s.accept | (s.outstanding > zext(s.finished, 4))

        @update
        def up_rows():
            for r in range(rows):
                s.row_on[r] @= s.window_read.rows > r

        @update_ff
        def ff_freed():
            # Worked out a cycle ahead: in time with the last read of the windows, and the last column's step.
            s.freed_words <<= 0
            s.tile_freed <<= 0
            s.freed_code_words <<= 0
            s.freed_value_words <<= 0
            if ~s.reset:
                if s.window_delay.val_out & s.window_delay.msg_out.block_last:
                    s.freed_words <<= s.window_delay.msg_out.block_words
                if s.last_step_val & s.last_step.tile_last:
                    s.tile_freed <<= 1
                    s.freed_code_words <<= s.last_step.code_words
                    s.freed_value_words <<= s.last_step.value_words

        @update_ff
        def ff_window():
            s.window_read <<= s.window_delay.msg_out

        @update_ff
        def ff_outstanding():
            s.finished <<= s.writer.finished & ~s.reset
            if s.reset:
                s.outstanding <<= 0
            elif s.accept & ~s.finished:
                s.outstanding <<= s.outstanding + 1
            elif ~s.accept & s.finished:
                s.outstanding <<= s.outstanding - 1

    def line_trace(s):
        return (
            f"{s.command} {s.loader.line_trace()} {s.unpacker.line_trace()} {s.sequencer.line_trace()} "
            f"[{' '.join(c.line_trace() for c in s.column)}] {s.writer.line_trace()} {s.results}"
        )
