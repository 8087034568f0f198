"""Row feeder: the sliding window of one PE row, out of two neighbouring words of the activation buffer."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update

from accel.config import CoreConfig
from accel.core.CoreMsg import position_bits
from accel.delay.DelayRTL import HoldRTL


class BankChoiceRTL(Component):
    """Which bank each window position of a pair of words comes from, for all rows. Combinational.

    The window that starts at ``shift`` takes position i of the first word from there on, and of the second one
    before. ``swapped`` says that the odd bank holds the first word.
    """

    def construct(s, config: CoreConfig):
        # Interface
        s.swapped = InPort()
        s.shift = InPort(position_bits(config))
        s.from_odd = OutPort(config.window)

        # Wires and connections
        s.odd_at = [Wire() for _ in range(config.window)]
        for i in range(config.window):
            s.from_odd[i] //= s.odd_at[i]

        @update
        def up_choice():
            for i in range(config.window):
                s.odd_at[i] @= s.swapped ^ (s.shift > i)


class RotateStageRTL(Component):
    """One stage of a logarithmic rotator: starts ``step`` values further on, or not. Combinational."""

    def construct(s, nbits, values, step):
        s.select = InPort()
        s.in_ = [InPort(nbits) for _ in range(values)]
        s.out = [OutPort(nbits) for _ in range(values)]
        s.turned = [Wire(nbits) for _ in range(values)]
        for i in range(values):
            s.turned[i] //= s.in_[(i + step) % values]

        @update
        def up_stage():
            for i in range(values):
                s.out[i] @= s.in_[i]
                if s.select:
                    s.out[i] @= s.turned[i]


class RowFeederRTL(Component):
    """Window of ``window`` activations that starts ``shift`` activations into the first of a pair of words.

    The pair comes from an even and an odd bank. Each position of the window's word is in one of them, so a word is
    put together from both, and rotated. With a register after "read", the other inputs belong to the pair of the cycle
    before; with one in "window", ``shift`` comes a cycle after them. Without these, it is combinational.
    """

    def construct(s, config: CoreConfig):
        # Constants
        window, act_bits, nbits = config.window, config.act_bits, config.act_port_bits
        shift_bits = position_bits(config)
        steps = [1 << b for b in reversed(range((window - 1).bit_length()))]

        # Interface
        s.even = InPort(nbits)
        s.odd = InPort(nbits)
        s.from_odd = InPort(window)  # see BankChoiceRTL
        s.shift = InPort(shift_bits)
        s.enable = InPort()  # rows without a token see zeros
        s.window = OutPort(nbits)

        # Wires
        s.even_act = [Wire(act_bits) for _ in range(window)]
        s.odd_act = [Wire(act_bits) for _ in range(window)]
        s.act = [Wire(act_bits) for _ in range(window)]

        # Components: the pair as it comes from the memories, and the word of both
        s.read = HoldRTL(nbits, 2, config.has_register("read"))
        s.read.in_[0] //= s.even
        s.read.in_[1] //= s.odd
        s.together = HoldRTL(act_bits, window, config.has_register("window"))
        for i in range(window):
            s.even_act[i] //= s.read.out[0][i * act_bits : (i + 1) * act_bits]
            s.odd_act[i] //= s.read.out[1][i * act_bits : (i + 1) * act_bits]
            s.together.in_[i] //= s.act[i]

        @update
        def up_together():
            for i in range(window):
                s.act[i] @= 0
                if s.enable:
                    s.act[i] @= s.even_act[i]
                    if s.from_odd[i]:
                        s.act[i] @= s.odd_act[i]

        # Components and connections: stages, the widest step first, so that positions that no lane reaches take least
        previous = s.together.out
        for step in steps:
            stage = RotateStageRTL(act_bits, window, step)
            setattr(s, f"stage{step}", stage)  # a list would have to hold components of one shape
            stage.select //= s.shift[step.bit_length() - 1]
            for i in range(window):
                stage.in_[i] //= previous[i]
            previous = stage.out
        for i in range(window):
            s.window[i * act_bits : (i + 1) * act_bits] //= previous[i]
