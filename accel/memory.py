"""The memory behind the core's streams: one port with a bandwidth and a latency, and the DMA in front of it.

What is written here is the contract between the environment that drives RTL, CL and Verilog word by word
(`verify.memory`, `verify/testbench.cpp`) and `accel.timing`, which computes the same without simulating.
Cycle 0 is the first one in which the core is offered a command.

Everything moves in bursts of stream words:

* activations: all words of a token block, one burst a command;
* weights: the words that a tile is the first to need. Tile j of a command needs the bytes j·b … (j + 1)·b − 1
  of each column, so its burst is the words ⌈j·b / s⌉ … ⌈(j + 1)·b / s⌉ − 1, for tiles of b and slices of s
  bytes. A tile without a word of its own has no burst;
* results: all words of an output tile.

Issue. Reads are issued in program order, several in a cycle if they may, and none before the one before it: the
activations of a command, its weight tiles, the activations of the next command, and so on.

* Activations are issued in the first cycle in which the core is ready for them: ``acts.rdy`` is high, and
  all words of the blocks before have been taken (in cycles before).
* A weight tile is issued when the buffer of the DMA has room: at most ``depth`` tiles are in flight or held, so
  tile j, counted over all commands, follows at the earliest the cycle in which the last word of tile
  j − depth (of those tiles up to it) was taken, by one cycle.
* A write is issued in the cycle after the last word of its output tile has left the core.

Service. The port serves one burst at a time, reads in order of issue and writes in order of issue, and no read
starts while a write waits that was issued by then. (In order of issue over both, steady states took hundreds of
output tiles to come about.) A word takes max(1, its bytes / ``bytes_per_cycle``) cycles of the port: it is one
word wide. Port time is exact, not rounded, from one weight tile to the next of the same output tile when nothing
was served between them; every other burst starts in a whole cycle, rounded up. Word k = 0, 1, … of a read that
starts at s can be taken from cycle ⌈s + (k + 1)·t⌉ + ``latency`` on, for t cycles a word; a write of n words is in
memory after cycle ⌈s + n·t⌉. Results are always taken: writes wait for one read at most, and for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

#: Most weight tiles in flight or held by the DMA, however small they are.
DEPTH_MAX = 64


@dataclass(frozen=True)
class Memory:
    """A memory port, in cycles of the core.

    Raises
    ------
    ValueError
        When there is no bandwidth, or a negative latency or buffer.
    """

    #: Bytes that the port moves in a cycle of the core, reading and writing together.
    bytes_per_cycle: Fraction
    #: Cycles from a word's passing the port to its arrival at the core.
    latency: int = 0
    #: Bytes of weights that the DMA keeps in flight or buffered, at least two tiles' worth.
    buffer_bytes: int = 16384

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes_per_cycle", Fraction(self.bytes_per_cycle))
        if self.bytes_per_cycle <= 0:
            rate = float(self.bytes_per_cycle)
            raise ValueError(f"A memory moves more than 0 bytes a cycle, but {rate:g} was given.")
        for name in ("latency", "buffer_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} of a memory is a whole number from 0 on, but {value!r} was given.")

    @classmethod
    def at_clock(cls, bandwidth_gb_s: float, latency_ns: float, clock_mhz: float) -> Memory:
        """The memory in cycles of a clock; 1 GB = 10⁹ bytes. Latency is rounded up to whole cycles.

        Raises
        ------
        ValueError
            When the bandwidth or the clock is not positive and finite, or the latency negative.
        """
        for name, value, unit in (("bandwidth", bandwidth_gb_s, "GB/s"), ("clock", clock_mhz, "MHz")):
            if not 0 < value < float("inf"):
                raise ValueError(f"The {name} is {value} {unit}; it must be positive and finite.")
        if not 0 <= latency_ns < float("inf"):
            raise ValueError(f"The latency is {latency_ns} ns; it must be 0 or more, and finite.")
        rate = Fraction(str(bandwidth_gb_s)) * 1000 / Fraction(str(clock_mhz))
        cycles = Fraction(str(latency_ns)) * Fraction(str(clock_mhz)) / 1000
        return cls(rate.limit_denominator(4096), -(-cycles.numerator // cycles.denominator))

    def depth(self, tile_bytes: int) -> int:
        """Weight tiles, of ``tile_bytes`` bytes over all columns, that the DMA keeps in flight or buffered."""
        return min(DEPTH_MAX, max(2, self.buffer_bytes // tile_bytes))

    def word_cycles(self, word_bytes: int) -> Fraction:
        """Cycles of the port that a stream word takes."""
        return max(Fraction(1), word_bytes / self.bytes_per_cycle)
