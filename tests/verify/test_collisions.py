"""What a memory reads where it is written in the same cycle does not matter: block RAM may answer anything."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from pymtl3 import Component, InPort, OutPort, Wire, update_ff

from accel import load_preset
from accel.config import REGISTERS, count_bits
from verify.harness import run_campaign

#: Cores that no other test simulates, since simulations are kept. With registers, what is written and what is read
#: come in other cycles.
PLAIN = load_preset("tiny").replace(weight_tiles=3, act_words=36, rows=3, drain_chains=2)
CORES = {"plain": PLAIN, "registers": PLAIN.replace(registers=REGISTERS, decode_registers=1, fanout_rows=2)}

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


@pytest.mark.parametrize("name", CORES)
def test_no_result_depends_on_a_collision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    COLLISIONS.clear()
    monkeypatch.setattr("accel.ram.RamRTL.RamColumnRTL", CollidingRamRTL)
    campaign = run_campaign(st.just(CORES[name]), ("golden", "cl", "rtl"), 12, 5)
    assert campaign.failure is None, f"{campaign.complaint}\n{campaign.failure}"
    # Accumulators, and memories of weights and activations.
    assert len(set(COLLISIONS)) >= 3
    assert COLLISIONS.count(CORES[name].acc_bits) > 20
