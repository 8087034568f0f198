"""How a compressed-tensors configuration says that weights are quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class WeightScheme(NamedTuple):
    """INT4 weights of one config group."""

    #: Weights per scale along K, -1 for a whole row.
    group_size: int
    symmetric: bool
    #: Whether groups are of columns in activation order, so that each layer has a weight_g_idx.
    activation_order: bool = False


def weight_schemes(quantization_config: Mapping[str, Any]) -> tuple[WeightScheme, ...]:
    """Read the schemes of 4-bit integer weights in `config_groups`; empty where the file quantises nothing.

    Which layer a group targets is not evaluated, as its patterns are regular expressions of a stranger: a reader
    takes the scheme that the layer's tensors fit.

    Raises
    ------
    ValueError
        If config_groups is malformed, or has groups but none of 4-bit integers per group or channel.
    """
    groups = quantization_config.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise ValueError(f"quantization_config has config_groups {groups!r}, but it must be an object.")
    schemes, others = set(), []
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ValueError(f"Config group {name} of quantization_config says nothing about weights.")
        kind, bits, strategy = weights.get("type", "int"), weights.get("num_bits", 8), weights.get("strategy")
        size = weights.get("group_size")
        if strategy is None:
            strategy = "channel" if size in (None, -1) else "group"
        if (kind, bits) != ("int", 4) or strategy not in ("group", "channel"):
            others.append(f"{bits}-bit {kind} weights per {strategy}")
            continue
        if strategy == "channel":
            size = -1
        elif isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"Config group {name} of quantization_config has group_size {size!r}; it must be positive."
            )
        ordered = weights.get("actorder") in ("group", True) and size != -1
        schemes.add(WeightScheme(size, bool(weights.get("symmetric", True)), ordered))
    if groups and not schemes:
        raise ValueError(
            f"The file holds {', '.join(others)}; of compressed-tensors files, 4-bit int weights per group or channel "
            "can be read."
        )
    return tuple(sorted(schemes))
