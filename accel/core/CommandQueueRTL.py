"""Command queue: two commands, the first of them in a register that the unit works from."""

from __future__ import annotations

from pymtl3 import Component, Wire, update, update_ff

from accel.interfaces import RecvIfcRTL, SendIfcRTL


class CommandQueueRTL(Component):
    """Queue of two messages. In the same cycles as PyMTL3's normal queue, but nothing is read from a memory."""

    def construct(s, Type):
        # Interface
        s.recv = RecvIfcRTL(Type)
        s.send = SendIfcRTL(Type)

        # State
        s.first_val = Wire()
        s.second_val = Wire()
        s.first = Wire(Type)
        s.second = Wire(Type)

        # Wires
        s.goes_on = Wire()  # what comes next may be the first

        # Connections
        s.send.val //= s.first_val
        s.send.msg //= s.first

        @update
        def up_queue():
            s.recv.rdy @= ~s.second_val
            s.goes_on @= ~s.first_val | s.send.rdy

        @update_ff
        def ff_queue():
            if s.goes_on:
                s.first <<= s.recv.msg
                if s.second_val:
                    s.first <<= s.second
            if ~s.second_val:
                s.second <<= s.recv.msg
            if s.reset:
                s.first_val <<= 0
                s.second_val <<= 0
            elif s.goes_on:
                s.first_val <<= s.second_val | s.recv.val
                s.second_val <<= 0
            else:
                s.second_val <<= s.second_val | s.recv.val
