"""Many cores for one model and one memory: what each takes and how fast it is, and which are worth building.

A core's area comes from the model of `flows.area_model`, its speed from `flows.estimate`, so that it is what
``nimble estimate`` prints for that core.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

from accel.config import ANY_PATTERN, ConfigError, CoreConfig
from flows.area_model import Area, AreaModel, HeldOut, Placing, fit, held_out
from flows.area_points import DENSE_ONLY, WITHOUT_CODES, read_points
from flows.estimate import estimate_model, traces_of
from flows.info import pattern_name
from flows.model_trace import ModelTrace
from flows.parallel import Workers
from flows.terminal import progress
from flows.workload import Workload
from quant import NMPattern
from quant.atomic_file import write_text

SCHEMA = "nimble.exploration"
VERSION = 1

#: The largest ECP5, LFE5U-85F: LUTs, multipliers of 18 bits, and block RAMs of 18 Kbit (Lattice FPGA-DS-02012).
DEVICE_LUTS, DEVICE_DSP, DEVICE_BRAM = 83640, 156, 208

#: Clock of the cores for which no synthesis report is given: what ``nimble synth`` works towards on ECP5.
CLOCK_MHZ = 120.0

#: Cores are priced by so many at a time, and then written to the file.
CHUNK = 4

#: Patterns that cores are generated for: all that fit their windows, or those that are asked for.
SUPPORTS = ("any", "listed")

OBJECTIVES = ("decode", "prefill")

SLICE_BYTES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Grid:
    """Values of the parameters that are swept."""

    rows: tuple[int, ...] = (4, 8, 16)
    columns: tuple[int, ...] = (4, 8, 16)
    lanes: tuple[int, ...] = (2, 4, 8)
    window: tuple[int, ...] = (8, 16)
    drain_chains: tuple[int, ...] = (1, 2)
    weight_tiles: tuple[int, ...] = (2, 3)
    #: The activation buffer in rows of k_max activations, for each PE row.
    act_rows: tuple[int, ...] = (1,)
    #: Bytes of a slice; 0 for the fewest that the other parameters allow.
    slice_bytes: tuple[int, ...] = (0,)
    #: Patterns that the core is generated for: some of `SUPPORTS`.
    support: tuple[str, ...] = ("any", "listed")

    def check(self) -> None:
        """Refuse a value that stands twice, and a support that does not exist.

        Raises
        ------
        ValueError
            In a full sentence.
        """
        for name, values in asdict(self).items():
            if len(set(values)) != len(values):
                raise ValueError(f"{name} is {', '.join(map(str, values))}; each value is named once.")
        for support in self.support:
            if support not in SUPPORTS:
                raise ValueError(f"support is {support!r}; it must be one of {', '.join(SUPPORTS)}.")

    def __len__(self) -> int:
        size = 1
        for values in asdict(self).values():
            size *= len(values)
        return size

    def cores(self, base: CoreConfig, patterns: Sequence[NMPattern]) -> Iterator[CoreConfig | str]:
        """Every core of the grid in order, or why there is none; the other parameters are the base's.

        No core has more `act_ports` than rows, or more `result_lanes` than columns. One for listed patterns runs
        dense weights, too, as attention has them.
        """
        listed = tuple(dict.fromkeys((*DENSE_ONLY, *(str(pattern) for pattern in patterns if not pattern.is_dense))))
        for values in product(*asdict(self).values()):
            named = dict(zip(asdict(self), values, strict=True))
            try:
                yield _core(base, listed if named.pop("support") == "listed" else ANY_PATTERN, **named)
            except ConfigError as error:
                yield str(error)


def _core(base: CoreConfig, patterns: tuple[str, ...], *, act_rows: int, slice_bytes: int, **swept: int) -> CoreConfig:
    rows, columns, window = swept["rows"], swept["columns"], swept["window"]
    changes: dict[str, Any] = {
        **swept,
        "patterns": patterns,
        "act_words": 2 * -(-act_rows * -(-base.k_max // max(1, window)) // 2),
        "act_ports": min(base.act_ports, rows),
        "result_lanes": min(base.result_lanes, columns),
    }
    if patterns == DENSE_ONLY:
        changes |= WITHOUT_CODES
    if slice_bytes:
        return base.replace(**changes, slice_bytes=slice_bytes)
    for least in SLICE_BYTES[:-1]:
        try:
            return base.replace(**changes, slice_bytes=least)
        except ConfigError:
            continue
    return base.replace(**changes, slice_bytes=SLICE_BYTES[-1])


@dataclass(frozen=True)
class Plan:
    """What is explored."""

    #: The workload of every core; its config is the base, which gives the parameters that are not swept.
    workload: Workload
    #: What the user calls the base.
    base: str
    grid: Grid
    patterns: tuple[NMPattern, ...]
    #: Most LUTs and block RAMs of a core, and multiplier blocks that it uses at most.
    luts: int = DEVICE_LUTS
    dsp: int = DEVICE_DSP
    bram: int = DEVICE_BRAM
    #: Speed that the front is made of: one of `OBJECTIVES`.
    objective: str = "decode"

    def check(self) -> None:
        """Refuse what cannot be explored.

        Raises
        ------
        ValueError
            In a full sentence.
        """
        self.workload.check()
        self.grid.check()
        for name, value, least in (("luts", self.luts, 1), ("dsp", self.dsp, 0), ("bram", self.bram, 0)):
            if value < least:
                raise ValueError(f"The budget {name} is {value}; it is a number from {least} on.")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"The objective is {self.objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
        if not getattr(self.workload, self.objective):
            raise ValueError(f"The objective is {self.objective}, but there are 0 tokens of it.")

    def document(self) -> dict[str, Any]:
        """Return the parameters that must be the same for an exploration to go on."""
        work = self.workload
        return {
            "model": work.model,
            "base": self.base,
            "base_parameters": work.config.as_dict(),
            "grid": {name: list(values) for name, values in asdict(self.grid).items()},
            "patterns": [pattern_name(pattern) for pattern in self.patterns],
            "prefill": work.prefill,
            "decode": work.decode,
            "batch": work.batch,
            "group_size": work.group_size,
            "asymmetric": work.asymmetric,
            "attention": work.attention,
            "lm_head": work.lm_head,
            "clock_mhz": work.clock.mhz,
            "clock_source": work.clock.source,
            "memory": work.memory.document(),
            "luts": self.luts,
            "dsp": self.dsp,
            "bram": self.bram,
            "objective": self.objective,
        }


@dataclass(frozen=True)
class Priced:
    """One core, what it takes, and how fast it is with each pattern."""

    config: CoreConfig
    area: Area
    #: Multipliers in blocks, as ``nimble synth --dsp`` takes it.
    multipliers: int
    #: By pattern: tokens a second and cycles, of each phase that has tokens.
    speeds: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def document(self) -> dict[str, Any]:
        """Return one entry of ``cores``."""
        return {
            "parameters": self.config.as_dict(),
            "area": self.area.document(),
            "multipliers_in_blocks": self.multipliers,
            "speeds": self.speeds,
        }


@dataclass(frozen=True)
class Exploration:
    """The cores of a plan."""

    plan: Plan
    #: The model's name.
    model: str
    priced: tuple[Priced, ...]
    #: Reasons why there is no core, with an example and how often.
    invalid: tuple[tuple[str, int], ...]
    #: Reasons why a core does not run the model.
    unable: tuple[tuple[str, int], ...]
    #: Cores beyond the budget of LUTs, and of the others, those beyond that of block RAMs.
    over_luts: int
    over_bram: int
    area_model: AreaModel
    held_out: HeldOut
    #: Target, tools and digest of the points.
    points: Mapping[str, Any]
    program: str
    complete: bool = True

    def front(self, pattern: NMPattern, objective: str | None = None) -> list[Priced]:
        """The cores that no other one beats in LUTs and speed at once, smallest first."""
        chosen = objective or self.plan.objective
        name = pattern_name(pattern)
        costs = [(core.area.lut, -core.speeds[name][chosen]["tokens_per_second"]) for core in self.priced]
        return [self.priced[index] for index in sorted(pareto_front(costs), key=lambda index: costs[index])]

    @property
    def objectives(self) -> list[str]:
        """Phases that have tokens, the plan's objective first."""
        work = self.plan.workload
        named = [name for name in OBJECTIVES if getattr(work, name)]
        return sorted(named, key=lambda name: name != self.plan.objective)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the numbers rest on, in full sentences."""
        clock = self.plan.workload.clock
        source = "no synthesis result stands behind it" if clock.source == "assumed" else f"it is from {clock.source}"
        found = self.held_out
        return (
            f"Speeds are those of nimble estimate; every core is taken to run at {clock.mhz:g} MHz: {source}. Larger "
            "windows and more lanes make a core slower, which is not in it.",
            f"LUTs are modelled from {found.points} synthesised cores of other sizes ({self.points['target']}, "
            f"{', '.join(tool['version'] for tool in self.points['tools'])}). On cores left out of the fit "
            f"({found.folds} turns) the model is off by {100 * found.median:.1f} % (median) and at most "
            f"{100 * found.worst:.1f} %.",
            f"Multiplier blocks and block RAMs follow from rules that miss {found.dsp_misses} and "
            f"{found.bram_misses} of these cores. A core uses up to {self.plan.dsp} multiplier blocks, the scale "
            "units' multipliers first; the others are of LUTs.",
        )

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble explore``, which is also its file."""
        index = {id(core): number for number, core in enumerate(self.priced)}
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "program": self.program,
            "model": self.model,
            "parameters": self.plan.document(),
            "complete": self.complete,
            "counts": {
                "grid": len(self.plan.grid),
                "invalid": sum(count for _, count in self.invalid),
                "over_luts": self.over_luts,
                "over_bram": self.over_bram,
                "unable": sum(count for _, count in self.unable),
                "priced": len(self.priced),
            },
            "invalid": [{"reason": reason, "count": count} for reason, count in self.invalid],
            "unable": [{"reason": reason, "count": count} for reason, count in self.unable],
            "area_model": {**self.points, **self.held_out.document(), **self.area_model.document()},
            "fronts": {
                pattern_name(pattern): {
                    objective: [index[id(core)] for core in self.front(pattern, objective)]
                    for objective in self.objectives
                }
                for pattern in self.plan.patterns
            },
            "cores": [core.document() for core in self.priced],
            "assumptions": list(self.assumptions),
        }


