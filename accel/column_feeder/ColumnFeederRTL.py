"""Column feeder: turns one column's codes and values into (weight, window index) pairs, one step a cycle.

Three stages follow the read of the weight buffer:

1. align: the code window and the L value nibbles are shifted out of their pairs of slices;
2. decode: each lane's code field gives the position of its weight in the block;
3. place: block offset + position = window index; nibble − zero point = weight, zero for an idle lane.

The pairs are registered after each stage, so decoding costs latency but no cycles. With a register after "read",
what the buffer answers comes a cycle after the step; `decode_registers` are within the second stage.
"""

from __future__ import annotations

import itertools
from math import comb

from pymtl3 import Component, InPort, OutPort, Wire, concat, sext, trunc, update, update_ff, zext

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import (
    CODE_BITMASK,
    CODE_RANK,
    code_shift_bits,
    index_bits,
    mk_step_msg,
    position_bits,
)
from accel.delay.DelayRTL import DelayRTL, FanoutRTL, HoldRTL


class RankLinksRTL(Component):
    """Some links of the rank decoder: positions ``first`` down to ``last`` of a block. Combinational."""

    def construct(s, first, last, rank_bits, count_nbits, position_nbits):
        # Constants
        links = first - last + 1

        # Interface: before and after these positions
        s.wanted = InPort(count_nbits)  # kept weights left when the wanted one comes, itself included
        s.remainder = InPort(rank_bits)
        s.left = InPort(count_nbits)
        s.position = InPort(position_nbits)
        s.remainder_out = OutPort(rank_bits)
        s.left_out = OutPort(count_nbits)
        s.position_out = OutPort(position_nbits)

        # Wires: entry 0 belongs to the highest position
        s.binomial = [[Wire(rank_bits) for _ in range(1 << count_nbits)] for _ in range(links)]
        s.here = [Wire(position_nbits) for _ in range(max(2, links))]
        s.remainder_at = [Wire(rank_bits) for _ in range(links + 1)]
        s.left_at = [Wire(count_nbits) for _ in range(links + 1)]

        # Connections
        for i in range(links):
            s.here[i] //= first - i
            for ones in range(1 << count_nbits):
                s.binomial[i][ones] //= comb(first - i, ones)
        if links == 1:
            s.here[1] //= 0
        s.remainder_out //= s.remainder_at[links]
        s.left_out //= s.left_at[links]

        @update
        def up_links():
            s.position_out @= s.position
            s.remainder_at[0] @= s.remainder
            s.left_at[0] @= s.left
            for i in range(links):
                if s.remainder_at[i] >= s.binomial[i][s.left_at[i]]:
                    s.remainder_at[i + 1] @= s.remainder_at[i] - s.binomial[i][s.left_at[i]]
                    s.left_at[i + 1] @= s.left_at[i] - 1
                    if s.left_at[i] == s.wanted:
                        s.position_out @= s.here[i]
                else:
                    s.remainder_at[i + 1] @= s.remainder_at[i]
                    s.left_at[i + 1] @= s.left_at[i]


class RankDecoderRTL(Component):
    """Position of the ``place``-th kept weight in the block whose kept set has the given rank.

    Goes down the positions of a block: position p is kept when the rank is at least C(p, ones left), and
    then takes that much off it. The binomials do not depend on n:m, so one decoder serves all of them.
    Takes ``registers`` (at most m_max − 1) cycles. Source: combinatorial number system (Knuth, TAOCP 4A, 7.2.1.3).
    """

    def construct(s, m_max, rank_bits, position_nbits, registers=0):
        # Constants
        count_nbits = count_bits(m_max)

        # Interface
        s.rank = InPort(rank_bits)
        s.n = InPort(count_nbits)
        s.place = InPort(position_nbits)
        s.position = OutPort(position_nbits)

        # Wires
        s.wanted = Wire(count_nbits)

        # Blocks that depend on the configuration have names of their own; see ColumnRTL.
        if position_nbits < count_nbits:

            @update
            def up_wanted_extended():
                s.wanted @= zext(s.place, count_nbits) + 1

        else:

            @update
            def up_wanted():
                s.wanted @= trunc(s.place, count_nbits) + 1

        # Components and connections: links in a row, registers between
        wanted, remainder, left, position = s.wanted, s.rank, s.n, 0
        for first, last in _shares(m_max, registers + 1):
            links = RankLinksRTL(first, last, rank_bits, count_nbits, position_nbits)
            setattr(s, f"links{first}", links)  # a list would have to hold components of one shape
            links.wanted //= wanted
            links.remainder //= remainder
            links.left //= left
            links.position //= position
            wanted, remainder, left, position = wanted, links.remainder_out, links.left_out, links.position_out
            if last:
                wanted, remainder, left, position = _held(
                    s, f"at{last}", (count_nbits, rank_bits, count_nbits, position_nbits),
                    (wanted, remainder, left, position),
                )  # fmt: skip
        s.position //= position


