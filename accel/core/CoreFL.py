"""Functional level: executes the packed stream on the memory images, vectorised, without time."""

from __future__ import annotations

import numpy as np

from accel.command import commands_for
from accel.config import CoreConfig
from accel.image import pack_results, read_activations
from accel.stream import PackedStream, take_apart, tile_columns


def run_fl(config: CoreConfig, stream: PackedStream, acts: bytes, tokens: int, *, wide: bool | None = None) -> bytes:
    """Result image of a GEMM: what the core writes for this stream and this activation image.

    Decodes the stream's scales, codes and values and gathers the activations that they point at; the dense
    matrix is never built. Exact integers: a partial sum times its scale stays below 2^31 · 2^15, an accumulator
    below 2^54.
    """
    layout = stream.layout
    stream.require_core(config)
    commands = commands_for(config, layout, tokens, wide=wide)
    x = read_activations(config, layout, tokens, acts)[:, : layout.k_padded]
    columns = tile_columns(stream)
    y = np.empty((tokens, layout.out_tiles * config.columns), np.int64)
    base = (np.arange(layout.groups) * layout.group)[:, None]
    # int32 holds any partial sum (group_max · 15 · 2^15 < 2^31), and halves the gather's traffic.
    x_t = np.ascontiguousarray(x.T.astype(np.int32))
    for tile in range(layout.out_tiles):
        parts = take_apart(columns[tile], layout)
        weight = parts.nibble.astype(np.int32)
        if layout.asymmetric:
            weight -= parts.zero_point[:, :, None].astype(np.int32)
        else:
            weight = np.where(weight > 7, weight - 16, weight)
        for c in range(config.columns):
            gathered = x_t[(parts.position[c] + base)]  # [groups, slots, T]
            partial = np.einsum("gst,gs->gt", gathered, weight[c], dtype=np.int32, casting="unsafe")
            y[:, tile * config.columns + c] = parts.scale[c].astype(np.int64) @ partial.astype(np.int64)
    return pack_results(config, layout, y, wide=bool(commands[0].wide))
