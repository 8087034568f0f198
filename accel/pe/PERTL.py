"""Processing element: L lanes that multiply kept weights by the activations that their indices select."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, sext, update, update_ff, zext

from accel.config import LOW_BITS, CoreConfig, count_bits, signed_bits
from accel.core.CoreMsg import index_bits
from accel.delay.DelayRTL import HoldRTL


class AddPairsRTL(Component):
    """One level of an adder tree: sums of neighbours, one bit wider; the odd one out goes on as it is."""

    def construct(s, nbits, values):
        pairs, odd = values // 2, values % 2
        wide = nbits + 1
        s.in_ = [InPort(nbits) for _ in range(values)]
        s.out = [OutPort(wide) for _ in range(pairs + odd)]

        s.sums = [Wire(wide) for _ in range(pairs)]
        s.left = [Wire(nbits) for _ in range(pairs)]
        s.right = [Wire(nbits) for _ in range(pairs)]
        for i in range(pairs):
            s.left[i] //= s.in_[2 * i]
            s.right[i] //= s.in_[2 * i + 1]
            s.out[i] //= s.sums[i]

        # sext of a list's element translates to copies of the element instead of its sign (PyMTL3 3.1.17, which
        # takes any index for a single bit), so elements go through a variable of their own.
        @update
        def up_pairs():
            for i in range(pairs):
                left = s.left[i]
                right = s.right[i]
                s.sums[i] @= sext(left, wide) + sext(right, wide)

        if odd:
            s.last = Wire(nbits)
            s.extended = Wire(wide)
            s.last //= s.in_[values - 1]
            s.out[pairs] //= s.extended

            @update
            def up_odd():
                s.extended @= sext(s.last, wide)


class MultiplexerRTL(Component):
    """One of ``inputs`` values. Combinational."""

    def construct(s, nbits, inputs, index_nbits):
        select_bits = count_bits(inputs - 1)
        s.in_ = [InPort(nbits) for _ in range(inputs)]
        s.index = InPort(index_nbits)  # the lowest bits count
        s.out = OutPort(nbits)

        if inputs == 1:
            s.out //= s.in_[0]
        else:
            # An array's first word is the highest of the vector that yosys makes of it, so an index is turned round
            # there, in a LUT ahead of all words. Turned round twice, it is not; zeros fill up a power of two.
            words = 1 << select_bits
            s.turned = [Wire(nbits) for _ in range(words)]
            for i in range(words):
                s.turned[words - 1 - i] //= s.in_[i] if i < inputs else 0

            @update
            def up_select():
                s.out @= s.turned[~s.index[0:select_bits]]


class WindowMultiplexersRTL(Component):
    """The activation of each lane, out of those that it reaches. Combinational.

    A module of its own so that what any-N:M costs can be seen in a netlist.
    """

    def construct(s, config: CoreConfig):
        # Constants
        act_bits, index_nbits = config.act_bits, index_bits(config)

        # Interface
        s.window = InPort(config.act_port_bits)
        s.index = [InPort(index_nbits) for _ in range(config.lanes)]  # from the lowest position that the lane reaches
        s.act = [OutPort(act_bits) for _ in range(config.lanes)]

        # Components and connections
        for lane, (low, high) in enumerate(config.lane_reach):
            multiplexer = MultiplexerRTL(act_bits, high - low + 1, index_nbits)
            setattr(s, f"lane{lane}", multiplexer)  # a list would have to hold components of one shape
            for i, port in enumerate(multiplexer.in_):
                port //= s.window[(low + i) * act_bits : (low + i + 1) * act_bits]
            multiplexer.index //= s.index[lane]
            multiplexer.out //= s.act[lane]


class MultiplierRTL(Component):
    """A lane's multiplier, of one part or of two with registers between."""

    def construct(s, config: CoreConfig):
        # Constants
        product_bits, weight_bits = config.product_bits, config.weight_bits

        # Interface
        s.act = InPort(config.act_bits)
        s.weight = InPort(weight_bits)
        s.product = OutPort(product_bits)

        if config.has_register("parts"):
            low_bits = config.act_bits + LOW_BITS
            high_bits = product_bits - LOW_BITS
            s.low = Wire(low_bits)
            s.high = Wire(high_bits)
            s.low_weight = Wire(LOW_BITS)
            s.high_weight = Wire(weight_bits - LOW_BITS)
            s.high_moved = Wire(product_bits)
            s.low_weight //= s.weight[0:LOW_BITS]
            s.high_weight //= s.weight[LOW_BITS:weight_bits]
            s.high_moved[LOW_BITS:product_bits] //= s.high
            s.high_moved[0:LOW_BITS] //= 0

            @update
            def up_sum():
                s.product @= sext(s.low, product_bits) + s.high_moved

            @update_ff
            def ff_parts():
                s.low <<= sext(s.act, low_bits) * zext(s.low_weight, low_bits)
                s.high <<= sext(s.act, high_bits) * sext(s.high_weight, high_bits)

        else:

            @update
            def up_product():
                s.product @= sext(s.act, product_bits) * sext(s.weight, product_bits)


