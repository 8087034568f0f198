"""Step walk: which lanes work in each step of a group, and on which blocks and kept weights."""

from __future__ import annotations

from pymtl3 import Component, InPort, OutPort, Wire, update, update_ff, zext

from accel.config import CoreConfig, count_bits, three_in, two_in
from accel.core.CoreMsg import code_shift_bits, mk_command_msg, position_bits


class StepWalkRTL(Component):
    """The lanes of each step of a group, and how far the step goes.

    Everything about a step is in registers when it comes: lanes go from step to step by additions of what the
    command gives, so nothing has to be worked out from lane to lane.
    """

    def construct(s, config: CoreConfig):
        # Constants
        Command = mk_command_msg(config)
        lanes = config.lanes
        size_bits = count_bits(config.window)
        over_bits = size_bits + 1
        sign = over_bits - 1
        position_nbits, shift_nbits = position_bits(config), code_shift_bits(config)
        code_nbits = shift_nbits + 1
        step_bits = count_bits(config.group_max)
        lane_bits = count_bits(lanes)
        all_lanes = (1 << lanes) - 1
        two, three = two_in(step_bits), three_in(step_bits)

        # Interface
        s.start = InPort()  # a command is taken at the end of this cycle
        s.given = InPort(Command)
        s.cmd = InPort(Command)  # it, from the next cycle on
        s.issue = InPort()  # the present step is taken
        s.last = OutPort()  # the present step is a group's last one
        s.last_after = OutPort()  # the step of the next cycle is
        s.lane_val = OutPort(lanes)
        s.offsets = OutPort(lanes * position_nbits)
        s.places = OutPort(lanes * position_nbits)
        s.shifts = OutPort(lanes * shift_nbits)
        s.nonzeros = OutPort(lane_bits)  # not of a group's last step
        s.advance = OutPort(size_bits)  # activations of the blocks that the step completes
        s.code_advance = OutPort(code_nbits)  # their code bits (of the nonzeros taken, for index codes); as nonzeros

        # State
        s.steps_left = Wire(step_bits)
        s.round_left = Wire(step_bits)
        s.round_last = Wire()
        s.next_last = Wire()  # the step after this one is the group's last
        s.next_round_last = Wire()
        s.place = [Wire(position_nbits) for _ in range(lanes)]
        s.over = [Wire(over_bits) for _ in range(lanes)]  # place + turn − n: not negative if the next place is past n
        s.over_after = Wire(over_bits)  # of lane 0 in the next step
        s.offset = [Wire(position_nbits) for _ in range(lanes)]
        s.shift = [Wire(shift_nbits) for _ in range(lanes)]

        # Wires
        s.carry = [Wire() for _ in range(lanes)]  # the lane goes on by a block more than others
        s.round_last_after = Wire()
        s.round_lanes = Wire(lanes)  # these three: of the command of the next cycle
        s.round_nonzeros = Wire(lane_bits)
        s.last_lanes = Wire(lanes)
        s.over_next = [Wire(over_bits) for _ in range(lanes)]
        s.place_next = [Wire(position_nbits) for _ in range(lanes)]
        s.first_after = [Wire(over_bits) for _ in range(2)]  # s.over_after in a round's first step
        s.carry_next = Wire()  # of lane 0, after the next step
        s.first_over = [[Wire(over_bits) for _ in range(lanes)] for _ in range(2)]
        s.first_place = [[Wire(position_nbits) for _ in range(lanes)] for _ in range(2)]  # of s.given and s.cmd
        s.first_offset = [[Wire(position_nbits) for _ in range(lanes)] for _ in range(2)]
        s.first_shift = [[Wire(shift_nbits) for _ in range(lanes)] for _ in range(2)]

        # Connections
        for lane in range(lanes):
            at = slice(lane * position_nbits, (lane + 1) * position_nbits)
            over_at = slice(lane * over_bits, (lane + 1) * over_bits)
            shift_at = slice(lane * shift_nbits, (lane + 1) * shift_nbits)
            s.places[at] //= s.place[lane]
            s.offsets[at] //= s.offset[lane]
            s.shifts[shift_at] //= s.shift[lane]
            for source, command in enumerate((s.given, s.cmd)):
                s.first_over[source][lane] //= command.overs[over_at]
                s.first_place[source][lane] //= command.places[at]
                s.first_offset[source][lane] //= command.offsets[at]
                s.first_shift[source][lane] //= command.shifts[shift_at]

        @update
        def up_turn():
            for lane in range(lanes):
                s.carry[lane] @= ~s.over[lane][sign]
                if s.carry[lane]:
                    s.place_next[lane] @= s.place[lane] - s.cmd.back[0:position_nbits]
                    s.over_next[lane] @= s.over[lane] - zext(s.cmd.back, over_bits)
                else:
                    s.place_next[lane] @= s.place[lane] + s.cmd.turn
                    s.over_next[lane] @= s.over[lane] + zext(s.cmd.turn, over_bits)
            s.over_next[0] @= s.over_after
            s.carry_next @= ~s.over_after[sign]
            # Lane 0 starts a round at place 0, a turn less than n away from the block's end.
            s.first_after[0] @= zext(s.given.turn, over_bits) - zext(s.given.back, over_bits)
            s.first_after[1] @= zext(s.cmd.turn, over_bits) - zext(s.cmd.back, over_bits)

        @update
        def up_last():
            s.last_after @= s.last
            if s.start:
                s.last_after @= s.given.steps == 1
            elif s.issue & s.last:
                s.last_after @= s.cmd.steps == 1
            elif s.issue:
                s.last_after @= s.next_last
            s.round_last_after @= s.round_last
            if s.start:
                s.round_last_after @= s.given.round_steps == 1
            elif s.issue & (s.last | s.round_last):
                s.round_last_after @= s.cmd.round_steps == 1
            elif s.issue:
                s.round_last_after @= s.next_round_last

        @update
        def up_lanes():
            s.round_lanes @= s.cmd.round_lanes
            s.round_nonzeros @= s.cmd.round_nonzeros
            s.last_lanes @= s.cmd.last_lanes
            if s.start:
                s.round_lanes @= s.given.round_lanes
                s.round_nonzeros @= s.given.round_nonzeros
                s.last_lanes @= s.given.last_lanes

        @update_ff
        def ff_taken():
            s.lane_val <<= all_lanes
            s.nonzeros <<= lanes
            if s.round_last_after:
                s.lane_val <<= s.round_lanes
                s.nonzeros <<= s.round_nonzeros
            if s.last_after:
                s.lane_val <<= s.last_lanes

        @update_ff
        def ff_walk():
            s.last <<= s.last_after
            if s.start:
                s.steps_left <<= s.given.steps
                s.next_last <<= s.given.steps == two
                s.advance <<= s.given.first_advance
            elif s.issue & s.last:
                s.steps_left <<= s.cmd.steps
                s.next_last <<= s.cmd.steps == two
                s.advance <<= s.cmd.first_advance
            elif s.issue:
                s.steps_left <<= s.steps_left - 1
                s.next_last <<= s.steps_left == three
                if s.next_last:
                    s.advance <<= s.cmd.last_advance
                elif s.round_last:
                    s.advance <<= s.cmd.first_advance
                elif s.next_round_last:
                    s.advance <<= s.cmd.round_advance
                elif s.carry_next:
                    s.advance <<= s.cmd.carry_advance
                else:
                    s.advance <<= s.cmd.step_advance

        @update_ff
        def ff_round():
            s.round_last <<= s.round_last_after
            if s.start:
                s.round_left <<= s.given.round_steps
                s.next_round_last <<= s.given.round_steps == two
                s.code_advance <<= s.given.first_code
            elif s.issue & (s.last | s.round_last):
                s.round_left <<= s.cmd.round_steps
                s.next_round_last <<= s.cmd.round_steps == two
                s.code_advance <<= s.cmd.first_code
            elif s.issue:
                s.round_left <<= s.round_left - 1
                s.next_round_last <<= s.round_left == three
                if s.next_round_last:
                    s.code_advance <<= s.cmd.round_code
                elif s.carry_next:
                    s.code_advance <<= s.cmd.carry_code
                else:
                    s.code_advance <<= s.cmd.step_code

        @update_ff
        def ff_after():
            if s.start:
                s.over_after <<= s.first_after[0]
            elif s.issue & (s.last | s.round_last):
                s.over_after <<= s.first_after[1]
            elif s.issue:
                if s.carry_next:
                    s.over_after <<= s.over_after - zext(s.cmd.back, over_bits)
                else:
                    s.over_after <<= s.over_after + zext(s.cmd.turn, over_bits)

        @update_ff
        def ff_lanes():
            for lane in range(lanes):
                if s.start:
                    s.place[lane] <<= s.first_place[0][lane]
                    s.over[lane] <<= s.first_over[0][lane]
                    s.offset[lane] <<= s.first_offset[0][lane]
                    s.shift[lane] <<= s.first_shift[0][lane]
                elif s.issue & (s.last | s.round_last):
                    s.place[lane] <<= s.first_place[1][lane]
                    s.over[lane] <<= s.first_over[1][lane]
                    s.offset[lane] <<= s.first_offset[1][lane]
                    s.shift[lane] <<= s.first_shift[1][lane]
                elif s.issue:
                    s.place[lane] <<= s.place_next[lane]
                    s.over[lane] <<= s.over_next[lane]
                    # The window moves with lane 0; the others come into another of its blocks or not.
                    if s.carry[lane] & ~s.carry[0]:
                        s.offset[lane] <<= s.offset[lane] + s.cmd.m[0:position_nbits]
                        s.shift[lane] <<= s.shift[lane] + s.cmd.block_code[0:shift_nbits]
                    elif ~s.carry[lane] & s.carry[0]:
                        s.offset[lane] <<= s.offset[lane] - s.cmd.m[0:position_nbits]
                        s.shift[lane] <<= s.shift[lane] - s.cmd.block_code[0:shift_nbits]
