"""Block codes: how the kept positions of a block of m weights are written in the weight stream.

* ``index``: ⌈log2 m⌉ bits for each of the n kept positions, in ascending order (as in NVIDIA's 2:4).
* ``bitmask``: m bits a block, bit i set where position i is kept.
* ``rank``: ⌈log2 C(m, n)⌉ bits a block: the rank of the kept set in the combinatorial number system,
  Σ C(c_i, i + 1) over the ascending positions c_0 < c_1 < … (colexicographic order; Knuth, TAOCP 4A,
  7.2.1.3). Its decoder needs binomials C(position, ones left) only, the same for every n:m.
* ``none``: dense blocks (n = m) need no code.

A block has exactly n positions in each code: a block that keeps fewer is filled up with positions whose
value is zero.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb

import numpy as np

from quant import NMPattern

CODES = ("rank", "index", "bitmask")


def code_bits(code: str, pattern: NMPattern) -> int:
    """Bits of one code field: of a block for ``rank`` and ``bitmask``, of one nonzero for ``index``."""
    if code == "none":
        return 0
    if code == "index":
        return max(1, (pattern.m - 1).bit_length())
    if code == "bitmask":
        return pattern.m
    if code == "rank":
        return max(1, (comb(pattern.m, pattern.n) - 1).bit_length())
    raise ValueError(f"{code!r} is not a block code; the codes are {', '.join(CODES)}, and none for dense blocks.")


def bits_per_block(code: str, pattern: NMPattern) -> int:
    """Bits of code that one block takes."""
    return code_bits(code, pattern) * (pattern.n if code == "index" else 1)


def codes_for(pattern: NMPattern, available: tuple[str, ...], rank_m_max: int) -> tuple[str, ...]:
    """Codes out of ``available`` that can write ``pattern``, fewest bits first; ("none",) for dense."""
    if pattern.n == pattern.m:
        return ("none",)
    usable = [code for code in available if code != "rank" or pattern.m <= rank_m_max]
    return tuple(sorted(usable, key=lambda code: bits_per_block(code, pattern)))


@cache
def _rank_table(pattern: NMPattern) -> np.ndarray:
    """Kept positions of every rank, int8 [C(m, n), n], in colexicographic order."""
    sets = sorted(combinations(range(pattern.m), pattern.n), key=lambda positions: positions[::-1])
    return np.array(sets, dtype=np.int8)


def encode_blocks(positions: np.ndarray, code: str, pattern: NMPattern) -> np.ndarray:
    """Code fields of blocks.

    Parameters
    ----------
    positions
        Kept positions, integers [..., n], ascending, each in 0..m−1.

    Returns
    -------
    numpy.ndarray
        uint32 [..., fields]: n fields a block for ``index``, one for the others.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if code == "index":
        return positions.astype(np.uint32)
    if code == "bitmask":
        return (np.int64(1) << positions).sum(axis=-1, keepdims=True).astype(np.uint32)
    if code == "rank":
        binomial = np.array([[comb(c, i + 1) for i in range(pattern.n)] for c in range(pattern.m)], dtype=np.int64)
        return binomial[positions, np.arange(pattern.n)].sum(axis=-1, keepdims=True).astype(np.uint32)
    raise ValueError(f"{code!r} is not a code that writes block positions.")


@cache
def _rank_of_bits(pattern: NMPattern) -> np.ndarray:
    """Rank of every kept set by its bitmask, uint8 [2**m]; 0 where the bitmask is none of n positions."""
    sets = _rank_table(pattern)
    ranks = np.zeros(1 << pattern.m, np.uint8)
    ranks[encode_blocks(sets, "bitmask", pattern)[:, 0]] = encode_blocks(sets, "rank", pattern)[:, 0]
    return ranks


