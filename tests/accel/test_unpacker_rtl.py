"""Gearbox of the unpacker: any cut of a byte stream into sections comes out whole."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from accel.unpacker.UnpackerRTL import GearboxRTL


def check_sections(slice_bytes: int, pins: object, beats: int) -> None:
    """Sections of random length, a slice at a time, as the unpacker's controller takes them."""
    rng = random.Random(slice_bytes)
    stream: list[int] = []
    taken = held = 0
    left = 0
    for _ in range(beats):
        left = left or rng.choice([1, 2, slice_bytes, slice_bytes + 1, rng.randint(1, 40)])
        take = min(left, slice_bytes)
        need = held < take
        incoming = [rng.randrange(256) for _ in range(slice_bytes)]
        stalled = need and rng.random() < 0.3
        pins.drive(
            incoming=int.from_bytes(bytes(incoming), "little"),
            held_bytes=held,
            take_bytes=take,
            top_up=need,
            take=not stalled,
            clear=0,
        )
        if not stalled:
            stream += incoming if need else []
            out = pins.read("out").to_bytes(slice_bytes, "little")
            assert list(out[:take]) == stream[taken : taken + take]
            taken += take
            held = len(stream) - taken
            left -= take
        pins.tick()
    # Cleared, it holds nothing of before: what comes next is the incoming slice alone.
    pins.drive(take=1, clear=1)
    pins.tick()
    pins.drive(clear=0, held_bytes=0, take_bytes=slice_bytes, top_up=1, incoming=1)
    assert pins.read("out") == 1


@pytest.mark.parametrize("slice_bytes", [1, 2, 4, 8])
def test_sections_follow_each_other_without_a_gap(slice_bytes: int, open_pins: Callable) -> None:
    check_sections(slice_bytes, open_pins(GearboxRTL(slice_bytes), f"Gearbox_{slice_bytes}", "python"), 500)


def test_sections_in_the_translation(open_pins: Callable) -> None:
    check_sections(4, open_pins(GearboxRTL(4), "Gearbox_4", "verilog"), 2000)
