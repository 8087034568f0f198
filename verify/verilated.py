"""Verilog level: the translated core under Verilator, with a C++ testbench that holds the memory.

One crossing from Python a GEMM: the images go in as pointers, and a thread polls the progress.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from accel.causes import CAUSES
from accel.command import Command
from accel.config import CoreConfig
from accel.core.CoreMsg import mk_command_msg
from accel.image import act_port_bytes
from accel.memory import Memory
from accel.naming import module_name
from accel.verilog import core_verilog
from verify.memory import act_burst_words, ticks_of, tile_column_bytes, write_burst_words
from verify.rtl import HangError, LevelRun, cycle_limit
from verify.stimulus import NO_STALLS, STREAMS, Stalls
from verify.verilator_build import FAST_VERILATOR_FLAGS, build_library

#: For models that start at random values: a variable of its own for each unknown bit.
RANDOM_RESET_FLAGS = ("-O3", "--x-assign", "unique", "--x-initial", "unique", "--no-assert")

_TESTBENCH = Path(__file__).with_name("testbench.cpp")

_PORTS = {
    "COMMAND_VAL": "command__val",
    "COMMAND_RDY": "command__rdy",
    "COMMAND_MSG": "command__msg",
    "WEIGHTS_VAL": "weights__val",
    "WEIGHTS_RDY": "weights__rdy",
    "WEIGHTS_MSG": "weights__msg",
    "ACTS_VAL": "acts__val",
    "ACTS_RDY": "acts__rdy",
    "ACTS_MSG": "acts__msg",
    "RESULTS_VAL": "results__val",
    "RESULTS_RDY": "results__rdy",
    "RESULTS_MSG": "results__msg",
    "COUNTERS": "counters",
}


class _Pattern(ctypes.Structure):
    _fields_ = (("bits", ctypes.c_char_p), ("length", ctypes.c_uint64))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("cycle_ticks", ctypes.c_uint64),
        ("weight_ticks", ctypes.c_uint64),
        ("act_ticks", ctypes.c_uint64),
        ("result_ticks", ctypes.c_uint64),
        ("latency", ctypes.c_uint64),
        ("depth", ctypes.c_uint64),
        ("out_tiles", ctypes.c_uint64),
        ("groups", ctypes.c_uint64),
        ("tile_bytes", ctypes.c_uint64),
        ("act_words", ctypes.POINTER(ctypes.c_uint64)),
        ("write_words", ctypes.POINTER(ctypes.c_uint64)),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        ("commands", ctypes.c_char_p),
        ("command_count", ctypes.c_uint64),
        ("weights", ctypes.c_char_p),
        ("weight_words", ctypes.c_uint64),
        ("acts", ctypes.c_char_p),
        ("act_words", ctypes.c_uint64),
        ("results", ctypes.c_void_p),
        ("result_words", ctypes.c_uint64),
        ("result_bytes", ctypes.c_uint64),
        ("word_cycles", ctypes.POINTER(ctypes.c_uint64)),
        ("stalls", _Pattern * 4),
        ("memory", _Memory),
        ("cycle_limit", ctypes.c_uint64),
        ("reset_seed", ctypes.c_uint64),
        ("progress", ctypes.POINTER(ctypes.c_uint64)),
        ("cancel", ctypes.POINTER(ctypes.c_uint8)),
        ("cycles", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
        ("counters", ctypes.c_uint64 * len(CAUSES)),
    )


def testbench_source(config: CoreConfig) -> str:
    """C++ of the testbench with the core's geometry and port names in front."""
    constants = {
        "COLUMNS": config.columns,
        "SLICE_BYTES": config.slice_bytes,
        "ACT_PORTS": config.act_ports,
        "ACT_PORT_BYTES": act_port_bytes(config),
        "COMMAND_BYTES": _command_bytes(config),
        "CAUSES": len(CAUSES),
        # Verilator escapes a double underscore in a name.
        **{macro: port.replace("__", "___05F") for macro, port in _PORTS.items()},
    }
    return "".join(f"#define {name} {value}\n" for name, value in constants.items()) + _TESTBENCH.read_text("utf-8")


