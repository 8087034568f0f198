"""Column feeder: turns one column's codes and values into (weight, window index) pairs, one step a cycle.

Three stages follow the read of the weight buffer:

1. align: the code window and the L value nibbles are shifted out of their pairs of slices;
2. decode: each lane's code field gives the position of its weight in the block;
3. place: block offset + position = window index; nibble − zero point = weight, zero for an idle lane.

The pairs are registered after each stage, so decoding costs latency but no cycles.
"""

from __future__ import annotations

from math import comb

from pymtl3 import Component, InPort, OutPort, Wire, concat, sext, trunc, update, update_ff, zext

from accel.config import CoreConfig, count_bits
from accel.core.CoreMsg import CODE_BITMASK, CODE_INDEX, CODE_RANK, mk_step_msg, position_bits


class RankDecoderRTL(Component):
    """Position of the ``place``-th kept weight in the block whose kept set has the given rank.

    Goes down the positions of a block: position p is kept when the rank is at least C(p, ones left), and
    then takes that much off it. The binomials do not depend on n:m, so one decoder serves all of them.
    Combinational. Source: combinatorial number system (Knuth, TAOCP 4A, 7.2.1.3).
    """

    def construct(s, m_max, rank_bits, position_nbits):
        # Constants
        count_nbits = count_bits(m_max)

        # Interface
        s.rank = InPort(rank_bits)
        s.n = InPort(count_nbits)
        s.place = InPort(position_nbits)
        s.position = OutPort(position_nbits)

        # Wires: entry 0 belongs to the highest position
        s.binomial = [[Wire(rank_bits) for _ in range(1 << count_nbits)] for _ in range(m_max)]
        s.here = [Wire(position_nbits) for _ in range(max(2, m_max))]
        s.remainder = [Wire(rank_bits) for _ in range(m_max + 1)]
        s.left = [Wire(count_nbits) for _ in range(m_max + 1)]
        s.wanted = Wire(count_nbits)

        # Connections
        for i in range(m_max):
            position = m_max - 1 - i
            s.here[i] //= position
            for ones in range(1 << count_nbits):
                s.binomial[i][ones] //= comb(position, ones)
        if m_max == 1:
            s.here[1] //= 0

        # Blocks that depend on the configuration have names of their own; see ColumnRTL.
        if position_nbits < count_nbits:

            @update
            def up_wanted_extended():
                s.wanted @= zext(s.place, count_nbits) + 1

        else:

            @update
            def up_wanted():
                s.wanted @= trunc(s.place, count_nbits) + 1

        @update
        def up_decode():
            s.position @= 0
            s.remainder[0] @= s.rank
            s.left[0] @= s.n
            for i in range(m_max):
                if s.remainder[i] >= s.binomial[i][s.left[i]]:
                    s.remainder[i + 1] @= s.remainder[i] - s.binomial[i][s.left[i]]
                    s.left[i + 1] @= s.left[i] - 1
                    if s.left[i] == s.wanted:
                        s.position @= s.here[i]
                else:
                    s.remainder[i + 1] @= s.remainder[i]
                    s.left[i + 1] @= s.left[i]


class BitmaskDecoderRTL(Component):
    """Position of the ``place``-th set bit of a mask of ``m_max`` bits; bits of later blocks above it do no harm.

    Combinational.
    """

    def construct(s, m_max, position_nbits):
        # Interface
        s.mask = InPort(m_max)
        s.place = InPort(position_nbits)
        s.position = OutPort(position_nbits)

        # Wires
        count_nbits = count_bits(m_max)
        s.here = [Wire(position_nbits) for _ in range(max(2, m_max))]
        s.seen = [Wire(count_nbits) for _ in range(m_max + 1)]
        s.wanted = Wire(count_nbits)
        for i in range(m_max):
            s.here[i] //= i
        if m_max == 1:
            s.here[1] //= 0
        if position_nbits < count_nbits:
            s.wanted[0:position_nbits] //= s.place
            s.wanted[position_nbits:count_nbits] //= 0
        else:
            s.wanted //= s.place

        @update
        def up_decode():
            s.position @= 0
            s.seen[0] @= 0
            for i in range(m_max):
                s.seen[i + 1] @= s.seen[i]
                if s.mask[i]:
                    s.seen[i + 1] @= s.seen[i] + 1
                    if s.seen[i] == s.wanted:
                        s.position @= s.here[i]


