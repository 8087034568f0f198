"""The trace of a model: what is recorded, how it is stored, and which inputs are refused."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from flows.model_trace import (
    AttentionProduct,
    CachedLayer,
    DistinctLayer,
    LinearLayer,
    MacsPerToken,
    ModelFacts,
    ModelTrace,
    load_trace,
    save_trace,
)
from flows.trace import NAMED_MODELS, read_trace, trace_model
from quant.atomic_file import write_text

TINY_LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def write_config(directory: Path, fields: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def llama_7b() -> ModelTrace:
    return trace_model("llama-7b")


@pytest.fixture
def small() -> ModelTrace:
    """A trace made by hand, for what needs no transformers."""
    return ModelTrace(
        model="small",
        model_type="llama",
        facts=ModelFacts(8, 1, 32, 64, 2, None),
        tokens=2,
        batch=3,
        context=5,
        excludes=("1 matrix product",),
        layers=(
            LinearLayer("model.layers.0.self_attn.q_proj", "q_proj", 8, 8, False, 6, 0),
            LinearLayer("lm_head", "lm_head", 8, 32, False, 6, None),
        ),
        attention=(
            AttentionProduct("model.layers.0.self_attn", "qk", 0, 3, 2, 1, 2, 7, 4, None),
            AttentionProduct("model.layers.0.self_attn", "pv", 0, 3, 2, 1, 2, 7, 5, None),
        ),
        kv_cache=(CachedLayer(1, 4, 5, 7, None),),
        layers_on_cache=(),
    )


# What is recorded


@pytest.mark.parametrize(
    ("model", "blocks", "lm_head", "linears", "facts"),
    [
        ("llama-7b", 6_476_005_376, 131_072_000, 225, ModelFacts(4096, 32, 32000, 2048, 32, 32)),
        ("llama-2-7b", 6_476_005_376, 131_072_000, 225, ModelFacts(4096, 32, 32000, 4096, 32, 32)),
        ("llama-3-8b", 6_979_321_856, 525_336_576, 225, ModelFacts(4096, 32, 128256, 8192, 32, 8)),
        ("gpt-neox-20b", 19_931_332_608, 309_854_208, 177, ModelFacts(6144, 44, 50432, 2048, 64, 64)),
    ],
)
def test_named_models_have_their_published_size(
    model: str, blocks: int, lm_head: int, linears: int, facts: ModelFacts
) -> None:
    trace = trace_model(model)
    assert trace.macs_per_token == MacsPerToken(blocks, lm_head)
    assert len(trace.layers) == linears
    assert trace.facts == facts
    assert trace.model == model
    assert trace.excludes == ()


def test_every_named_model_is_tested_above() -> None:
    assert set(NAMED_MODELS) == {"llama-7b", "llama-2-7b", "llama-3-8b", "gpt-neox-20b"}


def test_layers_come_in_order_of_execution(llama_7b: ModelTrace) -> None:
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [layer.kind for layer in llama_7b.layers] == kinds * 32 + ["lm_head"]
    assert [layer.block for layer in llama_7b.layers] == [i for i in range(32) for _ in kinds] + [None]
    assert llama_7b.layers[0] == LinearLayer("model.layers.0.self_attn.q_proj", "q_proj", 4096, 4096, False, 1, 0)
    assert llama_7b.layers[-2] == LinearLayer("model.layers.31.mlp.down_proj", "down_proj", 11008, 4096, False, 1, 31)


def test_distinct_layers_of_llama_7b(llama_7b: ModelTrace) -> None:
    assert llama_7b.distinct() == (
        DistinctLayer(("q_proj", "k_proj", "v_proj", "o_proj"), 4096, 4096, False, 1, True, 128),
        DistinctLayer(("gate_proj", "up_proj"), 4096, 11008, False, 1, True, 64),
        DistinctLayer(("down_proj",), 11008, 4096, False, 1, True, 32),
        DistinctLayer(("lm_head",), 4096, 32000, False, 1, False, 1),
    )
    assert sum(shape.macs for shape in llama_7b.distinct()) == sum(llama_7b.macs_per_token)


def test_gpt_neox_layers_have_biases_but_not_its_head() -> None:
    shapes = trace_model("gpt-neox-20b").distinct()
    assert [(shape.kinds, shape.in_features, shape.out_features, shape.bias) for shape in shapes] == [
        (("query_key_value",), 6144, 18432, True),
        (("dense",), 6144, 6144, True),
        (("dense_h_to_4h",), 6144, 24576, True),
        (("dense_4h_to_h",), 24576, 6144, True),
        (("lm_head",), 6144, 50432, False),
    ]


def test_trace_of_a_directory(tmp_path: Path) -> None:
    trace = trace_model(write_config(tmp_path / "tiny", TINY_LLAMA), tokens=5)
    assert trace.model == "tiny"
    assert trace.model_type == "llama"
    assert trace.facts == ModelFacts(32, 2, 96, 64, 4, 2)
    assert [(layer.kind, layer.in_features, layer.out_features) for layer in trace.layers[:7]] == [
        ("q_proj", 32, 32),
        ("k_proj", 32, 16),
        ("v_proj", 32, 16),
        ("o_proj", 32, 32),
        ("gate_proj", 32, 48),
        ("up_proj", 32, 48),
        ("down_proj", 48, 32),
    ]
    assert {layer.tokens for layer in trace.layers} == {5}
    # Per token, whatever the length of the pass.
    assert trace.macs_per_token == MacsPerToken(2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48), 32 * 96)
    assert trace.find("k_proj").macs == 5 * 32 * 16


def test_a_path_is_a_directory_even_when_it_is_called_like_a_known_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "llama-7b", TINY_LLAMA)
    monkeypatch.chdir(tmp_path)
    assert trace_model(Path("llama-7b")).facts.hidden_size == 32
    assert trace_model("./llama-7b").facts.hidden_size == 32
    assert trace_model("llama-7b").facts.hidden_size == 4096


def test_weights_outside_of_linears_are_named_and_not_lost(tmp_path: Path) -> None:
    # GPT-2's matrices are transformers' own Conv1D, so that only its head is a torch.nn.Linear.
    fields = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
    trace = trace_model(write_config(tmp_path, fields))
    assert [layer.name for layer in trace.layers] == ["lm_head"]
    # In a block: 32 × 96 for queries, keys and values, 32 × 32, 32 × 128 and 128 × 32.
    assert trace.excludes == (
        "8 matrix products outside of linear layers and attention: 24,576 MAC (first: transformer.h.0.attn.c_attn)",
        "8 weight tensors of Conv1D modules, which are not torch.nn.Linear: 24,576 weights "
        "(first: transformer.h.0.attn.c_attn.weight)",
    )


def test_linears_that_do_not_run_are_named(tmp_path: Path) -> None:
    fields = {"model_type": "mamba", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3}
    trace = trace_model(write_config(tmp_path, fields))
    assert trace.excludes[1] == (
        "3 linear layers that are not called as modules in a forward pass (first: backbone.layers.0.mixer.dt_proj)"
    )


def test_find_takes_a_kind_or_a_full_name(llama_7b: ModelTrace) -> None:
    assert llama_7b.find("up_proj").name == "model.layers.0.mlp.up_proj"
    assert llama_7b.find("model.layers.3.mlp.up_proj").block == 3
    with pytest.raises(
        ValueError,
        match=r"^llama-7b runs no linear layer 'qproj'; give one of the kinds q_proj, k_proj, .*, lm_head, "
        r"or a full name such as model\.layers\.0\.self_attn\.q_proj\.$",
    ):
        llama_7b.find("qproj")


def test_transformers_keeps_its_verbosity(tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    try:
        trace_model(write_config(tmp_path, TINY_LLAMA))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)


# How it is stored


def test_json_round_trip(llama_7b: ModelTrace) -> None:
    assert ModelTrace.from_json(llama_7b.to_json()) == llama_7b


def test_json_names_its_schema_and_the_totals(llama_7b: ModelTrace) -> None:
    document = json.loads(llama_7b.to_json())
    assert (document["schema"], document["version"]) == ("nimble.trace", 2)
    assert document["macs_per_token"] == {"blocks": 6_476_005_376, "lm_head": 131_072_000}
    assert document["attention_macs"] == 262_144
    assert document["kv_values_per_token"] == document["kv_values"] == 262_144


def test_totals_of_a_pass(small: ModelTrace) -> None:
    assert small.attention_macs == 3 * 2 * 2 * 7 * (4 + 5)
    assert small.macs_per_token == MacsPerToken(64, 256)
    assert small.kv_values_per_token == 9
    assert small.kv_values == 3 * 7 * 9
    assert [small.kv_bytes_per_token(bits) for bits in (16, 8, 4)] == [18, 9, 5]
    assert [small.kv_bytes(bits) for bits in (16, 8, 4)] == [378, 189, 95]


def test_distinct_attention_counts_products_of_one_shape(llama_7b: ModelTrace) -> None:
    qk, pv = llama_7b.attention[:2]
    assert llama_7b.distinct_attention() == ((qk, 32), (pv, 32))


def test_unknown_keys_are_ignored(small: ModelTrace) -> None:
    assert ModelTrace.from_json(json.dumps({**small.to_document(), "remark": "mine"})) == small


def test_save_and_load(small: ModelTrace, tmp_path: Path) -> None:
    path = tmp_path / "new" / "small.json"
    save_trace(small, path)
    assert load_trace(path) == small
    assert [item.name for item in path.parent.iterdir()] == ["small.json"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"schema": "nimble.report"},
            "The JSON has schema 'nimble.report'; a trace has schema 'nimble.trace'. Write one with nimble trace.",
        ),
        (
            {"version": 1},
            "The trace has version 1; this Nimble reads version 2. Write it again with nimble trace.",
        ),
        ({"tokens": 0}, "Field 'tokens' of the trace is 0; it must be at least 1."),
        ({"tokens": True}, "Field 'tokens' of the trace is True; it must be an integer."),
        ({"model": None}, "Field 'model' of the trace is None; it must be a string."),
        ({"facts": []}, "Field 'facts' of the trace is []; it must be an object."),
        ({"layers": {}}, "Field 'layers' of the trace is {}; it must be a list."),
        ({"layers": []}, "The trace has no layers; a trace holds at least one linear layer."),
        ({"layers": [7]}, "layers[0] is 7; it must be an object."),
        ({"layers": [{"name": "x"}]}, "Field 'kind' of layers[0] is missing."),
        ({"excludes": [1]}, "An item of excludes is 1; it must be a string."),
        ({"layers_on_cache": [None]}, "An item of layers_on_cache is None; it must be a string."),
        ({"attention": [{"kind": "qkv"}]}, "Field 'kind' of attention[0] is 'qkv'; it must be 'qk' or 'pv'."),
        ({"kv_cache": ["x"]}, "kv_cache[0] is 'x'; it must be an object."),
        ({"batch": 0}, "Field 'batch' of the trace is 0; it must be at least 1."),
        ({"context": -1}, "Field 'context' of the trace is -1; it must be at least 0."),
    ],
)
def test_from_json_refuses_what_is_not_a_trace(small: ModelTrace, change: dict[str, object], sentence: str) -> None:
    text = json.dumps({**small.to_document(), **change})
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ModelTrace.from_json(text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bias": 0}, "Field 'bias' of layers[1] is 0; it must be true or false."),
        ({"in_features": 1.5}, "Field 'in_features' of layers[1] is 1.5; it must be an integer."),
        ({"block": -1}, "Field 'block' of layers[1] is -1; it must be at least 0."),
    ],
)
def test_from_json_refuses_a_wrong_layer(small: ModelTrace, change: dict[str, object], sentence: str) -> None:
    document = small.to_document()
    document["layers"][1].update(change)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ModelTrace.from_json(json.dumps(document))


def test_from_json_needs_every_field_of_every_object(small: ModelTrace) -> None:
    """Each field of each dataclass is needed: dropping any one of them is refused by name."""
    for cls, path in (
        (ModelTrace, ()),
        (ModelFacts, ("facts",)),
        (LinearLayer, ("layers", 1)),
        (AttentionProduct, ("attention", 1)),
        (CachedLayer, ("kv_cache", 0)),
    ):
        for field in dataclasses.fields(cls):
            document = small.to_document()
            place: Any = document
            for step in path:
                place = place[step]
            del place[field.name]
            with pytest.raises(ValueError, match=f"^Field '{field.name}' of .* is missing\\.$"):
                ModelTrace.from_json(json.dumps(document))


def test_from_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^The trace is not JSON: Expecting value: line 1 column 1"):
        ModelTrace.from_json("hello")
    with pytest.raises(ValueError, match=r"^The trace is \[\]; it must be an object\.$"):
        ModelTrace.from_json("[]")
    path = tmp_path / "broken.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: The trace is not JSON"):
        load_trace(path)


def test_a_stored_trace_is_read_where_a_model_is_named(small: ModelTrace, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    save_trace(small, path)
    assert read_trace(path) == read_trace(str(path), 2, batch=3) == small
    assert read_trace(path, context=9) == small.at_context(9)
    with pytest.raises(
        ValueError,
        match=f"^tokens is 1, but {re.escape(str(path))} is the trace of a pass with tokens 2; "
        r"trace the model instead\.$",
    ):
        read_trace(path, 1)
    with pytest.raises(ValueError, match=r"^batch is 1, but .* with batch 3; trace the model instead\.$"):
        read_trace(path, batch=1)


def test_what_is_no_file_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "tiny", TINY_LLAMA)
    assert read_trace(tmp_path / "tiny") == trace_model(tmp_path / "tiny")
    assert read_trace(tmp_path / "tiny", 2, batch=3, context=4) == trace_model(tmp_path / "tiny", 2, batch=3, context=4)
    # A file of that name does not hide the model.
    (tmp_path / "llama-7b").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_trace("llama-7b").facts.hidden_size == 4096


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new, with a lone surrogate \ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["trace.json"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "")
    (tmp_path / "any").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


def test_a_directory_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"is a directory; give the name of a file\.$"):
        write_text(tmp_path, "text")


# Which inputs are refused


@pytest.mark.parametrize("source", ["llama-9b", "", "config.json"])
def test_unknown_model(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_config(tmp_path, TINY_LLAMA))
    problem = {
        "llama-9b": "'llama-9b' is neither a known model nor a directory",
        "": "'' is neither a known model nor a directory",
        "config.json": "'config.json' is a file",
    }[source]
    with pytest.raises(
        ValueError,
        match=f"^{problem}; give one of llama-7b, llama-2-7b, llama-3-8b, gpt-neox-20b, "
        r"or a directory that holds a Hugging Face config\.json\.$",
    ):
        trace_model(source)


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=f"^The directory {re.escape(str(tmp_path))} has no config.json; "
        r"a Hugging Face model directory holds one\.$",
    ):
        trace_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("not JSON", r"config\.json is not JSON: Expecting value: line 1 column 1 \(char 0\)\.$"),
        (
            "[1]",
            r"config\.json has no model_type; a Hugging Face configuration is an object that names one\.$",
        ),
        (
            "{}",
            r"config\.json has no model_type; a Hugging Face configuration is an object that names one\.$",
        ),
        (
            '{"model_type": "llamma"}',
            r"config\.json has model_type 'llamma', which transformers \S+ does not know\.$",
        ),
        (
            '{"model_type": "llama", "hidden_size": "wide"}',
            r"^transformers refuses .*config\.json: .*hidden_size",
        ),
        (
            '{"model_type": "llama", "hidden_size": 100, "num_attention_heads": 3}',
            r"^transformers refuses .*config\.json: ",
        ),
        (
            '{"model_type": "llama", "num_hidden_layers": 0}',
            r"has num_hidden_layers 0; it must be a positive integer\.$",
        ),
        (
            '{"model_type": "t5"}',
            r"^transformers cannot build a causal language model from the configuration of .* "
            r"\(model type 't5'\): Unrecognized configuration class",
        ),
    ],
)
def test_unusable_config(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        trace_model(tmp_path)


def test_code_that_a_config_names_is_not_run(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    write_config(tmp_path, {"model_type": "evil", "auto_map": auto_map})
    proof = tmp_path / "proof"
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')", encoding="utf-8")
    with pytest.raises(ValueError, match="has model_type 'evil', which transformers"):
        trace_model(tmp_path)
    write_config(tmp_path, {**TINY_LLAMA, "auto_map": auto_map})
    assert trace_model(tmp_path).model_type == "llama"
    assert not proof.exists()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"tokens": 0}, ValueError, "tokens is 0; a forward pass has at least 1 token."),
        ({"tokens": -3}, ValueError, "tokens is -3; a forward pass has at least 1 token."),
        ({"tokens": 2.0}, TypeError, "tokens is 2.0 of type float; it must be an integer."),
        ({"tokens": True}, TypeError, "tokens is True of type bool; it must be an integer."),
        ({"batch": 0}, ValueError, "batch is 0; a forward pass has at least 1 sequence."),
        ({"batch": "2"}, TypeError, "batch is '2' of type str; it must be an integer."),
        ({"context": -1}, ValueError, "context is -1; it is a number of cached tokens from 0 on."),
        ({"context": 0.5}, TypeError, "context is 0.5 of type float; it must be an integer."),
        (
            {"tokens": 2049},
            ValueError,
            "tokens is 2049; llama-7b is made for at most 2048 (its max_position_embeddings).",
        ),
        (
            {"tokens": 2, "context": 2047},
            ValueError,
            "context and tokens are 2049 together; llama-7b is made for at most 2048 (its max_position_embeddings).",
        ),
    ],
)
def test_a_pass_that_cannot_be(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        trace_model("llama-7b", **options)


def test_a_context_that_cannot_be(llama_7b: ModelTrace) -> None:
    assert llama_7b.at_context(2047).attention[0].context == 2048
    for context, error, sentence in (
        (2048, ValueError, "context and tokens are 2049 together; llama-7b is made for at most 2048"),
        (-1, ValueError, "context is -1; it is a number of cached tokens from 0 on."),
        (1.0, TypeError, "context is 1.0 of type float; it must be an integer."),
    ):
        with pytest.raises(error, match=f"^{re.escape(sentence)}"):
            llama_7b.at_context(context)  # type: ignore[arg-type]


def test_a_model_as_long_as_its_positions_is_traced() -> None:
    assert trace_model("llama-7b", 2048).layers[0].tokens == 2048
    assert trace_model("llama-7b", 1, context=2047).attention[0].context == 2048
