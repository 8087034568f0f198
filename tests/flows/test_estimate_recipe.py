"""Recipes: the last rule that matches a layer gives its pattern, and a recipe that cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.model_trace import LinearLayer
from flows.recipe import Recipe, Rule
from quant import NMPattern

SMALL = ("--preset", "tiny", "--group", 16, "--prefill", 3, "--decode", 2)

MIXED = """
default = "2:4"

[[layer]]
match = "model.layers.1.*"
pattern = "1:4"

[[layer]]
match = "down_proj"
pattern = "dense"
group = 8
"""


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    file = tmp_path / "mixed.toml"
    file.write_text(MIXED, encoding="utf-8")
    return file


def test_a_recipe_beside_patterns(mixed: Path, nimble: Any, nimble_json: Any, tiny_model: Path) -> None:
    given_options = ("estimate", *SMALL, "--model", tiny_model, "--pattern", "dense,2:4", "--recipe", mixed)
    columns = nimble_json(*given_options)["patterns"]
    assert [column["pattern"] for column in columns] == ["dense", "2:4", "mixed.toml"]
    keys = ("name", "role", "pattern", "calls")
    decode = [
        tuple(layer[key] for key in keys)
        for layer in columns[2]["layers"]
        if layer["phase"] == "decode" and layer["role"] != "attention"
    ]
    assert decode == [
        ("q_proj, k_proj, v_proj, o_proj", "linear", "2:4", 8),
        ("gate_proj, up_proj", "linear", "2:4", 4),
        ("down_proj", "linear", "dense", 4),
        ("q_proj, k_proj, v_proj, o_proj", "linear", "1:4", 8),
        ("gate_proj, up_proj", "linear", "1:4", 4),
        ("lm_head", "head", "dense", 2),
    ]
    # In bytes of a column's tile: 1 of scale, then 2 of block codes and 4 of values for 2:4, 1 and 2 for 1:4, and
    # 8 of values for dense. down_proj has groups of 8: 1 of scale and 4 of values for each half of those.
    stored = {column["pattern"]: column["weight_gbytes"] * 1e9 for column in columns}
    tiles = (4 * 32 * 32 + 2 * 48 * 32) // 16
    down, head = 48 * 32 // 16, 96 * 32 // 16
    assert stored == {
        "dense": pytest.approx(2 * (tiles + down) * 9 + head * 9),
        "2:4": pytest.approx(2 * (tiles + down) * 7 + head * 9),
        "mixed.toml": pytest.approx(tiles * (7 + 4) + 2 * down * 10 + head * 9, abs=16),
    }
    assert "mixed.toml" in nimble(*given_options).stdout


def test_a_recipe_alone_is_the_only_column(mixed: Path, nimble_json: Any, tiny_model: Path) -> None:
    columns = nimble_json("estimate", *SMALL, "--model", tiny_model, "--recipe", mixed)["patterns"]
    assert [column["pattern"] for column in columns] == ["mixed.toml"]


def test_a_rule_reaches_the_head_only_if_it_is_pruned(tmp_path: Path, nimble_json: Any, tiny_model: Path) -> None:
    file = tmp_path / "head.toml"
    file.write_text('default = "2:4"\n[[layer]]\nmatch = "lm_head"\npattern = "3:4"\n', encoding="utf-8")
    given_options = ("estimate", *SMALL, "--model", tiny_model, "--recipe", file, "--lm-head", "pruned")
    layers = nimble_json(*given_options)["patterns"][0]["layers"]
    assert {layer["pattern"] for layer in layers if layer["role"] == "head"} == {"3:4"}


PATTERNS = st.sampled_from([NMPattern(1, 1), NMPattern(2, 4), NMPattern(1, 4)])
RULES = st.builds(Rule, st.sampled_from(["*", "q_proj", "*.mlp.*", "model.layers.[13].*", "o_*"]), PATTERNS, st.none())
LAYERS = st.builds(
    lambda block, kind: LinearLayer(f"model.layers.{block}.{kind}", kind.rpartition(".")[2], 8, 8, False, 1, block),
    st.integers(0, 3),
    st.sampled_from(["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"]),
)
#: What each rule above is meant for, in words of its own.
MEANT = {
    "*": lambda layer: True,
    "q_proj": lambda layer: layer.kind == "q_proj",
    "*.mlp.*": lambda layer: layer.kind == "up_proj",
    "model.layers.[13].*": lambda layer: layer.block in (1, 3),
    "o_*": lambda layer: layer.kind == "o_proj",
}


@given(rules=st.lists(RULES, max_size=5), default=PATTERNS, layer=LAYERS)
def test_the_last_rule_that_matches_counts(rules: list[Rule], default: NMPattern, layer: LinearLayer) -> None:
    expected = default
    for rule in rules:
        if MEANT[rule.match](layer):
            expected = rule.pattern
    assert Recipe("any", default, tuple(rules)).choose(layer, 64) == (expected, 64)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("default = ", "{file} is not TOML: Invalid value (at end of document)."),
        ("", "The recipe {file} takes default and perhaps layer; missing: default; unknown: none."),
        (
            'default = "2:4"\nlayers = 3',
            "The recipe {file} takes default and perhaps layer; missing: none; unknown: layers.",
        ),
        (
            "default = 2",
            'The default of the recipe {file} has the pattern 2; it must be a string such as "2:4" or "dense".',
        ),
        (
            'default = "2-4"',
            "The default of the recipe {file}: Pattern '2-4' is not understood; write n:m with n kept of every m "
            'weights, such as "2:4", or "dense".',
        ),
        (
            'default = "2:4"\nlayer = "q_proj"',
            "The layer of the recipe {file} is 'q_proj'; rules are tables headed [[layer]].",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "q_proj"\ngroups = 4',
            "Rule 1 of the recipe {file} takes match, pattern and perhaps group; missing: pattern; unknown: groups.",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = ""\npattern = "2:4"',
            "Rule 1 of the recipe {file} has match = ''; it is a layer's name or kind, * and ? allowed.",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "q_proj"\npattern = "2:4"\ngroup = "all"',
            "Rule 1 of the recipe {file} has group = 'all'; it must be an integer.",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "q_proj"\npattern = "5:4"',
            "Rule 1 of the recipe {file}: ",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "q_proj"\npattern = "2:4"\ngroup = 6',
            "Rule 1 of the recipe {file}: ",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "q_proj"\npattern = "2:4"\n[[layer]]\nmatch = "fc1"\npattern = "2:4"',
            "The rule 'fc1' of {name} matches no layer that it could prune; their kinds are q_proj, k_proj, v_proj, "
            "o_proj, gate_proj, up_proj, down_proj.",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "lm_head"\npattern = "2:4"',
            "The rule 'lm_head' of {name} matches no layer that it could prune; their kinds are q_proj, k_proj, "
            "v_proj, o_proj, gate_proj, up_proj, down_proj.",
        ),
    ],
)
def test_bad_recipes(text: str, sentence: str, tmp_path: Path, tiny_model: Path, refusal: Any) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text, encoding="utf-8")
    complaint = refusal("estimate", *SMALL, "--model", tiny_model, "--recipe", file)
    expected = sentence.format(file=file, name=file.name)
    if sentence.endswith(": "):  # the rest is NMPattern's own sentence
        assert complaint.startswith(expected)
        assert complaint.endswith(".")
    else:
        assert complaint == expected


def test_a_recipe_that_is_no_text(tmp_path: Path, tiny_model: Path, refusal: Any) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(b'default = "\xff"')
    complaint = refusal("estimate", *SMALL, "--model", tiny_model, "--recipe", file)
    assert complaint == f"{file} is not TOML: byte 11 is not part of any UTF-8 text."
