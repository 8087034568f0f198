"""Attention's own products as GEMMs of the core, or as bytes that a host reads.

A product runs once for each sequence and each head of keys and values, whose query heads are its rows: scores
take K = head_dim and O = context, their use takes K = context and O = head_dim. The cache stands in for the
weights, in the packed form of a dense stream.

A core of 4-bit weights takes 8-bit values exactly as two nibbles along K, the activations given twice: the upper
nibble is a code minus a zero point of 8 and has the group scale 16, the lower one a code minus 0 with the group
scale 1. So K doubles, each half is padded to whole tiles, and the core has to have zero points.

A K beyond the core's accumulators is cut into parts, whose results the host adds up.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from accel.config import ConfigError, CoreConfig
from accel.stream import StreamLayout, layout_for, tile_group
from quant import NMPattern

if TYPE_CHECKING:
    from flows.model_trace import AttentionProduct

#: Where attention's products run, and with how many bits of a key or a value.
ATTENTIONS = ("core-int8", "core-int4", "host", "skip")

#: Bytes of a key or a value on the host.
HOST_BYTES = 2

_DENSE = NMPattern(1, 1)


def product_shape(product: AttentionProduct) -> tuple[int, int, int]:
    """Rows, K and O of a product of one sequence and one head of keys and values."""
    rows = product.tokens * (product.heads // product.kv_heads)
    if product.kind == "qk":
        return rows, product.head_dim, product.context
    return rows, product.context, product.head_dim


def nibbles(attention: str) -> int:
    """Nibbles along K that a key or a value takes on the core: 2 for 8 bits, 1 for 4."""
    return 2 if attention == "core-int8" else 1


def product_layouts(
    config: CoreConfig, attention: str, in_features: int, out_features: int, group_size: int
) -> Counter[StreamLayout]:
    """Layouts of the GEMMs that one product takes, and how many of each: more than one where K is cut.

    Raises
    ------
    ConfigError
        The product is beyond the core's capacity, or needs zero points that the core does not have.
    """
    planes = nibbles(attention)
    if planes == 2 and not config.asymmetric:
        raise ConfigError(
            "8-bit keys and values are two nibbles with zero points, but this core is generated without them "
            "(asymmetric = false); choose core-int4, host or skip for attention, or a core with asymmetric = true."
        )
    most = max(1, config.k_max // planes)
    group = tile_group(config, _DENSE, min(in_features, most), group_size)
    part = most // group * group
    whole, rest = divmod(in_features, part)
    layouts: Counter[StreamLayout] = Counter()
    for size, count in ((part, whole), (rest, 1)):
        if size and count:
            # A rest that is padded to a whole part has the same layout.
            layouts[_layout(config, planes, size, out_features, group)] += count
    return layouts


def _layout(config: CoreConfig, planes: int, in_features: int, out_features: int, group: int) -> StreamLayout:
    if planes == 1:
        return layout_for(config, _DENSE, out_features, in_features, group)
    half = -(-in_features // group) * group
    return layout_for(config, _DENSE, out_features, 2 * half, group, asymmetric=True)


def host_bytes(product: AttentionProduct) -> int:
    """Bytes of keys or values that a host reads for a product of all sequences and heads."""
    return product.batch * product.kv_heads * product.context * product.head_dim * HOST_BYTES
