"""What a trace holds: layers, attention's products and the KV cache of one forward pass, and their JSON file.

`flows.trace` makes traces; nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from quant.atomic_file import write_text

SCHEMA = "nimble.trace"
VERSION = 2

_JSON_NAMES: dict[type, str] = {
    bool: "true or false",
    dict: "an object",
    int: "an integer",
    list: "a list",
    str: "a string",
}


@dataclass(frozen=True)
class LinearLayer:
    """One call of a `torch.nn.Linear`: ``Y[T, O] = X[T, K] · W[O, K]ᵀ``."""

    #: Path of the module in the model, e.g. ``model.layers.0.self_attn.q_proj``.
    name: str
    #: Last component of the path, e.g. ``q_proj``.
    kind: str
    #: K.
    in_features: int
    #: O.
    out_features: int
    #: Whether a bias is added.
    bias: bool
    #: T: rows of input in the traced pass, those of all sequences.
    tokens: int
    #: Index of the transformer block, or None outside the blocks (the head).
    block: int | None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of this call for all its tokens, as if dense."""
        return self.tokens * self.in_features * self.out_features


@dataclass(frozen=True)
class AttentionProduct:
    """One of attention's products, which multiply activations: of each sequence and head, QKᵀ or PV.

    QKᵀ is ``[tokens, head_dim] · [head_dim, context]``, PV is ``[tokens, context] · [context, head_dim]``.
    """

    #: Path of the module that ran it, e.g. ``model.layers.0.self_attn``.
    name: str
    #: ``qk`` or ``pv``.
    kind: str
    #: Index of the transformer block, or None outside the blocks.
    block: int | None
    #: Sequences.
    batch: int
    #: Heads of the queries.
    heads: int
    #: Heads of the keys (``qk``) or values (``pv``); `heads` is a multiple.
    kv_heads: int
    #: Query tokens of each sequence.
    tokens: int
    #: Keys that each sequence was multiplied with: cached ones and new ones.
    context: int
    #: Size of a key (``qk``) or of a value (``pv``).
    head_dim: int
    #: With a sliding window, only ``window − 1`` cached tokens are seen; None without one.
    window: int | None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of this product for all sequences and heads, masked ones included."""
        return self.batch * self.heads * self.tokens * self.context * self.head_dim


@dataclass(frozen=True)
class CachedLayer:
    """One layer of the KV cache after the traced pass."""

    #: Heads of keys and values.
    heads: int
    #: Size of a key.
    key_dim: int
    #: Size of a value.
    value_dim: int
    #: Tokens that are kept of each sequence.
    length: int
    #: With a sliding window, at most ``window − 1`` tokens are kept; None without one.
    window: int | None


@dataclass(frozen=True)
class DistinctLayer:
    """Layers of one shape, which cost the same and need to be simulated once."""

    #: Kinds with this shape, in order of first execution.
    kinds: tuple[str, ...]
    in_features: int
    out_features: int
    bias: bool
    tokens: int
    #: Whether the layers are in the transformer blocks.
    in_blocks: bool
    #: How many calls in the traced pass have this shape.
    count: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all `count` calls for all their tokens, as if dense."""
        return self.count * self.tokens * self.in_features * self.out_features


class MacsPerToken(NamedTuple):
    """Multiply-accumulates of one token's way through the linear layers, as if dense."""

    #: In the transformer blocks.
    blocks: int
    #: Outside the blocks; in nearly every causal language model that is ``lm_head`` alone.
    lm_head: int


@dataclass(frozen=True)
class ModelFacts:
    """Sizes from the model's configuration; None where a kind of model has no such size."""

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_position_embeddings: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None