def pareto_front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return which of some points no other point beats, in order.

    A point beats another one if it costs less by one measure and not more by any. Equal points do not beat
    each other.
    """
    front: list[int] = []
    # A point is only ever beaten by one that comes before it in this order, and so by one of the front.
    for index in sorted(range(len(costs)), key=lambda index: tuple(costs[index])):
        point = tuple(costs[index])
        if not any(
            tuple(costs[other]) != point and all(a <= b for a, b in zip(costs[other], point, strict=True))
            for other in front
        ):
            front.append(index)
    return sorted(front)


# -- pricing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Some cores to be priced, and all that a process needs to know for it."""

    workload: Workload
    patterns: tuple[NMPattern, ...]
    traces: Mapping[str, ModelTrace]
    #: Cores by their numbers.
    cores: tuple[tuple[int, CoreConfig], ...]


class Prices(NamedTuple):
    """What a process has found out about a batch."""

    #: Digest of its program.
    program: str
    #: By the core's number: its speeds by pattern, or why it does not run the model.
    speeds: dict[int, dict[str, Any] | str]


def price(batch: Batch) -> Prices:
    """Estimate each core of a batch.

    Raises
    ------
    ValueError
        The workload is no possible one on any core.
    """
    prices = Prices(program_digest(), {})
    for number, config in batch.cores:
        try:
            estimates = estimate_model("", replace(batch.workload, config=config), batch.patterns, batch.traces)
        except ConfigError as error:
            prices.speeds[number] = str(error)
            continue
        speeds = {}
        for estimate in estimates.estimates:
            phases = {name: total for name, total in estimate.totals.items() if name != "total"}
            speeds[estimate.recipe.name] = {
                name: {
                    "tokens_per_second": total.tokens_per_second,
                    "cycles": total.cycles,
                    "seconds": total.seconds,
                    "bound": total.bound,
                }
                for name, total in phases.items()
            }
        prices.speeds[number] = speeds
    return prices


