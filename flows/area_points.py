"""The file of synthesised cores that the area model is fitted to, and how more of them are measured.

A core of the file is drawn by its number alone, so that any process on any machine measures the same ones.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import random
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from accel.config import ANY_PATTERN, ConfigError, CoreConfig
from flows.area_model import Area, Placing, Point, memory_luts
from quant.atomic_file import write_text

SCHEMA = "nimble.area-points"
VERSION = 1

#: The points that come with Nimble.
SHIPPED = Path(__file__).with_name("area_points.json")

TARGET = "ecp5"

#: Clock that modules are mapped towards, as ``nimble synth`` does by default.
GOAL_MHZ = 120.0

#: Multiplier blocks of the cores in turn; those of the scale units are worth most, so that is what most cores have.
CHOICES = ("scale", "all", "scale", "none")

#: Patterns of a core for dense weights alone, and what other parameters must be for it.
DENSE_ONLY = ("1:1",)
WITHOUT_CODES: dict[str, Any] = {"codes": (), "decode_registers": 0}

#: Most multipliers, and LUTs of distributed memories, of a measured core: more would take minutes to map.
_MOST_MULTIPLIERS, _MOST_MEMORY_LUTS = 64, 6000


@dataclass(frozen=True)
class AreaPoints:
    """What a file of points holds."""

    #: Digest of the sources that the cores were made by, see `sources_digest`.
    sources: str
    #: yosys's version, and where it came from.
    tools: tuple[Mapping[str, str], ...]
    #: Points by the number that they were drawn by.
    points: Mapping[int, Point]

    @property
    def in_order(self) -> list[Point]:
        """The points by their numbers."""
        return [self.points[number] for number in sorted(self.points)]

    def document(self) -> dict[str, Any]:
        """Return the JSON object of the file."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "target": TARGET,
            "goal_mhz": GOAL_MHZ,
            "sources": self.sources,
            "tools": [dict(tool) for tool in self.tools],
            "points": [
                {
                    "number": number,
                    "parameters": point.config.as_dict(),
                    "multipliers": point.multipliers,
                    "total": point.total.document(),
                    "places": dict(point.places),
                }
                for number, point in sorted(self.points.items())
            ],
        }


# -- the file ------------------------------------------------------------------------------------------------


def read_points(file: Path) -> AreaPoints:
    """Read a file of points.

    Raises
    ------
    ValueError
        There is no such file, or it holds no points, or those of cores that another version of the generator has made.
    OSError
        It cannot be read.
    """
    command = "nimble explore --measure {}" + ("" if file == SHIPPED else f" --points {file}")
    if not file.exists():
        raise ValueError(f"There is no file {file} of synthesised cores; measure some with: {command.format(40)}")
    points = _parse(file)
    if points.sources != sources_digest():
        raise ValueError(
            f"The cores in {file} were synthesised from other sources than this version's, so their areas are not "
            f"those of its cores; measure them anew with: {command.format(len(points.points) or 40)}"
        )
    return points


def _parse(file: Path) -> AreaPoints:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # bytes that are no UTF-8 among them
        document = None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or document.get("version") != VERSION:
        raise ValueError(f"{file} holds no synthesised cores of version {VERSION}; name another file.")
    fields = set(CoreConfig.__dataclass_fields__)
    try:
        stale = [point for point in document["points"] if set(point["parameters"]) != fields]
        points = {} if stale else {int(point["number"]): _point(point) for point in document["points"]}
        return AreaPoints("" if stale else str(document["sources"]), tuple(document["tools"]), points)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds a point that nimble explore has not written ({error}).") from None


def _point(entry: Mapping[str, Any]) -> Point:
    config = CoreConfig.from_dict(entry["parameters"])
    Placing.of_choice(config, entry["multipliers"])  # refuses what is no choice
    return Point(
        config,
        entry["multipliers"],
        {str(place): int(lut) for place, lut in entry["places"].items()},
        Area(**{kind: int(count) for kind, count in entry["total"].items()}),
    )


def write_points(file: Path, points: AreaPoints) -> None:
    """Write a file of points, one a line.

    Raises
    ------
    OSError
        It cannot be written; it is then as it was.
    """
    document = points.document()
    entries = ",\n".join(" " + json.dumps(entry, separators=(",", ":")) for entry in document.pop("points"))
    head = json.dumps(document, indent=1)[:-2]
    write_text(file, f'{head},\n "points": [\n{entries}\n ]\n}}\n')


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """Digest of the sources that a core's Verilog and its cells depend on; comments and docstrings do not count."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    synthesis = root / "verify" / "synthesis"
    modules = [
        *_imported(root, root / "accel" / "core" / "CoreRTL.py"),
        synthesis / "mapping.py",
        synthesis / "targets.py",
    ]
    for path in [*modules, *sorted(synthesis.glob("*.v"))]:
        text = path.read_text(encoding="utf-8")
        code = code_of(text) if path.suffix == ".py" else text
        digest.update(str(path.relative_to(root)).encode() + b"\0" + code.encode() + b"\0")
    return digest.hexdigest()


def _imported(root: Path, top: Path) -> list[Path]:
    """Modules of `accel` that a module imports, and those that they import, and itself."""
    found: set[Path] = set()
    left = [top]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("accel."):
                left.append(root.joinpath(*node.module.split(".")).with_suffix(".py"))
    return sorted(found)


def code_of(text: str) -> str:
    """Return a Python text without comments, docstrings and blank lines."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            for number in range(docstring.lineno - 1, docstring.end_lineno):
                lines[number] = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    return "\n".join(line.rstrip() for line in lines if line.strip())


