"""Messages between the blocks of the core. Field widths follow from the configuration.

A message that moves down a pipeline has its valid bit beside it: only that bit is reset.
"""

from __future__ import annotations

from functools import cache

from pymtl3 import mk_bits, mk_bitstruct

from accel.config import CoreConfig, count_bits
from accel.naming import config_tag
from accel.stream import CODE_IDS

CODE_NONE, CODE_INDEX, CODE_BITMASK, CODE_RANK = (CODE_IDS[code] for code in ("none", "index", "bitmask", "rank"))


def _mk(name: str, config: CoreConfig, fields: dict[str, int]):
    # A bitstruct's name is its Verilog type: readable, and another one for each configuration.
    return mk_bitstruct(f"{name}_{config_tag(config)}", {field: mk_bits(bits) for field, bits in fields.items()})


def position_bits(config: CoreConfig) -> int:
    """Width of a position in the window or in a block."""
    return count_bits(config.window - 1)


def index_bits(config: CoreConfig) -> int:
    """Width of an activation's index among those that a lane reaches."""
    return count_bits(max(high - low for low, high in config.lane_reach))


def code_shift_bits(config: CoreConfig) -> int:
    """Width of the place of a code field in the code window."""
    return count_bits(config.code_window_bits - 1)


def subtile_bits(config: CoreConfig) -> int:
    """Width of a count of token subtiles; the result writer compares it with 2."""
    return count_bits(max(2, config.subtiles))


@cache
def mk_command_msg(config: CoreConfig):
    """One GEMM of one token block: what the sequencer and the three stream units need to know.

    The fields are what a descriptor gives or what follows from it (`accel.command` derives them).

    Steps repeat in rounds: after a round, one starts at a block's first kept weight again. A step of a round moves
    every lane on by ``lanes`` kept weights, except the last one, which takes what still fits the window.
    """
    lanes, position, shift = config.lanes, position_bits(config), code_shift_bits(config)
    return _mk(
        "CommandMsg",
        config,
        {
            "n": count_bits(config.window),  # kept weights of a block
            "m": count_bits(config.window),  # weights of a block
            "code": 2,  # block code: CODE_*
            "code_mask": config.code_field_bits,  # as many ones as a code field has bits
            "asymmetric": 1,  # tiles carry zero points
            "slots": count_bits(config.group_max),  # nonzeros of an output feature in a tile
            "steps": count_bits(config.group_max),  # steps of a group
            "last_lanes": lanes,  # lanes with a nonzero in its last step
            "last_advance": count_bits(config.window),  # activations of the blocks that the last step completes
            "round_steps": count_bits(config.group_max),  # steps of a round
            "round_lanes": lanes,  # lanes with a nonzero in its last step
            "round_nonzeros": count_bits(lanes),  # how many they are
            "round_advance": count_bits(config.window),  # activations of the blocks that it completes
            "round_code": shift + 1,  # and their code bits (of the nonzeros taken, for index codes)
            "first_advance": count_bits(config.window),  # the same of a round's first step
            "first_code": shift + 1,
            "step_advance": count_bits(config.window),  # of a step in which lane 0 stays within the next block
            "step_code": shift + 1,
            "carry_advance": count_bits(config.window),  # of one in which it goes on by a block more
            "carry_code": shift + 1,
            "block_code": shift + 1,  # code bits of one block more; 0 for index codes
            "turn": position,  # kept weights that a lane moves on by within its block: lanes modulo n
            "back": count_bits(config.window),  # n less that, which it goes back by when it passes the block's end
            "overs": lanes * (count_bits(config.window) + 1),  # how far a turn takes it past the end: place + turn − n
            "places": lanes * position,  # of a round's first step, as in StepMsg
            "offsets": lanes * position,
            "shifts": lanes * shift,
            "code_bytes": count_bits(config.code_bytes_max),  # of one column in a tile
            "value_bytes": count_bits(config.value_bytes_max),
            "code_words": count_bits(config.code_words),  # the same in slices, rounded up
            "value_words": count_bits(config.value_words),
            "groups": count_bits(config.k_max),  # tiles along K
            "out_tiles": count_bits(config.out_tiles_max),  # output tiles
            "subtiles": subtile_bits(config),  # token subtiles of the block
            "last_rows": count_bits(config.rows),  # tokens in the last subtile
            "last_length": count_bits(config.chain_rows),  # of them on the longest drain chain
            "row_words": count_bits(config.act_words),  # windows of one row of activations
            "block_words": count_bits(config.act_words),  # subtiles × row_words
            "wide": 1,  # results in 64 bits instead of 32
        },
    )