class PERTL(Component):
    """Output-stationary PE: knows windows and (weight, index) pairs, never the pattern.

    The window is registered and moves on to the right; the pairs come from the column's feeder in the same
    cycle for all rows, and each part of them at the lane's stage that takes it. In the last step of a group the
    finished partial sum goes to the drain register, and drain registers form shift chains; the accumulator is
    cleared for the next group.
    """

    def construct(s, config: CoreConfig):
        # Constants
        lanes, act_bits = config.lanes, config.act_bits
        product_bits, partial_bits = config.product_bits, config.partial_bits

        # Interface
        s.window_in = InPort(config.act_port_bits)
        s.window_out = OutPort(config.act_port_bits)
        s.index = [InPort(index_bits(config)) for _ in range(lanes)]  # from the lowest position that the lane reaches
        s.weight = [InPort(config.weight_bits) for _ in range(lanes)]
        s.val = InPort()  # what the adders give belongs to a step
        s.last = InPort()  # and to the last one of a group
        s.chain_in = InPort(partial_bits)
        s.chain_out = OutPort(partial_bits)

        # State and wires
        s.window = Wire(config.act_port_bits)
        s.total = Wire(partial_bits)
        s.acc = Wire(partial_bits)
        s.acc_next = Wire(partial_bits)
        s.drain = Wire(partial_bits)

        # Components
        s.window_multiplexers = WindowMultiplexersRTL(config)
        s.selected = HoldRTL(act_bits, lanes, config.has_register("multiplexer"))
        s.multiplier = [MultiplierRTL(config) for _ in range(lanes)]
        s.products = HoldRTL(product_bits, lanes, config.has_register("multiplier"))

        # Connections: windows
        s.window_out //= s.window
        s.chain_out //= s.drain
        s.window_multiplexers.window //= s.window
        for lane in range(lanes):
            s.window_multiplexers.index[lane] //= s.index[lane]
            s.window_multiplexers.act[lane] //= s.selected.in_[lane]
            s.multiplier[lane].act //= s.selected.out[lane]
            s.multiplier[lane].weight //= s.weight[lane]
            s.multiplier[lane].product //= s.products.in_[lane]

        # Connections: adder tree
        level, values, nbits = s.products.out, lanes, product_bits
        while values > 1:
            adders = AddPairsRTL(nbits, values)
            setattr(s, f"add{values}", adders)
            for i, value in enumerate(level):
                adders.in_[i] //= value
            level, values, nbits = adders.out, (values + 1) // 2, nbits + 1
        sum_bits = min(nbits, partial_bits, signed_bits(*config.partial_range(lanes)))
        s.sum_ = HoldRTL(sum_bits, 1, config.has_register("adders"))
        s.sum_.in_[0] //= level[0][0:sum_bits]

        @update
        def up_accumulate():
            total = s.sum_.out[0]
            s.total @= sext(total, partial_bits)
            s.acc_next @= s.acc + s.total

        @update_ff
        def ff_pe():
            s.window <<= s.window_in
            # Cleared after a group, not overwritten by the next one: that would take a multiplexer.
            if s.reset | (s.val & s.last):
                s.acc <<= 0
            elif s.val:
                s.acc <<= s.acc_next
            if s.val & s.last:
                s.drain <<= s.acc_next
            else:
                s.drain <<= s.chain_in

    def line_trace(s):
        return f"{'L' if s.val & s.last else '*' if s.val else '.'}{int(s.acc):>6x}"