def encode_mask(mask: np.ndarray, code: str, pattern: NMPattern) -> np.ndarray:
    """Code fields of all blocks of a mask, far faster than by `encode_blocks`.

    Parameters
    ----------
    mask
        Kept positions, bool [rows, K] with K a multiple of m and exactly n in each block. For ``rank``, m is 8 or
        less.

    Returns
    -------
    numpy.ndarray
        uint8 or uint32 [rows, fields]: the fields of `encode_blocks`, block after block.
    """
    if code == "index":
        local = np.tile(np.arange(pattern.m, dtype=np.uint8), mask.shape[1] // pattern.m)
        return np.broadcast_to(local, mask.shape)[mask].reshape(len(mask), -1)
    if code not in ("bitmask", "rank"):
        raise ValueError(f"{code!r} is not a code that writes block positions.")
    # One pass a position of the block: a sum over a last axis of length m is far slower.
    word = np.uint8 if pattern.m <= 8 else np.uint32
    bits = np.zeros((len(mask), mask.shape[1] // pattern.m), word)
    for position in range(pattern.m):
        bits |= mask[:, position :: pattern.m].astype(word) << word(position)
    return bits if code == "bitmask" else _rank_of_bits(pattern)[bits]


def decode_blocks(fields: np.ndarray, code: str, pattern: NMPattern) -> np.ndarray:
    """Kept positions, int64 [..., n] ascending, of the code fields [..., fields] of blocks.

    Raises
    ------
    ValueError
        When a field is no code word: a rank beyond C(m, n) − 1, a mask without exactly n bits, or
        indices that do not ascend below m.
    """
    fields = np.asarray(fields, dtype=np.int64)
    if code == "index":
        positions = fields
        if (positions >= pattern.m).any() or (np.diff(positions, axis=-1) <= 0).any():
            raise ValueError(f"A block's indices do not ascend below m = {pattern.m}: the stream is damaged.")
        return positions
    if code == "bitmask":
        bits = (fields >> np.arange(pattern.m)) & 1
        if (bits.sum(axis=-1) != pattern.n).any():
            raise _damaged_bitmask(pattern)
        return np.nonzero(bits)[-1].reshape(*fields.shape[:-1], pattern.n)
    if code == "rank":
        table = _rank_table(pattern)
        if (fields >= len(table)).any():
            raise _damaged_rank(pattern)
        return table[fields[..., 0]].astype(np.int64)
    raise ValueError(f"{code!r} is not a code that writes block positions.")


def decode_mask(fields: np.ndarray, code: str, pattern: NMPattern) -> np.ndarray:
    """Mask that `encode_mask` has written as fields [rows, fields]: bool [rows, K].

    Raises
    ------
    ValueError
        As `decode_blocks`.
    """
    if code == "rank":
        table = np.zeros((len(_rank_table(pattern)), pattern.m), bool)
        np.put_along_axis(table, _rank_table(pattern).astype(np.int64), True, axis=-1)
        if int(fields.max()) >= len(table):
            raise _damaged_rank(pattern)
        return table[fields].reshape(len(fields), -1)
    if code == "bitmask":
        mask = np.empty((*fields.shape, pattern.m), bool)
        for position in range(pattern.m):
            mask[..., position] = (fields >> position) & 1
        mask = mask.reshape(len(fields), -1)
        if (pattern.kept_per_block(mask) != pattern.n).any():
            raise _damaged_bitmask(pattern)
        return mask
    positions = decode_blocks(fields.reshape(len(fields), -1, pattern.n), code, pattern)
    mask = np.zeros((*positions.shape[:2], pattern.m), bool)
    np.put_along_axis(mask, positions, True, axis=-1)
    return mask.reshape(len(fields), -1)


def _damaged_rank(pattern: NMPattern) -> ValueError:
    return ValueError(
        f"A block's rank is beyond C({pattern.m},{pattern.n}) − 1 = {comb(pattern.m, pattern.n) - 1}: the stream is "
        "damaged."
    )


def _damaged_bitmask(pattern: NMPattern) -> ValueError:
    return ValueError(f"A block's bitmask does not have n = {pattern.n} bits set: the stream is damaged.")
