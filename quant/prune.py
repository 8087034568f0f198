"""Magnitude pruning to an N:M pattern."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quant.pattern import NMPattern

#: Blocks ranked at a time; a few hundred KiB of magnitudes stay in the cache while every pair is compared.
_BLOCKS_AT_A_TIME = 16384


def magnitude_mask(W: ArrayLike, pattern: NMPattern) -> NDArray[np.bool_]:
    """Keep the n weights of largest magnitude in each block of m.

    Signed float weights are ranked by absolute value, before any quantisation: on codes, ties and a biased
    encoding would choose other weights. Equal magnitudes keep the lower index.

    Parameters
    ----------
    W : floating [O, K]
        Finite weights; a NumPy array or a CPU torch tensor.
    pattern : NMPattern
        The pattern to prune to.

    Returns
    -------
    bool [O, K]
        True where kept: exactly min(n, block length) per block. Zeros are kept where a block has too few
        nonzero weights.

    Raises
    ------
    TypeError
        If W is not of a floating dtype.
    ValueError
        If W is empty, not 2-D or not finite.

    Source
    ------
    2:4 magnitude pruning: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.
    """
    return _rank_blocks(read_weight_matrix(W), pattern)


def prune_magnitude(W: ArrayLike, pattern: NMPattern) -> NDArray[np.floating]:
    """Set the weights outside `magnitude_mask` to zero.

    Pruning is idempotent, and the magnitude mask of the result is the mask that made it.

    Parameters
    ----------
    W : floating [O, K]
        Finite weights; a NumPy array or a CPU torch tensor.
    pattern : NMPattern
        The pattern to prune to.

    Returns
    -------
    floating [O, K]
        A copy in W's dtype with 0 at the pruned positions.

    Raises
    ------
    TypeError
        If W is not of a floating dtype.
    ValueError
        If W is empty, not 2-D or not finite.
    """
    weights = read_weight_matrix(W)
    return np.where(_rank_blocks(weights, pattern), weights, weights.dtype.type(0))


def read_weight_matrix(W: ArrayLike) -> NDArray[np.floating]:
    """Read W as a finite floating [O, K] array in its own dtype, or say what is wrong with it."""
    try:
        weights = np.asarray(W)
    except (RuntimeError, TypeError) as error:  # torch's, for bfloat16 and for a tensor that requires grad
        raise TypeError(
            f"The weight matrix cannot be read as a NumPy array ({error}); pass a torch tensor as "
            "W.detach().float().cpu()."
        ) from error
    if not np.issubdtype(weights.dtype, np.floating):
        raise TypeError(f"The weight matrix has dtype {weights.dtype}, but it must have a floating dtype.")
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(
            f"The weight matrix has shape {weights.shape}, but it must be [O, K] with O and K at least 1."
        )
    finite = np.isfinite(weights)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"The weight in row {row}, column {column} is {weights[row, column]!s}, "
            "but every weight must be finite."
        )
    return weights


def _rank_blocks(weights: NDArray[np.floating], pattern: NMPattern) -> NDArray[np.bool_]:
    rows, columns = weights.shape
    if pattern.is_dense:
        return np.ones((rows, columns), dtype=np.bool_)
    mask = np.empty((rows, columns), dtype=np.bool_)
    whole = columns // pattern.m * pattern.m
    for first, last, length in ((0, whole, pattern.m), (whole, columns, columns - whole)):
        if first == last:
            continue
        blocks_per_row = (last - first) // length
        step = max(1, _BLOCKS_AT_A_TIME // blocks_per_row)
        for row in range(0, rows, step):
            part = weights[row : row + step, first:last]
            kept = _keep_largest(part.reshape(-1, length), pattern.n)
            mask[row : row + step, first:last] = kept.reshape(part.shape)
    return mask


def _keep_largest(blocks: NDArray[np.floating], n: int) -> NDArray[np.bool_]:
    """Mask of the n largest magnitudes in each row of [blocks, length]; ties to the lower index."""
    length = blocks.shape[1]
    # Position-major, so that each comparison runs over contiguous memory. NumPy compares float16 slowly.
    wide = np.float32 if blocks.dtype == np.float16 else blocks.dtype
    magnitude = np.abs(blocks.T.astype(wide, order="C"))
    # A weight's rank is how many others of its block beat it. Comparing every pair of positions is much
    # faster than one small sort per block, and the order of a tie is explicit: the lower index wins with >=.
    rank = np.zeros(magnitude.shape, dtype=np.uint8)
    for low in range(length):
        for high in range(low + 1, length):
            low_wins = magnitude[low] >= magnitude[high]
            rank[high] += low_wins
            rank[low] += ~low_wins
    kept: NDArray[np.bool_] = rank < n
    return np.ascontiguousarray(kept.T)
