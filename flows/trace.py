"""Trace of a model: every matrix product that one forward pass runs, with its shape, and its KV cache.

transformers builds its own model from a configuration on PyTorch's meta device, where tensors have
shapes and no storage, and `flows.recorder` notes what runs. So the list of layers is never typed by
hand, follows whatever transformers builds, and a 20-billion-parameter model takes no memory.

A pass has `tokens` new tokens in each of `batch` sequences, whose cache holds `context` tokens already:
prefill is a pass at context 0, decode are passes of one token at a growing context. Attention's products are
counted in full, as transformers' own eager attention runs them: what the causal mask hides is multiplied, too.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.atomic_file import write_text

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from flows.recorder import Pass

SCHEMA = "nimble.trace"
VERSION = 2

#: Models known by name: transformers' configuration class and the published fields.
NAMED_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # The defaults of LlamaConfig are LLaMA-7B.
    "llama-7b": ("LlamaConfig", {}),
    "llama-2-7b": ("LlamaConfig", {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    "llama-3-8b": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
    ),
    "gpt-neox-20b": (
        "GPTNeoXConfig",
        {
            "vocab_size": 50432,
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "max_position_embeddings": 2048,
            "hidden_act": "gelu_fast",
        },
    ),
}

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
        _check_sequence(self.model, self.facts, self.tokens, context)
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


def trace_model(source: str | Path, tokens: int = 1, *, batch: int = 1, context: int = 0) -> ModelTrace:
    """Trace one forward pass of a causal language model, built from its configuration alone.

    Parameters
    ----------
    source
        A name in `NAMED_MODELS`, or a directory that holds a Hugging Face ``config.json``. A `Path` is
        always a directory. Nothing is downloaded, and code that a configuration names is never run.
    tokens
        New tokens of each sequence, from 1 on.
    batch
        Sequences, from 1 on.
    context
        Tokens of each sequence that are in the KV cache before the pass, from 0 on; with `tokens` at most the
        model's ``max_position_embeddings``.

    Returns
    -------
    ModelTrace
        Every `torch.nn.Linear` and every product of attention that ran, in order of execution, with what is
        left out in `excludes`.

    Raises
    ------
    TypeError
        `tokens`, `batch` or `context` is not an integer.
    ValueError
        The model is unknown, its configuration is unusable, it has no linear layer, or `tokens`, `batch` or
        `context` is out of range.
    FileNotFoundError
        The directory has no ``config.json``.
    """
    _check_integer("tokens", tokens)
    _check_integer("batch", batch)
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; a forward pass has at least 1 token.")
    if batch < 1:
        raise ValueError(f"batch is {batch}; a forward pass has at least 1 sequence.")
    name = str(source)
    directory = None if isinstance(source, str) and source in NAMED_MODELS else _model_directory(source)

    import torch
    import transformers

    from flows.recorder import NoCacheError, record_pass

    with _quiet_transformers():
        if directory is None:
            config_class, fields = NAMED_MODELS[name]
            config = getattr(transformers, config_class)(**fields)
        else:
            name = directory.resolve().name
            config = _read_config(directory)
        facts = _facts(config, name)
        _check_sequence(name, facts, tokens, context)
        auto_model: Any = transformers.AutoModelForCausalLM
        try:
            with torch.device("meta"):
                # No shape depends on the type; fused experts accept bfloat16 only. Eager attention runs its
                # products one by one.
                model = auto_model.from_config(
                    config, dtype=torch.bfloat16, attn_implementation="eager", trust_remote_code=False
                )
        except Exception as error:
            raise ValueError(
                f"transformers cannot build a causal language model from the configuration of {name} "
                f"(model type {config.model_type!r}): {_first_line(error)}"
            ) from error
        try:
            with torch.no_grad():
                ran = record_pass(model.eval(), tokens, batch, context, facts.max_position_embeddings)
        except NoCacheError:
            raise ValueError(
                f"{name} (model type {config.model_type!r}) hands out no cache; only context 0 can be traced."
            ) from None
        except Exception as error:
            raise ValueError(
                f"The forward pass of {name} (model type {config.model_type!r}) does not run without "
                f"weights: {_first_line(error)}"
            ) from error
    if not ran.layers:
        raise ValueError(
            f"The forward pass of {name} (model type {config.model_type!r}) ran no torch.nn.Linear; "
            "only linear layers can be traced."
        )
    return ModelTrace(
        model=name,
        model_type=config.model_type,
        facts=facts,
        tokens=tokens,
        batch=batch,
        context=context,
        excludes=tuple(_left_out(model, ran)),
        layers=ran.layers,
        attention=ran.attention,
        kv_cache=ran.kv_cache,
        layers_on_cache=ran.on_cache,
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


def read_trace(
    source: str | Path, tokens: int | None = None, *, batch: int | None = None, context: int | None = None
) -> ModelTrace:
    """Return the trace in a file that `save_trace` wrote, or else trace a model.

    Parameters
    ----------
    source
        A file, or what `trace_model` takes.
    tokens, batch, context
        As in `trace_model`; None for those of the file, or for one token of one sequence at context 0.

    Raises
    ------
    TypeError, ValueError, OSError
        As from `load_trace`, `ModelTrace.at_context` and `trace_model`; also ValueError where a file has
        another number of tokens or sequences.
    """
    if source in NAMED_MODELS or not Path(source).is_file():
        options = {"tokens": tokens, "batch": batch, "context": context}
        return trace_model(source, **{name: value for name, value in options.items() if value is not None})
    trace = load_trace(source)
    for name, value in (("tokens", tokens), ("batch", batch)):
        if value not in (None, getattr(trace, name)):
            raise ValueError(
                f"{name} is {value}, but {source} is the trace of a pass with {name} {getattr(trace, name)}; "
                "trace the model instead."
            )
    return trace if context is None else trace.at_context(context)


def _model_directory(source: str | Path) -> Path:
    directory = Path(source)
    if source == "" or not directory.is_dir():  # Path("") would be the current directory
        problem = "is a file" if directory.is_file() else "is neither a known model nor a directory"
        raise ValueError(
            f"{str(source)!r} {problem}; give one of {', '.join(NAMED_MODELS)}, "
            "or a directory that holds a Hugging Face config.json."
        )
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"The directory {directory} has no config.json; a Hugging Face model directory holds one."
        )
    return directory


def _read_config(directory: Path) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    path = directory / "config.json"
    # transformers reports bad JSON and a missing type as a model that cannot be found on its hub.
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if type(fields) is not dict or type(fields.get("model_type")) is not str:
        raise ValueError(f"{path} has no model_type; a Hugging Face configuration is an object that names one.")
    if fields["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"{path} has model_type {fields['model_type']!r}, which transformers {__version__} does not know."
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"transformers refuses {path}: {_first_line(error)}") from error
    return config


def _facts(config: PretrainedConfig, name: str) -> ModelFacts:
    text = config.get_text_config()  # the language model's part where there are others, as in Llama 4

    def size(field: str) -> int | None:
        value = getattr(text, field, None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def required_size(field: str) -> int:
        value = size(field)
        if value is None:
            raise ValueError(
                f"The configuration of {name} has {field} {getattr(text, field, None)!r}; "
                "it must be a positive integer."
            )
        return value

    return ModelFacts(
        hidden_size=required_size("hidden_size"),
        num_hidden_layers=required_size("num_hidden_layers"),
        vocab_size=required_size("vocab_size"),
        max_position_embeddings=size("max_position_embeddings"),
        num_attention_heads=size("num_attention_heads"),
        # Without the field, every attention head has its own keys and values.
        num_key_value_heads=size("num_key_value_heads") or size("num_attention_heads"),
    )


def _left_out(model: torch.nn.Module, ran: Pass) -> Iterator[str]:
    """Yield a phrase for the products, and for each sort of weight matrix, that a recorded pass leaves out."""
    import torch

    if ran.others:
        macs = sum(macs for _, macs in ran.others)
        yield (
            f"{len(ran.others)} matrix product{'s' if len(ran.others) > 1 else ''} outside of linear layers and "
            f"attention: {macs:,} MAC "
            f"(first: {ran.others[0][0]})"
        )

    called = {layer.name for layer in ran.layers}
    idle = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in called
    ]
    if idle:
        yield f"{len(idle)} linear layers that are not called as modules in a forward pass (first: {idle[0]})"

    others: dict[str, list[tuple[str, int]]] = {}
    for name, module in model.named_modules():
        # A look-up in an embedding table multiplies nothing.
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                others.setdefault(type(module).__name__, []).append((f"{name}.{parameter_name}", parameter.numel()))
    for module_type, found in others.items():
        yield (
            f"{len(found)} weight tensors of {module_type} modules, which are not torch.nn.Linear: "
            f"{sum(size for _, size in found):,} weights (first: {found[0][0]})"
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging the generation defaults of every model it builds."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}; it must be an integer.")


def _check_sequence(model: str, facts: ModelFacts, tokens: int, context: int) -> None:
    _check_integer("context", context)
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
