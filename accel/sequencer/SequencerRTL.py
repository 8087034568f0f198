"""Sequencer: walks output tiles, groups and token subtiles, and issues one step a cycle.

It is the only block that knows the pattern. For each step it finds how many nonzeros fit the lanes and the
window (`accel.schedule` is the same rule in closed form), each lane's block offset, and where codes, values
and activations lie. Column 0 gets the step at once, the others one cycle later each.

Order: output tile → group → token subtile → step. A cycle in which no step is issued is put down to the
first cause that holds: no activations, no weights, no half of the accumulator RAM to write to, or a drain
chain that is still busy.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, update_ff, zext

from accel.causes import CAUSES
from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import (
    CODE_INDEX,
    mk_command_msg,
    mk_drain_msg,
    mk_group_msg,
    mk_step_msg,
    mk_window_msg,
    position_bits,
    subtile_bits,
)
from accel.interfaces import RecvIfcRTL
from accel.ram.RingAddRTL import RingAddRTL


class ScheduleRTL(Component):
    """Lanes of the step that starts at the ``place``-th kept weight of a block with ``left`` nonzeros to go.

    Combinational; one link a lane.
    """

    def construct(s, config: CoreConfig):
        # Constants
        lanes, window = config.lanes, config.window
        size_bits = count_bits(window)
        sum_bits = size_bits + 1
        position_nbits = position_bits(config)
        slot_bits = count_bits(config.group_max)
        lane_bits = count_bits(lanes)
        field_bits = count_bits(config.code_field_bits)
        shift_bits = count_bits(config.code_window_bits) + 1
        shift_nbits = count_bits(config.code_window_bits - 1)
        index = CODE_INDEX

        # Interface
        s.n = InPort(size_bits)
        s.m = InPort(size_bits)
        s.code = InPort(2)
        s.code_bits = InPort(field_bits)
        s.place = InPort(size_bits)
        s.left = InPort(slot_bits)
        s.lane_val = OutPort(lanes)
        s.offsets = OutPort(lanes * position_nbits)
        s.places = OutPort(lanes * position_nbits)
        s.shifts = OutPort(lanes * shift_nbits)
        s.count = OutPort(lane_bits)
        s.advance = OutPort(size_bits)  # activations of the blocks that the step completes
        s.code_advance = OutPort(shift_bits)  # their code bits (of the nonzeros taken, for index codes)
        s.next_place = OutPort(size_bits)

        # Wires: entry l is before lane l
        s.number = [Wire(slot_bits) for _ in range(max(2, lanes))]
        s.place_ = [Wire(size_bits) for _ in range(lanes + 1)]
        s.offset = [Wire(sum_bits) for _ in range(lanes + 1)]
        s.shift = [Wire(shift_bits) for _ in range(lanes + 1)]
        s.count_ = [Wire(lane_bits) for _ in range(lanes + 1)]
        s.fits = [Wire() for _ in range(lanes)]
        for lane in range(max(2, lanes)):
            s.number[lane] //= min(lane, (1 << slot_bits) - 1)

        # Connections
        for lane in range(lanes):
            s.lane_val[lane] //= s.fits[lane]
            s.offsets[lane * position_nbits : (lane + 1) * position_nbits] //= s.offset[lane][0:position_nbits]
            s.places[lane * position_nbits : (lane + 1) * position_nbits] //= s.place_[lane][0:position_nbits]
            s.shifts[lane * shift_nbits : (lane + 1) * shift_nbits] //= s.shift[lane][0:shift_nbits]
        s.count //= s.count_[lanes]
        s.advance //= s.offset[lanes][0:size_bits]
        s.code_advance //= s.shift[lanes]
        s.next_place //= s.place_[lanes]

        @update
        def up_schedule():
            s.place_[0] @= s.place
            s.offset[0] @= 0
            s.shift[0] @= 0
            s.count_[0] @= 0
            for lane in range(lanes):
                s.fits[lane] @= (s.number[lane] < s.left) & (s.offset[lane] + zext(s.m, sum_bits) <= window)
                s.place_[lane + 1] @= s.place_[lane]
                s.offset[lane + 1] @= s.offset[lane]
                s.shift[lane + 1] @= s.shift[lane]
                s.count_[lane + 1] @= s.count_[lane]
                if s.fits[lane]:
                    s.count_[lane + 1] @= s.count_[lane] + 1
                    s.place_[lane + 1] @= s.place_[lane] + 1
                    if s.place_[lane] + 1 == s.n:
                        s.place_[lane + 1] @= 0
                        s.offset[lane + 1] @= s.offset[lane] + zext(s.m, sum_bits)
                    if (s.place_[lane] + 1 == s.n) | (s.code == index):
                        s.shift[lane + 1] @= s.shift[lane] + zext(s.code_bits, shift_bits)


class SequencerRTL(Component):
    """The core's controller; see the module's text."""

    def construct(s, config: CoreConfig):
        # Constants
        Command, Step = mk_command_msg(config), mk_step_msg(config)
        Window, Group = mk_window_msg(config), mk_group_msg(config)
        rows, chains, window = config.rows, config.drain_chains, config.window
        act_words, code_words, value_words = config.act_words, config.code_words, config.value_words
        slice_bits, slice_nibbles = config.slice_bits, 2 * config.slice_bytes
        chain_rows, header_slots = config.chain_rows, config.header_slots
        size_bits = count_bits(window)
        slot_bits = count_bits(config.group_max)
        act_addr_bits, act_count = count_bits(act_words - 1), count_bits(act_words)
        code_addr_bits = count_bits(code_words - 1)
        value_addr_bits = count_bits(value_words - 1)
        bit_bits, nibble_bits = count_bits(slice_bits - 1), count_bits(slice_nibbles - 1)
        shift_bits = count_bits(config.code_window_bits) + 1
        bit_sum = max(bit_bits, shift_bits) + 1
        nibble_sum = max(nibble_bits, count_bits(config.lanes)) + 1
        position_nbits = position_bits(config)
        shift_sum = size_bits + 1
        group_bits, tile_bits = count_bits(config.k_max), count_bits(config.out_tiles_max)
        subtile_nbits, row_bits = subtile_bits(config), count_bits(rows)
        length_bits = count_bits(chain_rows)
        acc_addr_bits = count_bits(config.acc_words - 1)
        # With one subtile there is no next one, and its address may not fit the width.
        next_subtile = chain_rows % (1 << acc_addr_bits)
        header_addr_bits = count_bits(header_slots - 1)
        ready_bits = count_bits(header_slots)
        idle, busy, wait_acts, wait_weights, wait_write, wait_drain = range(len(CAUSES))

        # Interface
        s.command = RecvIfcRTL(Command)
        s.tile_ready = InPort()
        s.block_ready = InPort()
        s.half_free = InPort()
        s.step_val = OutPort()
        s.step = OutPort(Step)
        s.window_val = OutPort()
        s.window = OutPort(Window)
        s.group_val = OutPort()
        s.group = OutPort(Group)
        s.cause = OutPort(3)

        # State: the command and where it stands
        s.running = Wire()
        s.cmd = Wire(Command)
        s.tile_left = Wire(tile_bits)  # output tiles, groups and subtiles left, the present one included
        s.group_left = Wire(group_bits)
        s.subtile_left = Wire(subtile_nbits)
        s.place = Wire(size_bits)  # next nonzero: its number in its block
        s.left = Wire(slot_bits)  # nonzeros left in the group
        s.first_step = Wire()
        s.first_group = Wire()
        s.half = Wire()
        # State: rings. base = start of the tile or block, ptr = next step
        s.header = Wire(header_addr_bits)
        s.code_base = Wire(code_addr_bits)
        s.code_ptr = Wire(code_addr_bits)
        s.code_bit = Wire(bit_bits)
        s.value_base = Wire(value_addr_bits)
        s.value_ptr = Wire(value_addr_bits)
        s.value_nibble = Wire(nibble_bits)
        s.block_base = Wire(act_addr_bits)
        s.row_base = Wire(act_addr_bits)  # of the subtile's rows
        s.group_word = Wire(act_count)  # start of the group in a row: word and activation in it
        s.group_shift = Wire(position_nbits)
        s.act_word = Wire(act_count)
        s.act_shift = Wire(position_nbits)
        s.acc_addr = Wire(acc_addr_bits)
        # State: what may go on
        s.tiles_ready = Wire(ready_bits)
        s.blocks_ready = Wire(3)
        s.halves_free = Wire(2)
        s.drain_timer = Wire(length_bits)

        # Wires
        s.issue = Wire()
        s.last_step = Wire()
        s.last_subtile = Wire()
        s.last_group = Wire()
        s.last_tile = Wire()
        s.tile_end = Wire()
        s.out_tile_end = Wire()
        s.block_end = Wire()
        s.rows_here = Wire(row_bits)
        s.length = Wire(length_bits)
        s.step_next = Wire(Step)
        s.window_next = Wire(Window)
        s.group_next = Wire(Group)
        s.next_code_ptr = Wire(code_addr_bits)
        s.next_code_bit = Wire(bit_bits)
        s.code_bit_sum = Wire(bit_sum)
        s.next_value_ptr = Wire(value_addr_bits)
        s.next_value_nibble = Wire(nibble_bits)
        s.value_nibble_sum = Wire(nibble_sum)
        s.next_act_word = Wire(act_count)
        s.next_act_shift = Wire(shift_sum)

        # Constants as wires: rows that i positions of all chains hold, and chain length i + 1
        s.rows_before = [Wire(row_bits) for _ in range(max(2, chain_rows))]
        s.length_at = [Wire(length_bits) for _ in range(max(2, chain_rows))]
        for i in range(max(2, chain_rows)):
            s.rows_before[i] //= min(i * chains, rows)
            s.length_at[i] //= min(i + 1, chain_rows)

        # Components: addresses in the rings
        s.next_code_base = RingAddRTL(code_words)
        s.next_code_base.base //= s.code_base
        s.next_code_base.step //= s.cmd.code_words
        s.next_value_base = RingAddRTL(value_words)
        s.next_value_base.base //= s.value_base
        s.next_value_base.step //= s.cmd.value_words
        s.next_row_base = RingAddRTL(act_words)
        s.next_row_base.base //= s.row_base
        s.next_row_base.step //= s.cmd.row_words
        s.next_block_base = RingAddRTL(act_words)
        s.next_block_base.base //= s.block_base
        s.next_block_base.step //= s.cmd.block_words
        s.act_address = RingAddRTL(act_words)
        s.act_address.base //= s.row_base
        s.act_address.step //= s.act_word

        # Components: the step's lanes
        s.schedule = ScheduleRTL(config)
        s.schedule.n //= s.cmd.n
        s.schedule.m //= s.cmd.m
        s.schedule.code //= s.cmd.code
        s.schedule.code_bits //= s.cmd.code_bits
        s.schedule.place //= s.place
        s.schedule.left //= s.left

        @update
        def up_where():
            s.last_step @= s.left == zext(s.schedule.count, slot_bits)
            s.last_subtile @= s.subtile_left == 1
            s.last_group @= s.group_left == 1
            s.last_tile @= s.tile_left == 1
            s.rows_here @= rows
            if s.last_subtile:
                s.rows_here @= s.cmd.last_rows
            s.length @= 1
            for i in range(chain_rows):
                if s.rows_here > s.rows_before[i]:
                    s.length @= s.length_at[i]
            s.command.rdy @= ~s.running

        @update
        def up_issue():
            s.issue @= 0
            s.cause @= idle
            if s.running:
                if s.blocks_ready == 0:
                    s.cause @= wait_acts
                elif s.tiles_ready == 0:
                    s.cause @= wait_weights
                elif s.halves_free == 0:
                    s.cause @= wait_write
                elif s.last_step & (s.drain_timer != 0):
                    s.cause @= wait_drain
                else:
                    s.cause @= busy
                    s.issue @= 1
            s.tile_end @= s.issue & s.last_step & s.last_subtile
            s.out_tile_end @= s.tile_end & s.last_group
            s.block_end @= s.out_tile_end & s.last_tile

        @update
        def up_next():
            s.code_bit_sum @= zext(s.code_bit, bit_sum) + zext(s.schedule.code_advance, bit_sum)
            s.next_code_ptr @= s.code_ptr
            if s.code_bit_sum >= slice_bits:
                s.code_bit_sum @= zext(s.code_bit, bit_sum) + zext(s.schedule.code_advance, bit_sum) - slice_bits
                s.next_code_ptr @= s.code_ptr + 1
                if s.code_ptr == code_words - 1:
                    s.next_code_ptr @= 0
            s.next_code_bit @= s.code_bit_sum[0:bit_bits]

            s.value_nibble_sum @= zext(s.value_nibble, nibble_sum) + zext(s.schedule.count, nibble_sum)
            s.next_value_ptr @= s.value_ptr
            if s.value_nibble_sum >= slice_nibbles:
                s.value_nibble_sum @= (
                    zext(s.value_nibble, nibble_sum) + zext(s.schedule.count, nibble_sum) - slice_nibbles
                )
                s.next_value_ptr @= s.value_ptr + 1
                if s.value_ptr == value_words - 1:
                    s.next_value_ptr @= 0
            s.next_value_nibble @= s.value_nibble_sum[0:nibble_bits]

            s.next_act_shift @= zext(s.act_shift, shift_sum) + zext(s.schedule.advance, shift_sum)
            s.next_act_word @= s.act_word
            if s.next_act_shift >= window:
                s.next_act_shift @= zext(s.act_shift, shift_sum) + zext(s.schedule.advance, shift_sum) - window
                s.next_act_word @= s.act_word + 1

        @update
        def up_messages():
            s.step_next.first @= s.first_step
            s.step_next.last @= s.last_step
            s.step_next.tile_last @= s.tile_end
            s.step_next.lane_val @= s.schedule.lane_val
            s.step_next.offset @= s.schedule.offsets
            s.step_next.place @= s.schedule.places
            s.step_next.shift @= s.schedule.shifts
            s.step_next.code @= s.cmd.code
            s.step_next.code_mask @= s.cmd.code_mask
            s.step_next.n @= s.cmd.n
            s.step_next.asymmetric @= s.cmd.asymmetric
            s.step_next.header @= s.header
            s.step_next.code_addr @= s.code_ptr
            s.step_next.code_bit @= s.code_bit
            s.step_next.value_addr @= s.value_ptr
            s.step_next.value_nibble @= s.value_nibble
            s.step_next.code_words @= s.cmd.code_words
            s.step_next.value_words @= s.cmd.value_words
            s.window_next.rows @= s.rows_here
            s.window_next.addr @= s.act_address.out
            s.window_next.shift @= s.act_shift
            s.window_next.block_last @= s.block_end
            s.window_next.block_words @= s.cmd.block_words
            s.group_next.half @= s.half
            s.group_next.addr @= s.acc_addr
            s.group_next.length @= s.length
            s.group_next.first @= s.first_group
            s.group_next.done @= s.out_tile_end

        @update_ff
        def ff_issue():
            s.step <<= s.step_next
            s.window <<= s.window_next
            s.group <<= s.group_next
            if s.reset:
                s.step_val <<= 0
                s.window_val <<= 0
                s.group_val <<= 0
            else:
                s.step_val <<= s.issue
                s.window_val <<= s.issue
                s.group_val <<= s.issue & s.last_step

        @update_ff
        def ff_walk():
            if s.reset:
                s.running <<= 0
                s.half <<= 0
                s.header <<= 0
                s.code_base <<= 0
                s.code_ptr <<= 0
                s.value_base <<= 0
                s.value_ptr <<= 0
                s.block_base <<= 0
                s.row_base <<= 0
                s.act_word <<= 0
            elif ~s.running:
                s.cmd <<= s.command.msg
                s.tile_left <<= s.command.msg.out_tiles
                s.group_left <<= s.command.msg.groups
                s.subtile_left <<= s.command.msg.subtiles
                s.place <<= 0
                s.left <<= s.command.msg.slots
                s.first_step <<= 1
                s.first_group <<= 1
                s.code_bit <<= 0
                s.value_nibble <<= 0
                s.group_word <<= 0
                s.group_shift <<= 0
                s.act_word <<= 0
                s.act_shift <<= 0
                s.acc_addr <<= 0
                s.running <<= s.command.val
            elif s.issue:
                s.first_step <<= s.last_step
                s.place <<= s.schedule.next_place
                s.left <<= s.left - zext(s.schedule.count, slot_bits)
                s.code_ptr <<= s.next_code_ptr
                s.code_bit <<= s.next_code_bit
                s.value_ptr <<= s.next_value_ptr
                s.value_nibble <<= s.next_value_nibble
                s.act_word <<= s.next_act_word
                s.act_shift <<= s.next_act_shift[0:position_nbits]
                if s.last_step:
                    # The next subtile reads the same tile from its start.
                    s.left <<= s.cmd.slots
                    s.code_ptr <<= s.code_base
                    s.code_bit <<= 0
                    s.value_ptr <<= s.value_base
                    s.value_nibble <<= 0
                    s.act_word <<= s.group_word
                    s.act_shift <<= s.group_shift
                    s.row_base <<= s.next_row_base.out
                    s.subtile_left <<= s.subtile_left - 1
                    s.acc_addr <<= s.acc_addr + next_subtile
                    if s.last_subtile:
                        # The next tile: one group further along the rows.
                        s.subtile_left <<= s.cmd.subtiles
                        s.acc_addr <<= 0
                        s.row_base <<= s.block_base
                        s.header <<= s.header + 1
                        if s.header == header_slots - 1:
                            s.header <<= 0
                        s.code_base <<= s.next_code_base.out
                        s.code_ptr <<= s.next_code_base.out
                        s.value_base <<= s.next_value_base.out
                        s.value_ptr <<= s.next_value_base.out
                        s.group_word <<= s.next_act_word
                        s.group_shift <<= s.next_act_shift[0:position_nbits]
                        s.act_word <<= s.next_act_word
                        s.act_shift <<= s.next_act_shift[0:position_nbits]
                        s.group_left <<= s.group_left - 1
                        s.first_group <<= 0
                        if s.last_group:
                            # The next output tile: back to the start of the rows.
                            s.group_left <<= s.cmd.groups
                            s.first_group <<= 1
                            s.half <<= ~s.half
                            s.group_word <<= 0
                            s.group_shift <<= 0
                            s.act_word <<= 0
                            s.act_shift <<= 0
                            s.tile_left <<= s.tile_left - 1
                            if s.last_tile:
                                s.running <<= 0
                                s.block_base <<= s.next_block_base.out
                                s.row_base <<= s.next_block_base.out

        @update_ff
        def ff_credits():
            if s.reset:
                s.tiles_ready <<= 0
                s.blocks_ready <<= 0
                s.halves_free <<= 2
                s.drain_timer <<= 0
            else:
                if s.tile_ready & ~s.tile_end:
                    s.tiles_ready <<= s.tiles_ready + 1
                elif ~s.tile_ready & s.tile_end:
                    s.tiles_ready <<= s.tiles_ready - 1
                if s.block_ready & ~s.block_end:
                    s.blocks_ready <<= s.blocks_ready + 1
                elif ~s.block_ready & s.block_end:
                    s.blocks_ready <<= s.blocks_ready - 1
                if s.half_free & ~s.out_tile_end:
                    s.halves_free <<= s.halves_free + 1
                elif ~s.half_free & s.out_tile_end:
                    s.halves_free <<= s.halves_free - 1
                # Partials of a group leave their chain in `length` cycles; the next group may end no sooner.
                if s.issue & s.last_step:
                    s.drain_timer <<= s.length - 1
                elif s.drain_timer != 0:
                    s.drain_timer <<= s.drain_timer - 1

    def line_trace(s):
        return f"{CAUSES[int(s.cause)][-7:]:>7}"


class DrainSequencerRTL(Component):
    """Counts the cycles of a group's draining: one accumulator address a cycle for all chains of a column."""

    def construct(s, config: CoreConfig):
        # Constants
        Group, Drain = mk_group_msg(config), mk_drain_msg(config)
        length_bits = count_bits(config.chain_rows)

        # Interface: the end of a group in the cycle of its last step in the PEs of column 0
        s.group_val = InPort()
        s.group = InPort(Group)
        s.drain_val = OutPort()
        s.drain = OutPort(Drain)

        # State
        s.left = Wire(length_bits)
        s.addr = Wire(count_bits(config.acc_words - 1))
        s.half = Wire()
        s.first = Wire()
        s.done = Wire()

        @update
        def up_drain():
            s.drain_val @= s.left != 0
            s.drain.half @= s.half
            s.drain.addr @= s.addr
            s.drain.first @= s.first
            s.drain.done @= s.done & (s.left == 1)

        @update_ff
        def ff_drain():
            if s.group_val:
                s.addr <<= s.group.addr
                s.half <<= s.group.half
                s.first <<= s.group.first
                s.done <<= s.group.done
            elif s.left > 1:
                s.addr <<= s.addr + 1
            if s.reset:
                s.left <<= 0
            elif s.group_val:
                s.left <<= s.group.length
            elif s.left != 0:
                s.left <<= s.left - 1
