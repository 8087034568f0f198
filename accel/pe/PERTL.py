"""Processing element: L lanes that multiply kept weights by the activations that their indices select."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, sext, update, update_ff

from accel.config import CoreConfig
from accel.core.CoreMsg import position_bits


class PERTL(Component):
    """Output-stationary PE: knows windows and (weight, window index) pairs, never the pattern.

    The window is registered and moves on to the right; the pairs come from the column's feeder in the same
    cycle for all rows. In the last step of a group the finished partial sum goes to the drain register, and
    drain registers form shift chains; the accumulator starts anew in the next step.
    """

    def construct(s, config: CoreConfig):
        # Constants
        lanes, window, act_bits = config.lanes, config.window, config.act_bits
        product_bits, partial_bits = config.product_bits, config.partial_bits

        # Interface
        s.window_in = InPort(config.act_port_bits)
        s.window_out = OutPort(config.act_port_bits)
        s.val = InPort()
        s.first = InPort()
        s.last = InPort()
        s.index = [InPort(position_bits(config)) for _ in range(lanes)]
        s.weight = [InPort(config.weight_bits) for _ in range(lanes)]
        s.chain_in = InPort(partial_bits)
        s.chain_out = OutPort(partial_bits)

        # State and wires
        s.window = Wire(config.act_port_bits)
        s.act = [Wire(act_bits) for _ in range(max(2, window))]
        s.product = [Wire(product_bits) for _ in range(lanes)]
        s.total = Wire(partial_bits)
        s.acc = Wire(partial_bits)
        s.acc_next = Wire(partial_bits)
        s.drain = Wire(partial_bits)

        # Connections
        s.window_out //= s.window
        s.chain_out //= s.drain
        for i in range(window):
            s.act[i] //= s.window[i * act_bits : (i + 1) * act_bits]
        if window == 1:
            s.act[1] //= 0

        # sext of a list's element translates to copies of the element instead of its sign (PyMTL3 3.1.17, which
        # takes any index for a single bit), so elements go through a variable of their own.
        @update
        def up_lanes():
            for lane in range(lanes):
                act = s.act[s.index[lane]]
                weight = s.weight[lane]
                s.product[lane] @= sext(act, product_bits) * sext(weight, product_bits)

        @update
        def up_total():
            s.total @= 0
            for lane in range(lanes):
                product = s.product[lane]
                s.total @= s.total + sext(product, partial_bits)
            if s.first:
                s.acc_next @= s.total
            else:
                s.acc_next @= s.acc + s.total

        @update_ff
        def ff_pe():
            s.window <<= s.window_in
            if s.val:
                s.acc <<= s.acc_next
            if s.val & s.last:
                s.drain <<= s.acc_next
            else:
                s.drain <<= s.chain_in

    def line_trace(s):
        return f"{'L' if s.val & s.last else '*' if s.val else '.'}{int(s.acc):>6x}"
