"""What a memory reads where it is written in the same cycle does not matter: block RAM may answer anything."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from pymtl3 import Component, InPort, OutPort, Wire, update_ff

from accel import load_preset
from accel.config import count_bits
from verify.harness import run_campaign

#: A core that no other test simulates, since simulations are kept.
CORE = load_preset("tiny").replace(weight_tiles=3, act_words=36, rows=3, drain_chains=2)

COLLISIONS: list[int] = []


class CollidingRamRTL(Component):
    """`RamColumnRTL`, but for a wrong answer on a collision."""

    def construct(s, nbits: int, depth: int) -> None:
        s.raddr = InPort(count_bits(depth - 1))
        s.rdata = OutPort(nbits)
        s.wen = InPort()
        s.waddr = InPort(count_bits(depth - 1))
        s.wdata = InPort(nbits)
        s.words = [Wire(nbits) for _ in range(max(2, depth))]

        @update_ff
        def ff_colliding_ram():
            s.rdata <<= s.words[s.raddr]
            if s.wen:
                s.words[s.waddr] <<= s.wdata
                if s.waddr == s.raddr:
                    s.rdata <<= ~s.wdata
                    COLLISIONS.append(nbits)


def test_no_result_depends_on_a_collision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accel.ram.RamRTL.RamColumnRTL", CollidingRamRTL)
    campaign = run_campaign(st.just(CORE), ("golden", "cl", "rtl"), 40, 5)
    assert campaign.failure is None, f"{campaign.complaint}\n{campaign.failure}"
    # Accumulators, and memories of weights and activations.
    assert len(set(COLLISIONS)) >= 3
    assert COLLISIONS.count(CORE.acc_bits) > 20
