"""CoreConfig: what it accepts, the words with which it refuses, and the widths that it derives."""

from __future__ import annotations

import dataclasses
import json
from functools import cache, reduce
from itertools import combinations, product
from math import comb
from operator import and_, or_
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from accel import ConfigError, CoreConfig, load_preset, preset_names
from accel import config as config_module
from accel.command import commands_for
from accel.config import REGISTERS, count_bits, signed_bits, three_in, two_in
from accel.core.CoreMsg import index_bits
from accel.naming import config_tag, module_name
from accel.schedule import schedule
from accel.stream import layout_for
from quant import NMPattern
from verify.strategies import SMALLEST, core_configs, patterns

TINY = load_preset("tiny")
FIELDS = [field.name for field in dataclasses.fields(CoreConfig)]
LISTS = ("patterns", "codes", "registers")


# -- what is refused, and the words ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "low", "high", "changes"),
    [
        ("rows", 1, 64, {}),
        ("columns", 1, 64, {}),
        ("lanes", 1, 16, {}),
        ("window", 1, 32, {}),
        ("scale_bits", 2, 16, {}),
        ("group_max", 1, 4096, {}),
        ("k_max", 32, 1 << 20, {}),
        ("k_max", 8, 1 << 20, {"group_max": 8}),
        ("subtiles", 1, 64, {}),
        ("drain_chains", 1, 2, {}),
        ("drain_chains", 1, 5, {"rows": 5}),
        ("weight_tiles", 2, 64, {}),
        ("act_words", 2, 1 << 16, {}),
        ("act_ports", 1, 2, {}),
        ("act_ports", 1, 3, {"rows": 3}),
        ("result_lanes", 1, 2, {}),
        ("result_lanes", 1, 15, {"columns": 64}),
        ("decode_registers", 0, 8, {}),
        ("fanout_rows", 1, 64, {}),
    ],
)
def test_a_number_out_of_range_is_refused(field: str, low: int, high: int, changes: dict[str, int]) -> None:
    for value in (low - 1, high + 1, -max(1, high)):
        with pytest.raises(ConfigError) as error:
            TINY.replace(**{**changes, field: value})
        assert str(error.value) == f"{field} must be between {low} and {high}, but {value} was given."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_bits": 5}, "act_bits must be one of 4, 8, 16, but 5 was given."),
        ({"slice_bytes": 3}, "slice_bytes must be one of 1, 2, 4, 8, but 3 was given."),
        ({"asymmetric": 1}, "asymmetric must be true or false, but 1 was given."),
        (
            {"codes": ("rank", "huffman")},
            "codes must name each of some of rank, index, bitmask once, but ['rank', 'huffman'] was given.",
        ),
        (
            {"codes": ("index", "index")},
            "codes must name each of some of rank, index, bitmask once, but ['index', 'index'] was given.",
        ),
        ({"codes": ()}, "codes must name each of some of rank, index, bitmask once, but [] was given."),
        (
            {"codes": (), "patterns": ("1:1", "2:4")},
            "codes must name each of some of rank, index, bitmask once, but [] was given.",
        ),
        *(
            ({name: given}, f"{name} must be a list of names, but {given!r} was given.")
            for name in LISTS
            for given in ("rank", "any", None, {"2:4": 1})
        ),
        (
            {"window": 9, "codes": ("rank",)},
            "codes = ['rank'] covers blocks of at most 8, but patterns reach m = 9; add 'index' or 'bitmask'.",
        ),
        (
            {"window": 16, "patterns": ("2:4", "5:12"), "codes": ("rank",)},
            "codes = ['rank'] covers blocks of at most 8, but patterns reach m = 12; add 'index' or 'bitmask'.",
        ),
        (
            {"patterns": ("1:1",), "codes": (), "decode_registers": 1},
            "decode_registers must be 0 where there are no codes to decode, but 1 was given.",
        ),
        *(
            (
                {"registers": given},
                "registers must name each of some of read, multiplexer, parts, multiplier, adders, scale, weights, "
                f"acts, window, results once, but {list(given)} was given.",
            )
            for given in (("scale", "scale"), ("read", "write"), (1,), ("",))
        ),
        *(
            (
                {"patterns": given},
                "patterns must be ['any'], or name patterns n:m such as '2:4', each once, "
                f"but {list(given)} was given.",
            )
            for given in (
                (),
                ("2:4", "2:4"),
                ("any", "2:4"),
                ("any", "any"),
                ("2-4",),
                ("5:4",),
                ("0:4",),
                (" 2:4",),
                ("02:4",),
                ("dense",),
                (4,),
                (None,),
            )
        ),
        (
            {"patterns": ("2:4", "4:4")},
            "patterns has 4:4; dense weights of any block run as 1:1, so name that.",
        ),
        (
            {"patterns": ("2:4", "3:9")},
            "patterns has 3:9, but window = 8 holds no block of 9. Raise window or leave 3:9 out.",
        ),
        (
            {"lanes": 4, "window": 3, "act_words": 64},
            "lanes = 4 is more than window = 3: a lane beyond the window could never work. "
            "Lower lanes or raise window.",
        ),
        (
            {"group_max": 7},
            "window = 8 is more than group_max = 7: a block of that size would fit no tile. "
            "Raise group_max or lower window.",
        ),
        ({"act_words": 33}, "act_words must be even (two banks), but 33 was given."),
        (
            {"act_words": 14},
            "act_words = 14 does not hold one row of k_max = 128 activations, which takes 16 windows of 8.",
        ),
        (
            {"lanes": 5},
            "slice_bytes = 2 gives a column 16 bits per weight word, but a step of 5 lanes reads up to 20 "
            "bits of values and 15 bits of block codes. Raise slice_bytes or lower lanes.",
        ),
    ],
)
def test_a_contradiction_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        TINY.replace(**changes)
    assert str(error.value) == words


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in (*LISTS, "asymmetric")])
@pytest.mark.parametrize("value", [True, 2.0, "2", None, np.int64(2)])
def test_what_is_no_integer_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        TINY.replace(**{field: value})
    assert str(error.value) == f"{field} must be an integer, but {value!r} was given."