def explore(plan: Plan, points: Path, workers: Workers, file: Path | None = None) -> Exploration:
    """Price every core of a plan that is within its budgets.

    Parameters
    ----------
    points : the synthesised cores that the area model is fitted to.
    file : where speeds are kept as they are found. If it exists, it is an earlier run of the same plan, which goes on.

    Raises
    ------
    ValueError
        The plan is no possible one, the points are of another version's cores, or the file holds something else.
    OSError
        A file cannot be read or written.
    """
    plan.check()
    workers.check()
    read = read_points(points)
    area_model, errors = fit(read.in_order), held_out(read.in_order)
    with progress(f"Tracing {plan.workload.model}"):
        traces = traces_of(plan.workload)
    program = program_digest()
    facts = {
        "target": read.document()["target"],
        "tools": [dict(tool) for tool in read.tools],
        "sources": read.sources,
        "points_digest": hashlib.sha256(json.dumps(read.document(), sort_keys=True).encode()).hexdigest(),
    }
    invalid: list[str] = []
    over = Counter[str]()
    chosen: list[tuple[CoreConfig, Placing, Area]] = []
    with progress("Sizing cores", total=len(plan.grid)) as bar:
        for core in plan.grid.cores(plan.workload.config, plan.patterns):
            bar.advance()
            if isinstance(core, str):
                invalid.append(core)
                continue
            placing = Placing.within(core, plan.dsp)
            area = area_model.area(core, placing)
            if area.lut > plan.luts:
                over["luts"] += 1
            elif area.bram > plan.bram:
                over["bram"] += 1
            else:
                chosen.append((core, placing, area))
    kept = _Kept(plan, program, facts["points_digest"], file)
    speeds = kept.read()

    def exploration() -> Exploration:
        priced, unable = [], []
        for number, (core, placing, area) in enumerate(chosen):
            found = speeds.get(number)
            if isinstance(found, str):
                unable.append(found)
            elif found is not None:
                priced.append(Priced(core, area, placing.multipliers, found))
        return Exploration(
            plan=plan,
            model=next(iter(traces.values())).model,
            priced=tuple(priced),
            invalid=_grouped(invalid),
            unable=_grouped(unable),
            over_luts=over["luts"],
            over_bram=over["bram"],
            area_model=area_model,
            held_out=errors,
            points=facts,
            program=program,
            complete=len(speeds) == len(chosen),
        )

    left = [(number, core) for number, (core, _, _) in enumerate(chosen) if number not in speeds]
    # The first core is priced in this process, where a workload that no core runs is refused in a sentence.
    firsts = [*range(min(1, len(left))), *range(1, len(left), CHUNK), len(left)]
    batches = [Batch(plan.workload, plan.patterns, traces, tuple(left[first:last])) for first, last in pairwise(firsts)]
    try:
        with progress("Estimating cores", total=len(chosen)) as bar:
            bar.advance(len(speeds))
            kept.write(speeds)  # before any work: a file that cannot be written is no use later
            for found in chain(map(price, batches[:1]), workers.run(price, batches[1:])):
                if found.program != program:
                    raise ValueError(
                        "A worker has another version of nimble than this machine; install the same one on all."
                    )
                speeds.update(found.speeds)
                kept.write(speeds)
                bar.advance(len(found.speeds))
    except KeyboardInterrupt:
        if file is not None:
            done = f"{len(speeds)} of {len(chosen)} cores"
            print(f"{done} are kept in {file}; the same command goes on with them.", file=sys.stderr)
        raise
    explored = exploration()
    if file is not None:
        write_text(file, json.dumps({**explored.document(), "speeds": kept.speeds(speeds)}, indent=1) + "\n")
    return explored


