"""What the layers of a model cost with settings that a quantiser may give them: bits in memory, and cycles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from accel.config import ConfigError, CoreConfig
from accel.stream import StreamLayout, layout_for
from accel.timing import gemm_timings
from flows.memories import Clock, MemorySystem, choose_clock, choose_memory
from quant import LayerSettings

if TYPE_CHECKING:
    from quant.model_folder import ModelFolder

#: What a search makes small.
OBJECTIVES = ("size", "cycles")

#: Bits of a row's channel scale.
_CHANNEL_SCALE_BITS = 32


@dataclass(frozen=True)
class Pass:
    """What cycles are counted for: a prompt in one pass, and passes of one token after it."""

    prefill: int = 128
    decode: int = 32
    clock: Clock = field(default_factory=choose_clock)
    memory: MemorySystem = field(default_factory=choose_memory)

    def __post_init__(self) -> None:
        if self.prefill < 0 or self.decode < 0 or self.prefill + self.decode == 0:
            raise ValueError(
                f"prefill is {self.prefill} and decode {self.decode}; both are 0 or more, and one of them is not 0."
            )


class LayerCosts:
    """Costs of a model's linear layers on a core."""

    def __init__(self, folder: ModelFolder, core: CoreConfig, counted: Pass | None = None) -> None:
        self.core = core
        self._folder = folder
        self._counted = Pass() if counted is None else counted
        self._shapes = {
            f"{folder.architecture.block(index)}.{linear.name}": (linear.out_features, linear.in_features)
            for index in range(folder.sizes.blocks)
            for linear in folder.architecture.linears(folder.sizes)
        }
        self._cycles: dict[StreamLayout, int] = {}
        self._float_bits: dict[str, int] = {}

    def check(self, settings: Iterable[tuple[str, LayerSettings | None]]) -> None:
        """Refuse settings of layers, by their full names, that the core does not run.

        Raises
        ------
        ConfigError
            Naming the layer and the limit.
        """
        for name, chosen in settings:
            if chosen is not None:
                self.layout(name, chosen)

    def weights(self, name: str) -> int:
        """Weights of a layer, pruned ones counted."""
        return math.prod(self._shapes[name])

    def layout(self, name: str, settings: LayerSettings) -> StreamLayout:
        """Layout of a layer's stream.

        Raises
        ------
        ConfigError
            When the layer is beyond the core's capacity.
        """
        if settings.scale_bits > self.core.scale_bits:
            raise ConfigError(
                f"Group scales of {settings.scale_bits} bits were asked for, but this core's have "
                f"{self.core.scale_bits}; ask for fewer, or give a core whose scale_bits is {settings.scale_bits}."
            )
        try:
            return layout_for(
                self.core,
                settings.pattern,
                *self._shapes[name],
                settings.group_size,
                asymmetric=not settings.symmetric,
            )
        except ConfigError as error:
            raise ConfigError(f"{name} does not run on this core: {error}") from None

    def bits(self, name: str, settings: LayerSettings | None) -> int:
        """Bits of a layer's stream and channel scales; those of its weights in the model's own type if it is float."""
        if settings is None:
            if name not in self._float_bits:
                self._float_bits[name] = 8 * self._folder.tensor(f"{name}.weight").nbytes
            return self._float_bits[name]
        layout = self.layout(name, settings)
        return 8 * layout.payload_bytes + _CHANNEL_SCALE_BITS * layout.out_features

    def cycles(self, name: str, settings: LayerSettings | None) -> int:
        """Cycles of a layer in all passes; of a float one, those in which memory moves its weights for the host."""
        counted = self._counted
        if settings is None:
            passes = bool(counted.prefill) + counted.decode
            seconds = passes * self.bits(name, None) / 8 / (counted.memory.bandwidth_gb_s * 1e9)
            return math.ceil(seconds * counted.clock.mhz * 1e6)
        layout = self.layout(name, settings)
        if layout not in self._cycles:
            calls = [(rows, times) for rows, times in ((counted.prefill, 1), (1, counted.decode)) if rows and times]
            memory = counted.memory.at_clock(counted.clock.mhz)
            timings = gemm_timings(self.core, [(layout, rows) for rows, _ in calls], memory=memory)
            self._cycles[layout] = sum(
                timing.written * times for timing, (_, times) in zip(timings, calls, strict=True)
            )
        return self._cycles[layout]

    def of(self, objective: str) -> Callable[[str, LayerSettings | None], int]:
        """The cost that an objective counts.

        Raises
        ------
        ValueError
            If there is no such objective.
        """
        if objective not in OBJECTIVES:
            raise ValueError(f"The objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
        return self.bits if objective == "size" else self.cycles
