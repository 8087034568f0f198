"""Row feeder: the sliding window of one PE row, cut out of two neighbouring words of the activation buffer."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update

from accel.config import CoreConfig
from accel.core.CoreMsg import position_bits
from accel.delay.DelayRTL import HoldRTL


class ShiftStageRTL(Component):
    """One stage of a logarithmic shifter over activations: drops the first ``step`` of them, or none."""

    def construct(s, nbits, inputs, outputs, step):
        s.select = InPort()
        s.in_ = [InPort(nbits) for _ in range(inputs)]
        s.out = [OutPort(nbits) for _ in range(outputs)]
        s.moved = [Wire(nbits) for _ in range(outputs)]
        for i in range(outputs):
            # Beyond the last input the stage is never asked to shift; any input will do.
            s.moved[i] //= s.in_[min(i + step, inputs - 1)]

        @update
        def up_stage():
            for i in range(outputs):
                s.out[i] @= s.in_[i]
                if s.select:
                    s.out[i] @= s.moved[i]


class RowFeederRTL(Component):
    """Window of ``window`` activations that starts ``shift`` activations into the pair of words.

    The pair comes from an even and an odd bank; ``swapped`` says that the odd bank holds the first word. With a
    register after "read", the other inputs belong to the pair of the cycle before; with one in "window", ``shift``
    comes a cycle after them. Without these, it is combinational.
    """

    def construct(s, config: CoreConfig):
        # Constants
        window, act_bits, nbits = config.window, config.act_bits, config.act_port_bits
        shift_bits = position_bits(config)
        steps = [1 << b for b in reversed(range((window - 1).bit_length()))]

        # Interface
        s.even = InPort(nbits)
        s.odd = InPort(nbits)
        s.swapped = InPort()
        s.shift = InPort(shift_bits)
        s.enable = InPort()  # rows without a token see zeros
        s.window = OutPort(nbits)

        # Wires
        s.low = Wire(nbits)
        s.high = Wire(nbits)
        s.pair = [Wire(act_bits) for _ in range(2 * window)]

        # Components and connections: the pair as it comes from the memories, and in order
        s.read = HoldRTL(nbits, 2, config.has_register("read"))
        s.read.in_[0] //= s.even
        s.read.in_[1] //= s.odd
        s.ordered = HoldRTL(nbits, 2, config.has_register("window"))
        s.ordered.in_[0] //= s.low
        s.ordered.in_[1] //= s.high
        for word in range(2):
            for i in range(window):
                s.pair[word * window + i] //= s.ordered.out[word][i * act_bits : (i + 1) * act_bits]

        @update
        def up_order():
            s.low @= 0
            s.high @= 0
            if s.enable:
                s.low @= s.read.out[0]
                s.high @= s.read.out[1]
                if s.swapped:
                    s.low @= s.read.out[1]
                    s.high @= s.read.out[0]

        # Components: widest step first; each stage passes on what later steps can still reach
        sizes = [2 * window, *(min(2 * window, window + step - 1) for step in steps)]
        stages = [ShiftStageRTL(act_bits, *sizes[b : b + 2], step) for b, step in enumerate(steps)]
        for step, stage in zip(steps, stages, strict=True):
            setattr(s, f"stage{step}", stage)  # a list would have to hold components of one shape

        # Connections
        previous = s.pair
        for b, stage in enumerate(stages):
            stage.select //= s.shift[len(steps) - 1 - b]
            for i, port in enumerate(stage.in_):
                port //= previous[i]
            previous = stage.out
        for i in range(window):
            s.window[i * act_bits : (i + 1) * act_bits] //= previous[i]