class LaneDecoderRTL(Component):
    """Position in its block of one lane's weight, by the decoders that the configuration asks for. Combinational."""

    def construct(s, config: CoreConfig):
        # Constants
        position_nbits = position_bits(config)
        window_bits = config.code_window_bits
        field_bits = config.code_field_bits
        rank, index, bitmask = CODE_RANK, CODE_INDEX, CODE_BITMASK
        padded = max(window_bits, field_bits, config.m_max, position_nbits)

        # Interface
        s.codes = InPort(window_bits)
        s.shift = InPort(count_bits(window_bits - 1))
        s.code = InPort(2)
        s.mask = InPort(field_bits)
        s.n = InPort(count_bits(config.window))
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

        # Components
        if config.rank_m_max:
            m_max = config.rank_m_max
            rank_bits = count_bits(comb(m_max, m_max // 2))
            s.rank_decoder = RankDecoderRTL(m_max, rank_bits, position_nbits)
            s.rank_decoder.n //= s.n[0 : count_bits(m_max)]
            s.rank_decoder.place //= s.place
            s.rank_decoder.position //= s.by_rank
            used = min(rank_bits, field_bits)
            s.rank_decoder.rank[0:used] //= s.field[0:used]
            if used < rank_bits:
                s.rank_decoder.rank[used:rank_bits] //= 0
        else:
            s.by_rank //= 0

        if "bitmask" in config.codes:
            s.mask_decoder = BitmaskDecoderRTL(config.m_max, position_nbits)
            s.mask_decoder.mask //= s.shifted[0 : config.m_max]
            s.mask_decoder.place //= s.place
            s.mask_decoder.position //= s.by_mask
        else:
            s.by_mask //= 0

        if "index" in config.codes:
            used = min(field_bits, position_nbits)
            s.by_index[0:used] //= s.field[0:used]
            if used < position_nbits:
                s.by_index[used:position_nbits] //= 0
        else:
            s.by_index //= 0

        @update
        def up_position():
            s.position @= s.place
            if s.code == rank:
                s.position @= s.by_rank
            elif s.code == bitmask:
                s.position @= s.by_mask
            elif s.code == index:
                s.position @= s.by_index


class ColumnFeederRTL(Component):
    """One column's feeder; see the module's text for its stages."""

    def construct(s, config: CoreConfig):
        # Constants
        Step = mk_step_msg(config)
        lanes = config.lanes
        position_nbits = position_bits(config)
        shift_nbits = count_bits(config.code_window_bits - 1)
        slice_bits = config.slice_bits
        pair_bits = 2 * slice_bits
        window_bits = config.code_window_bits
        weight_bits = config.weight_bits
        scale_bits = config.scale_bits
        header_bits = config.header_bits
        asymmetric = config.asymmetric

        # Interface: the step in the cycle in which the weight buffer answers it
        s.step_val = InPort()
        s.step = InPort(Step)
        s.code_low = InPort(slice_bits)
        s.code_high = InPort(slice_bits)
        s.value_low = InPort(slice_bits)
        s.value_high = InPort(slice_bits)
        s.header = InPort(header_bits)
        s.val = OutPort()
        s.first = OutPort()
        s.last = OutPort()
        s.index = [OutPort(position_nbits) for _ in range(lanes)]
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
        s.offset = [Wire(position_nbits) for _ in range(lanes)]
        s.nibble = [Wire(4) for _ in range(lanes)]
        s.weight_next = [Wire(weight_bits) for _ in range(lanes)]

        # Components
        s.decoder = [LaneDecoderRTL(config) for _ in range(lanes)]

        # Connections
        for lane in range(lanes):
            s.decoder[lane].codes //= s.codes
            s.decoder[lane].shift //= s.step_align.shift[lane * shift_nbits : (lane + 1) * shift_nbits]
            s.decoder[lane].code //= s.step_align.code
            s.decoder[lane].mask //= s.step_align.code_mask
            s.decoder[lane].n //= s.step_align.n
            s.decoder[lane].place //= s.step_align.place[lane * position_nbits : (lane + 1) * position_nbits]
            s.offset[lane] //= s.step_decode.offset[lane * position_nbits : (lane + 1) * position_nbits]
            s.nibble[lane] //= s.values_decode[4 * lane : 4 * lane + 4]

        @update
        def up_align():
            s.codes_shifted @= concat(s.code_high, s.code_low) >> zext(s.step.code_bit, pair_bits)
            s.values_shifted @= concat(s.value_high, s.value_low) >> (zext(s.step.value_nibble, pair_bits) << 2)

        @update_ff
        def ff_align():
            s.step_align <<= s.step
            s.header_align <<= s.header
            s.codes <<= s.codes_shifted[0:window_bits]
            s.values <<= s.values_shifted[0 : 4 * lanes]
            if s.reset:
                s.val_align <<= 0
            else:
                s.val_align <<= s.step_val

        @update_ff
        def ff_decode():
            s.step_decode <<= s.step_align
            s.header_decode <<= s.header_align
            s.values_decode <<= s.values
            for lane in range(lanes):
                s.position[lane] <<= s.decoder[lane].position
            if s.reset:
                s.val_decode <<= 0
            else:
                s.val_decode <<= s.val_align

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
            s.first <<= s.step_decode.first
            s.last <<= s.step_decode.last
            s.scale <<= s.header_decode[0:scale_bits]
            for lane in range(lanes):
                # An idle lane points at activation 0: an index beyond the window would select nothing that exists,
                # and between steps the codes are whatever the buffer held.
                if s.val_decode & s.step_decode.lane_val[lane]:
                    s.index[lane] <<= s.offset[lane] + s.position[lane]
                else:
                    s.index[lane] <<= 0
                s.weight[lane] <<= s.weight_next[lane]
            if s.reset:
                s.val <<= 0
            else:
                s.val <<= s.val_decode

    def line_trace(s):
        return " ".join(f"{int(i):>2}:{int(w):>2}" for i, w in zip(s.index, s.weight, strict=True)) if s.val else "."