def test_the_ends_of_every_range_are_accepted() -> None:
    assert SMALLEST.replace(rows=64, columns=64, result_lanes=15, drain_chains=64, act_ports=64).rows == 64
    large = TINY.replace(
        act_bits=16,
        scale_bits=16,
        lanes=16,
        window=16,
        slice_bytes=8,
        group_max=4096,
        k_max=1 << 20,
        act_words=1 << 16,
        subtiles=64,
        weight_tiles=64,
    )
    assert large.acc_bits <= 64, "a result lane holds any accumulator"
    assert TINY.replace(window=32, codes=("bitmask",), slice_bytes=8).m_max == 32
    assert TINY.replace(registers=REGISTERS, decode_registers=8).result_registers == 14
    assert TINY.replace(window=16, patterns=("3:8",), codes=("rank",)).m_max == 8
    assert TINY.replace(patterns=["1:1"], codes=[]).patterns == ("1:1",)


# -- presets and dictionaries -----------------------------------------------------------------------


def test_presets_load_and_state_every_parameter_once() -> None:
    assert preset_names() == ["tiny", "ulx3s", "edge", "wide"]
    for name in preset_names():
        assert isinstance(load_preset(name), CoreConfig)
    with pytest.raises(ConfigError) as error:
        load_preset("huge")
    assert str(error.value) == "There is no preset named 'huge'; the presets are tiny, ulx3s, edge, wide."


def test_the_reference_preset_is_the_one_of_the_design() -> None:
    edge = load_preset("edge")
    assert (edge.rows, edge.columns, edge.lanes, edge.window, edge.act_bits) == (16, 16, 4, 16, 8)
    assert edge.rows * edge.columns * edge.lanes == 1024


@pytest.mark.parametrize("name", FIELDS)
def test_a_preset_that_leaves_a_key_out_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in TINY.as_dict().items() if key != name]
    presets = tmp_path / "presets.toml"
    presets.write_text("[short]\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(config_module, "PRESETS_FILE", presets)
    with pytest.raises(ConfigError) as error:
        load_preset("short")
    assert str(error.value) == (
        f"A core configuration states each of its 21 parameters once; missing: {name}; unknown: none."
    )
    presets.write_text(presets.read_text() + f"{name} = {json.dumps(TINY.as_dict()[name])}\nturbo = true\n")
    with pytest.raises(ConfigError) as error:
        load_preset("short")
    assert str(error.value) == (
        "A core configuration states each of its 21 parameters once; missing: none; unknown: turbo."
    )


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("given", ["rank", None, 3, {"rank": 1}])
def test_names_that_are_no_list_are_refused(name: str, given: object) -> None:
    with pytest.raises(ConfigError) as error:
        CoreConfig.from_dict({**TINY.as_dict(), name: given})
    assert str(error.value) == f"{name} must be a list of names, but {given!r} was given."


@given(core_configs())
def test_a_dictionary_gives_the_configuration_back(config: CoreConfig) -> None:
    stored = json.loads(json.dumps(config.as_dict()))
    assert list(stored) == FIELDS
    again = CoreConfig.from_dict(stored)
    assert again == config
    assert hash(again) == hash(config)
    assert config.replace() == config


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.rows = 3  # type: ignore[misc]


# -- derived widths ---------------------------------------------------------------------------------


def holds(bits: int, value: int) -> bool:
    """Whether ``bits`` bits of two's complement hold a value."""
    return -(2**bits) <= 2 * value < 2**bits


def fits_tightly(bits: int, values: list[int]) -> bool:
    """Whether ``bits`` bits hold all values and one bit less does not."""
    return all(holds(bits, value) for value in values) and not all(holds(bits - 1, value) for value in values)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, 1 << 40))
