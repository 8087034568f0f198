"""N:M pattern: of every m consecutive weights along K, at most n are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Largest block: a bitmask block code must fit one 32-bit word.
MAX_M = 32


@dataclass(frozen=True)
class NMPattern:
    """Pattern n:m, where **n counts the kept weights** of a block of m.

    SparseGPT's and Wanda's ``prune_n`` counts the pruned ones instead; bring such a number in with
    `from_pruned_count`. Blocks start at column 0 of a row; the last one may be shorter than m and then
    still keeps at most n. Every n == m is dense, but 2:2 and 4:4 keep their own m, as it limits group sizes.

    Parameters
    ----------
    n : int, 1 to m
        Weights kept per block.
    m : int, 1 to 32
        Block length along K.

    Raises
    ------
    TypeError
        If n or m is not an integer.
    ValueError
        If n or m is out of range.
    """

    #: Weights kept per block, 1..m.
    n: int
    #: Block length along K, 1..32.
    m: int

    def __post_init__(self) -> None:
        for name in ("n", "m"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(
                    f"NMPattern needs an integer {name}, but {value!r} of type {type(value).__name__} "
                    "was given."
                )
            object.__setattr__(self, name, int(value))
        if not 1 <= self.m <= MAX_M:
            raise ValueError(f"Pattern {self.n}:{self.m} has m = {self.m}; m must be 1 to {MAX_M}.")
        if not 1 <= self.n <= self.m:
            raise ValueError(
                f"Pattern {self.n}:{self.m} has n = {self.n}; n counts the kept weights "
                f"and must be 1 to m = {self.m}."
            )

    @classmethod
    def parse(cls, text: str) -> NMPattern:
        """Read "n:m" (n kept of every m), or "dense", which is 1:1. `str` is the inverse.

        Raises
        ------
        TypeError
            If text is not a string.
        ValueError
            If text has another form, or if n or m is out of range.
        """
        if not isinstance(text, str):
            raise TypeError(f'A pattern is parsed from a string such as "2:4", but {text!r} was given.')
        if text.strip() == "dense":
            return cls(1, 1)
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*", text)
        if match is None:
            raise ValueError(
                f"Pattern {text!r} is not understood; write n:m with n kept of every m weights, "
                'such as "2:4", or "dense".'
            )
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_pruned_count(cls, pruned: int, m: int) -> NMPattern:
        """Pattern that prunes `pruned` of every m weights (the ``prune_n`` of SparseGPT and Wanda).

        ``from_pruned_count(1, 4)`` is 3:4 and ``from_pruned_count(3, 4)`` is 1:4.

        Raises
        ------
        TypeError
            If pruned or m is not an integer.
        ValueError
            If pruned is not 0 to m - 1, or m is out of range.
        """
        for name, value in (("pruned", pruned), ("m", m)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(
                    f"from_pruned_count needs an integer {name}, but {value!r} of type "
                    f"{type(value).__name__} was given."
                )
        if not 0 <= pruned < m:
            raise ValueError(
                f"A pruned count of {pruned} of every m = {m} weights was given; it must be 0 to m - 1, "
                "so that at least one weight is kept."
            )
        return cls(int(m) - int(pruned), int(m))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Kept share of the weights, n / m."""
        return self.n / self.m

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned (n == m)."""
        return self.n == self.m

    def check_group_size(self, group_size: int) -> None:
        """Accept -1 (one group per row) or a positive multiple of m, so that no block spans two groups.

        Raises
        ------
        TypeError
            If group_size is not an integer.
        ValueError
            If it is neither -1 nor a positive multiple of m.
        """
        if isinstance(group_size, bool) or not isinstance(group_size, (int, np.integer)):
            raise TypeError(
                f"The group size must be an integer, but {group_size!r} of type "
                f"{type(group_size).__name__} was given."
            )
        allowed = f"allowed are multiples of {self.m} or -1 for one group per row."
        if group_size == 0 or group_size < -1:
            raise ValueError(f"Group size {group_size} is not positive; {allowed}")
        if group_size > 0 and group_size % self.m:
            raise ValueError(
                f"Group size {group_size} is not a multiple of m = {self.m} of pattern {self}; {allowed}"
            )

    def kept_per_block(self, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Count the kept weights of each block.

        Parameters
        ----------
        mask : bool [O, K]
            True where a weight is kept.

        Returns
        -------
        uint8 [O, ceil(K / m)]
            Kept weights, 0..m; the last block of a row may be shorter than m.
        """
        rows, columns = mask.shape
        counts = np.zeros((rows, -(-columns // self.m)), dtype=np.uint8)
        # One strided addition per position in the block: a sum over a last axis of length m is far slower.
        for position in range(min(self.m, columns)):
            lane = mask[:, position :: self.m]
            counts[:, : lane.shape[1]] += lane
        return counts

    def check_mask(self, mask: NDArray[np.bool_]) -> None:
        """Check that no block of a bool [O, K] mask keeps more than n weights.

        Raises
        ------
        ValueError
            Naming the first block that keeps more, by row and columns.
        """
        if self.is_dense:
            return
        counts = self.kept_per_block(mask)
        too_many = counts > self.n
        if too_many.any():
            row, block = (int(i) for i in np.argwhere(too_many)[0])
            raise ValueError(
                f"The mask keeps {counts[row, block]} weights in row {row}, "
                f"{self.name_block(block, mask.shape[1])}, but pattern {self} allows at most {self.n}."
            )

    def name_block(self, block: int, columns: int) -> str:
        """Name a block of a row of `columns` weights for a message: "block 2 (columns 8 to 11)"."""
        first = block * self.m
        last = min(first + self.m, columns) - 1
        columns_held = f"columns {first} to {last}" if last > first else f"column {first}"
        return f"block {block} ({columns_held})"
