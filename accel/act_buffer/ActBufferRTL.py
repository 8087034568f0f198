"""Activation buffer: a ring of windows for each PE row, and the loader that fills it.

Activation words arrive in the order token row by token row (``act_ports`` rows at a time), each row from
its first window to its last: with one port that is the plain [T, K] matrix.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, update, update_ff, zext

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import mk_command_msg, subtile_bits
from accel.countdown.CountdownRTL import CountdownRTL
from accel.delay.DelayRTL import FanoutRTL
from accel.interfaces import RecvIfcRTL, VectorRecvIfcRTL
from accel.ram.RamRTL import EvenAddressRTL, RamRTL
from accel.ram.RingAddRTL import RingAddRTL


class ActLoaderRTL(Component):
    """Steers activation words into the ring; a token block starts to load when the ring has room for all of it.

    Its writes are registered: a word reaches the buffer one cycle after it is taken.
    """

    def construct(s, config: CoreConfig):
        # Constants
        Command = mk_command_msg(config)
        ports, rows, words = config.act_ports, config.rows, config.act_words
        row_beats = -(-rows // ports)
        beat_bits = count_bits(row_beats - 1)
        count, addr_bits = count_bits(words), count_bits(words - 1)
        margin_bits = count + 1
        sign = margin_bits - 1
        subtile_nbits = subtile_bits(config)
        row_bits = count_bits(rows)
        sum_bits = row_bits + count_bits(ports) + 1
        two_beats, single = 2 * ports, int(ports >= rows)

        # Interface
        s.command = RecvIfcRTL(Command)
        s.acts = VectorRecvIfcRTL(mk_bits(config.act_port_bits), ports)
        s.wen = OutPort()
        s.beat = OutPort(beat_bits)  # which act_ports rows the word is for
        s.waddr = OutPort(addr_bits)
        s.data = [OutPort(config.act_port_bits) for _ in range(ports)]
        s.block_ready = OutPort()  # the write in this cycle, or the next, completes a token block
        s.freed_words = InPort(count)  # 0 when no block is freed

        # State and wires
        s.block_end = Wire()
        s.busy = Wire()
        s.started = Wire()  # the block has its room
        s.cmd = Wire(Command)
        s.free = Wire(count)
        s.free_next = Wire(margin_bits)  # if no block starts
        s.margin = Wire(margin_bits)  # what is free beyond the block; negative while there is no room for it
        s.base = Wire(addr_bits)  # of the subtile in the ring
        s.word = Wire(count)
        s.row_beat = Wire(beat_bits)
        s.rows_after = Wire(sum_bits)  # rows loaded with the beat after this one
        s.room = Wire()
        s.take = Wire()
        s.row_end = Wire()
        s.subtile_end = Wire()
        s.last_word = Wire()  # these three are registers
        s.last_beat = Wire()
        s.last_subtile = Wire()
        s.rows_here = Wire(sum_bits)
        s.next_is_last = Wire()  # subtile
        s.first_is_last = Wire()
        s.single_of_last = Wire()  # the last subtile takes one beat a word
        s.single_of_given = Wire()

        # Components
        s.row_words = CountdownRTL(count)
        s.row_words.given //= s.command.msg.row_words
        s.row_words.total //= s.cmd.row_words
        s.row_words.step //= s.take
        s.row_words.last //= s.last_word
        s.subtiles = CountdownRTL(subtile_nbits)
        s.subtiles.given //= s.command.msg.subtiles
        s.subtiles.total //= s.cmd.subtiles
        s.subtiles.step //= s.subtile_end
        s.subtiles.last //= s.last_subtile
        s.subtiles.next_last //= s.next_is_last
        for counter in (s.row_words, s.subtiles):
            counter.load //= s.command.rdy
        s.address = RingAddRTL(words)
        s.address.base //= s.base
        s.address.step //= s.word
        s.next_base = RingAddRTL(words)
        s.next_base.base //= s.base
        s.next_base.step //= s.cmd.row_words

        @update
        def up_control():
            s.room @= s.started | ~s.margin[sign]
            s.command.rdy @= ~s.busy
            s.free_next @= zext(s.free, margin_bits) + zext(s.freed_words, margin_bits)
            s.acts.rdy @= s.busy & s.room
            s.take @= s.busy & s.room & s.acts.val
            s.rows_here @= rows
            if s.last_subtile:
                s.rows_here @= zext(s.cmd.last_rows, sum_bits)
            s.first_is_last @= s.command.msg.subtiles == 1
            s.single_of_last @= s.cmd.last_rows <= ports
            s.single_of_given @= s.command.msg.last_rows <= ports
            s.row_end @= s.take & s.last_word
            s.subtile_end @= s.row_end & s.last_beat
            s.block_end @= s.subtile_end & s.last_subtile

        @update_ff
        def ff_command():
            if ~s.busy:
                s.cmd <<= s.command.msg

        @update_ff
        def ff_busy():
            if s.reset:
                s.busy <<= 0
            elif ~s.busy:
                s.busy <<= s.command.val
            elif s.block_end:
                s.busy <<= 0

        @update_ff
        def ff_word():
            s.started <<= s.busy & (s.started | s.take)
            if ~s.busy:
                s.word <<= 0
            elif s.take:
                s.word <<= s.word + 1
                if s.last_word:
                    s.word <<= 0

        @update_ff
        def ff_row():
            if ~s.busy:
                s.row_beat <<= 0
                s.rows_after <<= two_beats
                s.last_beat <<= single
                if s.first_is_last:
                    s.last_beat <<= s.single_of_given
            elif s.row_end:
                s.row_beat <<= s.row_beat + 1
                s.rows_after <<= s.rows_after + ports
                s.last_beat <<= s.rows_after >= s.rows_here
                if s.last_beat:
                    s.row_beat <<= 0
                    s.rows_after <<= two_beats
                    s.last_beat <<= single
                    if s.next_is_last:
                        s.last_beat <<= s.single_of_last

        @update_ff
        def ff_base():
            if s.reset:
                s.base <<= 0
            elif s.subtile_end:
                s.base <<= s.next_base.out

        @update_ff
        def ff_room():
            if s.reset:
                s.free <<= words
            elif s.take & ~s.started:
                s.free <<= s.free - s.cmd.block_words + s.freed_words
            else:
                s.free <<= s.free + s.freed_words

        @update_ff
        def ff_margin():
            if ~s.busy:
                s.margin <<= s.free_next - zext(s.command.msg.block_words, margin_bits)
            else:
                s.margin <<= s.margin + zext(s.freed_words, margin_bits)

        @update_ff
        def ff_write():
            s.waddr <<= s.address.out
            s.beat <<= s.row_beat
            for port in range(ports):
                s.data[port] <<= s.acts.msg[port]
            if s.reset:
                s.wen <<= 0
                s.block_ready <<= 0
            else:
                s.wen <<= s.take
                s.block_ready <<= s.block_end

    def line_trace(s):
        return f"a{'*' if s.take else '#' if s.busy else '.'}"


class ActBufferRTL(Component):
    """Two banks a row, so that a read gives two neighbouring windows of every row, two cycles after the address."""

    def construct(s, config: CoreConfig):
        # Constants
        ports, rows, words, nbits = config.act_ports, config.rows, config.act_words, config.act_port_bits
        addr_bits, half = count_bits(words - 1), words // 2
        beats = -(-rows // ports)
        copies, fanout_rows = config.row_copies, config.fanout_rows
        writing = config.has_register("acts")

        # Interface
        s.wen = InPort()
        s.beat = InPort(count_bits(beats - 1))
        s.waddr = InPort(addr_bits)
        s.data = [InPort(nbits) for _ in range(ports)]
        s.raddr = InPort(addr_bits)
        s.swapped = OutPort()  # the word at raddr is in the odd bank; one cycle before the data
        s.even = [OutPort(nbits) for _ in range(rows)]
        s.odd = [OutPort(nbits) for _ in range(rows)]

        # State and wires
        s.wen_even = [Wire() for _ in range(beats)]
        s.wen_odd = [Wire() for _ in range(beats)]

        # Components: what goes to all rows
        s.address = EvenAddressRTL(words)
        s.raddr_even = FanoutRTL(count_bits(half - 1), 1, copies)
        s.raddr_odd = FanoutRTL(count_bits(half - 1), 1, copies)
        s.write_addr = FanoutRTL(addr_bits, writing, copies)
        s.write_data = [FanoutRTL(nbits, writing, copies) for _ in range(ports)]
        s.write_even = [FanoutRTL(1, writing, 1) for _ in range(beats)]
        s.write_odd = [FanoutRTL(1, writing, 1) for _ in range(beats)]

        # Components: banks
        s.even_bank = [RamRTL(nbits, half) for _ in range(rows)]
        s.odd_bank = [RamRTL(nbits, half) for _ in range(rows)]

        # Connections
        s.address.addr //= s.raddr
        s.raddr_even.in_ //= s.address.even
        if half > 1:
            s.raddr_odd.in_ //= s.raddr[1:addr_bits]
        else:
            s.raddr_odd.in_ //= 0
        s.write_addr.in_ //= s.waddr
        for port in range(ports):
            s.write_data[port].in_ //= s.data[port]
        for beat in range(beats):
            s.write_even[beat].in_ //= s.wen_even[beat]
            s.write_odd[beat].in_ //= s.wen_odd[beat]
        for row in range(rows):
            beat, port = divmod(row, ports)
            copy = row // fanout_rows
            for bank, wen, raddr, out in (
                (s.even_bank[row], s.write_even[beat], s.raddr_even, s.even[row]),
                (s.odd_bank[row], s.write_odd[beat], s.raddr_odd, s.odd[row]),
            ):
                bank.wen //= wen.out[0]
                bank.wdata //= s.write_data[port].out[copy]
                bank.raddr //= raddr.out[copy]
                bank.rdata //= out
                if half > 1:
                    bank.waddr //= s.write_addr.out[copy][1:addr_bits]
                else:
                    bank.waddr //= 0

        @update
        def up_write():
            for i in range(beats):
                s.wen_even[i] @= s.wen & (s.beat == i) & ~s.waddr[0]
                s.wen_odd[i] @= s.wen & (s.beat == i) & s.waddr[0]

        @update_ff
        def ff_swapped():
            s.swapped <<= s.raddr[0]
