"""What a core is: its parameters, what follows from them, and what each pattern costs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accel.config import CoreConfig
from accel.schedule import lane_use, steps_per_group
from accel.stream import StreamLayout, tile_group
from accel.verilog import derived_widths
from quant import NMPattern

#: Bits of the weights that storage is compared with.
FP16_BITS = 16

#: Patterns that a table shows unless all are asked for.
USUAL_PATTERNS = ("1:1", "3:4", "5:8", "2:4", "4:8", "1:4", "2:8")

#: Largest block when all patterns are asked for; `CoreConfig.m_max` may be less or more.
LARGEST_BLOCK = 8


@dataclass(frozen=True)
class PatternFacts:
    """One pattern on one core, with symmetric weights."""

    #: n:m, or ``dense``.
    pattern: str
    #: Share of lanes at work over a long group: 1 unless the window limits the pattern.
    lane_use: float
    #: Group that the next three are for: the longest multiple of m up to the one asked for.
    group: int
    #: Cycles of a PE on one group.
    steps: int
    #: Block code with the fewest bits that the core decodes; ``none`` for dense.
    code: str
    #: Stream bits per weight, pruned ones counted: values, codes and scales, but no padded tails.
    bits_per_weight: float
    #: How many times less that is than FP16.
    ratio_to_fp16: float
    #: Multiply-accumulates of the dense product that the core gets done in a cycle.
    dense_macs_per_cycle: float


def pattern_name(pattern: NMPattern) -> str:
    """Return ``dense`` or n:m, as `NMPattern.parse` reads it."""
    return "dense" if pattern.is_dense else str(pattern)


def patterns_to_show(config: CoreConfig, every: bool) -> list[NMPattern]:
    """Return the usual patterns, or every n:m up to `LARGEST_BLOCK`, as far as they fit the core's window."""
    if every:
        sizes = range(2, min(LARGEST_BLOCK, config.m_max) + 1)
        return [NMPattern(1, 1), *(NMPattern(n, m) for m in sizes for n in range(1, m))]
    usual = [NMPattern.parse(text) for text in USUAL_PATTERNS]
    return [pattern for pattern in usual if pattern.m <= config.m_max]


def pattern_facts(config: CoreConfig, pattern: NMPattern, group: int = 128) -> PatternFacts:
    """Return what a pattern costs on a core.

    Parameters
    ----------
    group
        Weights along K that share a scale. The longest multiple of m up to it is used.

    Raises
    ------
    ValueError
        A group is shorter than a block, or a block is longer than the core's window.
    """
    if group < pattern.m:
        raise ValueError(f"A group of {group} weights holds no block of pattern {pattern}; m is {pattern.m}.")
    length = min(group, config.k_max) // pattern.m * pattern.m
    # Two groups along K: a group longer than the core's tile is cut as in any long row.
    tile = tile_group(config, pattern, 2 * length, length)
    layout = StreamLayout(
        pattern=pattern,
        code=config.codes_of(pattern)[0],
        asymmetric=False,
        out_features=config.columns,
        in_features=length,
        group=tile,
        groups=length // tile,
        group_size=length,
        columns=config.columns,
        slice_bytes=config.slice_bytes,
        scale_bytes=config.scale_bytes,
    )
    use = lane_use(pattern, config.lanes, config.window)
    bits = 8 * layout.tile_bytes / tile
    return PatternFacts(
        pattern=pattern_name(pattern),
        lane_use=use,
        group=length,
        steps=layout.groups * steps_per_group(pattern, tile, config.lanes, config.window),
        code=layout.code,
        bits_per_weight=bits,
        ratio_to_fp16=FP16_BITS / bits,
        dense_macs_per_cycle=multipliers(config) * use / pattern.density,
    )


def multipliers(config: CoreConfig) -> int:
    """Return R · C · L: multiply-accumulates in a cycle at most."""
    return config.rows * config.columns * config.lanes


def core_document(name: str, config: CoreConfig, facts: Sequence[PatternFacts]) -> dict[str, Any]:
    """Return all of it as the JSON object of ``nimble info``."""
    return {
        "core": name,
        "parameters": config.as_dict(),
        "derived": derived_widths(config),
        "multipliers": multipliers(config),
        "macs_per_cycle": multipliers(config),
        "patterns": [asdict(fact) for fact in facts],
    }
