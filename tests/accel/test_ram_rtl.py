"""Memories: registered reads, old data on a collision, and rings that are read two words at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymtl3 import DefaultPassGroup

from accel.ram.RamRTL import EvenAddressRTL, PairRamRTL, RamRTL
from accel.ram.RingAddRTL import RingAddRTL


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 13])
@given(data=st.data())
@settings(max_examples=12)
def test_a_read_gives_the_word_of_before_the_edge(depth: int, data: st.DataObject) -> None:
    ram = RamRTL(8, depth)
    ram.elaborate()
    ram.apply(DefaultPassGroup())
    ram.sim_reset()
    address, byte = st.integers(0, depth - 1), st.integers(0, 255)
    words = [0] * depth
    for raddr, wen, waddr, wdata in data.draw(st.lists(st.tuples(address, st.booleans(), address, byte), max_size=20)):
        ram.raddr @= raddr
        ram.wen @= wen
        ram.waddr @= waddr
        ram.wdata @= wdata
        ram.sim_tick()
        assert ram.rdata == words[raddr], "a collision must give the old word"
        if wen:
            words[waddr] = wdata


@pytest.mark.parametrize("words", [2, 4, 6, 10, 16])
def test_even_addresses_of_every_pair(words: int, open_pins: Callable) -> None:
    pins = open_pins(EvenAddressRTL(words), f"EvenAddress_{words}", "python")
    for addr in range(words):
        pins.drive(addr=addr)
        (even,) = (word for word in (addr, (addr + 1) % words) if word % 2 == 0)
        assert pins.read("even") == even // 2


@pytest.mark.parametrize("words", [2, 3, 8, 12])
def test_ring_addresses_wrap(words: int, open_pins: Callable) -> None:
    pins = open_pins(RingAddRTL(words), f"RingAdd_{words}", "python")
    for base in range(words):
        for step in range(words + 1):
            pins.drive(base=base, step=step)
            assert pins.read("out") == (base + step) % words


@pytest.mark.parametrize("words", [2, 4, 6, 10])
@given(data=st.data())
@settings(max_examples=12)
def test_a_ring_is_read_two_words_at_a_time(words: int, data: st.DataObject) -> None:
    ring = PairRamRTL(8, words)
    ring.elaborate()
    ring.apply(DefaultPassGroup())
    ring.sim_reset()
    stored = [0] * words
    for word in range(words):
        ring.wen @= 1
        ring.waddr @= word
        ring.wdata @= stored[word]
        ring.sim_tick()
    address, byte = st.integers(0, words - 1), st.integers(0, 255)
    for raddr, wen, waddr, wdata in data.draw(st.lists(st.tuples(address, st.booleans(), address, byte), max_size=25)):
        ring.raddr @= raddr
        ring.even_raddr @= (raddr + 1) // 2 % (words // 2)
        ring.wen @= wen
        ring.waddr @= waddr
        ring.wdata @= wdata
        ring.sim_tick()
        assert ring.low == stored[raddr]
        assert ring.high == stored[(raddr + 1) % words]
        if wen:
            stored[waddr] = wdata
