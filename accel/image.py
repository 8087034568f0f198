"""Memory images of activations and results, beside the weight stream: one image in, one out, at every level.

Activations: for each token block and each subtile, rows in beats of ``act_ports``, each beat from the first
window of the (padded) row to the last; a beat's ports side by side, each port padded to whole bytes.

Results: for each token block and each output tile, tokens in order, each as ⌈C / result_lanes⌉ words of
``result_lanes`` integers of 32 or 64 bits.
"""

from __future__ import annotations

import numpy as np

from accel.command import token_blocks
from accel.config import CoreConfig
from accel.stream import StreamLayout


def act_port_bytes(config: CoreConfig) -> int:
    """Bytes of one port of an activation word in memory."""
    return -(-config.act_port_bits // 8)


def pack_activations(config: CoreConfig, layout: StreamLayout, x: np.ndarray) -> bytes:
    """Activation image of ``x``, integers [T, K] in the range of ``act_bits``.

    Raises
    ------
    ValueError
        When K differs from the weights', x is no integer matrix, or a value is out of range.
    """
    x = np.asarray(x)
    check_activations(x, layout.in_features, config.act_bits)
    words = config.k_words(layout.k_padded)
    padded = np.zeros((x.shape[0], words * config.window), np.int64)
    padded[:, : x.shape[1]] = x
    image = []
    start = 0
    for block in token_blocks(config, layout, x.shape[0]):
        for first in range(0, block, config.rows):
            rows = min(config.rows, block - first)
            beats = -(-rows // config.act_ports)
            subtile = np.zeros((beats * config.act_ports, words, config.window), np.int64)
            subtile[:rows] = padded[start + first : start + first + rows].reshape(rows, words, config.window)
            ports = _to_bytes(subtile, config)  # [beats × ports, words, bytes]
            ports = ports.reshape(beats, config.act_ports, words, -1).transpose(0, 2, 1, 3)
            image.append(ports.tobytes())
        start += block
    return b"".join(image)


def check_activations(x: np.ndarray, in_features: int, act_bits: int) -> None:
    """Raise ValueError or TypeError with a full sentence unless x is [T, in_features] in the range of ``act_bits``."""
    if x.ndim != 2 or x.shape[0] < 1:
        raise ValueError(f"Activations must be a matrix [T, K] with at least one token, but shape {x.shape} was given.")
    if not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"Activations must be integers, but dtype {x.dtype} was given; quantise them first.")
    if x.shape[1] != in_features:
        raise ValueError(
            f"The activations have K = {x.shape[1]} input features, but the weights have K = {in_features}."
        )
    low, high = -(1 << (act_bits - 1)), (1 << (act_bits - 1)) - 1
    if x.min() < low or x.max() > high:
        raise ValueError(
            f"Activations must lie in {low}..{high} for act_bits = {act_bits}, "
            f"but they run from {x.min()} to {x.max()}."
        )


def read_activations(config: CoreConfig, layout: StreamLayout, tokens: int, image: bytes) -> np.ndarray:
    """Inverse of `pack_activations`: int64 [T, padded K]."""
    words = config.k_words(layout.k_padded)
    size = act_port_bytes(config)
    rows_out = []
    offset = 0
    for block in token_blocks(config, layout, tokens):
        for first in range(0, block, config.rows):
            rows = min(config.rows, block - first)
            beats = -(-rows // config.act_ports)
            count = beats * words * config.act_ports * size
            ports = np.frombuffer(image, np.uint8, count, offset).reshape(beats, words, config.act_ports, size)
            ports = ports.transpose(0, 2, 1, 3).reshape(-1, words, size)[:rows]
            rows_out.append(_from_bytes(ports, config).reshape(rows, -1))
            offset += count
    return np.concatenate(rows_out)


def result_words(config: CoreConfig, layout: StreamLayout, tokens: int) -> int:
    """Result words of a GEMM."""
    return tokens * layout.out_tiles * config.column_groups


def unpack_results(config: CoreConfig, layout: StreamLayout, tokens: int, image: bytes, *, wide: bool) -> np.ndarray:
    """Results int64 [T, O] of a result image."""
    dtype = np.dtype("<i8") if wide else np.dtype("<i4")
    lanes = config.column_groups * config.result_lanes
    y = np.empty((tokens, layout.out_tiles, config.columns), np.int64)
    flat = np.frombuffer(image, dtype)
    start = offset = 0
    for block in token_blocks(config, layout, tokens):
        count = layout.out_tiles * block * lanes
        part = flat[offset : offset + count].reshape(layout.out_tiles, block, lanes)[:, :, : config.columns]
        y[start : start + block] = part.transpose(1, 0, 2)
        start += block
        offset += count
    return y.reshape(tokens, -1)[:, : layout.out_features]


def pack_results(config: CoreConfig, layout: StreamLayout, y: np.ndarray, *, wide: bool) -> bytes:
    """Result image of accumulators ``y``, int64 [T, padded O]."""
    tokens = y.shape[0]
    lanes = config.column_groups * config.result_lanes
    image = []
    start = 0
    for block in token_blocks(config, layout, tokens):
        part = np.zeros((layout.out_tiles, block, lanes), np.dtype("<i8") if wide else np.dtype("<i4"))
        rows = y[start : start + block].reshape(block, layout.out_tiles, config.columns)
        part[:, :, : config.columns] = rows.transpose(1, 0, 2)
        image.append(part.tobytes())
        start += block
    return b"".join(image)


def _to_bytes(values: np.ndarray, config: CoreConfig) -> np.ndarray:
    """Activations [..., window] as bytes [..., port bytes], least significant first."""
    if config.act_bits == 16:
        return values.astype("<i2").view(np.uint8).reshape(*values.shape[:-1], -1)
    if config.act_bits == 8:
        return values.astype(np.int8).view(np.uint8)
    even = np.zeros((*values.shape[:-1], 2 * act_port_bytes(config)), np.uint8)
    even[..., : values.shape[-1]] = values & 15
    return even[..., 0::2] | (even[..., 1::2] << 4)


def _from_bytes(data: np.ndarray, config: CoreConfig) -> np.ndarray:
    """Inverse of `_to_bytes`: int64 [..., window]."""
    data = np.ascontiguousarray(data)
    if config.act_bits == 16:
        return data.view("<i2").astype(np.int64)
    if config.act_bits == 8:
        return data.view(np.int8).astype(np.int64)
    nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)[..., : config.window]
    return np.where(nibbles > 7, nibbles.astype(np.int64) - 16, nibbles)
