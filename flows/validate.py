"""The timing model against the verilated core, on whole layers of a model: cycles, causes and results.

Rows are kept in a file as they are finished, so that a long validation may be stopped and goes on later.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel.config import CoreConfig
from accel.timing import gemm_timing
from flows.info import pattern_name
from flows.model_trace import LinearLayer
from flows.simulate import LayerGemm, build_model
from flows.terminal import ProgressBar, progress
from flows.trace import trace_model
from quant import NMPattern
from quant.atomic_file import write_text
from verify.gemm import execute

if TYPE_CHECKING:
    from accel.memory import Memory
    from flows.memories import MemorySystem

SCHEMA = "nimble.validation"
VERSION = 1

MODEL = "llama-7b"
LAYERS = ("q_proj", "gate_proj", "down_proj")
PATTERNS = (NMPattern(1, 1), NMPattern(2, 4), NMPattern(3, 4), NMPattern(1, 4))
TOKENS = (1, 16)


@dataclass(frozen=True)
class Row:
    """One layer that ran on the verilated core, beside the timing model's figures."""

    layer: str
    in_features: int
    out_features: int
    pattern: str
    tokens: int
    rtl_cycles: int
    model_cycles: int
    #: Cycles by cause.
    rtl_counters: dict[str, int]
    model_counters: dict[str, int]
    #: Cycles until all results are in memory; None without a memory.
    rtl_written: int | None
    model_written: int | None
    #: Results, and those among them that are not PyTorch's.
    results: int
    wrong_results: int
    #: Wall time of the simulation.
    seconds: float

    @property
    def difference(self) -> int:
        """The model's cycles minus the RTL's, of both ends the one that is farther off."""
        pairs = [(self.model_cycles, self.rtl_cycles)]
        if self.model_written is not None and self.rtl_written is not None:
            pairs.append((self.model_written, self.rtl_written))
        return max((model - rtl for model, rtl in pairs), key=abs)

    @property
    def match(self) -> bool:
        """Whether cycles, their causes and all results agree."""
        return self.difference == 0 and self.rtl_counters == self.model_counters and self.wrong_results == 0

    @property
    def sizes(self) -> tuple[str, int, int, str, int]:
        """What tells a row from the others."""
        return (self.layer, self.in_features, self.out_features, self.pattern, self.tokens)

    def document(self) -> dict[str, Any]:
        """Return one entry of ``rows``."""
        return {**asdict(self), "difference": self.difference, "match": self.match}


@dataclass(frozen=True)
class Plan:
    """What is validated."""

    core: str
    config: CoreConfig
    model: str = MODEL
    layers: tuple[str, ...] = LAYERS
    patterns: tuple[NMPattern, ...] = PATTERNS
    tokens: tuple[int, ...] = TOKENS
    #: At most so many output features of each layer; None for all.
    outputs: int | None = None
    group_size: int = 128
    seed: int = 0
    #: The memory behind the streams; by default words are always there.
    memory: MemorySystem | None = None
    #: Clock that the memory's figures are turned into cycles with.
    clock_mhz: float = 500.0

    @property
    def port(self) -> Memory | None:
        """The memory in cycles of the core."""
        return None if self.memory is None else self.memory.at_clock(self.clock_mhz)

    def document(self) -> dict[str, Any]:
        """Return the parameters that must be the same for a validation to go on."""
        return {
            "core": self.core,
            "config": self.config.as_dict(),
            "model": self.model,
            "layers": list(self.layers),
            "patterns": [pattern_name(pattern) for pattern in self.patterns],
            "tokens": list(self.tokens),
            "outputs": self.outputs,
            "group_size": self.group_size,
            "seed": self.seed,
            "memory": None if self.memory is None else {**self.memory.document(), "clock_mhz": self.clock_mhz},
        }

    def cases(self) -> tuple[str, list[tuple[str, LayerGemm]]]:
        """The model's name, and every layer with every pattern and number of tokens.

        Raises
        ------
        ValueError
            The model or a layer of it is unknown, or one is beyond the core's capacity.
        """
        if self.outputs is not None and self.outputs < 1:
            raise ValueError(f"outputs is {self.outputs}; at least one output feature of each layer is taken.")
        for name, values in (("layers", self.layers), ("patterns", self.patterns), ("tokens", self.tokens)):
            if not values or len(set(values)) != len(values):
                given = ", ".join(map(str, values)) or "none"
                raise ValueError(f"The {name} {given} were given; at least one is needed, and each is named once.")
        with progress(f"Tracing {self.model}"):
            traced = trace_model(self.model)
        layers = [traced.find(name) for name in self.layers]
        cases = [
            (layer.kind, self._gemm(layer, pattern, tokens))
            for layer in layers
            for pattern in self.patterns
            for tokens in self.tokens
        ]
        for _, gemm in cases:
            gemm.check()
        return traced.model, cases

    def _gemm(self, layer: LinearLayer, pattern: NMPattern, tokens: int) -> LayerGemm:
        outputs = layer.out_features if self.outputs is None else min(self.outputs, layer.out_features)
        return LayerGemm(
            self.config, tokens, layer.in_features, outputs, pattern, group_size=self.group_size, seed=self.seed
        )


