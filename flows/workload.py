"""What an estimate is made of: the calls of a model's linear layers and attention, as GEMMs of the core.

Calls that cost the same are one `Work`. In decode the context grows from pass to pass, and attention's products
with it: these differ in cost and are one `Work` all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from accel.config import ConfigError, CoreConfig
from accel.stream import StreamLayout, layout_for
from flows.attention import ATTENTIONS, host_bytes, nibbles, product_layouts, product_shape
from flows.info import pattern_name
from flows.memories import Clock, MemorySystem, choose_clock, choose_memory
from flows.model_trace import AttentionProduct, LinearLayer, ModelTrace
from flows.recipe import Recipe, Rule
from quant import NMPattern

#: What is done with the layers outside the blocks: nearly always ``lm_head`` alone.
LM_HEADS = ("int4", "pruned", "fp16-host", "skip")

#: Bytes of a weight on the host.
HOST_BYTES = 2

_DENSE = Rule("*", NMPattern(1, 1))
_ON_HOST = Rule("*", None)

#: A GEMM of the core: its weights' layout and its rows.
Gemm = tuple[StreamLayout, int]


@dataclass(frozen=True)
class Workload:
    """What is estimated, but for the patterns."""

    config: CoreConfig
    model: str
    #: Tokens of each sequence's prompt, in one pass.
    prefill: int
    #: Passes of one token of each sequence after it.
    decode: int
    #: Sequences in a pass.
    batch: int = 1
    group_size: int = 128
    asymmetric: bool = False
    #: One of `ATTENTIONS`, and one of `LM_HEADS`.
    attention: str = "core-int8"
    lm_head: str = "int4"
    clock: Clock = field(default_factory=choose_clock)
    memory: MemorySystem = field(default_factory=choose_memory)

    def check(self) -> None:
        """Refuse what cannot be estimated.

        Raises
        ------
        ValueError
            In a full sentence.
        """
        for phase, tokens in (("prefill", self.prefill), ("decode", self.decode)):
            if tokens < 0:
                raise ValueError(f"{phase} is {tokens}; it is a number of tokens from 0 on.")
        if self.prefill + self.decode == 0:
            raise ValueError("Both prefill and decode are 0; at least one of them has a token.")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; a pass has at least 1 sequence.")
        for name, value, allowed in (("attention", self.attention, ATTENTIONS), ("lm_head", self.lm_head, LM_HEADS)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class Work:
    """Calls that one line of an estimate stands for: one shape, but for a growing context."""

    phase: str
    name: str
    #: ``linear``, ``head`` or ``attention``.
    role: str
    #: Pattern of the weights; ``dense`` for attention, ``fp16`` on the host.
    pattern: str
    #: Calls in the whole phase.
    calls: int
    #: Rows, K and O of a call: the mean over all calls where the context grows.
    tokens: int
    in_features: float
    out_features: float
    #: Multiply-accumulates of all calls: with kept weights, and as if nothing was pruned.
    macs: int
    dense_macs: int
    #: Multiplications of the lanes, padding not counted: two for each product of an 8-bit key or value.
    lane_macs: int = 0
    #: GEMMs of all calls on the core; empty on the host.
    gemms: Mapping[Gemm, int] = field(default_factory=dict)
    #: Bytes of the weights as they are stored; attention has none.
    weight_bytes: int = 0
    #: Bytes that all calls on the host read.
    host_bytes: int = 0

    @property
    def where(self) -> str:
        """``core`` or ``host``."""
        return "core" if self.gemms else "host"


# -- linear layers -------------------------------------------------------------------------------------------


class _Linear(NamedTuple):
    """What linear layers have in common that cost the same."""

    role: str
    tokens: int
    in_features: int
    out_features: int
    #: What of a rule changes the stream; the pattern is None on the host.
    pattern: NMPattern | None
    group: int
    asymmetric: bool


def linear_works(workload: Workload, phase: str, trace: ModelTrace, recipe: Recipe) -> Iterator[Work]:
    """Linear layers of a phase, those that cost the same together."""
    passes = workload.decode if phase == "decode" else 1
    recipe.check(layer.name for layer in trace.layers if layer.block is not None or workload.lm_head == "pruned")
    groups: dict[_Linear, list[LinearLayer]] = {}
    for layer in trace.layers:
        role, tokens = ("head", workload.batch) if layer.block is None else ("linear", layer.tokens)
        if role == "linear" or workload.lm_head == "pruned":
            rule = recipe.rule_of(layer.name)
        elif workload.lm_head == "skip":
            continue
        else:
            rule = _DENSE if workload.lm_head == "int4" else _ON_HOST
        shape = _Linear(
            role,
            tokens,
            layer.in_features,
            layer.out_features,
            rule.pattern,
            workload.group_size if rule.group is None else rule.group,
            workload.asymmetric if rule.symmetric is None else not rule.symmetric,
        )
        groups.setdefault(shape, []).append(layer)
    for shape, layers in groups.items():
        kinds = tuple(dict.fromkeys(layer.kind for layer in layers))
        yield _linear_work(workload, phase, trace.model, shape, kinds, len(layers), passes)


def _linear_work(
    workload: Workload, phase: str, model: str, shape: _Linear, kinds: tuple[str, ...], count: int, passes: int
) -> Work:
    calls = count * passes
    dense = calls * shape.tokens * shape.in_features * shape.out_features
    on_host = Work(
        phase=phase,
        name=", ".join(kinds),
        role=shape.role,
        pattern="fp16",
        calls=calls,
        tokens=shape.tokens,
        in_features=shape.in_features,
        out_features=shape.out_features,
        macs=dense,
        dense_macs=dense,
    )
    if shape.pattern is None:
        stored = count * HOST_BYTES * shape.in_features * shape.out_features
        return replace(on_host, weight_bytes=stored, host_bytes=passes * stored)
    pattern = shape.pattern
    try:
        layout = layout_for(
            workload.config,
            pattern,
            shape.out_features,
            shape.in_features,
            shape.group,
            asymmetric=shape.asymmetric,
        )
    except ConfigError as error:
        raise ConfigError(f"{kinds[0]} of {model} does not run on this core: {error}") from None
    blocks, tail = divmod(shape.in_features, pattern.m)
    kept = calls * shape.tokens * shape.out_features * (blocks * pattern.n + min(tail, pattern.n))
    return replace(
        on_host,
        pattern=pattern_name(pattern),
        macs=kept,
        lane_macs=kept,
        weight_bytes=count * layout.payload_bytes,
        gemms={(layout, shape.tokens): calls},
    )


# -- attention -----------------------------------------------------------------------------------------------


def attention_works(workload: Workload, phase: str, trace: ModelTrace) -> Iterator[Work]:
    """Attention's products of a phase, those that differ in their context only together."""
    if workload.attention == "skip":
        return
    passes = workload.decode if phase == "decode" else 1
    firsts, counts = [], []
    for product, count in trace.distinct_attention():
        firsts.append(product)
        counts.append(count)
    shapes = replace(trace, attention=tuple(firsts))
    later = [shapes.at_context(trace.context + step).attention for step in range(1, passes)]
    for number, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        products = (first, *(attention[number] for attention in later))
        yield _attention_work(workload, phase, trace.model, products, count)


