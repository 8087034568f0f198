"""Addition of addresses in a ring."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, zext

from accel.config import count_bits


class RingAddRTL(Component):
    """``out`` = (``base`` + ``step``) modulo ``words``, for a base below and a step of at most ``words``.

    Combinational. Not for steps of more than one turn.
    """

    def construct(s, words):
        bits, step_bits = count_bits(words - 1), count_bits(words)
        wide = step_bits + 1
        s.base = InPort(bits)
        s.step = InPort(step_bits)
        s.out = OutPort(bits)
        s.total = Wire(wide)
        s.out //= s.total[0:bits]

        @update
        def up_add():
            s.total @= zext(s.base, wide) + zext(s.step, wide)
            if s.total >= words:
                s.total @= zext(s.base, wide) + zext(s.step, wide) - words