class MaskLinksRTL(Component):
    """Some links of the bitmask decoder: positions ``first`` to ``last`` of a block. Combinational."""

    def construct(s, first, last, count_nbits, position_nbits):
        # Constants
        links = last - first + 1

        # Interface: before and after these positions
        s.wanted = InPort(count_nbits)
        s.mask = InPort(links)  # of these positions
        s.seen = InPort(count_nbits)
        s.position = InPort(position_nbits)
        s.seen_out = OutPort(count_nbits)
        s.position_out = OutPort(position_nbits)

        # Wires
        s.here = [Wire(position_nbits) for _ in range(max(2, links))]
        s.seen_at = [Wire(count_nbits) for _ in range(links + 1)]

        # Connections
        for i in range(links):
            s.here[i] //= first + i
        if links == 1:
            s.here[1] //= 0
        s.seen_out //= s.seen_at[links]

        @update
        def up_links():
            s.position_out @= s.position
            s.seen_at[0] @= s.seen
            for i in range(links):
                s.seen_at[i + 1] @= s.seen_at[i]
                if s.mask[i]:
                    s.seen_at[i + 1] @= s.seen_at[i] + 1
                    if s.seen_at[i] == s.wanted:
                        s.position_out @= s.here[i]


class BitmaskDecoderRTL(Component):
    """Position of the ``place``-th set bit of a mask of ``m_max`` bits; bits of later blocks above it do no harm.

    Takes ``registers`` (at most m_max − 1) cycles.
    """

    def construct(s, m_max, position_nbits, registers=0):
        # Constants
        count_nbits = count_bits(m_max)

        # Interface
        s.mask = InPort(m_max)
        s.place = InPort(position_nbits)
        s.position = OutPort(position_nbits)

        # Wires
        s.wanted = Wire(count_nbits)
        if position_nbits < count_nbits:
            s.wanted[0:position_nbits] //= s.place
            s.wanted[position_nbits:count_nbits] //= 0
        else:
            s.wanted //= s.place[0:count_nbits]

        # Components and connections: links in a row, registers between
        wanted, mask, seen, position = s.wanted, s.mask, 0, 0
        for high, low in _shares(m_max, registers + 1):
            first, last = m_max - 1 - high, m_max - 1 - low
            links = MaskLinksRTL(first, last, count_nbits, position_nbits)
            setattr(s, f"links{first}", links)  # a list would have to hold components of one shape
            links.wanted //= wanted
            links.mask //= mask[first : last + 1]
            links.seen //= seen
            links.position //= position
            seen, position = links.seen_out, links.position_out
            if low:
                wanted, mask, seen, position = _held(
                    s, f"at{last}", (count_nbits, m_max, count_nbits, position_nbits), (wanted, mask, seen, position)
                )
        s.position //= position