def _attention_work(
    workload: Workload, phase: str, model: str, products: Sequence[AttentionProduct], count: int
) -> Work:
    """The calls of ``count`` products of one shape, one of ``products`` in each pass."""
    first = products[0]
    in_pass = count * first.batch * first.kv_heads
    calls = in_pass * len(products)
    shapes = [product_shape(product) for product in products]
    rows = shapes[0][0]
    macs = count * sum(product.macs for product in products)
    on_host = Work(
        phase=phase,
        name=f"attention {first.kind}",
        role="attention",
        pattern="fp16",
        calls=calls,
        tokens=rows,
        in_features=sum(k for _, k, _ in shapes) / len(shapes),
        out_features=sum(o for _, _, o in shapes) / len(shapes),
        macs=macs,
        dense_macs=macs,
    )
    if workload.attention == "host":
        return replace(on_host, host_bytes=count * sum(host_bytes(product) for product in products))
    gemms: Counter[Gemm] = Counter()
    try:
        for _, k, o in shapes:
            for layout, parts in product_layouts(
                workload.config, workload.attention, k, o, workload.group_size
            ).items():
                gemms[layout, rows] += in_pass * parts
    except ConfigError as error:
        raise ConfigError(f"Attention of {model} does not run on this core: {error}") from None
    return replace(on_host, pattern="dense", lane_macs=nibbles(workload.attention) * macs, gemms=gemms)
