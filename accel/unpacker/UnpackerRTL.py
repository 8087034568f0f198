"""Unpacker: cuts the weight stream into tile headers, block codes and values, and fills the weight buffers.

All columns share the pattern, so one controller steers one gearbox a column. A beat moves up to one slice
(``slice_bytes`` bytes) of one section of every column; the gearbox keeps the rest of a slice for the next
beat, so sections and tiles follow each other at byte granularity without a gap. A tile starts when the
buffers have room for all of it.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, mk_bits, update, update_ff, zext

from accel.config import CoreConfig, count_bits, two_in
from accel.core.CoreMsg import mk_beat_msg, mk_command_msg, mk_write_msg
from accel.countdown.CountdownRTL import CountdownRTL
from accel.delay.DelayRTL import HoldRTL, PulseRTL
from accel.interfaces import RecvIfcRTL, VectorRecvIfcRTL


class GearboxRTL(Component):
    """One column's gearbox: a slice of held bytes, the held ones first, is topped up by the incoming slice.

    What it gives is registered, and so is the write that comes with it. With a register in the place "weights", there
    is another one where the incoming slice is in its place.
    """

    def construct(s, config: CoreConfig):
        # Constants
        Beat, Write = mk_beat_msg(config), mk_write_msg(config)
        bits = config.slice_bits
        pair = 2 * bits
        placing = config.has_register("weights")

        # Interface
        s.incoming = InPort(bits)
        s.beat = InPort(Beat)
        s.write = InPort(Write)
        s.data = OutPort(bits)
        s.write_out = OutPort(Write)

        # State and wires
        s.held = Wire(bits)
        s.joined = Wire(pair)
        s.rest = Wire(pair)

        # Components: the slice in its place above the held bytes, and what goes on with it
        s.placed = HoldRTL(pair, 1, placing)
        s.present = HoldRTL(Beat, 1, placing)
        s.present_write = HoldRTL(Write, 1, placing)
        s.present.in_[0] //= s.beat
        s.present_write.in_[0] //= s.write

        @update
        def up_place():
            s.placed.in_[0] @= 0
            if s.beat.top_up:
                s.placed.in_[0] @= zext(s.incoming, pair) << (zext(s.beat.held_bytes, pair) << 3)

        @update
        def up_join():
            # Bytes of `held` beyond `held_bytes` are zero, so joining is an OR.
            s.joined @= zext(s.held, pair) | s.placed.out[0]
            s.rest @= s.joined >> (zext(s.present.out[0].take_bytes, pair) << 3)

        @update_ff
        def ff_held():
            s.data <<= s.joined[0:bits]
            s.write_out <<= s.present_write.out[0]
            if s.reset | s.present.out[0].clear:
                s.held <<= 0
            elif s.present.out[0].take:
                s.held <<= s.rest[0:bits]


class UnpackerRTL(Component):
    """Controller and gearboxes. Its writes are registered: a beat reaches the buffers one cycle after it is taken.

    With a register in the place "weights", a beat goes to the first column's gearbox one cycle after it is taken, and
    then from column to column, just as the steps that read it do: no wire goes to all columns.
    """

    def construct(s, config: CoreConfig):
        # Constants
        Command, Beat, Write = mk_command_msg(config), mk_beat_msg(config), mk_write_msg(config)
        columns, slice_bytes, slice_bits = config.columns, config.slice_bytes, config.slice_bits
        symmetric_bytes, asymmetric_bytes = config.scale_bytes, config.scale_bytes + 1  # of a header
        amount = count_bits(slice_bytes)
        low_bits = amount - 1  # of a number of bytes: those beyond whole slices
        # Beats of a header, and the bytes of its last one
        symmetric_beats, asymmetric_beats = -(-symmetric_bytes // slice_bytes), -(-asymmetric_bytes // slice_bytes)
        symmetric_last = symmetric_bytes - (symmetric_beats - 1) * slice_bytes
        asymmetric_last = asymmetric_bytes - (asymmetric_beats - 1) * slice_bytes
        code_words, value_words, header_slots = config.code_words, config.value_words, config.header_slots
        code_count, value_count = count_bits(code_words), count_bits(value_words)
        header_count = count_bits(header_slots)
        code_margin_bits, value_margin_bits = code_count + 1, value_count + 1
        code_sign, value_sign = code_margin_bits - 1, value_margin_bits - 1
        beat_bits = count_bits(max(asymmetric_beats, code_words, value_words))
        code_addr_bits = count_bits(code_words - 1)
        value_addr_bits = count_bits(value_words - 1)
        header_addr_bits = count_bits(header_slots - 1)
        group_bits, tile_bits = count_bits(config.k_max), count_bits(config.out_tiles_max)
        two_beats = two_in(beat_bits)
        header_parts = len(config.header_parts)
        moving = config.has_register("weights")
        last_slot, last_code, last_value = header_slots - 1, code_words - 1, value_words - 1
        symmetric_single, asymmetric_single = int(symmetric_beats == 1), int(asymmetric_beats == 1)
        symmetric_take, asymmetric_take = min(slice_bytes, symmetric_bytes), min(slice_bytes, asymmetric_bytes)

        # Interface
        s.command = RecvIfcRTL(Command)
        s.weights = VectorRecvIfcRTL(mk_bits(slice_bits), columns)
        s.data = [OutPort(slice_bits) for _ in range(columns)]
        s.write = [OutPort(Write) for _ in range(columns)]
        s.tile_ready = OutPort()  # the write in this cycle, or the next one, completes a tile in column 0
        s.tile_freed = InPort()
        s.freed_code_words = InPort(code_count)  # 0 when none is freed
        s.freed_value_words = InPort(value_count)

        # State and wires
        s.busy = Wire()
        s.in_header = Wire()  # the section of the present beat; none of them if not busy
        s.in_codes = Wire()
        s.in_values = Wire()
        s.cmd = Wire(Command)
        s.has_codes = Wire()
        s.left = Wire(beat_bits)  # beats left of the section
        s.last_beat = Wire()
        s.tile_last = Wire()  # and of the tile
        s.take_bytes = Wire(amount)  # in the present beat
        s.take_next = Wire(amount)  # in the beat after it
        s.held_next = Wire(amount)
        s.last_group = Wire()
        s.last_tile = Wire()
        s.started = Wire()  # the tile has its room
        s.held_bytes = Wire(amount)
        s.code_free = Wire(code_count)
        s.value_free = Wire(value_count)
        s.header_free = Wire(header_count)
        s.code_margin = Wire(code_margin_bits)  # what is free beyond a tile; negative while there is no room for one
        s.value_margin = Wire(value_margin_bits)
        s.code_free_next = Wire(code_margin_bits)  # these four: if no tile takes its room
        s.value_free_next = Wire(value_margin_bits)
        s.code_margin_next = Wire(code_margin_bits)
        s.value_margin_next = Wire(value_margin_bits)
        s.has_header = Wire()
        s.charge = Wire()
        s.charged_code_words = Wire(code_count)
        s.charged_value_words = Wire(value_count)
        s.code_ptr = Wire(code_addr_bits)
        s.value_ptr = Wire(value_addr_bits)
        s.header_ptr = Wire(header_addr_bits)
        s.header_beats = Wire(beat_bits)
        s.header_take = Wire(amount)  # in its first beat
        s.code_last = Wire(amount)  # bytes of the last beat
        s.value_last = Wire(amount)
        s.code_take = Wire(amount)  # in their first beats
        s.value_take = Wire(amount)
        s.header_last = Wire(amount)
        s.section_last = Wire(amount)  # a register: bytes of the present section's last beat
        s.next_last = Wire()
        s.header_part = Wire(header_parts)  # the bit of the part that the next beat of a header brings
        s.room = Wire()
        s.need = Wire()  # a register: the present beat takes more than is held
        s.beat = Wire()
        s.section_end = Wire()
        s.tile_end = Wire()
        s.out_tile_end = Wire()
        s.tile_start = Wire()
        s.stream_last = Wire()  # the section is the last one of the stream

        s.present = Wire(Beat)  # what gearboxes do in this cycle, or hear of in it
        s.present_write = Wire(Write)
        s.beat_at = [Wire(Beat) for _ in range(columns)]
        s.write_at = [Wire(Write) for _ in range(columns)]  # what a beat brings, on its way

        # Components
        s.gearbox = [GearboxRTL(config) for _ in range(columns)]
        s.incoming = [HoldRTL(slice_bits, 1, (c + 1) * moving) for c in range(columns)]
        s.ready = PulseRTL(config.tile_delay - 1)
        s.groups = CountdownRTL(group_bits)
        s.tiles = CountdownRTL(tile_bits)

        # Connections
        s.groups.given //= s.command.msg.groups
        s.groups.total //= s.cmd.groups
        s.groups.step //= s.tile_end
        s.groups.last //= s.last_group
        s.tiles.given //= s.command.msg.out_tiles
        s.tiles.total //= s.command.msg.out_tiles
        s.tiles.step //= s.out_tile_end
        s.tiles.last //= s.last_tile
        for counter in (s.groups, s.tiles):
            counter.load //= s.command.rdy
        s.ready.in_ //= s.tile_end
        s.ready.out //= s.tile_ready
        for c in range(columns):
            s.incoming[c].in_[0] //= s.weights.msg[c]
            s.gearbox[c].incoming //= s.incoming[c].out[0]
            s.gearbox[c].beat //= s.beat_at[c]
            s.gearbox[c].write //= s.write_at[c]
            s.gearbox[c].data //= s.data[c]
            s.gearbox[c].write_out //= s.write[c]

        if moving:

            @update_ff
            def ff_right():
                # Nothing is reset: whatever is on its way reaches buffers that hold no tile, and gearboxes are cleared
                # by what follows it.
                s.beat_at[0] <<= s.present
                s.write_at[0] <<= s.present_write
                for c in range(1, columns):
                    s.beat_at[c] <<= s.beat_at[c - 1]
                    s.write_at[c] <<= s.write_at[c - 1]

        else:
            for c in range(columns):
                s.beat_at[c] //= s.present
                s.write_at[c] //= s.present_write

        if slice_bytes == 1:

            @update
            def up_last_bytes_of_one():
                s.code_last @= 1
                s.value_last @= 1

        else:
            s.code_low = Wire(low_bits)
            s.value_low = Wire(low_bits)
            for low, size, nbits in (
                (s.code_low, s.cmd.code_bytes, count_bits(config.code_bytes_max)),
                (s.value_low, s.cmd.value_bytes, count_bits(config.value_bytes_max)),
            ):
                used = min(low_bits, nbits)
                low[0:used] //= size[0:used]
                if used < low_bits:
                    low[used:low_bits] //= 0

            @update
            def up_last_bytes():
                s.code_last @= slice_bytes
                if s.code_low != 0:
                    s.code_last @= zext(s.code_low, amount)
                s.value_last @= slice_bytes
                if s.value_low != 0:
                    s.value_last @= zext(s.value_low, amount)

        @update
        def up_section():
            s.header_beats @= symmetric_beats
            s.header_last @= symmetric_last
            s.header_take @= symmetric_take
            if s.cmd.asymmetric:
                s.header_beats @= asymmetric_beats
                s.header_last @= asymmetric_last
                s.header_take @= asymmetric_take
            s.next_last @= s.left == two_beats
            s.code_take @= slice_bytes
            if s.cmd.code_words == 1:
                s.code_take @= s.code_last
            s.value_take @= slice_bytes
            if s.cmd.value_words == 1:
                s.value_take @= s.value_last

        @update
        def up_after():
            s.held_next @= s.held_bytes - s.take_bytes
            if s.need:
                s.held_next @= s.held_bytes + slice_bytes - s.take_bytes
            s.take_next @= s.take_bytes
            if s.last_beat:
                if s.in_values:
                    s.take_next @= s.header_take
                elif s.in_header & s.has_codes:
                    s.take_next @= s.code_take
                else:
                    s.take_next @= s.value_take
            elif s.next_last:
                s.take_next @= s.section_last

        @update
        def up_control():
            # Ready follows from registers only: room for a whole tile, and too few bytes held.
            s.room @= s.started | (~s.code_margin[code_sign] & ~s.value_margin[value_sign] & s.has_header)
            s.weights.rdy @= s.busy & s.room & s.need
            s.beat @= s.busy & s.room & (s.weights.val | ~s.need)
            s.section_end @= s.beat & s.last_beat
            s.tile_start @= s.beat & ~s.started
            s.tile_end @= s.beat & s.tile_last
            s.out_tile_end @= s.tile_end & s.last_group
            s.stream_last @= s.in_values & s.last_group & s.last_tile
            s.command.rdy @= ~s.busy

        @update
        def up_present():
            # The last word of a GEMM may hold padding bytes, which the next GEMM must not see.
            s.present.clear @= ~s.busy
            s.present.top_up @= s.need
            s.present.take @= s.beat
            s.present.held_bytes @= s.held_bytes
            s.present.take_bytes @= s.take_bytes
            s.present_write.header_wen @= 0
            if s.beat & s.in_header:
                s.present_write.header_wen @= s.header_part
            s.present_write.code_wen @= s.beat & s.in_codes
            s.present_write.value_wen @= s.beat & s.in_values
            s.present_write.header_addr @= s.header_ptr
            s.present_write.code_addr @= s.code_ptr
            s.present_write.value_addr @= s.value_ptr

        @update_ff
        def ff_command():
            if ~s.busy:
                s.cmd <<= s.command.msg
                s.has_codes <<= s.command.msg.code_bytes != 0

        # What counts has no reset, and waits for no command: fewer conditions on what goes to many registers.
        @update_ff
        def ff_section():
            if s.reset:
                s.busy <<= 0
                s.in_header <<= 0
                s.in_codes <<= 0
                s.in_values <<= 0
            elif ~s.busy:
                s.busy <<= s.command.val
                s.in_header <<= s.command.val
            elif s.section_end:
                s.busy <<= ~s.stream_last
                s.in_header <<= s.in_values & ~s.stream_last
                s.in_codes <<= s.in_header & s.has_codes
                s.in_values <<= s.in_codes | (s.in_header & ~s.has_codes)

        @update_ff
        def ff_beat():
            if ~s.busy:
                s.started <<= 0
                s.held_bytes <<= 0
                s.need <<= 1
                s.tile_last <<= 0
                s.left <<= symmetric_beats
                s.last_beat <<= symmetric_single
                s.take_bytes <<= symmetric_take
                s.section_last <<= symmetric_last
                if s.command.msg.asymmetric:
                    s.left <<= asymmetric_beats
                    s.last_beat <<= asymmetric_single
                    s.take_bytes <<= asymmetric_take
                    s.section_last <<= asymmetric_last
            elif s.beat:
                s.started <<= ~s.tile_last
                s.left <<= s.left - 1
                s.last_beat <<= s.next_last
                s.tile_last <<= s.next_last & s.in_values
                s.take_bytes <<= s.take_next
                s.held_bytes <<= s.held_next
                s.need <<= s.held_next < s.take_next
                if s.last_beat:
                    if s.in_values:
                        s.left <<= s.header_beats
                        s.last_beat <<= s.header_beats == 1
                        s.section_last <<= s.header_last
                    elif s.in_header & s.has_codes:
                        s.left <<= zext(s.cmd.code_words, beat_bits)
                        s.last_beat <<= s.cmd.code_words == 1
                        s.section_last <<= s.code_last
                    else:
                        s.left <<= zext(s.cmd.value_words, beat_bits)
                        s.last_beat <<= s.cmd.value_words == 1
                        s.tile_last <<= s.cmd.value_words == 1
                        s.section_last <<= s.value_last

        if header_parts > 1:

            @update_ff
            def ff_header_part():
                if s.reset | s.section_end:
                    s.header_part <<= 1
                elif s.beat & s.in_header:
                    s.header_part <<= s.header_part << 1

        else:
            s.header_part //= 1

        @update
        def up_charge():
            s.charged_code_words @= 0
            s.charged_value_words @= 0
            if s.charge:
                s.charged_code_words @= s.cmd.code_words
                s.charged_value_words @= s.cmd.value_words

        @update_ff
        def ff_charge():
            # A tile takes its room a cycle after it has started: it has another beat, and nobody asks before the next.
            s.charge <<= s.tile_start & ~s.reset

        @update_ff
        def ff_room():
            if s.reset:
                s.code_free <<= code_words
                s.value_free <<= value_words
                s.header_free <<= header_slots
                s.has_header <<= 1
            else:
                s.code_free <<= s.code_free + s.freed_code_words - s.charged_code_words
                s.value_free <<= s.value_free + s.freed_value_words - s.charged_value_words
                if s.charge & ~s.tile_freed:
                    s.header_free <<= s.header_free - 1
                    s.has_header <<= s.header_free != 1
                elif ~s.charge & s.tile_freed:
                    s.header_free <<= s.header_free + 1
                    s.has_header <<= 1

        @update
        def up_margin():
            s.code_free_next @= zext(s.code_free, code_margin_bits) + zext(s.freed_code_words, code_margin_bits)
            s.value_free_next @= zext(s.value_free, value_margin_bits) + zext(s.freed_value_words, value_margin_bits)
            s.code_margin_next @= s.code_margin + zext(s.freed_code_words, code_margin_bits)
            s.value_margin_next @= s.value_margin + zext(s.freed_value_words, value_margin_bits)

        @update_ff
        def ff_margin():
            if ~s.busy:
                s.code_margin <<= s.code_free_next - zext(s.command.msg.code_words, code_margin_bits)
                s.value_margin <<= s.value_free_next - zext(s.command.msg.value_words, value_margin_bits)
            else:
                s.code_margin <<= s.code_margin_next - zext(s.charged_code_words, code_margin_bits)
                s.value_margin <<= s.value_margin_next - zext(s.charged_value_words, value_margin_bits)

        @update_ff
        def ff_pointers():
            if s.reset:
                s.header_ptr <<= 0
                s.code_ptr <<= 0
                s.value_ptr <<= 0
            else:
                if s.section_end & s.in_header:
                    s.header_ptr <<= s.header_ptr + 1
                    if s.header_ptr == last_slot:
                        s.header_ptr <<= 0
                if s.beat & s.in_codes:
                    s.code_ptr <<= s.code_ptr + 1
                    if s.code_ptr == last_code:
                        s.code_ptr <<= 0
                if s.beat & s.in_values:
                    s.value_ptr <<= s.value_ptr + 1
                    if s.value_ptr == last_value:
                        s.value_ptr <<= 0

    def line_trace(s):
        state = "H" if s.in_header else "C" if s.in_codes else "V" if s.in_values else "."
        return f"{state}{'*' if s.beat else '#' if s.busy else ' '}"
