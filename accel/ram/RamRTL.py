"""Memories: one write port, one registered read port, as block RAM has.

Block RAM of 18 Kbit, which most FPGAs have, is at most so wide for its depth: 36 bits for 512 words, 18 for 1,024,
and so on. A memory that is deeper and wider is cut into columns of bits, each one block wide; cut into halves of its
depth instead, as yosys would for ECP5, every bit would have a multiplexer behind the block (0.7 ns of 9.0).
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, update_ff

from accel.config import count_bits
from accel.delay.DelayRTL import HoldRTL


def ram_columns(nbits: int, depth: int) -> list[tuple[int, int]]:
    """First bit of each column of a memory, and the bit after its last."""
    blocks = ((512, nbits), (1024, 18), (2048, 9), (4096, 4), (8192, 2))  # words, and bits of each
    widest = next((width for words, width in blocks if depth <= words), 1)
    columns = -(-nbits // widest)
    width = -(-nbits // columns)
    return [(low, min(low + width, nbits)) for low in range(0, nbits, width)]


class RamRTL(Component):
    """``depth`` words of ``nbits``; ``rdata`` is the word at ``raddr`` one cycle later, old data on a collision.

    Not for memories that must be read in the cycle of the address.
    """

    def construct(s, nbits, depth):
        # Interface
        s.raddr = InPort(count_bits(depth - 1))
        s.rdata = OutPort(nbits)
        s.wen = InPort()
        s.waddr = InPort(count_bits(depth - 1))
        s.wdata = InPort(nbits)

        # Components: the last column may be narrower, and a list would have to hold components of one shape
        for number, (low, high) in enumerate(ram_columns(nbits, depth)):
            column = RamColumnRTL(high - low, depth)
            setattr(s, f"column{number}", column)
            column.raddr //= s.raddr
            column.rdata //= s.rdata[low:high]
            column.wen //= s.wen
            column.waddr //= s.waddr
            column.wdata //= s.wdata[low:high]

    def line_trace(s):
        return f"{s.waddr}{'<' if s.wen else '.'}"


class RamColumnRTL(Component):
    """A memory as block RAM has it, or smaller."""

    def construct(s, nbits, depth):
        # Interface
        s.raddr = InPort(count_bits(depth - 1))
        s.rdata = OutPort(nbits)
        s.wen = InPort()
        s.waddr = InPort(count_bits(depth - 1))
        s.wdata = InPort(nbits)

        # State: PyMTL3 indexes a list with at least two elements
        s.words = [Wire(nbits) for _ in range(max(2, depth))]

        @update_ff
        def ff_ram():
            s.rdata <<= s.words[s.raddr]
            if s.wen:
                s.words[s.waddr] <<= s.wdata


class EvenAddressRTL(Component):
    """Address in the even bank when the words ``addr`` and ``addr + 1`` of a ring of ``words`` (even) are read at once.

    Even words lie in one bank and odd words in the other, whose address is that of the ring without its lowest bit.
    """

    def construct(s, words):
        # Constants
        half = words // 2
        last = half - 1
        bits = count_bits(words - 1)
        bank_bits = count_bits(half - 1)

        # Interface
        s.addr = InPort(bits)
        s.even = OutPort(bank_bits)

        # Wires
        s.row = Wire(bank_bits)
        if half > 1:
            s.row //= s.addr[1:bits]
        else:
            s.row //= 0

        @update
        def up_even():
            s.even @= s.row
            if s.addr[0]:
                if s.row == last:
                    s.even @= 0
                else:
                    s.even @= s.row + 1


class PairRamRTL(Component):
    """Ring of ``words`` words, read two neighbouring words at a time: ``low`` at ``raddr``, ``high`` after it.

    They come one cycle after the address, and ``registers`` more: those are next to the memories. Whoever gives the
    address also says what the even bank reads (`EvenAddressRTL`).
    """

    def construct(s, nbits, words, registers=0):
        # Constants
        half = words // 2
        bits = count_bits(words - 1)

        # Interface
        s.raddr = InPort(bits)
        s.even_raddr = InPort(count_bits(half - 1))
        s.low = OutPort(nbits)
        s.high = OutPort(nbits)
        s.wen = InPort()
        s.waddr = InPort(bits)
        s.wdata = InPort(nbits)

        # State and wires
        s.swapped = Wire()
        s.wen_even = Wire()
        s.wen_odd = Wire()

        # Components
        s.even = RamRTL(nbits, half)
        s.odd = RamRTL(nbits, half)
        s.read = HoldRTL(nbits, 2, registers)
        s.swap = HoldRTL(1, 1, registers)

        # Connections
        s.read.in_[0] //= s.even.rdata
        s.read.in_[1] //= s.odd.rdata
        s.swap.in_[0] //= s.swapped
        s.even.raddr //= s.even_raddr
        s.even.wen //= s.wen_even
        s.odd.wen //= s.wen_odd
        s.even.wdata //= s.wdata
        s.odd.wdata //= s.wdata
        if half > 1:
            s.odd.raddr //= s.raddr[1:bits]
            s.even.waddr //= s.waddr[1:bits]
            s.odd.waddr //= s.waddr[1:bits]
        else:
            s.odd.raddr //= 0
            s.even.waddr //= 0
            s.odd.waddr //= 0

        @update
        def up_write():
            s.wen_even @= s.wen & ~s.waddr[0]
            s.wen_odd @= s.wen & s.waddr[0]

        @update_ff
        def ff_swap():
            s.swapped <<= s.raddr[0]

        @update
        def up_pair():
            if s.swap.out[0]:
                s.low @= s.read.out[1]
                s.high @= s.read.out[0]
            else:
                s.low @= s.read.out[0]
                s.high @= s.read.out[1]
