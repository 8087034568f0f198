"""Weight buffer of one column: rings of block codes and values, and the headers of the tiles in them."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort

from accel.config import CoreConfig, count_bits
from accel.ram.RamRTL import PairRamRTL, RamRTL


class WeightBufferRTL(Component):
    """Holds ``weight_tiles`` of the largest tiles, or more of smaller ones; answers a read one cycle later.

    A module of its own so that a target may put its memories where it likes.
    """

    def construct(s, config: CoreConfig):
        # Constants
        slice_bits = config.slice_bits
        code_addr_bits = count_bits(config.code_words - 1)
        value_addr_bits = count_bits(config.value_words - 1)
        header_addr_bits = count_bits(config.header_slots - 1)
        scale_bits = config.scale_bits
        header_bits = config.header_bits

        # Interface
        s.data = InPort(slice_bits)
        s.header_wen = InPort()
        s.header_waddr = InPort(header_addr_bits)
        s.code_wen = InPort()
        s.code_waddr = InPort(code_addr_bits)
        s.value_wen = InPort()
        s.value_waddr = InPort(value_addr_bits)
        s.header_raddr = InPort(header_addr_bits)
        s.code_raddr = InPort(code_addr_bits)
        s.value_raddr = InPort(value_addr_bits)
        s.header = OutPort(header_bits)
        s.code_low = OutPort(slice_bits)
        s.code_high = OutPort(slice_bits)
        s.value_low = OutPort(slice_bits)
        s.value_high = OutPort(slice_bits)

        # Components
        s.codes = PairRamRTL(slice_bits, config.code_words)
        s.values = PairRamRTL(slice_bits, config.value_words)
        s.headers = RamRTL(header_bits, config.header_slots)

        # Connections
        s.codes.raddr //= s.code_raddr
        s.codes.wen //= s.code_wen
        s.codes.waddr //= s.code_waddr
        s.codes.wdata //= s.data
        s.codes.low //= s.code_low
        s.codes.high //= s.code_high
        s.values.raddr //= s.value_raddr
        s.values.wen //= s.value_wen
        s.values.waddr //= s.value_waddr
        s.values.wdata //= s.data
        s.values.low //= s.value_low
        s.values.high //= s.value_high
        s.headers.raddr //= s.header_raddr
        s.headers.wen //= s.header_wen
        s.headers.waddr //= s.header_waddr
        s.headers.rdata //= s.header
        s.headers.wdata[0:scale_bits] //= s.data[0:scale_bits]
        if config.asymmetric:
            s.headers.wdata[scale_bits:header_bits] //= s.data[8:12]