def _command_bytes(config: CoreConfig) -> int:
    """Bytes of the model's variable for a command: Verilator uses 1, 2, 4, 8 or whole 32-bit words."""
    bits = mk_command_msg(config).nbits
    for size in (1, 2, 4, 8):
        if bits <= 8 * size:
            return size
    return 4 * -(-bits // 32)


@lru_cache(maxsize=64)
def load_core(config: CoreConfig, random_reset: bool = False) -> ctypes.CDLL:
    """The verilated core of a configuration, built on first use and kept in the build cache.

    Parameters
    ----------
    random_reset
        Build a model whose registers and memories start at random values instead of zero.
    """
    library = build_library(
        core_verilog(config),
        module_name("CoreRTL", config),
        testbench_source(config),
        verilator_flags=RANDOM_RESET_FLAGS if random_reset else FAST_VERILATOR_FLAGS,
    )
    return open_library(library)


def open_library(library: Path) -> ctypes.CDLL:
    """Load a library that was built from `testbench_source`."""
    core = ctypes.CDLL(str(library))
    core.nimble_run.argtypes = [ctypes.POINTER(_Job)]
    core.nimble_run.restype = ctypes.c_int
    return core


def run_verilated(
    config: CoreConfig,
    commands: list[Command],
    weights: bytes,
    acts: bytes,
    result_words: int,
    stalls: Stalls = NO_STALLS,
    memory: Memory | None = None,
    progress: Callable[[int], None] | None = None,
    reset_seed: int = 0,
    core: ctypes.CDLL | None = None,
) -> LevelRun:
    """Run the commands of one GEMM on the verilated core; arguments as for `verify.rtl.run_simulated`.

    Parameters
    ----------
    reset_seed
        Other than zero: registers and memories start at random values drawn from it, so that a register which
        reset forgets shows (a zero start hides it).
    progress
        Called now and then with the number of result words that have come.
    core
        Another model of the core, from `open_library`; by default that of `load_core`.

    Raises
    ------
    HangError
        When results stay away.
    ValueError
        When the bandwidth is a fraction too fine for the testbench's 64-bit numbers.
    """
    core = core or load_core(config, random_reset=bool(reset_seed))
    Message = mk_command_msg(config)
    size = _command_bytes(config)
    encoded = b"".join(int(Message(**command.fields()).to_bits()).to_bytes(size, "little") for command in commands)
    result_bytes = config.result_lanes * (8 if commands[0].wide else 4)
    results = ctypes.create_string_buffer(max(1, result_words * result_bytes))
    word_cycles = (ctypes.c_uint64 * max(1, result_words))()
    done, cancel = ctypes.c_uint64(0), ctypes.c_uint8(0)
    job = _Job(
        commands=encoded,
        command_count=len(commands),
        weights=weights,
        weight_words=len(weights) // config.word_bytes,
        acts=acts,
        act_words=len(acts) // (config.act_ports * act_port_bytes(config)),
        results=ctypes.cast(results, ctypes.c_void_p),
        result_words=result_words,
        result_bytes=result_bytes,
        word_cycles=word_cycles,
        cycle_limit=cycle_limit(config, commands, stalls, memory),
        reset_seed=reset_seed,
        progress=ctypes.pointer(done),
        cancel=ctypes.pointer(cancel),
    )
    for i, name in enumerate(STREAMS):
        pattern = bytes(getattr(stalls, name))
        job.stalls[i] = _Pattern(pattern, len(pattern))
    if memory is not None:
        job.memory = _memory(config, commands, memory)
    status = _call(core, job, done, cancel, progress)
    if status == 1:
        raise HangError(
            f"After {job.cycles} cycles {done.value} of {result_words} result words have come: the core hangs."
        )
    counters = dict(zip(CAUSES, job.counters, strict=True))
    image = results.raw[: result_words * result_bytes]
    return LevelRun(image, sum(counters.values()), counters, tuple(word_cycles[:result_words]), int(job.written))


def _memory(config: CoreConfig, commands: list[Command], memory: Memory) -> _Memory:
    """The memory in the testbench's numbers."""
    ticks = ticks_of(config, commands, memory)
    if max(ticks.cycle, ticks.weight, ticks.act, ticks.result, memory.latency) >= 1 << 63:
        raise ValueError(
            f"A bandwidth of {memory.bytes_per_cycle} bytes a cycle, or a latency of {memory.latency} cycles, is too "
            f"fine or too long for 64-bit numbers; round it (Fraction.limit_denominator)."
        )
    tile_bytes = tile_column_bytes(config, commands[0])
    Words = ctypes.c_uint64 * len(commands)
    return _Memory(
        cycle_ticks=ticks.cycle,
        weight_ticks=ticks.weight,
        act_ticks=ticks.act,
        result_ticks=ticks.result,
        latency=memory.latency,
        depth=memory.depth(config.columns * tile_bytes),
        out_tiles=commands[0].out_tiles,
        groups=commands[0].groups,
        tile_bytes=tile_bytes,
        act_words=Words(*(act_burst_words(config, command) for command in commands)),
        write_words=Words(*(write_burst_words(config, command) for command in commands)),
    )


def _call(
    core: ctypes.CDLL,
    job: _Job,
    done: ctypes.c_uint64,
    cancel: ctypes.c_uint8,
    progress: Callable[[int], None] | None,
) -> int:
    """Run the job in a thread, so that progress can be shown and Ctrl-C stops it."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(core.nimble_run(ctypes.byref(job))), daemon=True)
    thread.start()
    pause = 0.001
    try:
        while thread.is_alive():
            thread.join(pause)
            pause = min(2 * pause, 0.1)
            if progress is not None:
                progress(int(done.value))
    except BaseException:
        cancel.value = 1
        thread.join()
        raise
    return status[0]
