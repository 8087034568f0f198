"""Unpacker: cuts the weight stream into tile headers, block codes and values, and fills the weight buffers.

All columns share the pattern, so one controller steers one gearbox a column. A beat moves up to one slice
(``slice_bytes`` bytes) of one section of every column; the gearbox keeps the rest of a slice for the next
beat, so sections and tiles follow each other at byte granularity without a gap. A tile starts when the
buffers have room for all of it.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, update, update_ff, zext

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import mk_command_msg
from accel.interfaces import RecvIfcRTL, VectorRecvIfcRTL

IDLE, HEADER, CODES, VALUES = range(4)


class GearboxRTL(Component):
    """One column's gearbox: a slice of held bytes, the held ones first, is topped up by the incoming slice."""

    def construct(s, slice_bytes):
        # Constants
        bits = 8 * slice_bytes
        pair = 2 * bits
        amount = count_bits(slice_bytes)

        # Interface
        s.incoming = InPort(bits)
        s.held_bytes = InPort(amount)
        s.take_bytes = InPort(amount)
        s.top_up = InPort()  # the incoming slice is needed
        s.take = InPort()
        s.clear = InPort()
        s.out = OutPort(bits)

        # State and wires
        s.held = Wire(bits)
        s.joined = Wire(pair)
        s.rest = Wire(pair)

        s.out //= s.joined[0:bits]

        @update
        def up_join():
            # Bytes of `held` beyond `held_bytes` are zero, so joining is an OR.
            s.joined @= zext(s.held, pair)
            if s.top_up:
                s.joined @= zext(s.held, pair) | (zext(s.incoming, pair) << (zext(s.held_bytes, pair) << 3))
            s.rest @= s.joined >> (zext(s.take_bytes, pair) << 3)

        @update_ff
        def ff_held():
            if s.reset | s.clear:
                s.held <<= 0
            elif s.take:
                s.held <<= s.rest[0:bits]


