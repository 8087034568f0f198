"""Activation buffer: neighbouring windows of every row, two cycles after the address, while others are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import CoreConfig, load_preset
from accel.act_buffer.ActBufferRTL import ActBufferRTL

TINY = load_preset("tiny").replace(act_bits=4, window=2, k_max=32, slice_bytes=2)

CORES = {
    "tiny": TINY,
    "two_words": TINY.replace(k_max=4, group_max=4, act_words=2),
    "ports": TINY.replace(rows=5, act_ports=2, act_words=18),
    "acts": TINY.replace(rows=3, registers=("acts",)),
    "acts_and_copies": TINY.replace(rows=5, act_ports=2, registers=("acts",), fanout_rows=2),
    "copies": TINY.replace(rows=3, fanout_rows=1),
    # These are in the feeder: they change nothing here.
    "read_and_window": TINY.replace(registers=("read", "window")),
}


@pytest.mark.parametrize("name", CORES)
@given(data=st.data())
@settings(max_examples=12)
def test_a_read_gives_both_words_two_cycles_later(name: str, data: Any, simulated: Callable) -> None:
    config: CoreConfig = CORES[name]
    rows, ports, words = config.rows, config.act_ports, config.act_words
    buffer = simulated(ActBufferRTL(config))
    address = st.integers(0, words - 1)
    value = st.integers(0, (1 << 2 * 4) - 1)
    access = st.tuples(
        address, st.booleans(), st.integers(0, -(-rows // ports) - 1), address, st.tuples(*[value] * ports)
    )
    stored = [[0] * words for _ in range(rows)]
    # Writes that reach the memories at the end of a later cycle than the present one
    writes: deque = deque([None] * ("acts" in config.registers))
    # Addresses whose words come out; the memories read one cycle after the address has come.
    asked: deque[int | None] = deque([None])
    expected: list[tuple[int, int]] | None = None
    for raddr, wen, beat, waddr, values in data.draw(st.lists(access, min_size=3, max_size=30)):
        if expected is not None:
            assert [(int(even), int(odd)) for even, odd in zip(buffer.even, buffer.odd, strict=True)] == expected
        if asked[-1] is not None:
            assert buffer.swapped == asked[-1] % 2, "one cycle before the words"
        buffer.raddr @= raddr
        buffer.wen @= wen
        buffer.beat @= beat
        buffer.waddr @= waddr
        for port, given_ in zip(buffer.data, values, strict=True):
            port @= given_
        asked.append(raddr)
        read = asked.popleft()
        if read is not None:
            pair = {place % 2: place for place in (read, (read + 1) % words)}
            expected = [(row[pair[0]], row[pair[1]]) for row in stored]
        writes.append((beat, waddr, values) if wen else None)
        written = writes.popleft()
        if written is not None:
            at, place, given_values = written
            for row in range(at * ports, min(rows, (at + 1) * ports)):
                stored[row][place] = given_values[row - at * ports]
        buffer.sim_tick()
