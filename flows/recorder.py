"""What one forward pass runs: linear layers, attention's products, and what the KV cache then holds.

A model without storage is run under a dispatch mode, which sees every operation of PyTorch with its shapes, whatever
module or function of transformers called it. Attention is recognised by its data flow and by nothing else: a product
whose result goes through a softmax is QKᵀ, and a product of such a softmax with another tensor is PV. So rotary
angles, linear attention and whatever else multiplies activations is never taken for it.

torch takes seconds to import; import this module inside functions only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from flows.model_trace import AttentionProduct, CachedLayer, LinearLayer

_ATEN = torch.ops.aten

#: Matrix products, and which argument is the left factor.
_PRODUCTS = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN.addmm: 1, _ATEN.baddbmm: 1}
_SOFTMAXES = {_ATEN._softmax, _ATEN._safe_softmax}
#: Operations that hand out the same element more than once, as keys that a group of queries shares.
_REPEATS = {_ATEN.expand, _ATEN.repeat}

#: Longer than any sliding window, for models that name no longest sequence.
_BEYOND_ANY_WINDOW = 1 << 20


class Pass(NamedTuple):
    """What one forward pass ran, in order of execution."""

    layers: tuple[LinearLayer, ...]
    attention: tuple[AttentionProduct, ...]
    kv_cache: tuple[CachedLayer, ...]
    #: Linear layers that run on what is cached.
    on_cache: tuple[str, ...]
    #: Matrix products in neither `layers` nor `attention`: the module that ran each, and its multiply-accumulates.
    others: tuple[tuple[str, int], ...]


class NoCacheError(ValueError):
    """The model hands out nothing that a pass could go on from."""


def record_pass(model: torch.nn.Module, tokens: int, batch: int, context: int, longest: int | None) -> Pass:
    """Run a causal language model, which is on the meta device, and return what ran.

    Parameters
    ----------
    model
        The model, in evaluation mode.
    tokens
        New tokens of each sequence.
    batch
        Sequences.
    context
        Tokens of each sequence that are in the cache already.
    longest
        Tokens that a sequence of this model has at most, or None.

    Raises
    ------
    NoCacheError
        `context` is not 0 and the model hands out nothing to go on from.
    """
    names = {module: name for name, module in model.named_modules()}
    recorder = _Recorder(model, names, tokens, batch)
    cache = recorder.run(tokens, _prompt(model, batch, context))
    attention, others = recorder.attention()
    kv_cache = tuple(_cached(cache))
    if any(getattr(layer, "is_sliding", False) for layer in getattr(cache, "layers", ())):
        # A window shows only in a sequence that is longer than it.
        far = (longest or _BEYOND_ANY_WINDOW) - tokens
        distant = _Recorder(model, names, tokens, batch)
        cache = distant.run(tokens, _prompt(model, batch, far))
        attention = tuple(
            replace(product, window=_window(beyond.context - tokens, far))
            for product, beyond in zip(attention, distant.attention()[0], strict=True)
        )
        kv_cache = tuple(
            replace(layer, window=_window(beyond.length, far + tokens))
            for layer, beyond in zip(kv_cache, _cached(cache), strict=True)
        )
    return Pass(tuple(recorder.layers), attention, kv_cache, tuple(dict.fromkeys(recorder.on_cache)), others)


def _window(kept: int, tokens: int) -> int | None:
    """Return the window of a cache that keeps `kept` of so many tokens: one less than itself, or all without one."""
    return kept + 1 if kept < tokens else None


def _prompt(model: torch.nn.Module, batch: int, tokens: int) -> dict[str, Any]:
    """Run a pass of so many tokens and return the arguments by which another pass goes on from it."""
    if tokens == 0:
        return {}
    output = model(input_ids=_ids(batch, tokens), use_cache=True)
    for name in ("past_key_values", "cache_params", "state"):
        if output.get(name) is not None:
            return {name: output[name]}
    raise NoCacheError


def _ids(batch: int, tokens: int) -> torch.Tensor:
    return torch.zeros((batch, tokens), dtype=torch.long, device="meta")


def _cached(cache: Any) -> Iterator[CachedLayer]:
    for layer in getattr(cache, "layers", ()):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None:
            _, heads, length, key_dim = keys.shape
            yield CachedLayer(heads, key_dim, values.shape[-1], length, None)


class _Origin(NamedTuple):
    """What is known of a tensor."""

    #: Products of which it is the result, but for operations that multiply no matrices.
    products: frozenset[int] = frozenset()
    #: Whether these went through a softmax.
    probabilities: bool = False
    #: Whether it is a parameter, or made of nothing but parameters.
    weight: bool = False
    #: Whether it came out of the cache.
    cached: bool = False
    #: How many times it holds each of its elements.
    copies: int = 1


_UNKNOWN = _Origin()


class _Factor(NamedTuple):
    """One side of a product."""

    origin: _Origin
    #: Elements that are not copies.
    elements: int


class _Product(NamedTuple):
    """Products of `matrices` pairs: [rows, inner] with [inner, columns]."""

    name: str
    block: int | None
    matrices: int
    rows: int
    inner: int
    columns: int
    left: _Factor
    right: _Factor

    @property
    def macs(self) -> int:
        return self.matrices * self.rows * self.inner * self.columns


class _Recorder(TorchDispatchMode):
    """Sees every operation of one forward pass."""

    def __init__(self, model: torch.nn.Module, names: dict[torch.nn.Module, str], tokens: int, batch: int) -> None:
        super().__init__()
        self._model = model
        self._names = names
        self._tokens = tokens
        self._batch = batch
        self._running: list[torch.nn.Module] = []
        self._origins = WeakTensorKeyDictionary()
        for parameter in model.parameters():
            self._origins[parameter] = _Origin(weight=True)
        self._products: list[_Product] = []
        self.layers: list[LinearLayer] = []
        self.on_cache: list[str] = []

    def run(self, tokens: int, arguments: dict[str, Any]) -> Any:
        """Run the model on new tokens, and return its cache after that."""
        for layer in getattr(arguments.get("past_key_values"), "layers", ()):
            for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)):
                if tensor is not None:
                    self._origins[tensor] = _Origin(cached=True)
        hooks = [
            hook
            for module in self._names
            for hook in (
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leave),
            )
        ]
        try:
            with self:
                output = self._model(input_ids=_ids(self._batch, tokens), use_cache=True, **arguments)
        finally:
            for hook in hooks:
                hook.remove()
        return output.get("past_key_values")

    def _enter(self, module: torch.nn.Module, inputs: object) -> None:
        self._running.append(module)

    def _leave(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        self._running.pop()
        if isinstance(module, torch.nn.Linear):
            name = self._names[module]
            # Routers of experts may be linear layers that return more than one tensor.
            first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
            if any(self._origin(leaf).cached for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)):
                self.on_cache.append(name)
            self.layers.append(
                LinearLayer(
                    name=name,
                    kind=name.rpartition(".")[2],
                    in_features=module.in_features,
                    out_features=module.out_features,
                    bias=module.bias is not None,
                    # From the output: it is there however the module was called.
                    tokens=math.prod(first.shape[:-1]),
                    block=self._block(name),
                )
            )

    def _block(self, name: str) -> int | None:
        """Return which item of the outermost list of modules holds the module `name`."""
        match = re.match(r"(.+?)\.(\d+)(\.|$)", name)
        if match is None or not isinstance(self._model.get_submodule(match[1]), torch.nn.ModuleList):
            return None
        return int(match[2])

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            first = _PRODUCTS[packet]
            self._origins[result] = self._product(args[first], args[first + 1])
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        origins = [self._origin(tensor) for tensor in inputs]
        # An empty cache takes its first tokens by joining them to an empty tensor.
        cached = packet is _ATEN.cat and any(tensor.numel() == 0 for tensor in inputs)
        for output in tree_leaves(result):
            if isinstance(output, torch.Tensor) and origins:
                copies = origins[0].copies if len(origins) == 1 else 1
                if packet in _REPEATS:
                    copies *= output.numel() // inputs[0].numel()
                self._origins[output] = _Origin(
                    frozenset().union(*(origin.products for origin in origins)),
                    packet in _SOFTMAXES or any(origin.probabilities for origin in origins),
                    all(origin.weight for origin in origins),
                    cached or any(origin.cached for origin in origins),
                    copies,
                )
        return result

    def _origin(self, tensor: torch.Tensor) -> _Origin:
        origin: _Origin = self._origins.get(tensor, _UNKNOWN)
        return origin

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> _Origin:
        """Note a product outside of linear layers, and return what is then known of its result."""
        running = self._running[-1] if self._running else self._model
        if isinstance(running, torch.nn.Linear):
            return _UNKNOWN
        count = left.shape[0] if left.ndim == 3 else 1
        rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
        factors = []
        for tensor in (left, right):
            origin = self._origin(tensor)
            factors.append(_Factor(origin, tensor.numel() // origin.copies))
        name = self._names[running]
        self._products.append(_Product(name, self._block(name), count, rows, inner, columns, *factors))
        if any(factor.origin.weight for factor in factors):
            return _UNKNOWN  # such as a router's logits, which are no scores of attention
        return _Origin(frozenset([len(self._products) - 1]))

    def attention(self) -> tuple[tuple[AttentionProduct, ...], tuple[tuple[str, int], ...]]:
        """Return attention's products, and what else was multiplied outside of linear layers."""
        found: dict[int, AttentionProduct] = {}
        for number, product in enumerate(self._products):
            # Some models multiply transposed matrices: Vᵀ by Pᵀ, or K by Qᵀ.
            if product.left.origin.probabilities:
                probabilities, values, rows, width = product.left, product.right, product.rows, product.columns
            elif product.right.origin.probabilities:
                probabilities, values, rows, width = product.right, product.left, product.columns, product.rows
            else:
                continue
            context = product.inner
            pv = self._attention("pv", product, values, rows, context, width)
            if pv is None:
                continue
            for source in probabilities.origin.products:
                scores = self._products[source]
                if scores.columns == context:
                    keys, rows = scores.right, scores.rows
                elif scores.rows == context:
                    keys, rows = scores.left, scores.columns
                else:
                    continue
                qk = self._attention("qk", scores, keys, rows, context, scores.inner)
                if qk is not None:
                    found[source] = qk
                    found[number] = pv
        others = [(product.name, product.macs) for number, product in enumerate(self._products) if number not in found]
        return tuple(found[number] for number in sorted(found)), tuple(others)

    def _attention(
        self, kind: str, product: _Product, cached: _Factor, rows: int, context: int, head_dim: int
    ) -> AttentionProduct | None:
        """Return a product as one of attention's, or None if its shape is none of theirs."""
        heads, odd_queries = divmod(product.matrices * rows, self._batch * self._tokens)
        kv_heads, odd_keys = divmod(cached.elements, self._batch * context * head_dim)
        if odd_queries or odd_keys or min(heads, kv_heads) < 1 or heads % kv_heads:
            return None
        return AttentionProduct(
            name=product.name,
            kind=kind,
            block=product.block,
            batch=self._batch,
            heads=heads,
            kv_heads=kv_heads,
            tokens=self._tokens,
            context=context,
            head_dim=head_dim,
            window=None,
        )