class UnpackerRTL(Component):
    """Controller and gearboxes. Its writes are registered: a beat reaches the buffers one cycle after it is taken."""

    def construct(s, config: CoreConfig):
        # Constants
        Command = mk_command_msg(config)
        columns, slice_bytes, slice_bits = config.columns, config.slice_bytes, config.slice_bits
        symmetric_bytes, asymmetric_bytes = config.scale_bytes, config.scale_bytes + 1  # of a header
        section_bits = count_bits(max(asymmetric_bytes, slice_bytes, config.code_bytes_max, config.value_bytes_max))
        amount = count_bits(slice_bytes)
        code_words, value_words, header_slots = config.code_words, config.value_words, config.header_slots
        code_count, value_count = count_bits(code_words), count_bits(value_words)
        header_count = count_bits(header_slots)
        code_addr_bits = count_bits(code_words - 1)
        value_addr_bits = count_bits(value_words - 1)
        header_addr_bits = count_bits(header_slots - 1)
        group_bits, tile_bits = count_bits(config.k_max), count_bits(config.out_tiles_max)
        header_parts = len(config.header_parts)
        idle, header, codes, values = IDLE, HEADER, CODES, VALUES

        # Interface
        s.command = RecvIfcRTL(Command)
        s.weights = VectorRecvIfcRTL(mk_bits(slice_bits), columns)
        s.data = [OutPort(slice_bits) for _ in range(columns)]
        s.header_wen = OutPort(header_parts)
        s.header_waddr = OutPort(header_addr_bits)
        s.code_wen = OutPort()
        s.code_waddr = OutPort(code_addr_bits)
        s.value_wen = OutPort()
        s.value_waddr = OutPort(value_addr_bits)
        s.tile_ready = OutPort()  # the write in this cycle completes a tile
        s.tile_freed = InPort()
        s.freed_code_words = InPort(code_count)
        s.freed_value_words = InPort(value_count)

        # State and wires
        s.section = Wire(2)
        s.cmd = Wire(Command)
        s.left = Wire(section_bits)  # bytes left of the section
        s.group = Wire(group_bits)  # tiles left
        s.tile = Wire(tile_bits)
        s.started = Wire()  # the tile has its room
        s.held_bytes = Wire(amount)
        s.take_bytes = Wire(amount)
        s.code_free = Wire(code_count)
        s.value_free = Wire(value_count)
        s.header_free = Wire(header_count)
        s.code_ptr = Wire(code_addr_bits)
        s.value_ptr = Wire(value_addr_bits)
        s.header_ptr = Wire(header_addr_bits)
        s.header_bytes = Wire(section_bits)
        s.header_part = Wire(header_parts)  # the bit of the part that the next beat of a header brings
        s.room = Wire()
        s.need = Wire()
        s.beat = Wire()
        s.clear = Wire()
        s.section_end = Wire()
        s.tile_end = Wire()
        s.tile_start = Wire()
        s.stream_end = Wire()

        # Components
        s.gearbox = [GearboxRTL(slice_bytes) for _ in range(columns)]

        # Connections
        for c in range(columns):
            s.gearbox[c].incoming //= s.weights.msg[c]
            s.gearbox[c].held_bytes //= s.held_bytes
            s.gearbox[c].take_bytes //= s.take_bytes
            s.gearbox[c].top_up //= s.need
            s.gearbox[c].take //= s.beat
            s.gearbox[c].clear //= s.clear

        @update
        def up_header():
            s.header_bytes @= symmetric_bytes
            if s.cmd.asymmetric:
                s.header_bytes @= asymmetric_bytes

        @update
        def up_control():
            s.take_bytes @= slice_bytes
            if s.left < slice_bytes:
                s.take_bytes @= s.left[0:amount]
            s.need @= s.held_bytes < s.take_bytes
            # Ready follows from registers only: room for a whole tile, and too few bytes held.
            s.room @= s.started | (
                (s.code_free >= s.cmd.code_words) & (s.value_free >= s.cmd.value_words) & (s.header_free != 0)
            )
            s.weights.rdy @= (s.section != idle) & s.room & s.need
            s.beat @= (s.section != idle) & s.room & (s.weights.val | ~s.need)
            s.section_end @= s.beat & (s.left <= slice_bytes)
            s.tile_start @= s.beat & ~s.started
            s.tile_end @= s.section_end & (s.section == values)
            s.stream_end @= s.tile_end & (s.group == 1) & (s.tile == 1)
            s.command.rdy @= s.section == idle

        @update
        def up_clear():
            # The last word of a GEMM may hold padding bytes, which the next GEMM must not see.
            s.clear @= s.section == idle

        @update_ff
        def ff_section():
            if s.reset:
                s.section <<= idle
                s.started <<= 0
                s.held_bytes <<= 0
            elif s.section == idle:
                s.started <<= 0
                s.held_bytes <<= 0
                if s.command.val:
                    s.cmd <<= s.command.msg
                    s.section <<= header
                    s.group <<= s.command.msg.groups
                    s.tile <<= s.command.msg.out_tiles
                    s.left <<= symmetric_bytes
                    if s.command.msg.asymmetric:
                        s.left <<= asymmetric_bytes
            elif s.beat:
                s.started <<= ~s.tile_end
                s.left <<= s.left - zext(s.take_bytes, section_bits)
                if s.need:
                    s.held_bytes <<= s.held_bytes + slice_bytes - s.take_bytes
                else:
                    s.held_bytes <<= s.held_bytes - s.take_bytes
                if s.section_end:
                    if s.section == header:
                        if s.cmd.code_bytes != 0:
                            s.section <<= codes
                            s.left <<= zext(s.cmd.code_bytes, section_bits)
                        else:
                            s.section <<= values
                            s.left <<= zext(s.cmd.value_bytes, section_bits)
                    elif s.section == codes:
                        s.section <<= values
                        s.left <<= zext(s.cmd.value_bytes, section_bits)
                    else:
                        s.section <<= header
                        s.left <<= s.header_bytes
                        s.group <<= s.group - 1
                        if s.group == 1:
                            s.group <<= s.cmd.groups
                            s.tile <<= s.tile - 1
                        if s.stream_end:
                            s.section <<= idle

        if header_parts > 1:

            @update_ff
            def ff_header_part():
                if s.reset | s.section_end:
                    s.header_part <<= 1
                elif s.beat & (s.section == header):
                    s.header_part <<= s.header_part << 1

        else:
            s.header_part //= 1

        @update_ff
        def ff_room():
            if s.reset:
                s.code_free <<= code_words
                s.value_free <<= value_words
                s.header_free <<= header_slots
            elif s.tile_start & s.tile_freed:
                s.code_free <<= s.code_free - s.cmd.code_words + s.freed_code_words
                s.value_free <<= s.value_free - s.cmd.value_words + s.freed_value_words
            elif s.tile_start:
                s.code_free <<= s.code_free - s.cmd.code_words
                s.value_free <<= s.value_free - s.cmd.value_words
                s.header_free <<= s.header_free - 1
            elif s.tile_freed:
                s.code_free <<= s.code_free + s.freed_code_words
                s.value_free <<= s.value_free + s.freed_value_words
                s.header_free <<= s.header_free + 1

        @update_ff
        def ff_write():
            s.header_waddr <<= s.header_ptr
            s.code_waddr <<= s.code_ptr
            s.value_waddr <<= s.value_ptr
            for c in range(columns):
                s.data[c] <<= s.gearbox[c].out
            if s.reset:
                s.header_wen <<= 0
                s.code_wen <<= 0
                s.value_wen <<= 0
                s.tile_ready <<= 0
                s.header_ptr <<= 0
                s.code_ptr <<= 0
                s.value_ptr <<= 0
            else:
                s.header_wen <<= 0
                if s.beat & (s.section == header):
                    s.header_wen <<= s.header_part
                s.code_wen <<= s.beat & (s.section == codes)
                s.value_wen <<= s.beat & (s.section == values)
                s.tile_ready <<= s.tile_end
                if s.section_end & (s.section == header):
                    s.header_ptr <<= s.header_ptr + 1
                    if s.header_ptr == header_slots - 1:
                        s.header_ptr <<= 0
                if s.beat & (s.section == codes):
                    s.code_ptr <<= s.code_ptr + 1
                    if s.code_ptr == code_words - 1:
                        s.code_ptr <<= 0
                if s.beat & (s.section == values):
                    s.value_ptr <<= s.value_ptr + 1
                    if s.value_ptr == value_words - 1:
                        s.value_ptr <<= 0

    def line_trace(s):
        state = ".HCV"[int(s.section)]
        return f"{state}{'*' if s.beat else '#' if s.section != IDLE else ' '}"
