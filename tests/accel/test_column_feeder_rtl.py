"""Position decoders of the column feeder, against lists of all kept sets of a block."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from itertools import combinations

import pytest
from pymtl3 import Component, InPort, OutPort

from accel import CoreConfig, load_preset
from accel.column_feeder.ColumnFeederRTL import BitmaskDecoderRTL, LaneDecoderRTL, RankDecoderRTL
from accel.config import REGISTERS, count_bits
from accel.core.CoreMsg import index_bits, position_bits
from accel.schedule import schedule
from quant import NMPattern

TINY = load_preset("tiny")


def kept_sets(n: int, m: int) -> list[tuple[int, ...]]:
    """Kept sets in colexicographic order: by their largest position, then the next, …"""
    return sorted(combinations(range(m), n), key=lambda kept: kept[::-1])


def width(largest: int) -> int:
    return max(1, len(f"{largest:b}"))


def check_positions(pins: object, questions: Iterable[tuple[dict, int, str]], cycles: int) -> None:
    """A new question each cycle; the answer is there so many cycles later (0: at once)."""
    waiting: deque[tuple[int, str]] = deque()
    for inputs, position, what in questions:
        pins.drive(**inputs)
        waiting.append((position, what))
        if len(waiting) > cycles:
            position, what = waiting.popleft()
            assert pins.read("position") == position, what
        if cycles:
            pins.tick()
    while waiting:
        position, what = waiting.popleft()
        assert pins.read("position") == position, what
        pins.tick()


# -- rank ------------------------------------------------------------------------------------------------


def check_all_ranks(pins: object, m_max: int, registers: int = 0) -> None:
    questions = [
        ({"rank": rank, "n": n, "place": place}, kept[place], f"{n}:{m}, rank {rank}, place {place}")
        for m in range(1, m_max + 1)
        for n in range(1, m + 1)
        for rank, kept in enumerate(kept_sets(n, m))
        for place in range(n)
    ]
    if registers:
        # Neighbours differ in all inputs, and each is asked about between two others.
        random.Random(m_max).shuffle(questions)
    check_positions(pins, questions, registers)


def rank_decoder(m_max: int, extra_position_bits: int = 0, registers: int = 0) -> RankDecoderRTL:
    largest_rank = max(len(kept_sets(n, m_max)) for n in range(m_max + 1))
    return RankDecoderRTL(m_max, width(largest_rank), width(m_max - 1) + extra_position_bits, registers)


@pytest.mark.parametrize(("m_max", "extra"), [*((m, 0) for m in range(1, 9)), (8, 1), (8, 2), (4, 1)])
def test_every_rank_of_every_pattern(m_max: int, extra: int, open_pins: Callable) -> None:
    check_all_ranks(open_pins(rank_decoder(m_max, extra), f"RankDecoder_{m_max}_{extra}", "python"), m_max)


@pytest.mark.parametrize(
    ("m_max", "registers"), [*((m, m - 1) for m in range(2, 9)), (5, 1), (5, 2), (5, 3), (8, 1), (8, 3)]
)
def test_every_rank_some_cycles_later(m_max: int, registers: int, open_pins: Callable) -> None:
    pins = open_pins(rank_decoder(m_max, 0, registers), f"RankDecoder_{m_max}_at_{registers}", "python")
    check_all_ranks(pins, m_max, registers)


def test_every_rank_of_every_pattern_in_the_translation(open_pins: Callable) -> None:
    check_all_ranks(open_pins(rank_decoder(8, 1), "RankDecoder_8_1", "verilog"), 8)


# -- bitmask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m_max", range(1, 7))
def test_every_bitmask(m_max: int, open_pins: Callable) -> None:
    """Masks of all bits: of a shorter block, the upper ones are those of the blocks after it."""
    for registers in range(m_max):
        decoder = BitmaskDecoderRTL(m_max, width(m_max - 1), registers)
        questions = []
        for mask in range(1 << m_max):
            kept = [bit for bit in range(m_max) if mask >> bit & 1]
            for place, position in enumerate(kept):
                questions.append(({"mask": mask, "place": place}, position, f"{mask:b}, place {place}"))
        if registers:
            random.Random(m_max).shuffle(questions)
        check_positions(open_pins(decoder, f"BitmaskDecoder_{m_max}_{registers}", "python"), questions, registers)


# -- a lane's decoder ------------------------------------------------------------------------------------


def check_lane(config: CoreConfig, pins: object, rounds: int, seed: int = 1) -> None:
    """Code windows of a few blocks, with other bits around them; the lane looks at one nonzero of one block."""
    rng = random.Random(seed)
    numbers = {"none": 0, "index": 1, "bitmask": 2, "rank": 3}
    questions = []
    choices = [(pattern, code) for pattern in config.all_patterns for code in config.codes_of(pattern)]
    for turn in range(max(rounds, len(choices))):
        pattern, code = choices[turn] if turn < len(choices) else rng.choice(choices)
        n, m = pattern.n, pattern.m
        sets = kept_sets(n, m) if m <= 9 else [tuple(sorted(rng.sample(range(m), n))) for _ in range(5)]
        kept = rng.choice(sets)
        place = rng.randrange(n) if code != "none" else 0  # dense blocks run as 1:1
        noise = rng.getrandbits(config.code_window_bits)
        if code == "none":
            field_bits, field = 0, 0
        elif code == "index":
            field_bits, field = width(m - 1), kept[place]
        elif code == "bitmask":
            field_bits, field = m, sum(1 << position for position in kept)
        else:
            field_bits, field = width(len(sets) - 1), sets.index(kept)
        shift = rng.randint(0, config.code_window_bits - field_bits) if field_bits else 0
        shift = min(shift, config.code_window_bits - 1)
        cleared = noise & ~(((1 << field_bits) - 1) << shift)
        inputs = {
            "codes": cleared | field << shift,
            "shift": shift,
            "code": numbers[code],
            "mask": (1 << field_bits) - 1,
            "n": n,
            "place": place,
        }
        expected = 0 if code == "none" else kept[place]
        questions.append((inputs, expected, f"{pattern} by {code}, {kept}, place {place}, shift {shift}"))
    check_positions(pins, questions, config.decode_registers)


LANE_CORES = {
    "tiny": TINY,
    "rank": TINY.replace(codes=("rank",)),
    "index5": TINY.replace(codes=("index",), window=5),
    "bitmask7": TINY.replace(codes=("bitmask",), window=7),
    "window1": TINY.replace(window=1, lanes=1, act_words=128),
    "window2": TINY.replace(window=2, act_words=64),
    "window3": TINY.replace(window=3, lanes=3, act_words=64, slice_bytes=4),
    "window9": TINY.replace(window=9, codes=("rank", "bitmask"), lanes=3),
    "some_patterns": TINY.replace(patterns=("1:1", "2:4", "4:8", "1:2"), lanes=4, slice_bytes=4),
    "small_blocks": TINY.replace(patterns=("2:3", "1:2"), window=12),
    "dense": TINY.replace(patterns=("1:1",), codes=()),
    "edge": load_preset("edge"),
    **{f"decode{i}": TINY.replace(decode_registers=i) for i in range(1, 9)},
    "window1_decode8": TINY.replace(window=1, lanes=1, act_words=128, decode_registers=8),
    "window3_decode2": TINY.replace(window=3, lanes=3, act_words=64, slice_bytes=4, decode_registers=2),
    "index_decode1": TINY.replace(codes=("index",), window=5, decode_registers=1),
    "bitmask_decode8": TINY.replace(codes=("bitmask",), window=12, slice_bytes=4, decode_registers=8),
    "edge_decode4": load_preset("edge").replace(decode_registers=4),
}


@pytest.mark.parametrize("name", LANE_CORES)
def test_a_lane_finds_its_weight_among_the_codes(name: str, open_pins: Callable) -> None:
    config = LANE_CORES[name]
    check_lane(config, open_pins(LaneDecoderRTL(config), f"LaneDecoder_{name}", "python"), 300)


@pytest.mark.parametrize("name", ["edge"])
def test_a_lane_finds_its_weight_in_the_translation(name: str, open_pins: Callable) -> None:
    config = LANE_CORES[name]
    check_lane(config, open_pins(LaneDecoderRTL(config), f"LaneDecoder_{name}", "verilog"), 3000)


def test_every_pattern_of_the_tiny_core_in_every_code(open_pins: Callable) -> None:
    """Exhaustive over kept sets and places, at the position of the first block."""
    pins = open_pins(LaneDecoderRTL(TINY), "LaneDecoder", "python")
    for m in range(2, 9):
        for n in range(1, m):
            sets = kept_sets(n, m)
            for rank, kept in enumerate(sets):
                mask = sum(1 << position for position in kept)
                for place, position in enumerate(kept):
                    fields = {1: (position, width(m - 1)), 2: (mask, m), 3: (rank, width(len(sets) - 1))}
                    for code, (field, bits) in fields.items():
                        pins.drive(codes=field, shift=0, code=code, mask=(1 << bits) - 1, n=n, place=place)
                        assert pins.read("position") == position
    assert NMPattern(8, 8) in TINY.all_patterns


# -- the whole feeder ------------------------------------------------------------------------------------


class FeederBench(Component):
    """A column feeder whose lists are side by side in single ports."""

    def construct(s, config: CoreConfig) -> None:
        from accel.column_feeder.ColumnFeederRTL import ColumnFeederRTL
        from accel.core.CoreMsg import mk_step_msg

        lanes, position_nbits, weight_bits = config.lanes, position_bits(config), config.weight_bits
        index_nbits, shift_nbits = index_bits(config), count_bits(config.code_window_bits - 1)
        Step = mk_step_msg(config)
        s.step_val = InPort()
        s.last = InPort()
        s.lane_val = InPort(lanes)
        s.offset = InPort(lanes * position_nbits)
        s.place = InPort(lanes * position_nbits)
        s.shift = InPort(lanes * shift_nbits)
        s.code = InPort(2)
        s.code_mask = InPort(config.code_field_bits)
        s.n = InPort(count_bits(config.window))
        s.asymmetric = InPort()
        s.code_bit = InPort(count_bits(config.slice_bits - 1))
        s.value_nibble = InPort(count_bits(2 * config.slice_bytes - 1))
        s.codes = InPort(2 * config.slice_bits)
        s.values = InPort(2 * config.slice_bits)
        s.tile_header = InPort(config.header_bits)
        s.val = OutPort()
        s.last_out = OutPort()
        s.index = OutPort(config.row_copies * lanes * index_nbits)
        s.weight = OutPort(lanes * weight_bits)
        s.scale = OutPort(config.scale_bits)
        s.feeder = ColumnFeederRTL(config)
        step = s.feeder.step
        for name in Step.__bitstruct_fields__:
            port = getattr(step, name)
            if hasattr(s, name):
                port //= getattr(s, name)
            else:
                port //= 0
        s.feeder.step_val //= s.step_val
        s.feeder.code_low //= s.codes[0 : config.slice_bits]
        s.feeder.code_high //= s.codes[config.slice_bits : 2 * config.slice_bits]
        s.feeder.value_low //= s.values[0 : config.slice_bits]
        s.feeder.value_high //= s.values[config.slice_bits : 2 * config.slice_bits]
        s.feeder.header //= s.tile_header
        s.feeder.val //= s.val
        s.feeder.last //= s.last_out
        s.feeder.scale //= s.scale
        for lane in range(lanes):
            for copy in range(config.row_copies):
                at = (copy * lanes + lane) * index_nbits
                s.index[at : at + index_nbits] //= s.feeder.index[copy][lane]
            s.weight[lane * weight_bits : (lane + 1) * weight_bits] //= s.feeder.weight[lane]


FEEDERS = {
    "zero_points": {},
    "wide_scales": {"scale_bits": 16},
    "symmetric": {"asymmetric": False, "codes": ("index",), "window": 5, "lanes": 3},
    "some_patterns": {"patterns": ("1:2", "2:4", "4:8"), "lanes": 4, "slice_bytes": 4},
    "one_lane_used": {"patterns": ("1:8",), "lanes": 3, "slice_bytes": 4},
    "read": {"registers": ("read",)},
    "other_registers": {"registers": ("multiplexer", "multiplier", "adders", "scale")},
    **{f"decode{i}": {"decode_registers": i} for i in range(1, 9)},
    "a_copy_for_each_row": {"rows": 3, "fanout_rows": 1},
    "a_copy_for_two_rows": {"rows": 5, "fanout_rows": 2},
    "all_registers": {
        "rows": 4,
        "fanout_rows": 3,
        "patterns": ("1:2", "2:4", "4:8"),
        "lanes": 4,
        "slice_bytes": 4,
        "registers": REGISTERS,
        "decode_registers": 3,
    },
}


@pytest.mark.parametrize(
    ("name", "level"),
    [*((name, "python") for name in FEEDERS), ("zero_points", "verilog"), ("all_registers", "verilog")],
)
def test_pairs_come_out_some_cycles_later(name: str, level: str, open_pins: Callable) -> None:
    """Steps of random blocks at random places in the slices; expected pairs by taking positions from lists.

    Every copy of the indices must be right: rows beside the first one have others than it has.
    Three cycles later, and one more for each register after the read and in the decoding. What the weight buffer
    answers comes in the step's cycle, or in the one after it with a register there.
    """
    config = TINY.replace(**FEEDERS[name])
    rng = random.Random(f"{name}")
    pins = open_pins(FeederBench(config), f"FeederBench_{name}", level)
    position_nbits, shift_nbits = position_bits(config), count_bits(config.code_window_bits - 1)
    index_nbits = index_bits(config)
    reading = "read" in config.registers
    cycles = 3 + reading + config.decode_registers
    patterns = [p for p in config.all_patterns if p.n < p.m and "index" in config.codes_of(p)]
    lowest = [low for low, _ in config.lane_reach]
    pair = (1 << 2 * config.slice_bits) - 1
    expected: list[tuple | None] = []
    answers = deque([{"codes": rng.getrandbits(16), "values": rng.getrandbits(16), "tile_header": 5}] * reading)
    for _ in range(250):
        if rng.random() < 0.2:
            pins.drive(step_val=0, lane_val=rng.getrandbits(config.lanes))
            answers.append({"codes": rng.getrandbits(2 * config.slice_bits), "values": rng.getrandbits(16)})
            expected.append(None)
        else:
            pattern = rng.choice(patterns)
            n, m = pattern.n, pattern.m
            step = rng.choice(schedule(pattern, config.group_max // m * m, config.lanes, config.window))
            blocks = [rng.choice(kept_sets(n, m)) for _ in range(config.window // m)]
            count = step.count
            # Block in the window and place among its kept weights, of each lane
            slots = [divmod(step.first % n + lane, n) for lane in range(count)]
            nibbles = [rng.randrange(16) for _ in range(config.lanes)]
            zero = rng.randrange(16) if config.asymmetric else 0
            asymmetric = bool(config.asymmetric and rng.random() < 0.7)
            scale = rng.getrandbits(config.scale_bits)
            code_bit = rng.randrange(0, config.slice_bits, config.code_alignment)
            nibble_at = rng.randrange(0, 2 * config.slice_bytes, config.value_alignment)
            bits = width(m - 1)
            codes = sum(blocks[b][p] << lane * bits for lane, (b, p) in enumerate(slots))
            last = rng.randrange(2)
            pins.drive(
                step_val=1,
                last=last,
                lane_val=(1 << count) - 1,
                # From the lowest position that a lane reaches, which may be beyond the block's first one
                offset=sum(
                    (b * m - lowest[i]) % (1 << position_nbits) << i * position_nbits for i, (b, _) in enumerate(slots)
                ),
                place=sum(p << i * position_nbits for i, (_, p) in enumerate(slots)),
                shift=sum(i * bits << i * shift_nbits for i in range(count)),
                code=1,
                code_mask=(1 << bits) - 1,
                n=n,
                asymmetric=asymmetric,
                code_bit=code_bit,
                value_nibble=nibble_at,
            )
            answers.append(
                {
                    "codes": codes << code_bit & pair,
                    "values": sum(v << 4 * (nibble_at + i) for i, v in enumerate(nibbles)) & pair,
                    "tile_header": scale | zero << config.scale_bits,
                }
            )
            pairs = []
            for lane, ((b, p), nibble) in enumerate(zip(slots, nibbles, strict=False)):
                value = nibble - zero if asymmetric else nibble - 16 * (nibble > 7)
                pairs.append((b * m + blocks[b][p] - lowest[lane], value))
            expected.append((last, scale, pairs + [(0, 0)] * (config.lanes - count)))
        pins.drive(**answers.popleft())
        pins.tick()
        if len(expected) < cycles:
            continue
        want = expected[-cycles]
        assert pins.read("val") == (want is not None)
        if want is None:
            # Between steps, multiplexers are asked for what exists.
            assert pins.read("index") == 0
            continue
        assert (pins.read("last_out"), pins.read("scale")) == want[:2]
        for lane, (index, value) in enumerate(want[2]):
            for copy in range(-(-config.rows // config.fanout_rows)):
                at = (copy * config.lanes + lane) * index_nbits
                assert pins.read("index") >> at & ((1 << index_nbits) - 1) == index, f"copy {copy}"
            got_weight = pins.read("weight") >> lane * config.weight_bits & ((1 << config.weight_bits) - 1)
            assert got_weight == value % (1 << config.weight_bits)