def _shares(m_max, count):
    """Ranges of positions, highest first, for so many parts (at most one a position) that differ by at most one."""
    ends = [m_max - m_max * i // count for i in range(count + 1)]
    return [(high - 1, low) for high, low in itertools.pairwise(ends)]


def _held(s, name, widths, values, cycles=1):
    """The values some cycles later."""
    held = []
    for i, (nbits, value) in enumerate(zip(widths, values, strict=True)):
        hold = HoldRTL(nbits, 1, cycles)
        setattr(s, f"{name}_{i}", hold)
        hold.in_[0] //= value
        held.append(hold.out[0])
    return held


class LaneDecoderRTL(Component):
    """Position in its block of one lane's weight, by the decoders that the configuration asks for.

    Takes ``decode_registers`` cycles.
    """

    def construct(s, config: CoreConfig):
        # Constants
        position_nbits = position_bits(config)
        window_bits = config.code_window_bits
        field_bits = config.code_field_bits
        rank, bitmask = CODE_RANK, CODE_BITMASK
        padded = max(window_bits, field_bits, config.m_max, position_nbits)
        n_bits = count_bits(config.window)
        after_field = min(1, config.decode_registers)
        in_decoder = config.decode_registers - after_field

        # Interface
        s.codes = InPort(window_bits)
        s.shift = InPort(code_shift_bits(config))
        s.code = InPort(2)
        s.mask = InPort(field_bits)
        s.n = InPort(n_bits)
        s.place = InPort(position_nbits)
        s.position = OutPort(position_nbits)

        # Wires
        s.shifted = Wire(padded)
        s.field = Wire(field_bits)
        s.by_rank = Wire(position_nbits)
        s.by_mask = Wire(position_nbits)
        s.by_index = Wire(position_nbits)
        s.shift_padded = Wire(padded)

        if padded > window_bits:

            @update
            def up_field_padded():
                s.shift_padded @= zext(s.shift, padded)
                s.shifted @= zext(s.codes, padded) >> s.shift_padded
                s.field @= s.shifted[0:field_bits] & s.mask

        else:

            @update
            def up_field():
                s.shift_padded @= zext(s.shift, padded)
                s.shifted @= s.codes >> s.shift_padded
                s.field @= s.shifted[0:field_bits] & s.mask

        # Components: what decoders need of the field, and then the decoders
        if config.rank_m_max or "bitmask" in config.codes:
            (place,) = _held(s, "cut_place", (position_nbits,), (s.place,), after_field)
        if "rank" in config.codes or "index" in config.codes:
            (field,) = _held(s, "cut_field", (field_bits,), (s.field,), after_field)
        if config.rank_m_max:
            (n,) = _held(s, "cut_n", (n_bits,), (s.n,), after_field)
            m_max = config.rank_m_max
            rank_bits = count_bits(comb(m_max, m_max // 2))
            registers = min(in_decoder, m_max - 1)
            s.rank_decoder = RankDecoderRTL(m_max, rank_bits, position_nbits, registers)
            s.rank_decoder.n //= n[0 : count_bits(m_max)]
            s.rank_decoder.place //= place
            used = min(rank_bits, field_bits)
            s.rank_decoder.rank[0:used] //= field[0:used]
            if used < rank_bits:
                s.rank_decoder.rank[used:rank_bits] //= 0
            (by_rank,) = _held(s, "rank", (position_nbits,), (s.rank_decoder.position,), in_decoder - registers)
            s.by_rank //= by_rank
        else:
            s.by_rank //= 0

        if "bitmask" in config.codes:
            registers = min(in_decoder, config.m_max - 1)
            (mask,) = _held(s, "cut_mask", (config.m_max,), (s.shifted[0 : config.m_max],), after_field)
            s.mask_decoder = BitmaskDecoderRTL(config.m_max, position_nbits, registers)
            s.mask_decoder.mask //= mask
            s.mask_decoder.place //= place
            (by_mask,) = _held(s, "mask", (position_nbits,), (s.mask_decoder.position,), in_decoder - registers)
            s.by_mask //= by_mask
        else:
            s.by_mask //= 0

        # A field of no bits is 0, which is where a dense block's weight lies.
        if "index" in config.codes:
            (field,) = _held(s, "decoded_field", (field_bits,), (field,), in_decoder)
            used = min(field_bits, position_nbits)
            s.by_index[0:used] //= field[0:used]
            if used < position_nbits:
                s.by_index[used:position_nbits] //= 0
        else:
            s.by_index //= 0

        if config.rank_m_max or "bitmask" in config.codes:
            (code,) = _held(s, "decoded_code", (2,), (s.code,), config.decode_registers)
            s.code_decoded = Wire(2)
            s.code_decoded //= code

            @update
            def up_position():
                s.position @= s.by_index
                if s.code_decoded == rank:
                    s.position @= s.by_rank
                elif s.code_decoded == bitmask:
                    s.position @= s.by_mask

        else:
            s.position //= s.by_index


class ColumnFeederRTL(Component):
    """One column's feeder; see the module's text for its stages."""

    def construct(s, config: CoreConfig):
        # Constants
        Step = mk_step_msg(config)
        lanes = config.lanes
        position_nbits = position_bits(config)
        index_nbits = index_bits(config)
        shift_nbits = code_shift_bits(config)
        slice_bits = config.slice_bits
        pair_bits = 2 * slice_bits
        window_bits = config.code_window_bits
        weight_bits = config.weight_bits
        scale_bits = config.scale_bits
        header_bits = config.header_bits
        asymmetric = config.asymmetric
        reading, decoding = config.has_register("read"), config.decode_registers
        copies = config.row_copies
        # Codes and values of a step start at multiples of these: the bits below them are always 0.
        code_bit_bits, nibble_bits = count_bits(slice_bits - 1), count_bits(2 * config.slice_bytes - 1)
        code_low = min(config.code_alignment.bit_length() - 1, code_bit_bits - 1)
        nibble_low = min(config.value_alignment.bit_length() - 1, nibble_bits - 1)
        value_low = nibble_low + 2

        # Interface: the step in the cycle in which the weight buffer answers it
        s.step_val = InPort()
        s.step = InPort(Step)
        s.code_low = InPort(slice_bits)
        s.code_high = InPort(slice_bits)
        s.value_low = InPort(slice_bits)
        s.value_high = InPort(slice_bits)
        s.header = InPort(header_bits)
        s.val = OutPort()
        s.last = OutPort()
        s.index = [[OutPort(index_nbits) for _ in range(lanes)] for _ in range(copies)]
        s.weight = [OutPort(weight_bits) for _ in range(lanes)]
        s.scale = OutPort(scale_bits)

        # State and wires
        s.val_align = Wire()
        s.step_align = Wire(Step)  # input of stage 2
        s.codes = Wire(window_bits)
        s.values = Wire(4 * lanes)
        s.header_align = Wire(header_bits)
        s.val_decode = Wire()
        s.step_decode = Wire(Step)  # input of stage 3
        s.position = [Wire(position_nbits) for _ in range(lanes)]
        s.values_decode = Wire(4 * lanes)
        s.header_decode = Wire(header_bits)
        s.codes_shifted = Wire(pair_bits)
        s.values_shifted = Wire(pair_bits)
        s.code_units = Wire(code_bit_bits - code_low)  # where the step's codes start
        s.value_units = Wire(nibble_bits - nibble_low)
        s.shift = [Wire(shift_nbits) for _ in range(lanes)]  # of each lane's code field
        s.shift_given = [Wire(shift_nbits) for _ in range(lanes)]
        s.shift_some = [Wire(shift_nbits) for _ in range(lanes)]  # its bits that are ever 1
        s.shift_all = [Wire(shift_nbits) for _ in range(lanes)]  # and always
        s.offset = [Wire(position_nbits) for _ in range(lanes)]
        s.placed = [Wire(position_nbits) for _ in range(lanes)]
        s.nibble = [Wire(4) for _ in range(lanes)]
        s.index_next = [Wire(index_nbits) for _ in range(lanes)]
        s.weight_next = [Wire(weight_bits) for _ in range(lanes)]

        # Components
        s.decoder = [LaneDecoderRTL(config) for _ in range(lanes)]
        s.read_step = DelayRTL(Step, reading)
        s.decoding_step = DelayRTL(Step, decoding)
        s.decoding_values = HoldRTL(4 * lanes, 1, decoding)
        s.decoding_header = HoldRTL(header_bits, 1, decoding)
        s.index_copies = [FanoutRTL(index_nbits, 1, copies) for _ in range(lanes)]

        # Connections
        s.read_step.val //= s.step_val
        s.read_step.msg //= s.step
        s.decoding_step.val //= s.val_align
        s.decoding_step.msg //= s.step_align
        s.decoding_values.in_[0] //= s.values
        s.decoding_header.in_[0] //= s.header_align
        s.code_units //= s.read_step.msg_out.code_bit[code_low:code_bit_bits]
        s.value_units //= s.read_step.msg_out.value_nibble[nibble_low:nibble_bits]
        for lane, (some, always) in enumerate(config.lane_shifts):
            s.shift_given[lane] //= s.step_align.shift[lane * shift_nbits : (lane + 1) * shift_nbits]
            s.shift_some[lane] //= some
            s.shift_all[lane] //= always
            s.decoder[lane].codes //= s.codes
            s.decoder[lane].shift //= s.shift[lane]
            s.decoder[lane].code //= s.step_align.code
            s.decoder[lane].mask //= s.step_align.code_mask
            s.decoder[lane].n //= s.step_align.n
            s.decoder[lane].place //= s.step_align.place[lane * position_nbits : (lane + 1) * position_nbits]
            s.offset[lane] //= s.step_decode.offset[lane * position_nbits : (lane + 1) * position_nbits]
            s.nibble[lane] //= s.values_decode[4 * lane : 4 * lane + 4]
            s.index_copies[lane].in_ //= s.index_next[lane]
            for copy in range(copies):
                s.index[copy][lane] //= s.index_copies[lane].out[copy]

        @update
        def up_align():
            s.codes_shifted @= concat(s.code_high, s.code_low) >> (zext(s.code_units, pair_bits) << code_low)
            s.values_shifted @= concat(s.value_high, s.value_low) >> (zext(s.value_units, pair_bits) << value_low)

        @update
        def up_shift():
            for lane in range(lanes):
                s.shift[lane] @= (s.shift_given[lane] & s.shift_some[lane]) | s.shift_all[lane]

        @update
        def up_place():
            for lane in range(lanes):
                s.placed[lane] @= s.offset[lane] + s.position[lane]
                # An idle lane points at activation 0: an index beyond the window would select nothing that exists,
                # and between steps the codes are whatever the buffer held.
                s.index_next[lane] @= 0
                if s.val_decode & s.step_decode.lane_val[lane]:
                    s.index_next[lane] @= s.placed[lane][0:index_nbits]

        @update_ff
        def ff_align():
            s.step_align <<= s.read_step.msg_out
            s.header_align <<= s.header
            s.codes <<= s.codes_shifted[0:window_bits]
            s.values <<= s.values_shifted[0 : 4 * lanes]
            if s.reset:
                s.val_align <<= 0
            else:
                s.val_align <<= s.read_step.val_out

        @update_ff
        def ff_decode():
            s.step_decode <<= s.decoding_step.msg_out
            s.header_decode <<= s.decoding_header.out[0]
            s.values_decode <<= s.decoding_values.out[0]
            for lane in range(lanes):
                s.position[lane] <<= s.decoder[lane].position
            if s.reset:
                s.val_decode <<= 0
            else:
                s.val_decode <<= s.decoding_step.val_out

        if asymmetric:

            @update
            def up_weight_less_zero_point():
                for lane in range(lanes):
                    s.weight_next[lane] @= 0
                    nibble = s.nibble[lane]  # see PERTL on sext
                    if s.step_decode.lane_val[lane]:
                        if s.step_decode.asymmetric:
                            s.weight_next[lane] @= zext(nibble, 5) - zext(s.header_decode[scale_bits:header_bits], 5)
                        else:
                            s.weight_next[lane] @= sext(nibble, 5)

        else:

            @update
            def up_weight():
                for lane in range(lanes):
                    s.weight_next[lane] @= 0
                    if s.step_decode.lane_val[lane]:
                        s.weight_next[lane] @= s.nibble[lane]

        @update_ff
        def ff_place():
            s.last <<= s.step_decode.last
            s.scale <<= s.header_decode[0:scale_bits]
            for lane in range(lanes):
                s.weight[lane] <<= s.weight_next[lane]
            if s.reset:
                s.val <<= 0
            else:
                s.val <<= s.val_decode

    def line_trace(s):
        return " ".join(f"{int(i):>2}:{int(w):>2}" for i, w in zip(s.index[0], s.weight, strict=True)) if s.val else "."