def _grouped(reasons: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The first of the sentences that differ in numbers alone, and how many there are; the most frequent first."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"\d+", "#", reason), []).append(reason)
    return tuple(sorted(((found[0], len(found)) for found in kinds.values()), key=lambda pair: -pair[1]))


# -- the file ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def program_digest() -> str:
    """SHA-256 of the sources that decide a core's speed, its area but for the points, and what is said of both."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in ("accel", "flows", "quant", "verify"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass
class _Kept:
    """Speeds of an exploration's cores in its file, by the cores' numbers."""

    plan: Plan
    program: str
    points: str
    file: Path | None

    def read(self) -> dict[int, Any]:
        """Return what an earlier run has found."""
        if self.file is None or not self.file.exists():
            return {}
        try:
            document = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError:  # bytes that are no UTF-8 among them
            document = None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA or document.get("version") != VERSION:
            raise ValueError(f"{self.file} exists and holds no exploration of version {VERSION}; name another file.")
        wanted = self.plan.document()
        given = document.get("parameters")
        if given != wanted:
            other = [name for name in wanted if not isinstance(given, dict) or given.get(name) != wanted[name]]
            raise ValueError(
                f"{self.file} is an exploration with other {' and '.join(other or ['parameters'])}; name another "
                "file, or give the same parameters to go on with it."
            )
        if document.get("program") != self.program or self._points_of(document) != self.points:
            raise ValueError(
                f"{self.file} is an exploration by another version of this program or with other measured cores; "
                "what it holds and new cores do not belong together, so name another file."
            )
        try:
            return {int(number): found for number, found in document["speeds"].items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{self.file} holds speeds that no exploration has written; name another file.") from None

    def _points_of(self, document: Mapping[str, Any]) -> Any:
        model = document.get("area_model")
        return model.get("points_digest") if isinstance(model, dict) else None

    def speeds(self, speeds: Mapping[int, Any]) -> dict[str, Any]:
        """Return the JSON object of what is found so far."""
        return {str(number): speeds[number] for number in sorted(speeds)}

    def write(self, speeds: Mapping[int, Any]) -> None:
        """Write what is found so far; the file of a finished exploration has more in it."""
        if self.file is None:
            return
        document = {
            "schema": SCHEMA,
            "version": VERSION,
            "program": self.program,
            "parameters": self.plan.document(),
            "complete": False,
            "area_model": {"points_digest": self.points},
            "speeds": self.speeds(speeds),
        }
        write_text(self.file, json.dumps(document) + "\n")
