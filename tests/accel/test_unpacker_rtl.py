"""Unpacker: any cut of a byte stream into sections comes out whole, and reaches each column's buffer in its turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymtl3 import Component, InPort, OutPort, Wire

from accel import CoreConfig, load_preset
from accel.core.CoreMsg import mk_beat_msg, mk_command_msg, mk_write_msg
from accel.unpacker.UnpackerRTL import GearboxRTL, UnpackerRTL
from verify.gemm import GemmJob, prepare
from verify.strategies import cases, core_configs


class GearboxBench(Component):
    """A gearbox, with the fields of its messages as ports of their own."""

    def construct(s, config: CoreConfig) -> None:
        Beat, Write = mk_beat_msg(config), mk_write_msg(config)
        s.incoming = InPort(config.slice_bits)
        s.write = InPort(Write.nbits)
        s.data = OutPort(config.slice_bits)
        s.write_out = OutPort(Write.nbits)
        s.out_message = Wire(Write)
        s.gearbox = GearboxRTL(config)
        s.gearbox.incoming //= s.incoming
        s.gearbox.data //= s.data
        s.gearbox.write_out //= s.out_message
        for name, kind in Beat.__bitstruct_fields__.items():
            setattr(s, name, InPort(kind))
            getattr(s.gearbox.beat, name).__ifloordiv__(getattr(s, name))
        low = 0
        for name, kind in Write.__bitstruct_fields__.items():
            field = slice(low, low + kind.nbits)
            getattr(s.gearbox.write, name).__ifloordiv__(s.write[field])
            s.write_out[field] //= getattr(s.out_message, name)
            low += kind.nbits


def core(slice_bytes: int) -> CoreConfig:
    return load_preset("tiny").replace(lanes=1, patterns=("1:1", "1:2"), slice_bytes=slice_bytes)


def check_sections(slice_bytes: int, pins: object, beats: int) -> None:
    """Sections of random length, a slice at a time, as the unpacker's controller takes them; out a cycle later."""
    rng = random.Random(slice_bytes)
    write_bits = mk_write_msg(core(slice_bytes)).nbits
    stream: list[int] = []
    taken = held = 0
    left = 0
    for _ in range(beats):
        left = left or rng.choice([1, 2, slice_bytes, slice_bytes + 1, rng.randint(1, 40)])
        take = min(left, slice_bytes)
        need = held < take
        incoming = [rng.randrange(256) for _ in range(slice_bytes)]
        stalled = need and rng.random() < 0.3
        write = rng.getrandbits(write_bits)
        pins.drive(
            incoming=int.from_bytes(bytes(incoming), "little"),
            held_bytes=held,
            take_bytes=take,
            top_up=need,
            take=not stalled,
            clear=0,
            write=write,
        )
        pins.tick()
        assert pins.read("write_out") == write
        if not stalled:
            stream += incoming if need else []
            out = pins.read("data").to_bytes(slice_bytes, "little")
            assert list(out[:take]) == stream[taken : taken + take]
            taken += take
            held = len(stream) - taken
            left -= take
    # Cleared, it holds nothing of before: what comes next is the incoming slice alone.
    pins.drive(take=1, clear=1)
    pins.tick()
    pins.drive(clear=0, held_bytes=0, take_bytes=slice_bytes, top_up=1, incoming=1)
    pins.tick()
    assert pins.read("data") == 1


@pytest.mark.parametrize("slice_bytes", [1, 2, 4, 8])
def test_sections_follow_each_other_without_a_gap(slice_bytes: int, open_pins: Callable) -> None:
    bench = GearboxBench(core(slice_bytes))
    check_sections(slice_bytes, open_pins(bench, f"Gearbox_{slice_bytes}", "python"), 500)


def test_sections_in_the_translation(open_pins: Callable) -> None:
    check_sections(4, open_pins(GearboxBench(core(4)), "Gearbox_4", "verilog"), 2000)


# -- the whole unpacker ----------------------------------------------------------------------------------


def writes_of(config: CoreConfig, jobs: list[GemmJob], column: int) -> list[list[tuple[str, int, bytes]]]:
    """What goes into a column's buffer for each tile: which memory, where, and the bytes that count."""
    places = {"header": 0, "code": 0, "value": 0}
    sizes = {"header": config.header_slots, "code": config.code_words, "value": config.value_words}
    tiles = []
    for job in jobs:
        layout = job.stream.layout
        words = np.frombuffer(job.stream.payload, np.uint8).reshape(-1, config.columns, config.slice_bytes)
        for _ in job.commands:
            stream = words[:, column].tobytes()
            for _ in range(layout.out_tiles * layout.groups):
                tile = []
                header, stream = stream[: layout.header_bytes], stream[layout.header_bytes :]
                for part, first in enumerate(range(0, len(header), config.slice_bytes)):
                    tile.append((f"header{part}", places["header"], header[first : first + config.slice_bytes]))
                places["header"] = (places["header"] + 1) % sizes["header"]
                for name, count in (("code", layout.code_bytes), ("value", layout.value_bytes)):
                    section, stream = stream[:count], stream[count:]
                    for first in range(0, count, config.slice_bytes):
                        tile.append((name, places[name], section[first : first + config.slice_bytes]))
                        places[name] = (places[name] + 1) % sizes[name]
                tiles.append(tile)
    return tiles