@dataclass(frozen=True)
class Validation:
    """The rows of a plan, all or as far as it got."""

    plan: Plan
    #: The model's name.
    model: str
    program: str
    runs: int
    rows: tuple[Row, ...]
    #: Rows that were there before this run.
    kept: int = 0

    @property
    def match(self) -> bool:
        """Whether every row agrees in everything."""
        return all(row.match for row in self.rows)

    @property
    def largest_difference(self) -> int:
        """The difference that is farthest from zero."""
        return max((row.difference for row in self.rows), key=abs, default=0)

    @property
    def cycles(self) -> int:
        """Cycles that the verilated core ran for in all rows."""
        return sum(row.rtl_cycles for row in self.rows)

    @property
    def seconds(self) -> float:
        """Wall time of the simulations."""
        return sum(row.seconds for row in self.rows)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble validate``, which is also its file."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "program": self.program,
            "parameters": self.plan.document(),
            "runs": self.runs,
            "complete": len(self.rows) == self.runs,
            "match": self.match,
            "largest_difference": self.largest_difference,
            "cycles": self.cycles,
            "seconds": self.seconds,
            "rows": [row.document() for row in self.rows],
        }


def numbers_of(text: str, name: str) -> tuple[int, ...]:
    """Return the whole numbers of a comma-separated list, such as ``1,16``.

    Raises
    ------
    ValueError
        An item is no number from 1 on.
    """
    items = [item.strip() for item in text.split(",")]
    for item in items:
        if not item.isascii() or not item.isdigit() or int(item) == 0:
            raise ValueError(f"{item!r} stands in {name}; a list such as 1,16 of numbers from 1 on is expected.")
    return tuple(int(item) for item in items)


def memory_named(name: str) -> MemorySystem | None:
    """Return the memory of a name, or None for ``none``.

    Raises
    ------
    ValueError
        There is no such memory.
    """
    from flows.memories import MEMORIES

    if name == "none":
        return None
    if name not in MEMORIES:
        raise ValueError(f"There is no memory named {name!r}; the memories are none, {', '.join(MEMORIES)}.")
    return MEMORIES[name]


