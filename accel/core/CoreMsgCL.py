"""What the cycle-level blocks hand each other: whole tiles, groups and blocks, each with the cycle it counts from.

A CL block has its RTL block's streams as ports and reads and writes them at the clock edge, like registers.
Between CL blocks there are `DelayPipe` links instead of memory pins. In the edge that ends a cycle a block
works out the next one, ``now``: it takes what may be used from ``now`` on, and what it posts may be used
from ``now + 1`` on at the earliest. So the order in which blocks run at an edge does not matter.

PyMTL3's method ports would say the same, but a design with method ports no longer evaluates its combinational
blocks before the edge, so that whoever drives its ports from outside would meet other rules than at RTL.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from accel.command import Command
from accel.config import CoreConfig
from accel.stream import CODE_IDS, StreamLayout
from quant import NMPattern

_CODE_NAMES = {number: name for name, number in CODE_IDS.items()}


class DelayPipe:
    """Items on their way to one block, in order, each with the first cycle in which it may be used."""

    def __init__(self) -> None:
        self._items: deque[tuple[int, Any]] = deque()

    def post(self, cycle: int, item: Any = None) -> None:
        """Send an item that may be used from ``cycle`` on, which is no earlier than that of the item before."""
        self._items.append((cycle, item))

    def arrived(self, cycle: int) -> bool:
        """Whether the first item may be used in ``cycle``."""
        return bool(self._items) and self._items[0][0] <= cycle

    def take(self, cycle: int) -> Any:
        """Remove the first item in ``cycle``.

        Raises
        ------
        LookupError
            When it may not be used yet: a block that took it would be ahead of the RTL.
        """
        if not self.arrived(cycle):
            raise LookupError(f"Nothing may be taken from this link in cycle {cycle}.")
        return self._items.popleft()[1]

    def clear(self) -> None:
        """Forget everything, as reset does."""
        self._items.clear()


class TileColumn(NamedTuple):
    """One column's weights in one group."""

    #: Weights less their zero point, int64 [slots].
    weight: np.ndarray
    #: Positions in the group of the weights, int64 [slots].
    position: np.ndarray
    scale: int


class GroupSteps(NamedTuple):
    """All steps of one group on one token subtile; it is sent with the last of them."""

    #: Number of the group along K.
    group: int
    #: First row of the subtile in the token block, and its rows.
    row: int
    rows: int
    #: Partials on each drain chain.
    length: int
    #: Last step that reads this tile, the output tile's accumulators, and the token block.
    tile_last: bool
    out_tile_last: bool
    block_last: bool


def read_command(msg: Any) -> Command:
    """The command in a port."""
    return Command(**{field: int(getattr(msg, field)) for field in Command.__dataclass_fields__})


def command_tokens(config: CoreConfig, command: Command) -> int:
    """Tokens of a command."""
    return (command.subtiles - 1) * config.rows + command.last_rows


@cache
def command_layout(config: CoreConfig, command: Command, groups: int) -> StreamLayout:
    """Layout of one output tile of a command's weight stream, cut to ``groups`` groups."""
    group = command.slots // command.n * command.m
    return StreamLayout(
        pattern=NMPattern(command.n, command.m),
        code=_CODE_NAMES[command.code],
        asymmetric=bool(command.asymmetric),
        out_features=config.columns,
        in_features=group * groups,
        group=group,
        groups=groups,
        group_size=-1,
        columns=config.columns,
        slice_bytes=config.slice_bytes,
        scale_bytes=config.scale_bytes,
    )
