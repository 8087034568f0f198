"""Recorded passes: what each family of models multiplies, against formulas that share nothing with the recorder."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.model_trace import CachedLayer, MacsPerToken, ModelTrace
from flows.recorder import Pass, record_pass
from flows.trace import trace_model

LONGEST = 64

#: Each of nine families is drawn by itself.
EXAMPLES = settings(max_examples=settings().max_examples // 3)


class Family(NamedTuple):
    """A configuration, and what a model of it has."""

    fields: dict[str, Any]
    #: Kind, K, O and bias of each linear layer of a block.
    linears: list[tuple[str, int, int, bool]]
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    #: The sliding window of each block, or None.
    windows: list[int | None]


class Sizes(NamedTuple):
    """Sizes that every family has."""

    blocks: int
    kv_heads: int
    group: int
    head_dim: int
    factor: int
    inner: int
    vocabulary: int

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def hidden(self) -> int:
        """Other than all heads' dimensions, where a family allows; always a multiple of the heads."""
        return self.factor * self.heads

    def fields(self, model_type: str, hidden: int, **more: Any) -> dict[str, Any]:
        return {
            "model_type": model_type,
            "vocab_size": self.vocabulary,
            "hidden_size": hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": LONGEST,
            **more,
        }

    def separate(self, hidden: int, qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False) -> Any:
        """Seven linear layers, as in all descendants of Llama."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            ("q_proj", hidden, queries, qkv_bias),
            ("k_proj", hidden, keys, qkv_bias),
            ("v_proj", hidden, keys, qkv_bias),
            ("o_proj", queries, hidden, o_bias),
            ("gate_proj", hidden, self.inner, mlp_bias),
            ("up_proj", hidden, self.inner, mlp_bias),
            ("down_proj", self.inner, hidden, mlp_bias),
        ]

    def family(self, fields: dict[str, Any], linears: Any, hidden: int, windows: Any = None, **other: int) -> Family:
        return Family(
            fields,
            linears,
            hidden,
            self.vocabulary,
            other.get("heads", self.heads),
            other.get("kv_heads", self.kv_heads),
            self.head_dim,
            windows or [None] * self.blocks,
        )


def llama(sizes: Sizes, flag: bool, window: int) -> Family:
    # Llama 3 is of the same type, with grouped heads and another base of rotary angles.
    fields = sizes.fields(
        "llama",
        sizes.hidden,
        head_dim=sizes.head_dim,
        attention_bias=flag,
        mlp_bias=flag,
        rope_theta=500000.0,
        tie_word_embeddings=flag,
    )
    return sizes.family(fields, sizes.separate(sizes.hidden, flag, flag, flag), sizes.hidden)


def mistral(sizes: Sizes, flag: bool, window: int) -> Family:
    fields = sizes.fields("mistral", sizes.hidden, head_dim=sizes.head_dim, sliding_window=window if flag else None)
    return sizes.family(fields, sizes.separate(sizes.hidden), sizes.hidden, [window if flag else None] * sizes.blocks)


def qwen2(sizes: Sizes, flag: bool, window: int) -> Family:
    hidden = sizes.heads * sizes.head_dim
    fields = sizes.fields("qwen2", hidden, tie_word_embeddings=flag)
    return sizes.family(fields, sizes.separate(hidden, qkv_bias=True), hidden)


def gpt_neox(sizes: Sizes, flag: bool, window: int) -> Family:
    hidden = sizes.heads * sizes.head_dim
    fields = sizes.fields("gpt_neox", hidden, rotary_pct=0.5 if flag else 1.0, tie_word_embeddings=False)
    linears = [
        ("query_key_value", hidden, 3 * hidden, True),
        ("dense", hidden, hidden, True),
        ("dense_h_to_4h", hidden, sizes.inner, True),
        ("dense_4h_to_h", sizes.inner, hidden, True),
    ]
    return sizes.family(fields, linears, hidden, kv_heads=sizes.heads)


def phi3(sizes: Sizes, flag: bool, window: int) -> Family:
    hidden = sizes.heads * sizes.head_dim
    fields = sizes.fields("phi3", hidden, pad_token_id=0, sliding_window=window if flag else None)
    linears = [
        ("qkv_proj", hidden, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim, False),
        ("o_proj", hidden, hidden, False),
        ("gate_up_proj", hidden, 2 * sizes.inner, False),
        ("down_proj", sizes.inner, hidden, False),
    ]
    return sizes.family(fields, linears, hidden, [window if flag else None] * sizes.blocks)


def gemma2(sizes: Sizes, flag: bool, window: int) -> Family:
    kinds = [["sliding_attention", "full_attention"][(block + flag) % 2] for block in range(sizes.blocks)]
    fields = sizes.fields("gemma2", sizes.hidden, head_dim=sizes.head_dim, sliding_window=window, layer_types=kinds)
    return sizes.family(
        fields,
        sizes.separate(sizes.hidden),
        sizes.hidden,
        [window if kind == "sliding_attention" else None for kind in kinds],
    )


def opt(sizes: Sizes, flag: bool, window: int) -> Family:
    hidden = sizes.heads * sizes.head_dim
    fields = sizes.fields("opt", hidden, ffn_dim=sizes.inner, word_embed_proj_dim=hidden, enable_bias=flag)
    square = [(kind, hidden, hidden, flag) for kind in ("k_proj", "v_proj", "q_proj", "out_proj")]
    linears = [*square, ("fc1", hidden, sizes.inner, flag), ("fc2", sizes.inner, hidden, flag)]
    return sizes.family(fields, linears, hidden, kv_heads=sizes.heads)


def falcon(sizes: Sizes, flag: bool, window: int) -> Family:
    """One head of keys and values for all queries, which PyTorch's matmul repeats."""
    hidden = sizes.heads * sizes.head_dim
    fields = sizes.fields("falcon", hidden, multi_query=True, alibi=flag, bias=flag, ffn_hidden_size=sizes.inner)
    linears = [
        ("query_key_value", hidden, hidden + 2 * sizes.head_dim, flag),
        ("dense", hidden, hidden, flag),
        ("dense_h_to_4h", hidden, sizes.inner, flag),
        ("dense_4h_to_h", sizes.inner, hidden, flag),
    ]
    return sizes.family(fields, linears, hidden, kv_heads=1)