@dataclass(frozen=True)
class ModelTrace:
    """What one forward pass of a model runs."""

    #: Name of a known model, or of the directory that was read.
    model: str
    #: transformers' name of the architecture, e.g. ``llama`` or ``gpt_neox``.
    model_type: str
    #: Sizes from the configuration.
    facts: ModelFacts
    #: New tokens of each sequence in the traced pass.
    tokens: int
    #: Sequences.
    batch: int
    #: Tokens of each sequence that were in the cache before the pass.
    context: int
    #: Work of the model that `layers` leaves out, one phrase each.
    excludes: tuple[str, ...]
    #: Every linear layer in order of execution.
    layers: tuple[LinearLayer, ...]
    #: Attention's products in order of execution.
    attention: tuple[AttentionProduct, ...]
    #: The layers of the KV cache after the pass.
    kv_cache: tuple[CachedLayer, ...]
    #: Names of linear layers that run on what is cached, so that their rows grow with the context.
    layers_on_cache: tuple[str, ...]

    @property
    def attention_macs(self) -> int:
        """Multiply-accumulates of attention's products in the whole pass, masked ones included."""
        return sum(product.macs for product in self.attention)

    @property
    def kv_values_per_token(self) -> int:
        """Elements of keys and values that one token adds to the cache, over all layers."""
        return sum(layer.heads * (layer.key_dim + layer.value_dim) for layer in self.kv_cache)

    @property
    def kv_values(self) -> int:
        """Elements that the cache of all sequences holds after the pass."""
        return self.batch * sum(
            layer.length * layer.heads * (layer.key_dim + layer.value_dim) for layer in self.kv_cache
        )

    def kv_bytes_per_token(self, bits: int) -> int:
        """Return the bytes of `kv_values_per_token` at so many bits a value, without any scales."""
        return -(-bits * self.kv_values_per_token // 8)

    def kv_bytes(self, bits: int) -> int:
        """Return the bytes of `kv_values` at so many bits a value, without any scales."""
        return -(-bits * self.kv_values // 8)

    @property
    def macs_per_token(self) -> MacsPerToken:
        """Multiply-accumulates of linear layers per token, as if dense, in the blocks and in the head.

        Where a layer sees fewer rows than there are tokens, this is the average, rounded down.
        """
        blocks = sum(layer.macs for layer in self.layers if layer.block is not None)
        lm_head = sum(layer.macs for layer in self.layers if layer.block is None)
        tokens = self.batch * self.tokens
        return MacsPerToken(blocks // tokens, lm_head // tokens)

    def distinct(self) -> tuple[DistinctLayer, ...]:
        """Return the layers grouped by shape, bias, tokens and place, in order of first execution."""
        groups: dict[tuple[int, int, bool, int, bool], list[LinearLayer]] = {}
        for layer in self.layers:
            key = (
                layer.in_features,
                layer.out_features,
                layer.bias,
                layer.tokens,
                layer.block is not None,
            )
            groups.setdefault(key, []).append(layer)
        return tuple(
            DistinctLayer(tuple(dict.fromkeys(layer.kind for layer in group)), *key, count=len(group))
            for key, group in groups.items()
        )

    def distinct_attention(self) -> tuple[tuple[AttentionProduct, int], ...]:
        """Return the first product of each shape, and how many have that shape, in order of first execution."""
        counts: Counter[AttentionProduct] = Counter()
        first: dict[AttentionProduct, AttentionProduct] = {}
        for product in self.attention:
            shape = replace(product, name="", block=None)
            first.setdefault(shape, product)
            counts[shape] += 1
        return tuple((first[shape], count) for shape, count in counts.items())

    def at_context(self, context: int) -> ModelTrace:
        """Return the same pass at another context: only attention's products and the cache change.

        Raises
        ------
        TypeError
            `context` is not an integer.
        ValueError
            `context` is negative or, with the pass's tokens, beyond the model's longest sequence; or more than
            attention's products and the cache would change.
        """
        check_sequence(self.model, self.facts, self.tokens, context)
        if context == self.context:
            return self
        again = f"trace {self.model} at context {context} instead."
        if self.layers_on_cache:
            raise ValueError(f"{self.layers_on_cache[0]} runs on what is cached and grows with the context; {again}")
        if 0 in (context, self.context) and len(self.kv_cache) != self.facts.num_hidden_layers:
            raise ValueError(
                f"{len(self.kv_cache)} of {self.facts.num_hidden_layers} blocks keep keys and values, and others may "
                f"start in another way than they go on; {again}"
            )
        for product in self.attention:
            if product.context != _seen(product.window, self.context) + self.tokens:
                raise ValueError(
                    f"{product.name} multiplies {product.context} keys at context {self.context}, which are not the "
                    f"cached and the new ones; {again}"
                )
        return replace(
            self,
            context=context,
            attention=tuple(
                replace(product, context=_seen(product.window, context) + self.tokens) for product in self.attention
            ),
            kv_cache=tuple(
                replace(layer, length=_seen(layer.window, context + self.tokens)) for layer in self.kv_cache
            ),
        )

    def find(self, layer: str) -> LinearLayer:
        """Return the first executed layer of a kind (``q_proj``) or with a full name.

        Parameters
        ----------
        layer
            A kind, or a full name such as ``model.layers.3.mlp.up_proj``.

        Raises
        ------
        ValueError
            No layer has this kind or name.
        """
        for candidate in self.layers:
            if layer in (candidate.kind, candidate.name):
                return candidate
        kinds = ", ".join(dict.fromkeys(candidate.kind for candidate in self.layers))
        raise ValueError(
            f"{self.model} runs no linear layer {layer!r}; give one of the kinds {kinds}, "
            f"or a full name such as {self.layers[0].name}."
        )

    def to_document(self) -> dict[str, Any]:
        """Return the trace as the JSON object that `to_json` writes.

        It also holds totals, which readers of the file want and `from_json` derives anew.
        """
        document = asdict(self)
        lists = {name: document.pop(name) for name in ("layers", "attention", "kv_cache", "layers_on_cache")}
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **document,
            "macs_per_token": self.macs_per_token._asdict(),
            "attention_macs": self.attention_macs,
            "kv_values_per_token": self.kv_values_per_token,
            "kv_values": self.kv_values,
            **lists,
        }

    def to_json(self) -> str:
        """Return the trace as JSON text, schema name and version included."""
        return json.dumps(self.to_document(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelTrace:
        """Return the trace that `to_json` wrote.

        Parameters
        ----------
        text
            JSON text. Keys that this version does not know are ignored.

        Raises
        ------
        ValueError
            The text is not JSON, is of another schema or version, or a field is missing or wrong.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"The trace is not JSON: {error}.") from None
        _expect(document, dict, "The trace")
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"The JSON has schema {document.get('schema')!r}; a trace has schema {SCHEMA!r}. "
                "Write one with nimble trace."
            )
        if document.get("version") != VERSION:
            raise ValueError(
                f"The trace has version {document.get('version')!r}; this Nimble reads version {VERSION}. "
                "Write it again with nimble trace."
            )
        items = _read(document, "layers", "the trace", list)
        if not items:
            raise ValueError("The trace has no layers; a trace holds at least one linear layer.")
        excludes = _read(document, "excludes", "the trace", list)
        facts = _read(document, "facts", "the trace", dict)
        attention = _read(document, "attention", "the trace", list)
        kv_cache = _read(document, "kv_cache", "the trace", list)
        on_cache = _read(document, "layers_on_cache", "the trace", list)
        return cls(
            model=_read(document, "model", "the trace", str),
            model_type=_read(document, "model_type", "the trace", str),
            facts=ModelFacts(
                hidden_size=_read_size(facts, "hidden_size", "facts"),
                num_hidden_layers=_read_size(facts, "num_hidden_layers", "facts"),
                vocab_size=_read_size(facts, "vocab_size", "facts"),
                max_position_embeddings=_read_optional_size(facts, "max_position_embeddings", "facts"),
                num_attention_heads=_read_optional_size(facts, "num_attention_heads", "facts"),
                num_key_value_heads=_read_optional_size(facts, "num_key_value_heads", "facts"),
            ),
            tokens=_read_size(document, "tokens", "the trace"),
            batch=_read_size(document, "batch", "the trace"),
            context=_read_size(document, "context", "the trace", least=0),
            excludes=tuple(_expect(phrase, str, "An item of excludes") for phrase in excludes),
            layers=tuple(_read_layer(item, f"layers[{index}]") for index, item in enumerate(items)),
            attention=tuple(_read_product(item, f"attention[{index}]") for index, item in enumerate(attention)),
            kv_cache=tuple(_read_cached(item, f"kv_cache[{index}]") for index, item in enumerate(kv_cache)),
            layers_on_cache=tuple(_expect(name, str, "An item of layers_on_cache") for name in on_cache),
        )


def save_trace(trace: ModelTrace, path: str | Path) -> None:
    """Write a trace to a JSON file, which is complete or untouched whatever happens.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    write_text(path, trace.to_json())


def load_trace(path: str | Path) -> ModelTrace:
    """Read the trace that `save_trace` wrote; imports neither torch nor transformers.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is not a trace of this version.
    """
    try:
        return ModelTrace.from_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_integer(name: str, value: object) -> None:
    """Raise TypeError for anything but an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}; it must be an integer.")


def check_sequence(model: str, facts: ModelFacts, tokens: int, context: int) -> None:
    """Raise ValueError for a context that is none, or a sequence that is too long for the model."""
    check_integer("context", context)
    if context < 0:
        raise ValueError(f"context is {context}; it is a number of cached tokens from 0 on.")
    longest = facts.max_position_embeddings
    if longest is not None and context + tokens > longest:
        given = f"context and tokens are {context + tokens} together" if context else f"tokens is {tokens}"
        raise ValueError(f"{given}; {model} is made for at most {longest} (its max_position_embeddings).")


def _seen(window: int | None, tokens: int) -> int:
    """Return how many of so many tokens are in the cache for the next pass."""
    return tokens if window is None else min(tokens, window - 1)


def _expect(value: object, kind: type, what: str) -> Any:
    # The exact type, since a bool is an int to isinstance.
    if type(value) is not kind:
        raise ValueError(f"{what} is {value!r}; it must be {_JSON_NAMES[kind]}.")
    return value


def _read(container: dict[str, Any], field: str, where: str, kind: type) -> Any:
    if field not in container:
        raise ValueError(f"Field {field!r} of {where} is missing.")
    return _expect(container[field], kind, f"Field {field!r} of {where}")


def _read_size(container: dict[str, Any], field: str, where: str, least: int = 1) -> int:
    value: int = _read(container, field, where, int)
    if value < least:
        raise ValueError(f"Field {field!r} of {where} is {value}; it must be at least {least}.")
    return value


def _read_optional_size(container: dict[str, Any], field: str, where: str, least: int = 1) -> int | None:
    if field in container and container[field] is None:
        return None
    return _read_size(container, field, where, least)


def _read_layer(item: object, where: str) -> LinearLayer:
    fields = _expect(item, dict, where)
    return LinearLayer(
        name=_read(fields, "name", where, str),
        kind=_read(fields, "kind", where, str),
        in_features=_read_size(fields, "in_features", where),
        out_features=_read_size(fields, "out_features", where),
        bias=_read(fields, "bias", where, bool),
        tokens=_read_size(fields, "tokens", where),
        block=_read_optional_size(fields, "block", where, least=0),
    )


def _read_product(item: object, where: str) -> AttentionProduct:
    fields = _expect(item, dict, where)
    kind = _read(fields, "kind", where, str)
    if kind not in ("qk", "pv"):
        raise ValueError(f"Field 'kind' of {where} is {kind!r}; it must be 'qk' or 'pv'.")
    return AttentionProduct(
        name=_read(fields, "name", where, str),
        kind=kind,
        block=_read_optional_size(fields, "block", where, least=0),
        batch=_read_size(fields, "batch", where),
        heads=_read_size(fields, "heads", where),
        kv_heads=_read_size(fields, "kv_heads", where),
        tokens=_read_size(fields, "tokens", where),
        context=_read_size(fields, "context", where),
        head_dim=_read_size(fields, "head_dim", where),
        window=_read_optional_size(fields, "window", where),
    )


def _read_cached(item: object, where: str) -> CachedLayer:
    fields = _expect(item, dict, where)
    return CachedLayer(
        heads=_read_size(fields, "heads", where),
        key_dim=_read_size(fields, "key_dim", where),
        value_dim=_read_size(fields, "value_dim", where),
        length=_read_size(fields, "length", where, least=0),
        window=_read_optional_size(fields, "window", where),
    )
