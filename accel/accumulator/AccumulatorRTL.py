"""Accumulator RAM of one drain chain: adds scaled group partials in place, in two halves.

One output tile accumulates in one half while the results of the tile before it are read from the other.
A half has one read and one write port: its reader is the adder or the result writer, never both.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, sext, update, update_ff

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import mk_drain_msg
from accel.ram.RamRTL import RamRTL


class AccumulatorRTL(Component):
    """Takes the drain message in the cycle of the partial, and the scaled partial one cycle later.

    A partial for the accumulator that was written last is added to the sum on its way into the RAM, so
    that groups of one step on one row run at full rate.
    """

    def construct(s, config: CoreConfig):
        # Constants
        Drain = mk_drain_msg(config)
        acc_bits, words = config.acc_bits, config.acc_words
        addr_bits = count_bits(words - 1)

        # Interface
        s.drain_val = InPort()
        s.drain = InPort(Drain)
        s.scaled = InPort(config.scaled_bits)
        s.done = OutPort()  # the sum written in this cycle completes an output tile
        s.read_half = InPort()
        s.read_addr = InPort(addr_bits)
        s.result = [OutPort(acc_bits) for _ in range(2)]  # of each half, one cycle after the address

        # State and wires
        s.add_val = Wire()
        s.add = Wire(Drain)
        s.choice = Wire(2)  # what the adder's sum is added to: nothing, the last sum, a word of half 0 or of half 1
        s.choice_next = Wire(2)
        s.last_sum = Wire(acc_bits)
        s.old = Wire(acc_bits)
        s.sum_ = Wire(acc_bits)

        # Components
        s.half = [RamRTL(acc_bits, words) for _ in range(2)]

        # Connections
        for h in range(2):
            s.half[h].rdata //= s.result[h]
            s.half[h].waddr //= s.add.addr
            s.half[h].wdata //= s.sum_

        @update
        def up_read():
            s.half[0].raddr @= s.drain.addr
            s.half[1].raddr @= s.drain.addr
            if s.read_half:
                s.half[1].raddr @= s.read_addr
            else:
                s.half[0].raddr @= s.read_addr
            # The reader's half is not accumulating, so the adder's half is always the other one or unread.
            if s.drain_val:
                if s.drain.half:
                    s.half[1].raddr @= s.drain.addr
                else:
                    s.half[0].raddr @= s.drain.addr

        @update
        def up_add():
            s.old @= 0
            if s.choice == 1:
                s.old @= s.last_sum
            elif s.choice == 2:
                s.old @= s.half[0].rdata
            elif s.choice == 3:
                s.old @= s.half[1].rdata
            s.sum_ @= s.old + sext(s.scaled, acc_bits)
            s.half[0].wen @= s.add_val & ~s.add.half
            s.half[1].wen @= s.add_val & s.add.half
            s.done @= s.add_val & s.add.done

        @update
        def up_choice():
            s.choice_next @= 2
            if s.drain.half:
                s.choice_next @= 3
            if s.add_val & (s.add.addr == s.drain.addr) & (s.add.half == s.drain.half):
                s.choice_next @= 1
            if s.drain.first:
                s.choice_next @= 0

        @update_ff
        def ff_add():
            s.add <<= s.drain
            s.last_sum <<= s.sum_
            s.choice <<= s.choice_next
            if s.reset:
                s.add_val <<= 0
            else:
                s.add_val <<= s.drain_val
