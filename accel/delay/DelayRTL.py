"""Values some cycles later: registers in a row, or just wires; and registers that are there several times."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update_ff


class HoldRTL(Component):
    """Values of ``nbits`` each, ``cycles`` (0 for wires) cycles later. Not for valid bits: nothing is reset."""

    def construct(s, nbits, values, cycles):
        s.in_ = [InPort(nbits) for _ in range(values)]
        s.out = [OutPort(nbits) for _ in range(values)]

        if cycles == 0:
            for i in range(values):
                s.out[i] //= s.in_[i]
        else:
            s.held = [[Wire(nbits) for _ in range(values)] for _ in range(cycles)]
            for i in range(values):
                s.out[i] //= s.held[cycles - 1][i]

            @update_ff
            def ff_hold():
                for i in range(values):
                    s.held[0][i] <<= s.in_[i]
                for cycle in range(1, cycles):
                    for i in range(values):
                        s.held[cycle][i] <<= s.held[cycle - 1][i]


class CopyRTL(Component):
    """A register that others are equal to, each for receivers of its own: a synthesis tool must not merge them.

    ``copied`` is the name to tell it, as `verify.synthesis` tells yosys. Nothing is reset.
    """

    def construct(s, Type):
        s.in_ = InPort(Type)
        s.out = OutPort(Type)
        s.copied = Wire(Type)
        s.out //= s.copied

        @update_ff
        def ff_copy():
            s.copied <<= s.in_


class FanoutRTL(Component):
    """A value ``cycles`` (0 for wires) cycles later, the last register once for each output. Nothing is reset."""

    def construct(s, Type, cycles, copies):
        s.in_ = InPort(Type)
        s.out = [OutPort(Type) for _ in range(copies)]

        if cycles == 0:
            for out in s.out:
                out //= s.in_
        else:
            s.earlier = HoldRTL(Type, 1, cycles - 1)
            s.copy = [CopyRTL(Type) for _ in range(copies)]
            s.earlier.in_[0] //= s.in_
            for copy, out in zip(s.copy, s.out, strict=True):
                copy.in_ //= s.earlier.out[0]
                copy.out //= out


class DelayRTL(Component):
    """A message and its valid bit, ``cycles`` (0 for wires) cycles later. Only the valid bit is reset."""

    def construct(s, Type, cycles):
        s.val = InPort()
        s.msg = InPort(Type)
        s.val_out = OutPort()
        s.msg_out = OutPort(Type)

        if cycles == 0:
            s.val_out //= s.val
            s.msg_out //= s.msg
        else:
            s.pulse = PulseRTL(cycles)
            s.msgs = [Wire(Type) for _ in range(cycles)]
            s.pulse.in_ //= s.val
            s.val_out //= s.pulse.out
            s.msg_out //= s.msgs[cycles - 1]

            @update_ff
            def ff_delay():
                s.msgs[0] <<= s.msg
                for i in range(1, cycles):
                    s.msgs[i] <<= s.msgs[i - 1]


class PulseRTL(Component):
    """A bit ``cycles`` (at least 1) cycles later; 0 after reset."""

    def construct(s, cycles):
        s.in_ = InPort()
        s.out = OutPort()
        s.vals = [Wire() for _ in range(cycles)]
        s.out //= s.vals[cycles - 1]

        @update_ff
        def ff_pulse():
            if s.reset:
                for i in range(cycles):
                    s.vals[i] <<= 0
            else:
                s.vals[0] <<= s.in_
                for i in range(1, cycles):
                    s.vals[i] <<= s.vals[i - 1]
