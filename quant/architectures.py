"""Decoder architectures that can be quantised: what a checkpoint of each holds, and which layers belong together.

Names and shapes are written down here, so that a checkpoint is checked before transformers builds anything from
its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, as its config.json states them."""

    vocabulary: int
    hidden: int
    intermediate: int
    blocks: int
    heads: int
    key_value_heads: int
    head_size: int
    attention_bias: bool
    mlp_bias: bool
    #: Whether the head is the embedding matrix.
    tied: bool


@dataclass(frozen=True)
class LinearShape:
    """A linear layer of a decoder block."""

    #: Name within the block, such as ``self_attn.q_proj``.
    name: str
    #: K.
    in_features: int
    #: O.
    out_features: int
    bias: bool


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers of a block that read the same input, so that they share its statistics and AWQ's scales."""

    #: Names within the block.
    linears: tuple[str, ...]
    #: Module within the block, a norm or a linear layer, whose weight and bias take the inverse of scales of the
    #: input's features along their first axis; None where none can.
    scaled_by: str | None


@dataclass(frozen=True)
class Architecture:
    """One causal language model of transformers."""

    #: Name of the class, as in ``architectures`` of config.json.
    name: str
    #: ``model_type`` of config.json.
    model_type: str
    #: Attribute of the model that holds all but the head, which is a prefix of names, too.
    body: str
    #: Names of the embedding and of the final norm within the body.
    embedding: str
    final_norm: str
    #: Norms of a block, by their names within it.
    norms: tuple[str, ...]
    #: Whether norms have a bias.
    norm_bias: bool
    #: Tensors of older checkpoints that hold no weights, such as the frequencies of rotary embeddings.
    unused: re.Pattern[str]
    #: Older names of tensors, with the present ones.
    renamed: Mapping[str, str]
    _read_sizes: Callable[[Mapping[str, object]], Sizes]
    _linears: Callable[[Sizes], tuple[LinearShape, ...]]
    _groups: Callable[[Sizes], tuple[LinearGroup, ...]]

    #: Name of the head.
    head = "lm_head"

    def block(self, index: int) -> str:
        """Name of a decoder block."""
        return f"{self.body}.layers.{index}"

    def split_name(self, name: str) -> tuple[int | None, str]:
        """Block of a tensor or layer and its name within it; None and the whole name outside of the blocks."""
        match = re.fullmatch(re.escape(self.body) + r"\.layers\.(\d{1,9})\.(.+)", name)
        return (None, name) if match is None else (int(match[1]), match[2])

    def sizes(self, config: Mapping[str, object]) -> Sizes:
        """Read the sizes from a config.json.

        Raises
        ------
        ValueError
            If one is missing or not a positive integer, or the heads of keys do not divide those of queries.
        """
        return self._read_sizes(config)

    def linears(self, sizes: Sizes) -> tuple[LinearShape, ...]:
        """Linear layers of every block, in order of execution."""
        return self._linears(sizes)

    def groups(self, sizes: Sizes) -> tuple[LinearGroup, ...]:
        """Linear layers of every block that share an input, in order of execution."""
        return self._groups(sizes)

    def block_tensors(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors of a block, by their names within it."""
        shapes: dict[str, tuple[int, ...]] = {}
        for norm in self.norms:
            shapes[f"{norm}.weight"] = (sizes.hidden,)
            if self.norm_bias:
                shapes[f"{norm}.bias"] = (sizes.hidden,)
        for linear in self.linears(sizes):
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        return shapes

    def outer_tensors(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors outside the blocks, by their names; a tied head has none of its own."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.body}.{self.embedding}.weight": (sizes.vocabulary, sizes.hidden),
            f"{self.body}.{self.final_norm}.weight": (sizes.hidden,),
        }
        if self.norm_bias:
            shapes[f"{self.body}.{self.final_norm}.bias"] = (sizes.hidden,)
        if not sizes.tied:
            shapes[f"{self.head}.weight"] = (sizes.vocabulary, sizes.hidden)
        return shapes

    def head_weight(self, sizes: Sizes) -> str:
        """Name of the tensor that the head multiplies with."""
        return f"{self.body}.{self.embedding}.weight" if sizes.tied else f"{self.head}.weight"


def find_architecture(config: Mapping[str, object], where: str) -> Architecture:
    """The architecture that a config.json names.

    Parameters
    ----------
    where
        Name of the file, for messages.

    Raises
    ------
    ValueError
        If it names none, or one that is not supported.
    """
    supported = ", ".join(ARCHITECTURES)
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ValueError(f"{where} has architectures {named!r}; it must name one model class of {supported}.")
    if named[0] not in ARCHITECTURES:
        raise ValueError(f"{where} describes a {named[0]}, which is not supported; supported are {supported}.")
    architecture = ARCHITECTURES[named[0]]
    if config.get("model_type") != architecture.model_type:
        raise ValueError(
            f"{where} has model_type {config.get('model_type')!r}, but a {architecture.name} has "
            f"{architecture.model_type!r}."
        )
    return architecture


def _size(config: Mapping[str, object], key: str) -> int:
    if key not in config:
        raise ValueError(f"config.json has no {key}; it must be a positive integer.")
    value = config[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json has {key} = {value!r}; it must be a positive integer.")
    return value


def _flag(config: Mapping[str, object], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if type(value) is not bool:
        raise ValueError(f"config.json has {key} = {value!r}; it must be true or false.")
    return value


def _sizes(config: Mapping[str, object], key_value_heads: int, attention_bias: bool, mlp_bias: bool) -> Sizes:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise ValueError(f"config.json has hidden_size = {hidden}, which num_attention_heads = {heads} do not divide.")
    if heads % key_value_heads:
        raise ValueError(
            f"config.json has num_attention_heads = {heads}, which num_key_value_heads = {key_value_heads} do not "
            "divide."
        )
    return Sizes(
        vocabulary=_size(config, "vocab_size"),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size"),
        blocks=_size(config, "num_hidden_layers"),
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=hidden // heads if config.get("head_dim") is None else _size(config, "head_dim"),
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        tied=_flag(config, "tie_word_embeddings", False),
    )


def _llama_sizes(config: Mapping[str, object]) -> Sizes:
    grouped = config.get("num_key_value_heads") is not None
    return _sizes(
        config,
        _size(config, "num_key_value_heads" if grouped else "num_attention_heads"),
        attention_bias=_flag(config, "attention_bias", False),
        mlp_bias=_flag(config, "mlp_bias", False),
    )


def _mistral_sizes(config: Mapping[str, object]) -> Sizes:
    # Without the key, transformers takes 8 heads of keys, as in Mistral-7B.
    key_value_heads = _size({"num_key_value_heads": 8, **config}, "num_key_value_heads")
    return _sizes(config, key_value_heads, attention_bias=False, mlp_bias=False)


def _neox_sizes(config: Mapping[str, object]) -> Sizes:
    if config.get("head_dim") is not None:
        raise ValueError("config.json has a head_dim, which a GPTNeoXForCausalLM does not have.")
    return _sizes(
        config,
        _size(config, "num_attention_heads"),
        attention_bias=_flag(config, "attention_bias", True),
        mlp_bias=True,
    )


def _llama_linears(sizes: Sizes) -> tuple[LinearShape, ...]:
    hidden, queries = sizes.hidden, sizes.heads * sizes.head_size
    keys = sizes.key_value_heads * sizes.head_size
    return (
        LinearShape("self_attn.q_proj", hidden, queries, sizes.attention_bias),
        LinearShape("self_attn.k_proj", hidden, keys, sizes.attention_bias),
        LinearShape("self_attn.v_proj", hidden, keys, sizes.attention_bias),
        LinearShape("self_attn.o_proj", queries, hidden, sizes.attention_bias),
        LinearShape("mlp.gate_proj", hidden, sizes.intermediate, sizes.mlp_bias),
        LinearShape("mlp.up_proj", hidden, sizes.intermediate, sizes.mlp_bias),
        LinearShape("mlp.down_proj", sizes.intermediate, hidden, sizes.mlp_bias),
    )


def _llama_groups(sizes: Sizes) -> tuple[LinearGroup, ...]:
    # A value head that several query heads read would need one scale for all of them.
    values = "self_attn.v_proj" if sizes.key_value_heads == sizes.heads else None
    return (
        LinearGroup(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
        LinearGroup(("self_attn.o_proj",), values),
        LinearGroup(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
        # The activation function multiplies up_proj's outputs, so that their scales pass.
        LinearGroup(("mlp.down_proj",), "mlp.up_proj"),
    )


def _neox_linears(sizes: Sizes) -> tuple[LinearShape, ...]:
    hidden = sizes.hidden
    return (
        LinearShape("attention.query_key_value", hidden, 3 * hidden, sizes.attention_bias),
        LinearShape("attention.dense", hidden, hidden, sizes.attention_bias),
        LinearShape("mlp.dense_h_to_4h", hidden, sizes.intermediate, sizes.mlp_bias),
        LinearShape("mlp.dense_4h_to_h", sizes.intermediate, hidden, sizes.mlp_bias),
    )


def _neox_groups(sizes: Sizes) -> tuple[LinearGroup, ...]:
    return (
        LinearGroup(("attention.query_key_value",), "input_layernorm"),
        LinearGroup(("attention.dense",), None),
        LinearGroup(("mlp.dense_h_to_4h",), "post_attention_layernorm"),
        # GELU lies between the two layers of the MLP, and no scale passes it.
        LinearGroup(("mlp.dense_4h_to_h",), None),
    )


def _llama_like(name: str, model_type: str, read_sizes: Callable[[Mapping[str, object]], Sizes]) -> Architecture:
    return Architecture(
        name=name,
        model_type=model_type,
        body="model",
        embedding="embed_tokens",
        final_norm="norm",
        norms=("input_layernorm", "post_attention_layernorm"),
        norm_bias=False,
        unused=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq"),
        renamed={},
        _read_sizes=read_sizes,
        _linears=_llama_linears,
        _groups=_llama_groups,
    )


#: Supported architectures, by the names of their classes.
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        _llama_like("LlamaForCausalLM", "llama", _llama_sizes),
        _llama_like("MistralForCausalLM", "mistral", _mistral_sizes),
        Architecture(
            name="GPTNeoXForCausalLM",
            model_type="gpt_neox",
            body="gpt_neox",
            embedding="embed_in",
            final_norm="final_layer_norm",
            norms=("input_layernorm", "post_attention_layernorm"),
            norm_bias=True,
            unused=re.compile(
                r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|"
                r"gpt_neox\.rotary_emb\.inv_freq"
            ),
            renamed={"embed_out.weight": "lm_head.weight"},
            _read_sizes=_neox_sizes,
            _linears=_neox_linears,
            _groups=_neox_groups,
        ),
    )
}
