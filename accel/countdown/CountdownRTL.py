"""Count of repeats: of output tiles, groups, subtiles and words of a row."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, update_ff


class CountdownRTL(Component):
    """Repeats of something, ``given`` (from 1) times and then as many again: is this the last one, or the one before?

    A repeat may end in every cycle, and `last` and `next_last` are right in the next one. The count itself follows a
    cycle later, from registers and to registers: it may lie far from those who wait for an end, next to the command
    that gives the total. Nothing is reset: whoever is reset loads before it counts. `load` and `step` exclude each
    other.
    """

    def construct(s, nbits):
        # Constants
        bits = max(nbits, 2)  # of counts that are compared with up to 3

        # Interface
        s.load = InPort()
        s.given = InPort(nbits)
        s.total = InPort(nbits)  # what was given, from the cycle after load on; of no use where load follows the last
        s.step = InPort()  # the present repeat ends
        s.last = OutPort()
        s.next_last = OutPort()

        # State
        s.left = Wire(bits)  # with the present one, if none ended in the last cycle
        s.stepped = Wire()
        s.restarted = Wire()
        s.three_left = Wire()  # s.left == 3
        s.one_in_all = Wire()
        s.two_in_all = Wire()
        s.three_in_all = Wire()

        # Wires
        s.first = Wire(bits)
        s.again = Wire(bits)
        s.four_left = Wire()  # s.left == 4, a register
        s.three_now = Wire()  # with all that ended

        # Connections
        s.first[0:nbits] //= s.given
        s.again[0:nbits] //= s.total
        if bits > nbits:
            s.first[nbits:bits] //= 0
            s.again[nbits:bits] //= 0

        @update
        def up_now():
            s.three_now @= s.three_left
            if s.stepped & s.restarted:
                s.three_now @= s.three_in_all
            elif s.stepped:
                s.three_now @= s.four_left

        @update_ff
        def ff_left():
            s.stepped <<= s.step
            s.restarted <<= s.last
            if s.load:
                s.left <<= s.first
                s.three_left <<= s.first == 3
            else:
                s.three_left <<= s.three_now
                if s.stepped & s.restarted:
                    s.left <<= s.again
                elif s.stepped:
                    s.left <<= s.left - 1

        @update_ff
        def ff_total():
            if s.load:
                s.one_in_all <<= s.first == 1
                s.two_in_all <<= s.first == 2
                s.three_in_all <<= s.first == 3

        @update_ff
        def ff_last():
            if s.load:
                s.last <<= s.first == 1
                s.next_last <<= s.first == 2
            elif s.step & s.last:
                s.last <<= s.one_in_all
                s.next_last <<= s.two_in_all
            elif s.step:
                s.last <<= s.next_last
                s.next_last <<= s.three_now

        if nbits > 2:
            s.four_in_all = Wire()

            @update_ff
            def ff_four():
                if s.load:
                    s.four_left <<= s.first == 4
                    s.four_in_all <<= s.first == 4
                elif s.stepped & s.restarted:
                    s.four_left <<= s.four_in_all
                elif s.stepped:
                    s.four_left <<= s.left == 5

        else:
            s.four_left //= 0
