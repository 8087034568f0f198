"""Weight buffer of one column: rings of block codes and values, and the headers of the tiles in them."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import mk_write_msg
from accel.delay.DelayRTL import HoldRTL
from accel.ram.RamRTL import PairRamRTL, RamRTL


class WeightBufferRTL(Component):
    """Holds ``weight_tiles`` of the largest tiles, or more of smaller ones; answers a read one cycle later, or two.

    A module of its own so that a target may put its memories where it likes.
    """

    def construct(s, config: CoreConfig):
        # Constants
        slice_bits = config.slice_bits
        code_addr_bits = count_bits(config.code_words - 1)
        value_addr_bits = count_bits(config.value_words - 1)
        header_addr_bits = count_bits(config.header_slots - 1)
        scale_bits, zero_point_at = config.scale_bits, 8 * config.scale_bytes
        header_bits, parts = config.header_bits, config.header_parts
        reading = config.has_register("read")

        # Interface
        s.data = InPort(slice_bits)
        s.write = InPort(mk_write_msg(config))
        s.header_raddr = InPort(header_addr_bits)
        s.code_raddr = InPort(code_addr_bits)
        s.code_even = InPort(count_bits(config.code_words // 2 - 1))
        s.value_raddr = InPort(value_addr_bits)
        s.value_even = InPort(count_bits(config.value_words // 2 - 1))
        s.header = OutPort(header_bits)
        s.code_low = OutPort(slice_bits)
        s.code_high = OutPort(slice_bits)
        s.value_low = OutPort(slice_bits)
        s.value_high = OutPort(slice_bits)

        # Components
        s.codes = PairRamRTL(slice_bits, config.code_words, reading)
        s.values = PairRamRTL(slice_bits, config.value_words, reading)

        # Connections
        s.codes.raddr //= s.code_raddr
        s.codes.even_raddr //= s.code_even
        s.codes.wen //= s.write.code_wen
        s.codes.waddr //= s.write.code_addr
        s.codes.wdata //= s.data
        s.codes.low //= s.code_low
        s.codes.high //= s.code_high
        s.values.raddr //= s.value_raddr
        s.values.even_raddr //= s.value_even
        s.values.wen //= s.write.value_wen
        s.values.waddr //= s.write.value_addr
        s.values.wdata //= s.data
        s.values.low //= s.value_low
        s.values.high //= s.value_high
        s.read_header = HoldRTL(header_bits, 1, reading)
        s.read_header.out[0] //= s.header
        # A header that is longer than a slice comes in parts, each into a RAM of its own. A list would have to hold
        # components of one shape.
        for i, (begin, end) in enumerate(parts):
            part = RamRTL(end - begin, config.header_slots)
            setattr(s, f"header_part_{i}", part)
            part.raddr //= s.header_raddr
            part.wen //= s.write.header_wen[i]
            part.waddr //= s.write.header_addr
            part.rdata //= s.read_header.in_[0][begin:end]
            scale_end = min(end, scale_bits)
            if begin < scale_end:
                part.wdata[0 : scale_end - begin] //= s.data[0 : scale_end - begin]
            if scale_end < end:
                low = zero_point_at - i * slice_bits
                part.wdata[scale_end - begin : end - begin] //= s.data[low : low + 4]
