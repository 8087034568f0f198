"""One way to drive a block's pins, in PyMTL3's simulation and in its translation under Verilator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymtl3 import Component, DefaultPassGroup

from verify.signal_level import translate_and_open

LEVELS = ("python", "verilog")


class PythonPins:
    """Pins of a block in PyMTL3's own simulation."""

    def __init__(self, component: Component) -> None:
        component.elaborate()
        component.apply(DefaultPassGroup())
        component.sim_reset()
        self._component = component

    def drive(self, **values: int) -> None:
        """Set inputs; outputs that depend on them without a clock edge follow at once."""
        for name, value in values.items():
            port = getattr(self._component, name)
            port @= value
        self._component.sim_eval_combinational()

    def read(self, name: str) -> int:
        return int(getattr(self._component, name))

    def tick(self) -> None:
        self._component.sim_tick()


class VerilogPins:
    """Pins of a block's translation under Verilator."""

    def __init__(self, simulation: Any) -> None:
        self._io = simulation.io
        self._clock = simulation.clock
        self._io.reset = 1
        self.tick()
        self._io.reset = 0

    def drive(self, **values: int) -> None:
        for name, value in values.items():
            setattr(self._io, name, value)

    def read(self, name: str) -> int:
        return int(getattr(self._io, name))

    def tick(self) -> None:
        self._clock.tick()


@pytest.fixture(scope="session")
def simulated() -> Callable[[Component], Any]:
    """``simulated(component)`` elaborates a component of any level and resets it, to be driven port by port."""

    def ready(component: Component) -> Any:
        component.elaborate()
        component.apply(DefaultPassGroup())
        component.sim_reset()
        return component

    return ready


@pytest.fixture
def open_pins(tmp_path: Path) -> Callable[[Component, str, str], PythonPins | VerilogPins]:
    """``open_pins(component, name, level)`` elaborates a component with single ports and resets it."""

    def opened(component: Component, name: str, level: str) -> PythonPins | VerilogPins:
        if level == "python":
            return PythonPins(component)
        return VerilogPins(translate_and_open(component, name, tmp_path / name))

    return opened
