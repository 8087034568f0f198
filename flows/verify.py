"""Random cases through several levels until two of them disagree, and the replay of a case that was kept."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from accel.command import token_blocks
from accel.config import CoreConfig
from accel.stream import layout_for
from flows.simulate import build_model
from verify.cases import Case
from verify.gemm import check_level
from verify.harness import Campaign, compare, run_campaign
from verify.strategies import core_configs
from verify.toolchain import ToolError, cache_dir, compiler_version, find_verilator

#: Cases on random cores that the Verilog level takes part in: each core has to be compiled first, which
#: takes some ten seconds.
MOST_BUILDS = 20


@dataclass(frozen=True)
class Verification:
    """What the cases have shown."""

    #: Counts, and the shrunk case if one failed.
    campaign: Campaign
    #: Name of the core, or ``random``; None in a replay, where the case has its own.
    core: str | None
    #: The seed of the cases; None in a replay.
    seed: int | None
    #: Wall time, without the compilation of a fixed core.
    seconds: float
    #: Where the failing case is stored, if one failed.
    case_file: Path | None = None

    @property
    def replay_command(self) -> str | None:
        """The command that runs the failing case again, if one failed."""
        if self.case_file is None:
            return None
        file, levels = shlex.quote(str(self.case_file)), ",".join(self.campaign.levels)
        return f"nimble verify --replay {file} --levels {levels}"

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble verify``."""
        failure: dict[str, Any] = {}
        if self.campaign.failure is not None:
            failure = {
                "complaint": self.campaign.complaint,
                "case": self.case_file,
                "replay": self.replay_command,
            }
        return {
            "core": self.core,
            "cases": self.campaign.cases + (self.campaign.failure is not None),
            "failures": int(self.campaign.failure is not None),
            "seed": self.seed,
            "levels": list(self.campaign.levels),
            "patterns": dict(sorted(self.campaign.patterns.items(), key=_by_block)),
            "seconds": round(self.seconds, 3),
            "reached": {name: count for name, count in self.campaign.reached.items() if count},
            "missed": self.campaign.missed,
            **failure,
        }


def read_levels(text: str) -> tuple[str, ...]:
    """Return the levels of a comma-separated list; at least two different ones.

    Raises
    ------
    ValueError
        A level does not exist or stands twice, or there is only one.
    """
    levels = tuple(level.strip() for level in text.split(","))
    for level in levels:
        check_level(level)
    if len(set(levels)) != len(levels) or len(levels) < 2:
        raise ValueError(
            f"The levels {text!r} were given; a comparison needs at least two levels, each named once, "
            "such as golden,fl."
        )
    return levels


def check_core_source(chosen: object, random_configs: bool, replay: Path | None) -> None:
    """Raise ValueError if more than one of a chosen core, random ones and a stored case's is asked for."""
    if replay is not None and random_configs:
        raise ValueError("--replay runs one stored case; leave out --random-configs.")
    if chosen is not None and (replay is not None or random_configs):
        option = "--random-configs" if replay is None else "--replay"
        raise ValueError(f"{option} brings its own core; leave out --preset and --config.")


def verify_core(
    name: str,
    config: CoreConfig | None,
    levels: Sequence[str],
    examples: int,
    seed: int,
    folder: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Run random cases through the levels and store the shrunk case if one fails.

    Parameters
    ----------
    name, config
        The core; None draws another small core for each case.
    levels
        At least two; the first is the reference.
    examples
        Cases to run.
    seed
        The same seed gives the same cases.
    folder
        Where a failing case is stored. It is made if it is missing.
    progress
        Called with the number of cases so far.

    Raises
    ------
    ValueError
        The Verilog level is asked for on more random cores than can be compiled in reasonable time.
    ToolError
        A tool that the Verilog level needs is missing.
    """
    if config is None and "verilog" in levels and examples > MOST_BUILDS:
        raise ValueError(
            f"{examples} random cores were asked for at level verilog, but each has to be compiled, which "
            f"takes about ten seconds; ask for at most {MOST_BUILDS} examples, or leave out level verilog."
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Else Hypothesis leaves a folder of its own in the current one.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache_dir() / "hypothesis"))
    if config is None:
        if "verilog" in levels:
            # Else a missing tool would be taken for a failure of the first case.
            find_verilator()
            compiler_version()
        configs = core_configs()
    else:
        build_model(config, levels)
        configs = st.just(config)
    start = time.perf_counter()
    campaign = run_campaign(configs, levels, examples, seed, progress=progress)
    seconds = time.perf_counter() - start
    case_file = None if campaign.failure is None else campaign.failure.save(folder)
    return Verification(campaign, name, seed, seconds, case_file)


def replay_case(file: Path, levels: Sequence[str]) -> Verification:
    """Run one stored case through the levels.

    Raises
    ------
    ValueError
        The file holds no case, or one that its core has no capacity for.
    OSError
        The file cannot be read.
    ToolError
        A tool that the Verilog level needs is missing.
    """
    try:
        case = Case.from_json(file.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{file}: A stored case is a JSON document, but this is not text.") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    _check_possible(case)
    build_model(case.config, levels)
    campaign = Campaign(case.seed, tuple(levels))
    start = time.perf_counter()
    try:
        job, runs = compare(case, levels)
    except ToolError:
        raise
    except Exception as error:
        # As in a campaign: whatever goes wrong with a possible case is the levels' failure.
        campaign.failure, campaign.complaint = case, str(error)
    else:
        campaign.count(case, job, runs)
    seconds = time.perf_counter() - start
    return Verification(campaign, None, None, seconds, None if campaign.failure is None else file)


def _check_possible(case: Case) -> None:
    """Refuse sizes that the case's core cannot run, which no campaign draws."""
    case.pattern.check_group_size(case.group_size)
    layout = layout_for(
        case.config,
        case.pattern,
        case.out_features,
        case.in_features,
        case.group_size,
        asymmetric=not case.symmetric,
        code=case.code,
    )
    token_blocks(case.config, layout, case.tokens)


def _by_block(item: tuple[str, int]) -> tuple[int, int]:
    n, m = item[0].split(":")
    return int(m), int(n)