def validate(plan: Plan, file: Path | None = None) -> Validation:
    """Run every case of a plan, or those that the file does not hold yet.

    Parameters
    ----------
    file
        Where each row is kept as soon as it is finished. If it exists, it is an earlier run of the same plan
        by the same program.

    Raises
    ------
    ValueError
        The plan is no possible one, or the file holds something else.
    OSError
        The file cannot be read or written.
    """
    model, cases = plan.cases()
    port = plan.port
    program = program_digest()
    rows = [] if file is None or not file.exists() else _kept_rows(file, plan, program)
    keys = [
        (kind, gemm.in_features, gemm.out_features, pattern_name(gemm.pattern), gemm.tokens) for kind, gemm in cases
    ]
    if [row.sizes for row in rows] != keys[: len(rows)]:
        raise ValueError(f"The rows in {file} are not the first ones of this validation; name another file.")
    kept = len(rows)

    def validation() -> Validation:
        return Validation(plan, model, program, len(cases), tuple(rows), kept)

    if kept == len(cases):
        return validation()
    if file is not None:
        write_text(file, _text(validation()))  # before any work: a file that cannot be written is no use later
    with progress("Building the core's Verilog model (the first time takes about a minute)"):
        build_model(plan.config, ["verilog"])
    try:
        with progress("Validating", total=len(cases)) as bar:
            bar.advance(kept)
            for kind, gemm in cases[kept:]:
                rows.append(_run(kind, gemm, port, bar))
                if file is not None:
                    write_text(file, _text(validation()))
    except KeyboardInterrupt:
        if file is not None:
            done = f"{len(rows)} of {len(cases)} runs"
            print(f"{done} are kept in {file}; the same command goes on with them.", file=sys.stderr)
        raise
    return validation()


def _run(kind: str, gemm: LayerGemm, port: Memory | None, bar: ProgressBar) -> Row:
    """Run one case, tell the bar about it, and return its row."""
    name = f"{kind}, {pattern_name(gemm.pattern)}, {gemm.tokens} tokens"
    bar.describe(f"{name}: preparing")
    job = gemm.prepare()
    bar.describe(f"{name}: simulating")
    done = 0.0

    def advance(words: int) -> None:
        nonlocal done
        bar.advance(words / job.result_words - done)
        done = words / job.result_words

    start = time.perf_counter()
    run = execute(job, "verilog", memory=port, progress=advance)
    seconds = time.perf_counter() - start
    bar.advance(1 - done)
    bar.describe(f"{name}: comparing")
    golden = execute(job, "golden")
    model = gemm_timing(gemm.config, job.stream.layout, gemm.tokens, memory=port)
    assert run.cycles is not None
    return Row(
        layer=kind,
        in_features=gemm.in_features,
        out_features=gemm.out_features,
        pattern=pattern_name(gemm.pattern),
        tokens=gemm.tokens,
        rtl_cycles=run.cycles,
        model_cycles=model.cycles,
        rtl_counters=run.counters,
        model_counters=model.counters,
        rtl_written=None if port is None else run.written,
        model_written=None if port is None else model.written,
        results=run.y.size,
        wrong_results=int((run.y != golden.y).sum()),
        seconds=seconds,
    )


# -- the file ----------------------------------------------------------------------------------------


def program_digest() -> str:
    """SHA-256 of the sources that decide cycles and results: all packages but `flows`."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for package in ("accel", "golden", "quant", "verify"):
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".cpp", ".toml"):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _text(validation: Validation) -> str:
    return json.dumps(validation.document(), indent=2) + "\n"


def _kept_rows(file: Path, plan: Plan, program: str) -> list[Row]:
    """Return the rows of an earlier run."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # bytes that are no UTF-8 among them
        document = None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{file} exists and holds no validation; name another file.")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{file} is a validation of version {document.get('version')!r}, but this program writes version "
            f"{VERSION}; name another file."
        )
    parameters = document.get("parameters")
    wanted = plan.document()
    if parameters != wanted:
        given = parameters if isinstance(parameters, dict) else {}
        other = [name for name in wanted if given.get(name) != wanted[name]] or ["parameters"]
        raise ValueError(
            f"{file} is a validation with other {' and '.join(other)}; name another file, or give the same "
            "parameters to go on with it."
        )
    if document.get("program") != program:
        raise ValueError(
            f"{file} is a validation by another version of this program; its rows and new ones do not belong "
            "together, so name another file."
        )
    return _rows(file, document.get("rows"))


def _rows(file: Path, rows: Any) -> list[Row]:
    names = [field.name for field in fields(Row)]
    read: list[Row] = []
    try:
        read = [Row(**{name: row[name] for name in names}) for row in rows]
        whole = [row.document() for row in read] == rows
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{file} holds rows that no validation has written; name another file.")
    return read
