"""Sequencer: walks output tiles, groups and token subtiles, and issues one step a cycle.

It is the only block that knows the pattern. It follows the steps of `accel.schedule` by what a command says of
them; a step has each lane's block offset, and where codes, values and activations lie. Column 0 gets the step at
once, the others one cycle later each.

Order: output tile → group → token subtile → step. A cycle in which no step is issued is put down to the
first cause that holds: no activations, no weights, no half of the accumulator RAM to write to, or a drain
chain that is still busy.
"""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, update_ff, zext

from accel.causes import CAUSES
from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import (
    code_shift_bits,
    mk_command_msg,
    mk_group_msg,
    mk_step_msg,
    mk_window_msg,
    position_bits,
    subtile_bits,
)
from accel.countdown.CountdownRTL import CountdownRTL
from accel.interfaces import RecvIfcRTL
from accel.ram.RamRTL import EvenAddressRTL
from accel.ram.RingAddRTL import RingAddRTL
from accel.sequencer.StepWalkRTL import StepWalkRTL


class SequencerRTL(Component):
    """The core's controller; see the module's text."""

    def construct(s, config: CoreConfig):
        # Constants
        Command, Step = mk_command_msg(config), mk_step_msg(config)
        Window, Group = mk_window_msg(config), mk_group_msg(config)
        rows, window = config.rows, config.window
        act_words, code_words, value_words = config.act_words, config.code_words, config.value_words
        slice_bits, slice_nibbles = config.slice_bits, 2 * config.slice_bytes
        chain_rows, header_slots = config.chain_rows, config.header_slots
        size_bits = count_bits(window)
        act_addr_bits, act_count = count_bits(act_words - 1), count_bits(act_words)
        code_addr_bits = count_bits(code_words - 1)
        value_addr_bits = count_bits(value_words - 1)
        bit_bits, nibble_bits = count_bits(slice_bits - 1), count_bits(slice_nibbles - 1)
        bit_sum = max(bit_bits, code_shift_bits(config) + 1) + 1
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
        # State: what follows from these counters, in registers of its own so that steps are issued in time
        s.has_tile = Wire()
        s.has_block = Wire()
        s.has_half = Wire()
        s.draining = Wire()
        s.issue = Wire()  # nothing is in the step's way

        # Wires: what these will be in the next cycle
        s.running_next = Wire()
        s.has_tile_next = Wire()
        s.has_block_next = Wire()
        s.has_half_next = Wire()
        s.draining_next = Wire()

        # Wires: whether the step is in the last subtile of a tile, and so on; all of these are registers
        s.last_step = Wire()
        s.last_subtile = Wire()
        s.last_group = Wire()
        s.last_tile = Wire()

        # Wires
        s.subtile_end = Wire()
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

        # Components: what is left
        s.subtiles = CountdownRTL(subtile_nbits)
        s.subtiles.given //= s.command.msg.subtiles
        s.subtiles.total //= s.cmd.subtiles
        s.subtiles.step //= s.subtile_end
        s.subtiles.last //= s.last_subtile
        s.groups = CountdownRTL(group_bits)
        s.groups.given //= s.command.msg.groups
        s.groups.total //= s.cmd.groups
        s.groups.step //= s.tile_end
        s.groups.last //= s.last_group
        s.tiles = CountdownRTL(tile_bits)
        s.tiles.given //= s.command.msg.out_tiles
        s.tiles.total //= s.command.msg.out_tiles
        s.tiles.step //= s.out_tile_end
        s.tiles.last //= s.last_tile
        for counter in (s.subtiles, s.groups, s.tiles):
            counter.load //= s.command.rdy

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

        # Components: what even banks of the weight buffers read
        s.code_even = EvenAddressRTL(code_words)
        s.code_even.addr //= s.code_ptr
        s.value_even = EvenAddressRTL(value_words)
        s.value_even.addr //= s.value_ptr

        # Components: the step's lanes
        s.walk = StepWalkRTL(config)
        s.walk.start //= s.command.rdy
        s.walk.given //= s.command.msg
        s.walk.cmd //= s.cmd
        s.walk.issue //= s.issue
        s.walk.last //= s.last_step

        @update
        def up_where():
            s.rows_here @= rows
            if s.last_subtile:
                s.rows_here @= s.cmd.last_rows
            s.length @= chain_rows
            if s.last_subtile:
                s.length @= s.cmd.last_length
            s.command.rdy @= ~s.running

        @update
        def up_cause():
            s.cause @= idle
            if s.running:
                if ~s.has_block:
                    s.cause @= wait_acts
                elif ~s.has_tile:
                    s.cause @= wait_weights
                elif ~s.has_half:
                    s.cause @= wait_write
                elif s.last_step & s.draining:
                    s.cause @= wait_drain
                else:
                    s.cause @= busy

        @update
        def up_ends():
            s.subtile_end @= s.issue & s.last_step
            s.tile_end @= s.subtile_end & s.last_subtile
            s.out_tile_end @= s.tile_end & s.last_group
            s.block_end @= s.out_tile_end & s.last_tile

        @update
        def up_next():
            s.code_bit_sum @= zext(s.code_bit, bit_sum) + zext(s.walk.code_advance, bit_sum)
            s.next_code_ptr @= s.code_ptr
            if s.code_bit_sum >= slice_bits:
                s.code_bit_sum @= zext(s.code_bit, bit_sum) + zext(s.walk.code_advance, bit_sum) - slice_bits
                s.next_code_ptr @= s.code_ptr + 1
                if s.code_ptr == code_words - 1:
                    s.next_code_ptr @= 0
            s.next_code_bit @= s.code_bit_sum[0:bit_bits]

            s.value_nibble_sum @= zext(s.value_nibble, nibble_sum) + zext(s.walk.nonzeros, nibble_sum)
            s.next_value_ptr @= s.value_ptr
            if s.value_nibble_sum >= slice_nibbles:
                s.value_nibble_sum @= (
                    zext(s.value_nibble, nibble_sum) + zext(s.walk.nonzeros, nibble_sum) - slice_nibbles
                )
                s.next_value_ptr @= s.value_ptr + 1
                if s.value_ptr == value_words - 1:
                    s.next_value_ptr @= 0
            s.next_value_nibble @= s.value_nibble_sum[0:nibble_bits]

            s.next_act_shift @= zext(s.act_shift, shift_sum) + zext(s.walk.advance, shift_sum)
            s.next_act_word @= s.act_word
            if s.next_act_shift >= window:
                s.next_act_shift @= zext(s.act_shift, shift_sum) + zext(s.walk.advance, shift_sum) - window
                s.next_act_word @= s.act_word + 1

        @update
        def up_messages():
            s.step_next.last @= s.last_step
            s.step_next.tile_last @= s.tile_end
            s.step_next.lane_val @= s.walk.lane_val
            s.step_next.offset @= s.walk.offsets
            s.step_next.place @= s.walk.places
            s.step_next.shift @= s.walk.shifts
            s.step_next.code @= s.cmd.code
            s.step_next.code_mask @= s.cmd.code_mask
            s.step_next.n @= s.cmd.n
            s.step_next.asymmetric @= s.cmd.asymmetric
            s.step_next.header @= s.header
            s.step_next.code_addr @= s.code_ptr
            s.step_next.code_even @= s.code_even.even
            s.step_next.code_bit @= s.code_bit
            s.step_next.value_addr @= s.value_ptr
            s.step_next.value_even @= s.value_even.even
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
                s.group_val <<= s.subtile_end

        @update_ff
        def ff_command():
            # By itself: what enables it goes to hundreds of registers, and must be a register.
            if ~s.running:
                s.cmd <<= s.command.msg

        @update_ff
        def ff_running():
            s.running <<= s.running_next & ~s.reset

        # The rings go on from block to block, and places in rows end where they started: these wait for no command.
        @update_ff
        def ff_step():
            if s.reset:
                s.code_ptr <<= 0
                s.code_bit <<= 0
                s.value_ptr <<= 0
                s.value_nibble <<= 0
                s.act_word <<= 0
                s.act_shift <<= 0
            elif s.issue:
                s.code_ptr <<= s.next_code_ptr
                s.code_bit <<= s.next_code_bit
                s.value_ptr <<= s.next_value_ptr
                s.value_nibble <<= s.next_value_nibble
                s.act_word <<= s.next_act_word
                s.act_shift <<= s.next_act_shift[0:position_nbits]
                if s.last_step:
                    # The next subtile reads the same tile from its start.
                    s.code_ptr <<= s.code_base
                    s.code_bit <<= 0
                    s.value_ptr <<= s.value_base
                    s.value_nibble <<= 0
                    s.act_word <<= s.group_word
                    s.act_shift <<= s.group_shift
                    if s.last_subtile:
                        # The next tile: one group further along the rows, or at their start.
                        s.code_ptr <<= s.next_code_base.out
                        s.value_ptr <<= s.next_value_base.out
                        s.act_word <<= s.next_act_word
                        s.act_shift <<= s.next_act_shift[0:position_nbits]
                        if s.last_group:
                            s.act_word <<= 0
                            s.act_shift <<= 0

        @update_ff
        def ff_subtile():
            if s.reset:
                s.row_base <<= 0
                s.acc_addr <<= 0
            elif s.subtile_end:
                s.row_base <<= s.next_row_base.out
                s.acc_addr <<= s.acc_addr + next_subtile
                if s.last_subtile:
                    s.row_base <<= s.block_base
                    s.acc_addr <<= 0
                    if s.last_group & s.last_tile:
                        s.row_base <<= s.next_block_base.out

        @update_ff
        def ff_tile():
            if s.reset:
                s.header <<= 0
                s.code_base <<= 0
                s.value_base <<= 0
                s.group_word <<= 0
                s.group_shift <<= 0
                s.first_group <<= 1
            elif s.tile_end:
                s.header <<= s.header + 1
                if s.header == header_slots - 1:
                    s.header <<= 0
                s.code_base <<= s.next_code_base.out
                s.value_base <<= s.next_value_base.out
                s.group_word <<= s.next_act_word
                s.group_shift <<= s.next_act_shift[0:position_nbits]
                if s.last_group:
                    s.group_word <<= 0
                    s.group_shift <<= 0
                s.first_group <<= s.last_group

        @update_ff
        def ff_block():
            if s.reset:
                s.half <<= 0
                s.block_base <<= 0
            else:
                if s.out_tile_end:
                    s.half <<= ~s.half
                if s.block_end:
                    s.block_base <<= s.next_block_base.out

        @update
        def up_after():
            s.has_tile_next @= s.has_tile
            if s.tile_ready & ~s.tile_end:
                s.has_tile_next @= 1
            elif ~s.tile_ready & s.tile_end:
                s.has_tile_next @= s.tiles_ready != 1
            s.has_block_next @= s.has_block
            if s.block_ready & ~s.block_end:
                s.has_block_next @= 1
            elif ~s.block_ready & s.block_end:
                s.has_block_next @= s.blocks_ready != 1
            s.has_half_next @= s.has_half
            if s.half_free & ~s.out_tile_end:
                s.has_half_next @= 1
            elif ~s.half_free & s.out_tile_end:
                s.has_half_next @= s.halves_free != 1
            # Partials of a group leave their chain in `length` cycles; the next group may end no sooner.
            s.draining_next @= s.draining & (s.drain_timer != 1)
            if s.subtile_end:
                s.draining_next @= s.length != 1
            s.running_next @= s.running & ~s.block_end
            if ~s.running:
                s.running_next @= s.command.val

        @update_ff
        def ff_issue_next():
            if s.reset:
                s.issue <<= 0
            else:
                s.issue <<= (
                    s.running_next
                    & s.has_block_next
                    & s.has_tile_next
                    & s.has_half_next
                    & ~(s.walk.last_after & s.draining_next)
                )

        @update_ff
        def ff_credits():
            if s.reset:
                s.tiles_ready <<= 0
                s.blocks_ready <<= 0
                s.halves_free <<= 2
                s.drain_timer <<= 0
                s.has_tile <<= 0
                s.has_block <<= 0
                s.has_half <<= 1
                s.draining <<= 0
            else:
                s.has_tile <<= s.has_tile_next
                s.has_block <<= s.has_block_next
                s.has_half <<= s.has_half_next
                s.draining <<= s.draining_next
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
                if s.subtile_end:
                    s.drain_timer <<= s.length - 1
                elif s.drain_timer != 0:
                    s.drain_timer <<= s.drain_timer - 1

    def line_trace(s):
        return f"{CAUSES[int(s.cause)][-7:]:>7}"
