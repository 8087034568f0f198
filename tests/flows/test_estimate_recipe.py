"""Recipes: the last rule that matches a layer gives its pattern, and a recipe that cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.model_trace import LinearLayer
from flows.recipe import Recipe, Rule, read_recipe
from quant import METHODS, LayerSettings, NMPattern

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
    assert Recipe("any", Rule("*", default), tuple(rules)).rule_of(layer.name).pattern == expected


SETTINGS = st.builds(
    LayerSettings,
    pattern=PATTERNS,
    group_size=st.sampled_from([32, 128, -1]),
    symmetric=st.booleans(),
    method=st.sampled_from(METHODS),
    scale_bits=st.sampled_from([8, 16]),
    clip=st.booleans(),
)


@given(
    choices=st.dictionaries(
        st.builds("model.layers.{}.{}".format, st.integers(0, 3), st.sampled_from(["q_proj", "k_proj", "up_proj"])),
        st.one_of(st.none(), SETTINGS),
        min_size=1,
    ),
    awq=st.sampled_from([None, False, True]),
)
def test_a_recipe_of_choices_gives_them_again(
    choices: dict[str, LayerSettings | None], awq: bool | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "again.toml"
    recipe = Recipe.of_choices(file.name, choices, awq)
    file.write_text(recipe.to_toml(), encoding="utf-8")
    again = read_recipe(file)
    assert again == recipe
    again.check(choices)
    assert {name: again.rule_of(name).settings({}) for name in choices} == choices


def test_kinds_that_agree_take_one_rule() -> None:
    dense, pruned = LayerSettings(NMPattern(1, 1)), LayerSettings(NMPattern(2, 4))
    choices = {f"layers.{block}.{kind}": pruned for block in range(3) for kind in ("q_proj", "up_proj")}
    choices |= {f"layers.{block}.down_proj": dense for block in range(3)}
    choices["layers.1.q_proj"] = dense
    recipe = Recipe.of_choices("any", choices)
    assert recipe.default.pattern == pruned.pattern
    assert recipe.rules == (Rule("layers.1.q_proj", dense.pattern), Rule("down_proj", dense.pattern))


def test_what_a_rule_leaves_out_is_the_files_and_then_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "layered.toml"
    file.write_text(
        'default = "2:4"\ngroup = 64\nclip = false\n[[layer]]\nmatch = "q_proj"\npattern = "1:4"\ngroup = 32\n',
        encoding="utf-8",
    )
    others = {"group": 16, "method": "wanda-rtn", "clip": True}
    settings = read_recipe(file).rule_of("layers.0.q_proj").settings(others)
    assert settings == LayerSettings(NMPattern(1, 4), group_size=32, method="wanda-rtn", clip=False)
    settings = read_recipe(file).rule_of("layers.0.k_proj").settings(others)
    assert settings == LayerSettings(NMPattern(2, 4), group_size=64, method="wanda-rtn", clip=False)


def test_an_estimate_heeds_float_layers_and_zero_points(tmp_path: Path, nimble_json: Any, tiny_model: Path) -> None:
    file = tmp_path / "mixed.toml"
    rules = '[[layer]]\nmatch = "q_proj"\npattern = "float"\n[[layer]]\nmatch = "k_proj"\npattern = "dense"\n'
    file.write_text(f'default = "dense"\nmethod = "wanda-gptq"\n{rules}symmetric = false\n', encoding="utf-8")
    column = nimble_json(
        "estimate", "--model", tiny_model, "--recipe", file, "--prefill", 2, "--decode", 0, "--group", 8
    )
    layers = {layer["name"]: layer for layer in column["patterns"][0]["layers"] if layer["role"] == "linear"}
    assert layers["q_proj"]["where"] == "host"
    assert layers["q_proj"]["pattern"] == "fp16"
    assert layers["q_proj"]["bytes"] == 2 * 32 * 32
    # A zero point takes one byte in each of 16 columns, two output tiles and four groups.
    assert layers["k_proj"]["bytes"] - layers["v_proj, o_proj"]["bytes"] == 16 * 2 * 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("default = ", "{file} is not TOML: Invalid value (at end of document)."),
        (
            "",
            "The recipe {file} takes default and perhaps layer, group, method, symmetric, scale_bits, clip, "
            "awq; missing: default; unknown: none.",
        ),
        (
            'default = "2:4"\nlayers = 3',
            "The recipe {file} takes default and perhaps layer, group, method, symmetric, scale_bits, clip, "
            "awq; missing: none; unknown: layers.",
        ),
        (
            "default = 2",
            'The default of the recipe {file} has the pattern 2; it must be a string such as "2:4", "dense" or '
            '"float".',
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
            "Rule 1 of the recipe {file} takes match, pattern and perhaps group, method, symmetric, scale_bits, clip; "
            "missing: pattern; unknown: groups.",
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
            'default = "2:4"\ngroup = 128\n[[layer]]\nmatch = "q_proj"\npattern = "1:3"',
            "Rule 1 of the recipe {file}: ",
        ),
        (
            'default = "2:4"\nmethod = "gptq"',
            "The default of the recipe {file} has method = 'gptq'; it must be one of joint, sparsegpt-gptq, "
            "sparsegpt-rtn, wanda-gptq, wanda-rtn, magnitude-gptq, magnitude-rtn.",
        ),
        (
            'default = "2:4"\nscale_bits = 4',
            "The default of the recipe {file} has scale_bits = 4; it must be 8 or 16.",
        ),
        (
            'default = "2:4"\n[[layer]]\nmatch = "q_proj"\npattern = "2:4"\nclip = 1',
            "Rule 1 of the recipe {file} has clip = 1; it must be true or false.",
        ),
        (
            'default = "2:4"\nawq = "yes"',
            "The recipe {file} has awq = 'yes'; it must be true or false.",
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