def test_width_of_a_range_is_the_smallest(low: int, length: int) -> None:
    bits = signed_bits(low, low + length)
    assert holds(bits, low)
    assert holds(bits, low + length)
    assert bits == 1 or not (holds(bits - 1, low) and holds(bits - 1, low + length))


@given(st.integers(0, 1 << 40))
def test_width_of_a_count_is_the_smallest(largest: int) -> None:
    assert len(f"{largest:b}") == count_bits(largest)


@given(core_configs(), st.sampled_from((4, 8, 16)), st.booleans(), st.integers(2, 16), st.data())
def test_widths_hold_the_worst_inputs_and_no_narrower_ones_do(
    config: CoreConfig, act_bits: int, asymmetric: bool, scale_bits: int, data: st.DataObject
) -> None:
    group_max = data.draw(st.integers(config.window, 4096), label="group_max")
    k_max = data.draw(st.integers(group_max, 1 << 20), label="k_max")
    act_words = 2 * (-(-k_max // config.window) // 2 + 1)
    if act_words > 1 << 16:
        k_max = max(group_max, (1 << 16) * config.window - 1)
        act_words = 1 << 16
    config = config.replace(
        act_bits=act_bits, asymmetric=asymmetric, scale_bits=scale_bits, group_max=group_max, k_max=k_max,
        act_words=act_words,
    )  # fmt: skip
    # Every value of the formats as the numerics page gives them, not as the configuration does.
    acts = range(-(2**act_bits) // 2, 2**act_bits // 2)
    weights = sorted({code - zero for code in range(16) for zero in range(16)} if asymmetric else range(-8, 8))
    scales = range(-(2**scale_bits) // 2, 2**scale_bits // 2)
    assert weights[0] == config.weight_range[0]
    assert weights[-1] == config.weight_range[1]
    products = [act * weight for act, weight in product((acts[0], acts[-1]), (weights[0], weights[-1]))]
    if act_bits < 16:
        assert max(act * weight for act, weight in product(acts, weights)) == max(products)
        assert min(act * weight for act, weight in product(acts, weights)) == min(products)
    assert fits_tightly(config.weight_bits, weights)
    assert fits_tightly(config.product_bits, products)
    # A group of group_max weights, all at the worst corner.
    partials = [group_max * corner for corner in products]
    assert fits_tightly(config.partial_bits, partials)
    scaled = [partial * scale for partial, scale in product(partials, (scales[0], scales[-1]))]
    assert fits_tightly(config.scaled_bits, scaled)
    # k_max weights in groups, each group times its own worst scale.
    groups, rest = divmod(k_max, group_max)
    sums = [
        groups * (group_max * corner * scale) + rest * corner * scale
        for corner, scale in product(products, (scales[0], scales[-1]))
    ]
    assert fits_tightly(config.acc_bits, sums)
    assert config.acc_bits >= config.scaled_bits >= config.partial_bits >= config.product_bits


def test_the_worst_inputs_of_a_small_core_summed_one_by_one() -> None:
    """No formula at all: real activations, weights and scales, added up in a loop."""
    for act_bits, asymmetric, scale_bits in product((4, 8, 16), (False, True), (8, 16)):
        config = TINY.replace(act_bits=act_bits, asymmetric=asymmetric, scale_bits=scale_bits)
        acts = (-(2 ** (act_bits - 1)), 2 ** (act_bits - 1) - 1)
        weights = (-15, 15) if asymmetric else (-8, 7)
        partials, accs = [], []
        for act, weight, scale in product(acts, weights, (-128, 127) if scale_bits == 8 else (-32768, 32767)):
            acc = 0
            for _ in range(4):
                partial = 0
                for _ in range(32):
                    partial += act * weight
                acc += partial * scale
            partials.append(partial)
            accs.append(acc)
        assert fits_tightly(config.partial_bits, partials)
        assert fits_tightly(config.acc_bits, accs)


@given(core_configs())
def test_a_weight_word_feeds_any_step(config: CoreConfig) -> None:
    """The bits of a slice cover what one step reads, by walking each pattern's steps from each start."""
    worst_bits, worst_bytes = 1, 1
    for pattern in config.all_patterns:
        n, m = pattern.n, pattern.m
        if n == m:
            continue
        for within in range(n):
            touched, taken = set(), 0
            while taken < config.lanes and ((within + taken) // n + 1) * m <= config.window:
                touched.add((within + taken) // n)
                taken += 1
            blocks = config.group_max // m
            if "bitmask" in config.codes:
                worst_bits = max(worst_bits, len(touched) * m)
                worst_bytes = max(worst_bytes, -(-blocks * m // 8))
            if "index" in config.codes:
                width = len(f"{m - 1:b}")
                worst_bits = max(worst_bits, config.lanes * width)
                worst_bytes = max(worst_bytes, -(-blocks * n * width // 8))
            if "rank" in config.codes and m <= 8:
                width = len(f"{len(_subsets(m, n)) - 1:b}")
                worst_bits = max(worst_bits, len(touched) * width)
                worst_bytes = max(worst_bytes, -(-blocks * width // 8))
    assert config.code_window_bits == worst_bits
    assert config.code_bytes_max == worst_bytes
    assert config.slice_bits >= max(worst_bits, 4 * config.lanes)
    assert config.code_words % 2 == config.value_words % 2 == 0
    assert config.code_words * config.slice_bytes >= config.weight_tiles * worst_bytes
    assert config.value_words * config.slice_bytes >= config.weight_tiles * -(-config.group_max // 2)


@given(core_configs())
def test_slices_bring_each_bit_of_a_header_once(config: CoreConfig) -> None:
    """Scale in one byte or two, then the zero point in one: which bits of the buffer's header each slice holds."""
    scale_bytes = 1 if config.scale_bits <= 8 else 2
    byte_of_bit = [bit // 8 for bit in range(config.scale_bits)] + [scale_bytes] * (4 if config.asymmetric else 0)
    slices: dict[int, list[int]] = {}
    for bit, byte in enumerate(byte_of_bit):
        slices.setdefault(byte // config.slice_bytes, []).append(bit)
    assert config.header_bits == len(byte_of_bit)
    assert [list(range(*part)) for part in config.header_parts] == [slices[number] for number in range(len(slices))]


def _subsets(m: int, n: int) -> list[int]:
    return [mask for mask in range(1 << m) if f"{mask:b}".count("1") == n]


@given(core_configs())
def test_geometry_covers_every_row_and_column(config: CoreConfig) -> None:
    chains = [len(range(chain, config.rows, config.drain_chains)) for chain in range(config.drain_chains)]
    assert config.chain_rows == max(chains)
    assert sum(chains) == config.rows
    assert config.acc_words == config.subtiles * config.chain_rows
    assert (config.column_groups - 1) * config.result_lanes < config.columns
    assert config.column_groups * config.result_lanes >= config.columns
    assert config.word_bytes == config.columns * config.slice_bytes
    if config.patterns == ("any",):
        every = [NMPattern(n, m) for m in range(1, config.window + 1) for n in range(1, m + 1)]
        assert list(config.all_patterns) == every
    else:
        assert [f"{pattern.n}:{pattern.m}" for pattern in config.all_patterns] == list(config.patterns)
    assert config.m_max == max(pattern.m for pattern in config.all_patterns)


@cache
def _positions(n: int, m: int, place: int) -> tuple[int, ...]:
    """Where the ``place``-th kept weight of a block lies, over all kept sets."""
    return tuple(sorted({kept[place] for kept in combinations(range(m), n)}))


def _reach(config: CoreConfig) -> list[tuple[int, int]]:
    """Lowest and highest position of each lane, by walking the steps and going through all kept sets of a block."""
    reached: list[set[int]] = [set() for _ in range(config.lanes)]
    for pattern in config.all_patterns:
        n, m = pattern.n, pattern.m
        left = config.group_max // m * n
        first = 0
        while left:
            # Lanes take kept weights in order until the lanes, the group, or the window's whole blocks end.
            for lane in range(config.lanes):
                block, place = divmod(first % n + lane, n)
                if not left or (block + 1) * m > config.window:
                    lane -= 1
                    break
                reached[lane].update(block * m + position for position in _positions(n, m, place))
                left -= 1
            first += lane + 1
    return [(min(positions, default=0), max(positions, default=0)) for positions in reached]


def width(largest: int) -> int:
    return max(1, len(f"{largest:b}"))


@given(core_configs())
def test_codes_and_values_of_a_step_lie_where_feeders_look(config: CoreConfig) -> None:
    """Group by group, of all lengths: where each step starts, and how far from there each lane's code field lies."""
    shifts: list[set[int]] = [set() for _ in range(config.lanes)]
    for pattern in config.all_patterns:
        n, m = pattern.n, pattern.m
        for group in range(m, config.group_max + 1, m):
            for step in schedule(pattern, group, config.lanes, config.window):
                assert step.first % config.value_alignment == 0
                for code in config.codes_of(pattern):
                    bits = {"none": 0, "index": width(m - 1), "bitmask": m, "rank": width(comb(m, n) - 1)}[code]
                    start = bits * (step.first if code == "index" else step.first // n)
                    assert start % config.code_alignment == 0
                    for lane in range(step.count * (code != "none")):
                        number = step.first + lane
                        shifts[lane].add(bits * (number if code == "index" else number // n) - start)
    for found, (some, always) in zip(shifts, config.lane_shifts, strict=True):
        assert some == reduce(or_, found, 0)
        assert always == (reduce(and_, found) if found else 0)


def test_where_a_2_4_and_4_8_core_looks() -> None:
    """Four codes a step, of two bits or of three: steps start at multiples of 8 and 12, lane 1 looks 2 or 3 further."""
    core = TINY.replace(lanes=4, slice_bytes=4, patterns=("1:1", "2:4", "4:8"), codes=("index",))
    assert (core.code_alignment, core.value_alignment) == (4, 4)
    assert core.lane_shifts == ((0, 0), (0b11, 0b10), (0b110, 0b100), (0b1111, 0b0000))
    # A block of five kept weights takes lanes for 4 and 1 of them in turn.
    assert core.replace(patterns=("5:8",)).value_alignment == 1


@given(core_configs())
def test_lanes_reach_what_some_step_takes_and_no_more(config: CoreConfig) -> None:
    reach = _reach(config)
    assert list(config.lane_reach) == reach
    assert all(0 <= low <= high < config.window for low, high in reach)
    assert len(f"{max(high - low for low, high in reach):b}") == index_bits(config)


def test_the_reach_of_patterns_worked_out_by_hand() -> None:
    """Lane 0 of 1:1 is always at 0. Of 2:4, lane 1 takes a block's last kept weight, at 1 to 3."""
    four = TINY.replace(lanes=4, slice_bytes=4)
    assert four.replace(patterns=("1:1",), codes=()).lane_reach == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert four.replace(patterns=("2:4",)).lane_reach == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert four.replace(patterns=("1:1", "2:4")).lane_reach == ((0, 2), (1, 3), (2, 6), (3, 7))
    # 4:8 fills the window with one block; 1:8 leaves all lanes but one without work.
    assert four.replace(patterns=("4:8",)).lane_reach == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert four.replace(patterns=("1:8",)).lane_reach == ((0, 7), (0, 0), (0, 0), (0, 0))
    # Two lanes of 3:4 start at each of a block's three kept weights in turn.
    assert TINY.replace(patterns=("3:4",)).lane_reach == ((0, 3), (1, 5))


@given(core_configs())
def test_registers_count_what_is_asked_for(config: CoreConfig) -> None:
    in_lanes = len({"multiplexer", "parts", "multiplier", "adders"} & set(config.registers))
    assert config.lane_registers == in_lanes
    # Reads of activations wait for weights to be decoded, less what windows take on their way.
    assert config.window_registers == config.decode_registers - ("window" in config.registers)
    assert config.sum_registers == in_lanes + ("read" in config.registers) + config.decode_registers
    assert config.result_registers == config.sum_registers + ("scale" in config.registers)
    assert config.tile_delay == (3 if "weights" in config.registers else 2)
    # A register before the accumulators are read, and one after.
    assert config.read_delay == (4 if "results" in config.registers else 2)
    for place in REGISTERS:
        assert config.has_register(place) == config.registers.count(place)


@given(core_configs(rows=12))
def test_every_row_has_a_copy_and_no_copy_is_without_rows(config: CoreConfig) -> None:
    served = [list(range(config.rows))[i : i + config.fanout_rows] for i in range(0, config.rows, config.fanout_rows)]
    assert config.row_copies == len(served)
    assert {row // config.fanout_rows for row in range(config.rows)} == set(range(config.row_copies))


@given(core_configs(), st.integers(1, 32), st.data())
def test_only_listed_patterns_have_a_layout(config: CoreConfig, m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m), label="n")
    runs_as = "1:1" if n == m else f"{n}:{m}"
    if n < m and m > config.window:
        words = (
            f"Pattern {n}:{m} has blocks of {m} weights, but this core's window holds {config.window}; "
            f"patterns with m up to {config.m_max} are allowed."
        )
    elif config.patterns != ("any",) and runs_as not in config.patterns:
        words = f"Pattern {n}:{m} is none of those that this core is generated for: {', '.join(config.patterns)}."
    elif n < m and m > 8 and config.codes == ("rank",):
        words = f"This core decodes rank codes, and none of them writes pattern {n}:{m}."
    else:
        layout = layout_for(config, NMPattern(n, m), 3, m, -1)
        assert f"{layout.pattern.n}:{layout.pattern.m}" == runs_as
        return
    with pytest.raises(ConfigError) as error:
        layout_for(config, NMPattern(n, m), 3, m, -1)
    assert str(error.value) == words


@given(st.integers(1, 20))
def test_two_and_three_in_so_many_bits(nbits: int) -> None:
    """In one bit there is neither, and the 0 in their place is no count that is left."""
    assert two_in(nbits) == (2 if nbits > 1 else 0)
    assert three_in(nbits) == (3 if nbits > 1 else 0)


@given(core_configs(), st.data())
def test_command_fields_fit_their_widths(config: CoreConfig, data: st.DataObject) -> None:
    """Any command of any GEMM that fits the core can be stated in its message."""
    from accel.core.CoreMsg import mk_command_msg

    pattern = data.draw(patterns(config))
    features = data.draw(st.integers(1, config.k_max))
    code = data.draw(st.sampled_from(config.codes_of(pattern)))
    try:
        layout = layout_for(config, pattern, data.draw(st.integers(1, 9)), features, -1, code=code)
    except ConfigError:
        reject()  # padded to whole blocks, K is beyond k_max
    for command in commands_for(config, layout, data.draw(st.integers(1, 3 * config.rows * config.subtiles))):
        message = mk_command_msg(config)(**command.fields())
        for name, value in command.fields().items():
            assert int(getattr(message, name)) == value


# -- names ------------------------------------------------------------------------------------------


@given(core_configs(), core_configs())
def test_names_differ_as_configurations_do(one: CoreConfig, other: CoreConfig) -> None:
    assert (module_name("CoreRTL", one) == module_name("CoreRTL", other)) == (one == other)
    assert (config_tag(one) == config_tag(other)) == (one == other)
    assert module_name("CoreRTL", one) != module_name("ColumnRTL", one)


@pytest.mark.parametrize("field", FIELDS)
def test_every_parameter_is_in_the_name(field: str) -> None:
    base = TINY.replace(rows=3, columns=3, drain_chains=2, act_ports=2, result_lanes=2, slice_bytes=4)
    changed = {
        "act_bits": 16,
        "asymmetric": False,
        "codes": ("index", "rank", "bitmask"),
        "slice_bytes": 8,
        "act_words": 34,
        "lanes": 3,
        "scale_bits": 7,
        "patterns": ("2:4",),
        "registers": ("read",),
        "fanout_rows": 2,
    }.get(
        field,
        1 if field in (*LISTS, "drain_chains", "act_ports", "result_lanes") else getattr(base, field) + 1,
    )
    assert module_name("CoreRTL", base.replace(**{field: changed})) != module_name("CoreRTL", base)


@given(core_configs())
def test_a_name_is_a_verilog_identifier_without_double_underscores(config: CoreConfig) -> None:
    name = module_name("CoreRTL", config)
    assert name.isidentifier()
    assert name.isascii()
    assert "__" not in name
    assert name.startswith(
        f"CoreRTL_{config.rows}x{config.columns}x{config.lanes}_w{config.window}_a{config.act_bits}_"
    )