def gpt_bigcode(sizes: Sizes, flag: bool, window: int) -> Family:
    """One head of keys and values, with the heads of the queries folded into their tokens."""
    hidden = sizes.heads * sizes.head_dim
    fields = {
        "model_type": "gpt_bigcode",
        "vocab_size": sizes.vocabulary,
        "n_embd": hidden,
        "n_inner": sizes.inner,
        "n_layer": sizes.blocks,
        "n_head": sizes.heads,
        "n_positions": LONGEST,
        "multi_query": True,
    }
    linears = [
        ("c_attn", hidden, hidden + 2 * sizes.head_dim, True),
        ("c_proj", hidden, hidden, True),
        ("c_fc", hidden, sizes.inner, True),
        ("c_proj", sizes.inner, hidden, True),
    ]
    return sizes.family(fields, linears, hidden, kv_heads=1)


FAMILIES = [llama, mistral, qwen2, gpt_neox, phi3, gemma2, opt, falcon, gpt_bigcode]

sizes = st.builds(
    Sizes,
    blocks=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    # Even, for rotary angles on half of it.
    head_dim=st.sampled_from([4, 8, 12]),
    factor=st.integers(1, 10),
    inner=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
)
windows = st.integers(2, LONGEST + 10)


def traced(family: Family, *passes: tuple[int, int, int]) -> list[ModelTrace]:
    """Trace passes of (tokens, batch, context) from a folder that holds the family's configuration."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(family.fields), encoding="utf-8")
        return [trace_model(folder, tokens, batch=batch, context=context) for tokens, batch, context in passes]


def within(window: int | None, tokens: int) -> int:
    """How many of so many tokens a cache keeps for the next one."""
    return tokens if window is None or tokens < window else window - 1


@pytest.mark.parametrize("build", FAMILIES)
@EXAMPLES
@given(
    sizes=sizes,
    flag=st.booleans(),
    window=windows,
    tokens=st.integers(1, 20),
    batch=st.integers(1, 3),
    context=st.integers(0, LONGEST - 20),
)
def test_a_pass_multiplies_what_its_configuration_says(
    build: Any, sizes: Sizes, flag: bool, window: int, tokens: int, batch: int, context: int
) -> None:
    family = build(sizes, flag, window)
    [trace] = traced(family, (tokens, batch, context))
    blocks = len(family.windows)

    rows = batch * tokens
    shapes = [(kind, k, o, bias, rows, block) for block in range(blocks) for kind, k, o, bias in family.linears]
    shapes.append(("lm_head", family.hidden, family.vocabulary, False, rows, None))
    # Not in order: a parallel block may run attention and MLP either way.
    assert Counter(
        (layer.kind, layer.in_features, layer.out_features, layer.bias, layer.tokens, layer.block)
        for layer in trace.layers
    ) == Counter(shapes)
    assert trace.macs_per_token == MacsPerToken(
        blocks * sum(k * o for _, k, o, _ in family.linears), family.hidden * family.vocabulary
    )

    keys = [within(limit, context) + tokens for limit in family.windows]
    assert [
        (p.kind, p.block, p.batch, p.heads, p.kv_heads, p.tokens, p.context, p.head_dim) for p in trace.attention
    ] == [
        (kind, block, batch, family.heads, family.kv_heads, tokens, keys[block], family.head_dim)
        for block in range(blocks)
        for kind in ("qk", "pv")
    ]
    assert trace.attention_macs == sum(2 * rows * family.heads * family.head_dim * seen for seen in keys)
    assert trace.kv_values_per_token == 2 * blocks * family.kv_heads * family.head_dim
    assert [layer.length for layer in trace.kv_cache] == [within(w, context + tokens) for w in family.windows]
    assert (trace.tokens, trace.batch, trace.context) == (tokens, batch, context)
    assert trace.layers_on_cache == ()
    assert trace.excludes == ()


@pytest.mark.parametrize("build", FAMILIES)
@EXAMPLES
@given(
    sizes=sizes,
    flag=st.booleans(),
    window=windows,
    tokens=st.integers(1, 4),
    batch=st.integers(1, 2),
    contexts=st.tuples(*[st.integers(0, LONGEST - 4)] * 2),
)
def test_moving_to_a_context_is_tracing_there(
    build: Any, sizes: Sizes, flag: bool, window: int, tokens: int, batch: int, contexts: tuple[int, int]
) -> None:
    first, second = contexts
    here, there = traced(build(sizes, flag, window), (tokens, batch, first), (tokens, batch, second))
    assert here.at_context(second) == there
    assert ModelTrace.from_json(here.to_json()).at_context(second) == there


@pytest.mark.parametrize(
    ("model", "per_key"),
    [("llama-7b", 262_144), ("llama-2-7b", 262_144), ("llama-3-8b", 262_144), ("gpt-neox-20b", 540_672)],
)
def test_attention_of_named_models_has_its_published_size(model: str, per_key: int) -> None:
    decode = trace_model(model)
    for keys in (1, 2, 129, 1000, 2048):
        assert decode.at_context(keys - 1).attention_macs == per_key * keys
    assert trace_model(model, context=1499, batch=3) == trace_model(model, batch=3).at_context(1499)
    # In prefill, each of T tokens is multiplied with all T keys: what the mask hides is not spared.
    assert trace_model(model, 2048).attention_macs == per_key * 2048 * 2048
    assert trace_model(model, 100, batch=4, context=28).attention_macs == 4 * 100 * per_key * 128


@pytest.mark.parametrize(
    ("model", "values"), [("llama-7b", 262_144), ("llama-3-8b", 65_536), ("gpt-neox-20b", 540_672)]
)
def test_kv_cache_of_named_models(model: str, values: int) -> None:
    trace = trace_model(model, 1, batch=2, context=99)
    assert trace.kv_values_per_token == values
    assert trace.kv_bytes_per_token(16) == 2 * values
    assert trace.kv_bytes(8) == 2 * 100 * values


def mistral_7b(folder: Path) -> Path:
    """Mistral-7B-v0.1, whose window is shorter than its longest sequence."""
    fields = {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    }
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def test_a_window_bounds_decode_and_not_prefill(tmp_path: Path) -> None:
    decode = trace_model(mistral_7b(tmp_path), context=10_000)
    assert {(p.context, p.window) for p in decode.attention} == {(4096, 4096)}
    assert decode.attention_macs == 262_144 * 4096
    assert set(decode.kv_cache) == {CachedLayer(8, 128, 128, 4095, 4096)}
    for context, keys in ((4094, 4095), (4095, 4096), (4096, 4096), (32767, 4096), (0, 1)):
        assert decode.at_context(context).attention_macs == 262_144 * keys
    # transformers' eager attention multiplies a long prompt with all of itself, and masks.
    assert {p.context for p in trace_model(tmp_path, 10_000).attention} == {10_000}


def write(folder: Path, **fields: Any) -> Path:
    common = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": LONGEST,
    }
    (folder / "config.json").write_text(json.dumps({**common, **fields}), encoding="utf-8")
    return folder


def test_latent_attention_computes_keys_from_the_cache(tmp_path: Path) -> None:
    """DeepSeek-V3 caches a latent, from which a linear layer makes all keys and values in every pass."""
    folder = write(
        tmp_path,
        model_type="deepseek_v3",
        q_lora_rank=16,
        kv_lora_rank=20,
        qk_rope_head_dim=8,
        qk_nope_head_dim=6,
        v_head_dim=12,
        n_routed_experts=4,
        first_k_dense_replace=2,
    )
    trace = trace_model(folder, 2, batch=3, context=5)
    assert [(p.kind, p.heads, p.kv_heads, p.context, p.head_dim) for p in trace.attention[:2]] == [
        ("qk", 4, 4, 7, 14),
        ("pv", 4, 4, 7, 12),
    ]
    # The latent and one rotated key for all heads.
    assert trace.kv_values_per_token == 2 * (20 + 8)
    assert trace.find("kv_b_proj").tokens == 3 * 7
    assert trace.layers_on_cache == ("model.layers.0.self_attn.kv_b_proj", "model.layers.1.self_attn.kv_b_proj")
    # At context 0, nothing tells it from other layers but where its rows come from.
    assert trace_model(folder).layers_on_cache == trace.layers_on_cache
    with pytest.raises(
        ValueError,
        match=r"^model\.layers\.0\.self_attn\.kv_b_proj runs on what is cached and grows with the context; "
        r"trace .* at context 6 instead\.$",
    ):
        trace.at_context(6)


def test_linear_attention_is_not_taken_for_attention(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        model_type="qwen3_next",
        head_dim=16,
        num_hidden_layers=4,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    trace = trace_model(folder, 3)
    assert [(p.kind, p.block, p.context, p.head_dim) for p in trace.attention] == [("qk", 3, 3, 16), ("pv", 3, 3, 16)]
    assert len(trace.kv_cache) == 1
    assert any("matrix products outside of linear layers and attention" in phrase for phrase in trace.excludes)
    with pytest.raises(
        ValueError,
        match=r"^1 of 4 blocks keep keys and values, and others may start in another way than they go on; "
        r"trace .* at context 2 instead\.$",
    ):
        trace.at_context(2)
    decode = trace_model(folder, context=2)
    assert decode.at_context(40) == trace_model(folder, context=40)


def test_layers_that_share_keys_share_their_cache(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        model_type="gemma3n_text",
        head_dim=16,
        sliding_window=8,
        num_hidden_layers=10,
        num_kv_shared_layers=3,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=96,
        num_key_value_heads=2,
    )
    trace = trace_model(folder, context=20)
    assert len(trace.attention) == 2 * 10
    assert trace.kv_values_per_token == 7 * 2 * 2 * 16
    assert Counter(p.context for p in trace.attention) == {8: 16, 21: 4}
    assert trace.at_context(5) == trace_model(folder, context=5)


def test_a_router_that_is_a_linear_layer_and_returns_two_tensors(tmp_path: Path) -> None:
    folder = write(tmp_path, model_type="llama4_text", head_dim=8, num_local_experts=2, intermediate_size_mlp=48)
    router = trace_model(folder, 5, batch=2).find("router")
    assert (router.in_features, router.out_features, router.tokens) == (32, 2, 10)


def test_a_model_without_cache_has_no_context(tmp_path: Path) -> None:
    folder = write(tmp_path, model_type="openai-gpt", n_embd=32, n_layer=2, n_head=4, n_positions=LONGEST)
    trace = trace_model(folder, 7)
    assert {(p.heads, p.context) for p in trace.attention} == {(4, 7)}
    assert trace.kv_cache == ()
    with pytest.raises(
        ValueError, match=r" \(model type 'openai-gpt'\) hands out no cache; only context 0 can be traced\.$"
    ):
        trace_model(folder, context=1)


# Data flow that no model above has


class Toy(torch.nn.Module):
    """Embeds tokens, and hands queries of 4 heads of 6, and keys and values, to `mix`."""

    def __init__(self, mix: Any, kv_heads: int = 4) -> None:
        super().__init__()
        self.mix, self.kv_heads = mix, kv_heads
        self.embed = torch.nn.Embedding(10, 24)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(24, (4 + 2 * kv_heads) * 6)])
        self.table = torch.nn.Parameter(torch.zeros(24, 24))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> dict[str, None]:
        fused = self.layers[0](self.embed(input_ids))
        heads = fused.unflatten(-1, (-1, 6)).transpose(1, 2)
        self.mix(self, *heads.split([4, self.kv_heads, self.kv_heads], dim=1))
        return {"past_key_values": None}

    def recorded(self, tokens: int, batch: int = 2) -> Pass:
        with torch.no_grad():
            return record_pass(self.to("meta").eval(), tokens, batch, 0, None)


def kinds_of(ran: Pass) -> list[tuple[str, int, int, int, int, int]]:
    return [(p.kind, p.heads, p.kv_heads, p.tokens, p.context, p.head_dim) for p in ran.attention]


def plain(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    (q @ k.mT).softmax(-1) @ v


def by_einsum(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), v)


def transposed(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    v.mT @ (k @ q.mT).softmax(-2)


def by_sdpa(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def with_sinks(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    scores = torch.tanh(q @ k.mT) + 1
    joined = torch.cat([scores, scores[..., :1]], dim=-1)
    joined.softmax(-1)[..., :-1] @ v


@pytest.mark.parametrize(
    ("mix", "tokens"),
    # At one key, einsum multiplies element by element.
    [(mix, tokens) for mix in (plain, by_einsum, transposed, by_sdpa, with_sinks) for tokens in (3, 6, 9)]
    + [(mix, 1) for mix in (plain, transposed, by_sdpa, with_sinks)],
)
def test_attention_is_seen_however_it_is_written(mix: Any, tokens: int) -> None:
    ran = Toy(mix).recorded(tokens)
    assert kinds_of(ran) == [("qk", 4, 4, tokens, tokens, 6), ("pv", 4, 4, tokens, tokens, 6)]
    assert ran.others == ()


@pytest.mark.parametrize("mix", [plain, by_einsum, transposed, with_sinks])
def test_keys_are_told_from_queries(mix: Any) -> None:
    def with_more_keys(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        mix(self, q, torch.cat([k, k, k], dim=2), torch.cat([v, v, v], dim=2))

    ran = Toy(with_more_keys).recorded(5)
    assert kinds_of(ran) == [("qk", 4, 4, 5, 15, 6), ("pv", 4, 4, 5, 15, 6)]


def shared_by_repeat(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    k, v = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
    (q @ k.mT).softmax(-1) @ v


def shared_by_interleaving(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    (q @ k.mT).softmax(-1) @ v


def shared_in_sdpa(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize("mix", [shared_by_repeat, shared_by_interleaving, shared_in_sdpa])
def test_shared_keys_are_counted_once(mix: Any) -> None:
    ran = Toy(mix, kv_heads=2).recorded(5)
    assert kinds_of(ran) == [("qk", 4, 2, 5, 5, 6), ("pv", 4, 2, 5, 5, 6)]


def test_keys_that_were_shared_once_but_differ_now_are_each_counted() -> None:
    def mix(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        (q @ (k.repeat(1, 2, 1, 1) + q).mT).softmax(-1) @ v.repeat(1, 2, 1, 1)

    ran = Toy(mix, kv_heads=2).recorded(5)
    assert kinds_of(ran) == [("qk", 4, 4, 5, 5, 6), ("pv", 4, 2, 5, 5, 6)]


def test_scores_that_are_a_sum_of_products() -> None:
    def mix(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        (q @ k.mT + q[..., :2] @ v[..., :2].mT).softmax(-1) @ v

    assert [(kind, dim) for kind, *_, dim in kinds_of(Toy(mix).recorded(5))] == [("qk", 6), ("qk", 2), ("pv", 6)]


def without_softmax(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    q @ (k.mT @ v)


def unused_probabilities(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    (q @ k.mT).softmax(-1)
    q @ (k.mT @ v)


def routed_by_a_weight(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    tokens = q.transpose(1, 2).flatten(2)
    (tokens @ self.table).softmax(-1) @ tokens.mT


@pytest.mark.parametrize(
    ("mix", "macs"),
    [
        (without_softmax, [4 * 6 * 5 * 6] * 2),
        (unused_probabilities, [4 * 5 * 6 * 5, 4 * 6 * 5 * 6, 4 * 5 * 6 * 6]),
        (routed_by_a_weight, [5 * 24 * 24, 5 * 24 * 5]),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_other_products_are_named_with_their_size(mix: Any, macs: list[int], batch: int) -> None:
    ran = Toy(mix).recorded(5, batch)
    assert ran.attention == ()
    assert list(ran.others) == [("", batch * size) for size in macs]


def test_a_product_of_some_of_the_tokens_is_no_whole_product_of_attention() -> None:
    def mix(self: Toy, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        (q[:, :, :3] @ k.mT).softmax(-1) @ v

    ran = Toy(mix, kv_heads=1).recorded(5)
    assert ran.attention == ()
    assert [macs for _, macs in ran.others] == [2 * 4 * 3 * 6 * 5] * 2


def test_hooks_are_gone_after_a_pass_that_fails() -> None:
    def mix(self: Toy, *heads: torch.Tensor) -> None:
        raise KeyError

    toy = Toy(mix)
    with pytest.raises(KeyError):
        toy.recorded(5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in toy.modules())
