"""Memory systems that an estimate is made for, and the clock that their figures meet."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.memory import Memory


@dataclass(frozen=True)
class MemorySystem:
    """A memory's peak bandwidth and its latency, in the units of a data sheet."""

    #: Name in `MEMORIES`, or ``custom``.
    name: str
    #: 1 GB = 10⁹ bytes, reading and writing together.
    bandwidth_gb_s: float
    #: From a read's passing the port to the arrival of its data at the core.
    latency_ns: float

    def at_clock(self, clock_mhz: float) -> Memory:
        """Return the memory port in cycles of a core's clock."""
        from accel.memory import Memory

        return Memory.at_clock(self.bandwidth_gb_s, self.latency_ns, clock_mhz)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the memory."""
        return {"name": self.name, "bandwidth_gb_s": self.bandwidth_gb_s, "latency_ns": self.latency_ns}


#: Memories known by name. Bandwidth is the peak of the interface. Latencies are assumptions: round figures near
#: published measurements, which vary with the controller and with the page that is open.
MEMORIES = {
    memory.name: memory
    for memory in (
        # One 64-bit channel at 1600 MT/s (JEDEC JESD79-3). Altera's External Memory Interface Handbook, volume 3
        # (2011), has typical reads through DDR2 and DDR3 controllers at 75 to 180 ns, 100 ns for a Stratix IV.
        MemorySystem("ddr3-1600", 12.8, 100.0),
        # One 64-bit channel at 3200 MT/s (JEDEC JESD79-4). Idle DDR4 behind an FPGA's controller answers within
        # about 75 to 105 ns (Wang and others, "Shuhai: Benchmarking High Bandwidth Memory on FPGAs", FCCM 2020).
        MemorySystem("ddr4-3200", 25.6, 90.0),
        # Four 16-bit channels at 6400 MT/s (JEDEC JESD209-5). AnandTech measured 114 ns of random reads on the
        # Snapdragon 888's LPDDR5-6400 ("The Snapdragon 888 vs The Exynos 2100", 2021), its caches included.
        MemorySystem("lpddr5-6400", 51.2, 115.0),
        # Both stacks of an Alveo U280: 32 pseudo channels of 14.375 GB/s (AMD UG1393). Idle reads from the fabric
        # take about 105 to 140 ns (FCCM 2020, as above), which also has 425 GB/s as the most that it measured.
        MemorySystem("hbm2-u280", 460.0, 120.0),
    )
}

DEFAULT_MEMORY = "ddr4-3200"

#: Latency of a memory of which only the bandwidth is given: an assumption.
CUSTOM_LATENCY_NS = 100.0

#: A clock for which no synthesis report is given: an assumption.
CLOCK_MHZ = 500.0


def choose_memory(
    name: str | None = None, bandwidth_gb_s: float | None = None, latency_ns: float | None = None
) -> MemorySystem:
    """Return the memory of a name, or one of the given figures; `DEFAULT_MEMORY` when nothing is given.

    Raises
    ------
    ValueError
        The name is unknown or given with figures, a latency is given alone, or a figure is out of range.
    """
    if name is not None and (bandwidth_gb_s is not None or latency_ns is not None):
        raise ValueError(
            f"Both --memory {name} and figures of a memory were given; a memory is a name, or a bandwidth with a "
            "latency."
        )
    if bandwidth_gb_s is None:
        if latency_ns is not None:
            raise ValueError(
                f"A latency of {latency_ns} ns was given without a bandwidth; give --bandwidth with --latency, or "
                "--memory."
            )
        chosen = DEFAULT_MEMORY if name is None else name
        if chosen not in MEMORIES:
            raise ValueError(
                f"There is no memory named {chosen!r}; the memories are {', '.join(MEMORIES)}. "
                "Others are given by --bandwidth and --latency."
            )
        return MEMORIES[chosen]
    memory = MemorySystem("custom", bandwidth_gb_s, CUSTOM_LATENCY_NS if latency_ns is None else latency_ns)
    memory.at_clock(CLOCK_MHZ)  # refuses figures out of range
    return memory


@dataclass(frozen=True)
class Clock:
    """A core's clock and where it comes from."""

    mhz: float
    #: A phrase such as ``assumed``, or the file of a synthesis report.
    source: str = "assumed"


def choose_clock(mhz: float | None = None, report: Path | None = None) -> Clock:
    """Return the given clock or that of a synthesis report, whichever is given, else `CLOCK_MHZ`.

    Parameters
    ----------
    report
        A JSON object with the key ``fmax_mhz``.

    Raises
    ------
    ValueError
        Both are given, the clock is out of range, or the report is not JSON or states no such clock.
    OSError
        The report cannot be read.
    """
    if mhz is not None and report is not None:
        raise ValueError(f"Both --clock {mhz:g} and --clock-from {report} were given; a clock comes from one of them.")
    if report is not None:
        return Clock(_fmax(report), str(report))
    chosen = CLOCK_MHZ if mhz is None else mhz
    if not 0 < chosen < math.inf:
        raise ValueError(f"The clock is {chosen} MHz; it must be positive and finite.")
    return Clock(chosen)


def _fmax(report: Path) -> float:
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are no UTF-8 among them
        raise ValueError(f"{report} is not JSON: {error}.") from None
    if not isinstance(document, dict) or "fmax_mhz" not in document:
        raise ValueError(f"{report} has no fmax_mhz; a synthesis report is a JSON object with that key.")
    fmax = document["fmax_mhz"]
    if isinstance(fmax, bool) or not isinstance(fmax, (int, float)) or not 0 < fmax < math.inf:
        raise ValueError(f"fmax_mhz of {report} is {fmax!r}; it must be a positive, finite number of MHz.")
    return float(fmax)
