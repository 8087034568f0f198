"""Commands: what one GEMM tells the core, derived anew from sizes."""

from __future__ import annotations

from collections import Counter
from math import ceil, comb

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from accel import ConfigError, CoreConfig, load_preset
from accel.command import commands_for, result_bits
from accel.core.CoreMsg import CODE_BITMASK, CODE_INDEX, CODE_NONE, CODE_RANK, code_shift_bits, position_bits
from accel.stream import CODE_IDS, layout_for
from quant import NMPattern
from verify.strategies import core_configs, patterns

TINY = load_preset("tiny")


def test_code_numbers_are_those_that_the_decoders_know() -> None:
    assert {"none": CODE_NONE, "index": CODE_INDEX, "bitmask": CODE_BITMASK, "rank": CODE_RANK} == CODE_IDS


WALK = [
    *("steps", "last_lanes", "last_advance", "round_steps", "round_lanes", "round_nonzeros", "round_advance"),
    *("round_code", "first_advance", "first_code", "step_advance", "step_code", "block_code", "turn", "back"),
    *("carry_advance", "carry_code", "overs", "places", "offsets", "shifts"),
]


def check_walk(
    config: CoreConfig, pattern: NMPattern, group: int, code: str, code_bits: int, walk: dict[str, int]
) -> None:
    """Follow the fields through a group, as `mk_command_msg` describes them, beside kept weights in a list."""
    n, m, lanes = pattern.n, pattern.m, config.lanes
    position, shift = position_bits(config), code_shift_bits(config)

    def unpacked(name: str, bits: int) -> list[int]:
        assert walk[name] < 1 << lanes * bits
        return [walk[name] >> lane * bits & ((1 << bits) - 1) for lane in range(lanes)]

    # Block and place of every kept weight of the group
    kept = [(block, place) for block in range(group // m) for place in range(n)]
    at = number = in_round = 0
    while at < len(kept):
        start = kept[at][0]
        taken = [slot for slot in kept[at : at + lanes] if (slot[0] - start + 1) * m <= config.window]
        at += len(taken)
        here = kept[at][0] if at < len(kept) else group // m
        bits = code_bits * (len(taken) if code == "index" else here - start)
        if in_round == 0:
            places = unpacked("places", position)
            assert places[: len(taken)] == [place for _, place in taken]
            lowest = [low for low, _ in config.lane_reach]
            expected = [
                ((block - start) * m - low) % (1 << position) for (block, _), low in zip(taken, lowest, strict=False)
            ]
            assert unpacked("offsets", position)[: len(taken)] == expected
            fields = [code_bits * (i if code == "index" else block - start) for i, (block, _) in enumerate(taken)]
            assert unpacked("shifts", shift)[: len(taken)] == fields
            over_bits = len(f"{config.window:b}") + 1
            overs = [place + walk["turn"] - n for place in places[: len(taken)]]
            assert unpacked("overs", over_bits)[: len(taken)] == [over % (1 << over_bits) for over in overs]
            if at < len(kept):
                assert (walk["first_advance"], walk["first_code"]) == ((here - start) * m, bits)
        assert places[: len(taken)] == [place for _, place in taken]
        number, in_round = number + 1, in_round + 1
        if at == len(kept):
            assert (walk["last_lanes"], walk["last_advance"]) == ((1 << len(taken)) - 1, (here - start) * m)
        if in_round == walk["round_steps"]:
            assert at == len(kept) or kept[at][1] == 0
            if at < len(kept):
                assert (walk["round_lanes"], walk["round_nonzeros"]) == ((1 << len(taken)) - 1, len(taken))
                assert (walk["round_advance"], walk["round_code"]) == ((here - start) * m, bits)
            in_round = 0
        elif at < len(kept):
            passes = places[0] + walk["turn"] >= n
            kind = "carry" if passes else "step"
            assert ((here - start) * m, bits) == (walk[f"{kind}_advance"], walk[f"{kind}_code"])
            assert bits == walk["step_code"] + walk["block_code"] * passes
            places = [p - walk["back"] if p + walk["turn"] >= n else p + walk["turn"] for p in places]
    assert number == walk["steps"]


@given(core_configs(), st.data())
def test_commands_cover_all_tokens_and_say_the_sizes(config: CoreConfig, data: st.DataObject) -> None:
    pattern = data.draw(patterns(config))
    code = data.draw(st.sampled_from(config.codes_of(pattern)))
    outputs, features = data.draw(st.integers(1, 9)), data.draw(st.integers(1, config.k_max))
    tokens = data.draw(st.integers(1, 40))
    try:
        layout = layout_for(config, pattern, outputs, features, -1, code=code)
    except ConfigError:  # K padded to whole tiles is beyond the core
        reject()
    commands = commands_for(config, layout, tokens)
    if pattern.is_dense:
        pattern = NMPattern(1, 1)  # all dense patterns are one
    assert sum((c.subtiles - 1) * config.rows + c.last_rows for c in commands) == tokens
    code_bits = {
        "none": 0,
        "index": len(f"{pattern.m - 1:b}"),
        "bitmask": pattern.m,
        "rank": len(f"{comb(pattern.m, pattern.n) - 1:b}"),
    }[code]
    row_words = ceil(layout.group * layout.groups / config.window)
    for command in commands:
        assert 1 <= command.last_rows <= config.rows
        assert 1 <= command.subtiles <= config.subtiles
        assert command.block_words <= config.act_words
        fields = command.fields()
        check_walk(config, pattern, layout.group, code, code_bits, {name: fields.pop(name) for name in WALK})
        assert fields == {
            "n": pattern.n,
            "m": pattern.m,
            "code": CODE_IDS[code],
            # Partials of the last subtile's tokens on the longest chain: a row is on the chain of its remainder.
            "last_length": max(Counter(row % config.drain_chains for row in range(command.last_rows)).values()),
            "code_mask": 2**code_bits - 1,
            "asymmetric": 0,
            "slots": layout.group // pattern.m * pattern.n,
            "code_bytes": layout.code_bytes,
            "value_bytes": ceil(layout.group // pattern.m * pattern.n / 2),
            "code_words": ceil(layout.code_bytes / config.slice_bytes),
            "value_words": ceil(layout.value_bytes / config.slice_bytes),
            "groups": ceil(features / layout.group),
            "out_tiles": ceil(outputs / config.columns),
            "subtiles": command.subtiles,
            "last_rows": command.last_rows,
            "row_words": row_words,
            "block_words": command.subtiles * row_words,
            "wide": command.wide,
        }
        per_block = {"index": pattern.n}.get(code, 1)
        assert command.code_bytes == ceil(layout.group // pattern.m * per_block * code_bits / 8)
    for command in commands[:-1]:
        assert command.last_rows == config.rows
        assert command.subtiles == commands[0].subtiles


def test_only_asymmetric_weights_carry_zero_points() -> None:
    layout = layout_for(TINY, NMPattern(2, 4), 2, 16, -1, asymmetric=True)
    assert commands_for(TINY, layout, 1)[0].asymmetric == 1


@pytest.mark.parametrize(("act_bits", "features", "bits"), [(8, 128, 26), (16, 128, 34), (16, 34, 32), (16, 35, 33)])
def test_results_are_wide_only_where_they_must_be(act_bits: int, features: int, bits: int) -> None:
    # 15 · 2^(act_bits − 1) · 128 per kept weight, and one bit for the sign; counted by adding up.
    config = TINY.replace(act_bits=act_bits)
    layout = layout_for(config, NMPattern(1, 1), 2, features, 1)
    worst = sum(15 * 2 ** (act_bits - 1) * 128 for _ in range(features))
    assert bits == next(b for b in range(64) if worst < 2 ** (b - 1))
    assert result_bits(config, layout.slots * layout.groups) == bits
    assert commands_for(config, layout, 1)[0].wide == (bits > 32)
    assert commands_for(config, layout, 1, wide=True)[0].wide == 1
    if bits <= 32:
        assert commands_for(config, layout, 1, wide=False)[0].wide == 0
        return
    with pytest.raises(ConfigError) as error:
        commands_for(config, layout, 1, wide=False)
    assert str(error.value) == (
        f"Results of {features} input features take up to {bits} bits, more than the 32 asked for; "
        "ask for 64-bit results."
    )


def test_only_kept_weights_count_for_the_width() -> None:
    config = TINY.replace(act_bits=16)
    dense = layout_for(config, NMPattern(1, 1), 2, 64, -1)
    sparse = layout_for(config, NMPattern(1, 2), 2, 64, -1)
    assert commands_for(config, dense, 1)[0].wide == 1
    assert commands_for(config, sparse, 1)[0].wide == 0


def test_a_gemm_without_tokens_gives_no_command() -> None:
    layout = layout_for(TINY, NMPattern(2, 4), 2, 16, -1)
    with pytest.raises(ConfigError, match=r"^A GEMM needs at least one token, but 0 were given\.$"):
        commands_for(TINY, layout, 0)
