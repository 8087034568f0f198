"""Scale unit: one multiplier at the end of a drain chain applies the group scale. Registered, one partial a cycle."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, sext, update_ff

from accel.config import CoreConfig


class ScaleUnitRTL(Component):
    """``scaled`` = ``partial`` × ``scale``, exact, one cycle later."""

    def construct(s, config: CoreConfig):
        scaled_bits = config.scaled_bits
        s.partial = InPort(config.partial_bits)
        s.scale = InPort(config.scale_bits)
        s.scaled = OutPort(scaled_bits)

        @update_ff
        def ff_scale():
            s.scaled <<= sext(s.partial, scaled_bits) * sext(s.scale, scaled_bits)
