"""Scale unit: one multiplier at the end of a drain chain applies the group scale. Registered, one partial a cycle."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, sext, update, update_ff, zext

from accel.config import CoreConfig

#: Bits of the lower part of a longer partial: as an unsigned number it fits a signed operand of 18 bits, which is
#: what the multiplier blocks of most FPGAs take.
LOW_BITS = 17


class ScaleUnitRTL(Component):
    """``scaled`` = ``partial`` × ``scale``, exact, one cycle later; two with a register in "scale".

    That register comes after the multiplication, and a partial too long for one multiplier block is multiplied in
    two parts that are added behind it.
    """

    def construct(s, config: CoreConfig):
        scaled_bits, scale_bits = config.scaled_bits, config.scale_bits
        s.partial = InPort(config.partial_bits)
        s.scale = InPort(config.scale_bits)
        s.scaled = OutPort(scaled_bits)

        if not config.has_register("scale"):

            @update_ff
            def ff_scale():
                s.scaled <<= sext(s.partial, scaled_bits) * sext(s.scale, scaled_bits)

        elif config.partial_bits <= LOW_BITS + 1:
            s.product = Wire(scaled_bits)

            @update_ff
            def ff_product():
                s.product <<= sext(s.partial, scaled_bits) * sext(s.scale, scaled_bits)
                s.scaled <<= s.product

        else:
            low_bits = LOW_BITS
            high_bits = config.partial_bits - low_bits
            # Exact sums modulo 2**scaled_bits are exact, so nothing is wider than that.
            low_product_bits = min(scaled_bits, low_bits + scale_bits + 1)
            high_product_bits = high_bits + scale_bits
            s.high = Wire(high_bits)
            s.high //= s.partial[low_bits : config.partial_bits]
            s.low_product = Wire(low_product_bits)
            s.high_product = Wire(high_product_bits)
            s.high_shifted = Wire(scaled_bits)

            @update
            def up_shift():
                s.high_shifted @= sext(s.high_product, scaled_bits) << low_bits

            @update_ff
            def ff_products():
                s.low_product <<= zext(s.partial[0:low_bits], low_product_bits) * sext(s.scale, low_product_bits)
                s.high_product <<= sext(s.high, high_product_bits) * sext(s.scale, high_product_bits)
                s.scaled <<= s.high_shifted + sext(s.low_product, scaled_bits)
