"""Core, cycle level against RTL, port by port: every handshake, word and counter in every cycle."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymtl3.dsl.Connectable import InPort, OutPort
from pymtl3.passes.sim.DynamicSchedulePass import DynamicSchedulePass
from pymtl3.passes.sim.GenDAGPass import GenDAGPass
from pymtl3.passes.sim.PrepareSimPass import PrepareSimPass

from accel import CoreConfig, load_preset
from accel.core.CoreCL import CoreCL
from accel.core.CoreMsg import mk_command_msg
from accel.core.CoreRTL import CoreRTL
from accel.image import act_port_bytes
from quant import NMPattern
from verify.cases import Case
from verify.gemm import GemmJob, prepare
from verify.stimulus import NO_STALLS, Stalls
from verify.strategies import cases, core_configs

TAIL = 6  # cycles after the last word, in which nothing may come any more


def drive(core: Any, jobs: list[GemmJob], stalls: Stalls, cycles: int | None = None) -> list[tuple[Any, ...]]:
    """What a core shows in each cycle: which streams it is ready for, its result word, its counters.

    GEMMs follow each other without a pause. The run ends after the last result, or after so many cycles.
    """
    config = jobs[0].config
    Command = mk_command_msg(config)
    port_bytes = act_port_bytes(config)
    commands = [Command(**command.fields()) for job in jobs for command in job.commands]
    weights: list[list[int]] = []
    for job in jobs:
        words = np.frombuffer(job.stream.payload, f"<u{config.slice_bytes}").reshape(-1, config.columns)
        weights += words.tolist() * len(job.commands)
    image = b"".join(job.acts for job in jobs)
    ports = [int.from_bytes(image[i : i + port_bytes], "little") for i in range(0, len(image), port_bytes)]
    acts = [ports[i : i + config.act_ports] for i in range(0, len(ports), config.act_ports)]
    left = sum(job.result_words for job in jobs)
    sent = {"command": 0, "weights": 0, "acts": 0}
    log: list[tuple[Any, ...]] = []
    last = None
    while (last is None or len(log) < last + TAIL) and len(log) != cycles:
        cycle = len(log)
        assert cycle < 60000, f"{left} words are missing after {cycle} cycles: {core.line_trace()}"
        go = {
            name: not (pattern and pattern[cycle % len(pattern)])
            for name in ("command", "weights", "acts", "results")
            for pattern in [getattr(stalls, name)]
        }
        core.command.val @= go["command"] and sent["command"] < len(commands)
        if core.command.val:
            core.command.msg @= commands[sent["command"]]
        for name, words in (("weights", weights), ("acts", acts)):
            stream = getattr(core, name)
            stream.val @= go[name] and sent[name] < len(words)
            if stream.val:
                for port, value in zip(stream.msg, words[sent[name]], strict=True):
                    port @= value
        core.results.rdy @= go["results"]
        word = int(core.results.msg) if core.results.val else None
        streams = (core.command, core.weights, core.acts)
        log.append((*(bool(stream.rdy) for stream in streams), word, *(int(count) for count in core.counters)))
        for name, stream in zip(sent, streams, strict=True):
            sent[name] += bool(stream.val and stream.rdy)
        left -= word is not None and go["results"]
        if left == 0 and last is None:
            last = cycle
        core.sim_tick()
    log.append(tuple(int(count) for count in core.counters))
    return log


def with_reset(core: Any, jobs: list[GemmJob], stalls: Stalls, reset_at: int | None) -> list[tuple[Any, ...]]:
    """The log of a run, after one that a reset of a single cycle has cut off."""
    begun = []
    if reset_at is not None:
        begun = drive(core, jobs, stalls, reset_at)
        core.reset @= 1
        core.sim_tick()
        core.reset @= 0
    return begun + drive(core, jobs, stalls)


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Case], Stalls]:
    """GEMMs of different patterns and shapes for one core, and stalls."""
    config = draw(core_configs())
    chain = draw(st.lists(cases(st.just(config)), min_size=1, max_size=3))
    return chain, chain[0].stalls


def jobs_of(chain: list[Case]) -> list[GemmJob]:
    jobs = []
    for case in chain:
        x, weight = case.build()
        jobs.append(prepare(case.config, x, weight, code=case.code))
    return jobs


@given(drawn=chains(), reset_at=st.none() | st.integers(1, 150))
def test_every_cycle_is_that_of_the_rtl(
    drawn: tuple[list[Case], Stalls], reset_at: int | None, simulated: Callable
) -> None:
    chain, stalls = drawn
    jobs = jobs_of(chain)
    rtl, cl = (with_reset(simulated(Core(chain[0].config)), jobs, stalls, reset_at) for Core in (CoreRTL, CoreCL))
    for cycle, (shown, wanted) in enumerate(zip(cl, rtl, strict=False)):
        assert shown == wanted, f"cycle {cycle}"
    assert len(cl) == len(rtl)


def in_order(core: Any, rng: random.Random) -> Any:
    """A simulated core whose blocks run in a random order at each edge."""
    core.elaborate()
    GenDAGPass()(core)
    DynamicSchedulePass()(core)
    rng.shuffle(core._sched.schedule_ff)
    PrepareSimPass(print_line_trace=False)(core)
    core.sim_reset()
    return core


@given(drawn=chains(), seed=st.integers(0, 1 << 16))
def test_the_order_of_blocks_at_an_edge_does_not_matter(drawn: tuple[list[Case], Stalls], seed: int) -> None:
    chain, stalls = drawn
    jobs = jobs_of(chain)
    rng = random.Random(seed)
    first, second = (drive(in_order(CoreCL(chain[0].config), rng), jobs, stalls) for _ in range(2))
    assert first == second


def ports_of(core: Any) -> dict[str, str]:
    """Name and type of every port, but for the clock's."""
    core.elaborate()
    return {
        repr(port)[2:]: f"{type(port).__name__} {port._dsl.Type.__name__}"
        for port in core.get_all_object_filter(lambda thing: isinstance(thing, (InPort, OutPort)))
        if port.get_host_component() is core
    }


ODD = load_preset("tiny").replace(columns=3, result_lanes=2, act_ports=1, window=5)


@pytest.mark.parametrize("config", [load_preset("tiny"), ODD], ids=["tiny", "odd"])
def test_ports_are_those_of_the_rtl(config: CoreConfig) -> None:
    ports = ports_of(CoreCL(config))
    assert ports == ports_of(CoreRTL(config))
    assert {"command.msg", "weights.msg[0]", "results.rdy", "counters[5]"} <= set(ports)


@pytest.mark.slow
def test_the_first_cycles_at_edge_are_those_of_the_rtl(simulated: Callable) -> None:
    case = Case(
        config=load_preset("edge"),
        pattern=NMPattern.parse("2:4"),
        tokens=16,
        in_features=128,
        out_features=16,
        group_size=128,
        symmetric=True,
        code=None,
        weights="uniform",
        acts="uniform",
        seed=3,
    )
    # RTL takes seconds for these cycles, in which a token block is loaded and a tile worked on.
    cl, rtl = (drive(simulated(Core(case.config)), jobs_of([case]), NO_STALLS, cycles=60) for Core in (CoreCL, CoreRTL))
    assert cl == rtl