@cache
def mk_step_msg(config: CoreConfig):
    """One step of one column: where its codes and values lie and how lanes take them. It moves right."""
    lanes, position = config.lanes, position_bits(config)
    return _mk(
        "StepMsg",
        config,
        {
            "last": 1,  # last step of a group: the partial sum goes to the drain chain
            "tile_last": 1,  # nobody reads this tile again
            "lane_val": lanes,  # lanes with a nonzero
            "offset": lanes * position,  # each lane's block in the window, from the lowest position that it reaches
            "place": lanes * position,  # each lane's number among the kept weights of its block
            "shift": lanes * code_shift_bits(config),  # each lane's code field in the code window
            "code": 2,
            "code_mask": config.code_field_bits,
            "n": count_bits(config.window),
            "asymmetric": 1,
            "header": count_bits(config.header_slots - 1),  # slot of scale and zero point
            "code_addr": count_bits(config.code_words - 1),  # code ring: slice, and bit in it
            "code_even": count_bits(config.code_words // 2 - 1),  # what the even bank reads, see EvenAddressRTL
            "code_bit": count_bits(config.slice_bits - 1),
            "value_addr": count_bits(config.value_words - 1),  # value ring: slice, and nibble in it
            "value_even": count_bits(config.value_words // 2 - 1),
            "value_nibble": count_bits(2 * config.slice_bytes - 1),
            "code_words": count_bits(config.code_words),  # slices that tile_last frees
            "value_words": count_bits(config.value_words),
        },
    )


@cache
def mk_window_msg(config: CoreConfig):
    """One read of the activation buffer: the window of all rows for one step."""
    return _mk(
        "WindowMsg",
        config,
        {
            "rows": count_bits(config.rows),  # rows that have a token; the others see zeros
            "addr": count_bits(config.act_words - 1),
            "shift": position_bits(config),  # first activation in the word at addr
            "block_last": 1,  # nobody reads this token block again
            "block_words": count_bits(config.act_words),
        },
    )


@cache
def mk_group_msg(config: CoreConfig):
    """End of a group in column 0: which accumulators its partial sums go to."""
    return _mk(
        "GroupMsg",
        config,
        {
            "half": 1,  # half of the accumulator RAM
            "addr": count_bits(config.acc_words - 1),  # of the first partial on each chain
            "length": count_bits(config.chain_rows),  # partials on each chain
            "first": 1,  # first group: nothing to add to
            "done": 1,  # last group: results of the output tile are complete after it
        },
    )


@cache
def mk_beat_msg(config: CoreConfig):
    """What a column's gearbox does with a beat of the weight stream."""
    amount = count_bits(config.slice_bytes)
    return _mk(
        "BeatMsg",
        config,
        {
            "top_up": 1,  # the incoming slice is needed
            "take": 1,
            "clear": 1,
            "held_bytes": amount,
            "take_bytes": amount,
        },
    )


@cache
def mk_write_msg(config: CoreConfig):
    """One write of a column's weight buffer; all columns write the same addresses."""
    return _mk(
        "WriteMsg",
        config,
        {
            "header_wen": len(config.header_parts),  # a bit for each slice that brings a part of the header
            "header_addr": count_bits(config.header_slots - 1),
            "code_wen": 1,
            "code_addr": count_bits(config.code_words - 1),
            "value_wen": 1,
            "value_addr": count_bits(config.value_words - 1),
        },
    )


@cache
def mk_drain_msg(config: CoreConfig):
    """One cycle of draining: the accumulator of the partial at each chain's end; it moves right with the columns."""
    return _mk(
        "DrainMsg",
        config,
        {"half": 1, "addr": count_bits(config.acc_words - 1), "first": 1, "done": 1},
    )


@cache
def mk_read_msg(config: CoreConfig):
    """One read of finished accumulators, of the same row in all columns."""
    return _mk(
        "ReadMsg",
        config,
        {
            "half": 1,
            "addr": count_bits(config.acc_words - 1),
            "chain": count_bits(config.drain_chains - 1),
        },
    )