# -- measuring -----------------------------------------------------------------------------------------------


def drawn(number: int) -> tuple[CoreConfig, str]:
    """Return the core of a number, and its choice of multiplier blocks.

    Sizes are those of small and medium cores, spread over what a core of a usual size is made of. What is not drawn
    here is as in the preset for this family of devices: without its registers no core comes near a clock of 100 MHz.
    """
    from accel.config import load_preset

    chance = random.Random(f"nimble area point {number}")
    base = load_preset("ulx3s")
    while True:
        rows, columns = chance.choice((1, 2, 3, 4, 6, 8)), chance.choice((1, 2, 3, 4, 6, 8))
        lanes = chance.choice((1, 2, 2, 4, 4, 8))
        window = chance.choice((4, 8, 8, 16, 16))
        group_max = chance.choice((64, 128, 128))
        k_max = chance.choice((4096, 16384))
        patterns = chance.choice((ANY_PATTERN, ANY_PATTERN, ("1:1", "2:4"), ("1:1", "2:4", "4:8", "1:4"), DENSE_ONLY))
        words = -(-k_max // (lanes if patterns == DENSE_ONLY else window))
        codes = chance.choice((("index",), ("index",), ("bitmask",), ("bitmask", "index")))
        changes: dict[str, Any] = {
            "rows": rows,
            "columns": columns,
            "lanes": lanes,
            "window": window,
            "asymmetric": chance.choice((False, True)),
            "patterns": patterns,
            # Without blocks to choose from, a window beyond the lanes is of no use.
            **({"codes": codes} if patterns != DENSE_ONLY else {**WITHOUT_CODES, "window": lanes}),
            "group_max": group_max,
            "k_max": k_max,
            "subtiles": chance.choice((1, 2, 4, 8)),
            "drain_chains": chance.choice([chains for chains in (1, 1, 2, 4) if chains <= rows]),
            "slice_bytes": chance.choice((1, 2, 2, 4, 4, 8)),
            "weight_tiles": chance.choice((2, 2, 3, 4)),
            "act_words": 2 * -(-words * chance.choice((1, 2)) // 2),
            "act_ports": chance.randint(1, rows),
            "result_lanes": chance.randint(1, min(columns, 8)),
        }
        if rows * columns * lanes > _MOST_MULTIPLIERS:
            continue
        try:
            config = base.replace(**changes)
        except ConfigError:
            continue
        if memory_luts(config) <= _MOST_MEMORY_LUTS:
            return config, CHOICES[number % len(CHOICES)]


def measured(number: int) -> tuple[Point, list[dict[str, str]]]:
    """Synthesise the core of a number, as ``nimble synth --no-route`` does; also return the tools that did it."""
    from flows.synth import synthesize_core
    from flows.terminal import ProgressBar

    config, multipliers = drawn(number)
    document = synthesize_core(
        f"area-point-{number}",
        config,
        target=TARGET,
        device=None,
        speed=None,
        seeds=1,
        route=False,
        dsp=multipliers,
        goal_mhz=GOAL_MHZ,
        time_limit=None,
        bar=ProgressBar(None, "", None),
    ).document()
    places: dict[str, int] = {}
    for block in document["blocks"]:
        places[block["place"]] = places.get(block["place"], 0) + int(block["own"]["lut"]) * block["count"]
    total = Area(**{kind: int(document["total"][kind]) for kind in ("lut", "dsp", "bram")})
    point = Point(config, multipliers, {place: lut for place, lut in places.items() if lut}, total)
    return point, document["tools"]


def measure(
    file: Path,
    count: int,
    run: Callable[[Callable[[int], Any], Sequence[int]], Any],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[AreaPoints, int]:
    """Synthesise cores until a file holds so many of them; each is written to it as soon as it is measured.

    Parameters
    ----------
    file : a file of points, or one that does not exist yet. Points of other sources in it are dropped.
    run : calls a function with each of some items, and yields the results as they come.
    progress : is called with the number of points that the file holds.

    Returns
    -------
    The points, and how many of other sources were dropped.

    Raises
    ------
    ValueError
        The file holds something else, or what other tools have measured.
    OSError
        The file cannot be read or written.
    """
    if count < 1:
        raise ValueError(f"{count} cores were asked for; at least one is measured.")
    digest = sources_digest()
    points = _parse(file) if file.exists() else AreaPoints(digest, (), {})
    dropped = 0
    if points.sources != digest:
        dropped = len(points.points)
        points = AreaPoints(digest, (), {})
    wanted = [number for number in range(count) if number not in points.points]
    for point, number, tools in run(numbered, wanted):
        if points.tools and [dict(tool) for tool in points.tools] != tools:
            had, have = (", ".join(tool["version"] for tool in listed) for listed in (points.tools, tools))
            raise ValueError(f"The cores in {file} were synthesised by {had}, but here is {have}; name another file.")
        points = AreaPoints(digest, tuple(tools), {**points.points, number: point})
        write_points(file, points)
        progress(len(points.points))
    return points, dropped


def numbered(number: int) -> tuple[Point, int, list[dict[str, str]]]:
    """Return what `measured` returns, with the number: results come in any order."""
    point, tools = measured(number)
    return point, number, tools
