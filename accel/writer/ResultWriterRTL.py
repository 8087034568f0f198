"""Result writer: reads a finished half of the accumulator RAM and sends it out as result words.

Order: output tile → token → column group, ``result_lanes`` columns to a word. Reads run ahead of the sink
by as many words as the output queue has room for, so a ready sink gets a word every cycle.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, sext, update, update_ff

from accel.config import RESULT_BITS, CoreConfig, count_bits, two_in
from accel.core.CoreMsg import mk_command_msg, mk_read_msg, subtile_bits
from accel.countdown.CountdownRTL import CountdownRTL
from accel.delay.DelayRTL import DelayRTL, HoldRTL
from accel.interfaces import NormalQueueRTL, RecvIfcRTL, SendIfcRTL


def queue_words(config: CoreConfig) -> int:
    """Words that may be read and not yet gone: a read takes `CoreConfig.read_delay` cycles from its credit to the
    word's departure, and one to give the credit back; one more hides a stall's end."""
    return config.read_delay + 2


class RawEpilogueRTL(Component):
    """Accumulators as they are, in two's complement: sign-extended to 64 bits each, or to 32 bits side by side.

    In the 32-bit form the upper half of the word is zero. Combinational.
    """

    def construct(s, config: CoreConfig):
        # Constants
        lanes, acc_bits = config.result_lanes, config.acc_bits
        word_bits = lanes * RESULT_BITS

        # Interface
        s.wide = InPort()
        s.acc = [InPort(acc_bits) for _ in range(lanes)]
        s.word = OutPort(word_bits)

        # Wires
        s.wide_word = Wire(word_bits)
        s.narrow_word = Wire(word_bits)
        s.in64 = [Wire(64) for _ in range(lanes)]
        s.in32 = [Wire(32) for _ in range(lanes)]
        for lane in range(lanes):
            s.wide_word[64 * lane : 64 * lane + 64] //= s.in64[lane]
            s.narrow_word[32 * lane : 32 * lane + 32] //= s.in32[lane]
        s.narrow_word[32 * lanes : word_bits] //= 0

        @update
        def up_extend():
            for lane in range(lanes):
                acc = s.acc[lane]  # see PERTL on sext
                s.in64[lane] @= sext(acc, 64)

        if acc_bits > 32:
            for lane in range(lanes):
                s.in32[lane] //= s.acc[lane][0:32]
        else:

            @update
            def up_extend32():
                for lane in range(lanes):
                    acc = s.acc[lane]
                    s.in32[lane] @= sext(acc, 32)

        @update
        def up_word():
            s.word @= s.narrow_word
            if s.wide:
                s.word @= s.wide_word


class ResultWriterRTL(Component):
    """Walks the rows of finished output tiles; ``EpilogueType`` turns accumulators into result words."""

    def construct(s, config: CoreConfig, EpilogueType=RawEpilogueRTL):
        # Constants
        Command, Read = mk_command_msg(config), mk_read_msg(config)
        rows, chains, columns, lanes = config.rows, config.drain_chains, config.columns, config.result_lanes
        acc_bits, groups, chain_rows = config.acc_bits, config.column_groups, config.chain_rows
        group_bits = count_bits(groups - 1)
        addr_bits = count_bits(config.acc_words - 1)
        chain_bits = count_bits(chains - 1)
        # With one subtile there is no next one, and its address may not fit the width.
        next_subtile = chain_rows % (1 << addr_bits)
        row_bits = count_bits(rows)
        subtile_nbits = subtile_bits(config)
        tile_bits = count_bits(config.out_tiles_max)
        words = queue_words(config)
        two_rows = two_in(row_bits)
        single_row = int(rows == 1)

        # Interface
        s.command = RecvIfcRTL(Command)
        s.tile_done = InPort()  # results of one more output tile are complete
        s.half_free = OutPort()  # the last read of an output tile happens in this cycle
        s.read = OutPort(Read)
        s.result = [InPort(acc_bits) for _ in range(columns)]  # `CoreConfig.read_delay` − 1 cycles after read
        s.results = SendIfcRTL(mk_bits(RESULT_BITS * lanes))
        s.finished = OutPort()  # the last result word of a command leaves in this cycle

        # State
        s.busy = Wire()
        s.cmd = Wire(Command)
        s.tiles_done = Wire(2)
        s.row_left = Wire(row_bits)
        s.last_row = Wire()  # registers: one is left
        s.last_subtile = Wire()
        s.last_tile = Wire()
        s.group = Wire(group_bits)
        s.half = Wire()
        s.base = Wire(addr_bits)  # of the subtile
        s.addr = Wire(addr_bits)
        s.chain = Wire(chain_bits)
        s.credits = Wire(count_bits(words))

        # Wires
        s.issue = Wire()
        s.row_end = Wire()
        s.subtile_end = Wire()
        s.tile_end = Wire()
        s.command_end = Wire()
        s.rows_next = Wire(row_bits)
        s.next_is_last = Wire()  # subtile
        s.next_is_single = Wire()  # subtile has one row
        s.lane_acc = [Wire(acc_bits) for _ in range(lanes)]
        s.column = [[Wire(acc_bits) for _ in range(max(2, groups))] for _ in range(lanes)]
        s.departed = Wire()

        # Components: what is left
        s.subtiles = CountdownRTL(subtile_nbits)
        s.subtiles.given //= s.command.msg.subtiles
        s.subtiles.total //= s.cmd.subtiles
        s.subtiles.step //= s.subtile_end
        s.subtiles.last //= s.last_subtile
        s.subtiles.next_last //= s.next_is_last
        s.tiles = CountdownRTL(tile_bits)
        s.tiles.given //= s.command.msg.out_tiles
        s.tiles.total //= s.command.msg.out_tiles
        s.tiles.step //= s.tile_end
        s.tiles.last //= s.last_tile
        for counter in (s.subtiles, s.tiles):
            counter.load //= s.command.rdy

        # Components
        s.epilogue = EpilogueType(config)
        s.queue = NormalQueueRTL(mk_bits(RESULT_BITS * lanes), words)
        s.ends = NormalQueueRTL(mk_bits(1), words)  # beside each word: is it the command's last
        # What belongs to a read waits until the accumulators come.
        s.reading = DelayRTL(mk_bits(1), config.read_delay - 1)
        s.reading_group = HoldRTL(group_bits, 1, config.read_delay - 1)
        s.reading_wide = HoldRTL(1, 1, config.read_delay - 1)

        # Connections
        for lane in range(lanes):
            s.epilogue.acc[lane] //= s.lane_acc[lane]
            for g in range(max(2, groups)):
                column = g * lanes + lane
                if column < columns:
                    s.column[lane][g] //= s.result[column]
                else:
                    s.column[lane][g] //= 0
        s.reading.val //= s.issue
        s.reading.msg //= s.command_end
        s.reading_group.in_[0] //= s.group
        s.reading_wide.in_[0] //= s.cmd.wide
        s.epilogue.wide //= s.reading_wide.out[0]
        s.queue.recv.msg //= s.epilogue.word
        s.queue.recv.val //= s.reading.val_out
        s.ends.recv.msg //= s.reading.msg_out
        s.ends.recv.val //= s.reading.val_out
        s.results.msg //= s.queue.send.msg
        s.results.val //= s.queue.send.val
        s.queue.send.rdy //= s.results.rdy
        s.ends.send.rdy //= s.results.rdy
        s.read.half //= s.half
        s.read.addr //= s.addr
        s.read.chain //= s.chain

        @update
        def up_lanes():
            for lane in range(lanes):
                s.lane_acc[lane] @= s.column[lane][s.reading_group.out[0]]

        @update
        def up_control():
            s.command.rdy @= ~s.busy
            s.issue @= s.busy & (s.tiles_done != 0) & (s.credits != 0)
            s.row_end @= s.issue & (s.group == groups - 1)
            s.subtile_end @= s.row_end & s.last_row
            s.tile_end @= s.subtile_end & s.last_subtile
            s.command_end @= s.tile_end & s.last_tile
            s.half_free @= s.tile_end
            s.departed @= s.queue.send.val & s.results.rdy
            s.finished @= s.queue.send.val & s.results.rdy & s.ends.send.msg
            # Rows of the subtile after this one: the last subtile may be short.
            s.rows_next @= rows
            s.next_is_single @= single_row
            if s.next_is_last:
                s.rows_next @= s.cmd.last_rows
                s.next_is_single @= s.cmd.last_rows == 1

        @update_ff
        def ff_command():
            if ~s.busy:
                s.cmd <<= s.command.msg

        @update_ff
        def ff_walk():
            if s.reset:
                s.busy <<= 0
                s.half <<= 0
                s.addr <<= 0
                s.chain <<= 0
                s.group <<= 0
            elif ~s.busy:
                s.busy <<= s.command.val
                s.row_left <<= rows
                s.last_row <<= single_row
                if s.command.msg.subtiles == 1:
                    s.row_left <<= s.command.msg.last_rows
                    s.last_row <<= s.command.msg.last_rows == 1
                s.base <<= 0
            elif s.issue:
                s.group <<= s.group + 1
                if s.row_end:
                    s.group <<= 0
                    s.row_left <<= s.row_left - 1
                    s.last_row <<= s.row_left == two_rows
                    s.chain <<= s.chain + 1
                    if s.chain == chains - 1:
                        s.chain <<= 0
                        s.addr <<= s.addr + 1
                    if s.subtile_end:
                        s.chain <<= 0
                        s.base <<= s.base + next_subtile
                        s.addr <<= s.base + next_subtile
                        s.row_left <<= s.rows_next
                        s.last_row <<= s.next_is_single
                        if s.tile_end:
                            s.base <<= 0
                            s.addr <<= 0
                            s.half <<= ~s.half
                            s.row_left <<= rows
                            s.last_row <<= single_row
                            if s.cmd.subtiles == 1:
                                s.row_left <<= s.cmd.last_rows
                                s.last_row <<= s.cmd.last_rows == 1
                            if s.command_end:
                                s.busy <<= 0

        @update_ff
        def ff_credits():
            if s.reset:
                s.credits <<= words
                s.tiles_done <<= 0
            else:
                if s.issue & ~s.departed:
                    s.credits <<= s.credits - 1
                elif ~s.issue & s.departed:
                    s.credits <<= s.credits + 1
                if s.tile_done & ~s.tile_end:
                    s.tiles_done <<= s.tiles_done + 1
                elif ~s.tile_done & s.tile_end:
                    s.tiles_done <<= s.tiles_done - 1

    def line_trace(s):
        return f"w{'*' if s.issue else '#' if s.busy else '.'}"
