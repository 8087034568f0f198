"""Reference GEMMs on quantised N:M weights, written apart from the hardware models that they judge."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from quant import NMWeight

#: Expanded weights or partials held at a time (8 bytes each): output features go in blocks.
_NUMBERS_AT_A_TIME = 1 << 20


def integer_gemm(x: ArrayLike, w: NMWeight, act_bits: int = 8) -> torch.Tensor:
    """Multiply integer activations by the integer weights exactly, as the accumulator must hold it.

    For each group, ``partial = sum of x * (code - zero point)`` over the kept weights, then
    ``acc += partial * group_scale``. Nothing is rounded or saturated; the channel scale is not applied.

    Parameters
    ----------
    x : integer [T, K]
        Activations, -2**(act_bits - 1) to 2**(act_bits - 1) - 1; a NumPy array or a CPU torch tensor.
    w : NMWeight [O, K]
        Weights.
    act_bits : int
        4, 8 or 16.

    Returns
    -------
    torch.int64 [T, O]
        Accumulators, in units of token scale times channel scale.

    Raises
    ------
    TypeError
        If x is not of an integer dtype.
    ValueError
        If act_bits is not 4, 8 or 16, if x is not [T, K] with T at least 1, or if an activation does not fit.
    """
    activations = torch.from_numpy(_read_activations(x, w, act_bits).astype(np.float64))
    tokens, columns = activations.shape
    rows = w.values.shape[0]
    group_scale = torch.tensor(w.group_scale, dtype=torch.int64)
    # A group longer than the row is the row.
    length = columns if w.group_size == -1 else min(w.group_size, columns)
    groups = -(-columns // length)
    padding = groups * length - columns  # the short last group is filled up with zeros
    by_group = torch.nn.functional.pad(activations, (0, padding)).view(tokens, groups, length).transpose(0, 1)

    # A float64 product is exact here: a partial and each of its intermediate sums, in whatever order and
    # fused or not, is an integer below 2**53. At 4096 x 4096 it is about ten times faster than torch's
    # int64 product.
    assert length * (1 << act_bits - 1) * 15 < 1 << 53
    # Scaled partials are added as integers; their sum must not wrap.
    assert columns * (1 << act_bits - 1) * 15 * (1 << 15) < 1 << 63
    acc = torch.empty(tokens, rows, dtype=torch.int64)
    # Short groups and many tokens make more partials than weights.
    step = max(1, _NUMBERS_AT_A_TIME // max(columns, tokens * groups))
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        code = torch.nn.functional.pad(torch.tensor(w.values[part], dtype=torch.float64), (0, padding))
        kept = torch.nn.functional.pad(torch.tensor(w.mask[part]), (0, padding))
        code = code.view(-1, groups, length)
        if w.zero_point is not None:
            code -= torch.tensor(w.zero_point[part])[:, :, None]
        # Pruned positions, and the padding, contribute 0 and not -zero_point.
        code.masked_fill_(~kept.view(-1, groups, length), 0)
        partial = torch.bmm(by_group, code.permute(1, 2, 0)).to(torch.int64)
        acc[:, part] = (partial * group_scale[part].T[:, None, :]).sum(dim=0)
    return acc


def dequantised_product(x: ArrayLike, token_scale: ArrayLike, w: NMWeight) -> torch.Tensor:
    """Multiply dequantised activations by dequantised weights, as a float model would.

    ``y[t, o] = sum over k of (x[t, k] * token_scale[t]) * weight[o, k]`` with
    ``weight = channel_scale * group_scale * (code - zero point)``, exact in float64, as 24 + 20 bits fit. The
    sum over k runs in float64 in no promised order and is rounded to float32 once, at the end. It shares
    no arithmetic with `integer_gemm`, so that each can judge the other.

    Parameters
    ----------
    x : integer [T, K]
        Activations, -32768..32767; a NumPy array or a CPU torch tensor.
    token_scale : floating [T]
        Finite scale of each token's activations.
    w : NMWeight [O, K]
        Weights.

    Returns
    -------
    torch.float32 [T, O]
        Products in real units, within about K * 2**-53 of the sum of absolute products, plus
        a float32 rounding.

    Raises
    ------
    TypeError
        If x is not of an integer dtype or token_scale not of a floating dtype.
    ValueError
        If x is not [T, K] with T at least 1, an activation does not fit 16 bits, or token_scale is not
        [T] and finite.
    """
    activations = _read_activations(x, w, act_bits=16).astype(np.float64)
    scale = np.asarray(token_scale)
    if not np.issubdtype(scale.dtype, np.floating):
        raise TypeError(f"token_scale has dtype {scale.dtype}, but it must have a floating dtype.")
    if scale.shape != activations.shape[:1]:
        raise ValueError(f"token_scale has shape {scale.shape}, but x has {activations.shape[0]} tokens.")
    if not np.isfinite(scale).all():
        token = int(np.argmin(np.isfinite(scale)))
        raise ValueError(
            f"token_scale holds {scale[token]!s} at token {token}, but every scale must be finite."
        )
    tokens = torch.from_numpy(activations * scale.astype(np.float64)[:, None])

    rows, columns = w.values.shape
    product = torch.empty(tokens.shape[0], rows, dtype=torch.float32)
    group_of_column = np.arange(columns) // (columns if w.group_size == -1 else w.group_size)
    step = max(1, _NUMBERS_AT_A_TIME // columns)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        dense = w.values[part].astype(np.float64)
        if w.zero_point is not None:
            dense -= w.zero_point[part][:, group_of_column]
        dense *= w.group_scale[part][:, group_of_column]
        dense *= w.channel_scale[part].astype(np.float64)[:, None]
        dense *= w.mask[part]
        product[:, part] = (tokens @ torch.from_numpy(dense).T).to(torch.float32)
    return product


def _read_activations(x: ArrayLike, w: NMWeight, act_bits: int) -> np.ndarray:
    if act_bits not in (4, 8, 16):
        raise ValueError(f"act_bits is {act_bits!r}, but it must be 4, 8 or 16.")
    array = np.asarray(x)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"The activations have dtype {array.dtype}, but they must have an integer dtype.")
    columns = w.values.shape[1]
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] != columns:
        raise ValueError(
            f"The activations have shape {array.shape}, but they must be [T, K] with T at least 1 "
            f"and K = {columns} to match the weights."
        )
    low, high = -(1 << act_bits - 1), (1 << act_bits - 1) - 1
    if int(array.min()) < low or int(array.max()) > high:
        token, feature = (int(i) for i in np.argwhere((array < low) | (array > high))[0])
        raise ValueError(
            f"The activation at token {token}, feature {feature} is {array[token, feature]}, "
            f"but act_bits = {act_bits} allows {low} to {high}."
        )
    return array