def written(write: Any, data: Any, config: CoreConfig) -> tuple[str, int, bytes] | None:
    """The write of a cycle, at most one."""
    what = [
        (f"header{part}", int(write.header_addr)) for part in range(write.header_wen.nbits) if write.header_wen[part]
    ]
    what += [("code", int(write.code_addr))] if write.code_wen else []
    what += [("value", int(write.value_addr))] if write.value_wen else []
    assert len(what) <= 1
    return (*what[0], int(data).to_bytes(config.slice_bytes, "little")) if what else None


@given(data=st.data(), config=core_configs(), seed=st.integers(0, 1 << 16))
@settings(max_examples=30)
def test_every_column_gets_its_own_bytes_in_its_turn(
    data: Any, config: CoreConfig, seed: int, simulated: Callable
) -> None:
    """With a register in the place "weights", column c is c + 2 cycles later, and a tile is ready one cycle later."""
    rng = random.Random(seed)
    jobs = []
    for case in data.draw(st.lists(cases(st.just(config)), min_size=1, max_size=2)):
        x, weight = case.build()
        jobs.append(prepare(config, x, weight, code=case.code))
    moving = "weights" in config.registers
    Command = mk_command_msg(config)
    commands = [command for job in jobs for command in job.commands]
    words: list[list[int]] = []
    for job in jobs:
        layout = job.stream.layout
        for _ in job.commands:
            stream = np.frombuffer(job.stream.payload, np.uint8).reshape(-1, config.columns, config.slice_bytes).copy()
            # What fills up the last word may be anything: the next GEMM must not see it.
            end = layout.out_tiles * layout.groups * layout.tile_bytes - len(stream) * config.slice_bytes
            if end:
                stream[-1, :, end:] = rng.randrange(1, 256)
            words += stream.view(f"<u{config.slice_bytes}")[:, :, 0].tolist()
    tiles_of = [command for command in commands for _ in range(command.groups * command.out_tiles)]
    stalled, held = rng.choice([0.0, 0.3, 0.9]), rng.choice([0, 1, 12])
    dut = simulated(UnpackerRTL(config))
    found: list[list[tuple[int, tuple[str, int, bytes]]]] = [[] for _ in range(config.columns)]
    ready: list[int] = []
    first_words: list[int] = []
    sent = taken = freed = cycle = 0
    rest = config.columns + 3  # cycles that the last writes may take
    while freed < len(tiles_of) or rest:
        assert cycle < 20000, f"{freed} of {len(tiles_of)} tiles after {cycle} cycles: {dut.line_trace()}"
        rest -= freed == len(tiles_of)
        for c in range(config.columns):
            write = written(dut.write[c], dut.data[c], config)
            if write is not None:
                found[c].append((cycle, write))
        ready += [cycle] * int(dut.tile_ready)
        free = freed < len(ready) and ready[freed] + held <= cycle
        dut.tile_freed @= free
        dut.freed_code_words @= tiles_of[freed].code_words if free else 0
        dut.freed_value_words @= tiles_of[freed].value_words if free else 0
        freed += free
        dut.command.val @= sent < len(commands)
        if sent < len(commands):
            dut.command.msg @= Command(**commands[sent].fields())
        val = taken < len(words) and rng.random() >= stalled
        dut.weights.val @= val
        # Between words, the ports carry anything.
        slices = words[taken] if val else [rng.getrandbits(config.slice_bits) for _ in range(config.columns)]
        for port, value in zip(dut.weights.msg, slices, strict=True):
            port @= value
        if taken == 0 and val and dut.weights.rdy:
            first_words.append(cycle)
        sent += bool(dut.command.val and dut.command.rdy)
        taken += bool(val and dut.weights.rdy)
        dut.sim_tick()
        cycle += 1
    # A beat reaches the first buffer one cycle after it was taken.
    assert found[0][0][0] == first_words[0] + 1 + 2 * moving
    ends = []
    for c in range(config.columns):
        wanted = writes_of(config, jobs, c)
        assert len(found[c]) == sum(map(len, wanted))
        at = iter(found[c])
        for tile in wanted:
            for name, place, content in tile:
                then, (got_name, got_place, got) = next(at)
                assert (got_name, got_place) == (name, place)
                # Beyond a section's end there is whatever comes next.
                assert got[: len(content)] == content
            if c == 0:
                ends.append(then)
        assert [then for then, _ in found[c]] == [then + c * moving for then, _ in found[0]]
    assert ready == [end - moving for end in ends], "a step reads no sooner than two cycles after it hears of a tile"
