"""Verilator's lint of a design, with every warning switched on and the waivers of one file."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from verify.synthesis.guards import Finding
from verify.synthesis.hierarchy import Design
from verify.synthesis.tools import Deadline, SynthesisError
from verify.toolchain import environment, find_verilator

#: Waivers, each with its reason.
WAIVERS = Path(__file__).with_name("lint.vlt")

#: Guard that a warning belongs to; all others are plain lint.
_GUARDS = {"LATCH": "latch", "UNOPTFLAT": "loop", "MULTIDRIVEN": "drivers", "UNDRIVEN": "constant"}


def lint(design: Design, deadline: Deadline, waivers: Path | None = WAIVERS) -> list[Finding]:
    """Return what ``verilator --lint-only -Wall`` warns of.

    Raises
    ------
    ToolError
        There is no Verilator.
    SynthesisError
        Verilator ended without a word about the design.
    TimeLimitError
        The deadline was reached.
    """
    verilator = find_verilator()
    with tempfile.TemporaryDirectory(prefix="nimble-") as folder:
        source = Path(folder) / "design.sv"
        source.write_text(design.text, encoding="utf-8")
        command = [str(verilator.executable), "--lint-only", "-Wall", "--top-module", design.top]
        command += [*([] if waivers is None else [str(waivers)]), "design.sv"]
        try:
            result = subprocess.run(
                command,
                cwd=folder,
                env=environment(verilator),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=deadline.left(),
            )
        except subprocess.TimeoutExpired:
            raise deadline.reached("linting") from None
    findings = _findings(design, result.stderr)
    if result.returncode != 0 and not findings:
        raise SynthesisError(f"Verilator refused to lint {design.top}. It said:\n{result.stderr.strip()}")
    return findings


def _findings(design: Design, printed: str) -> list[Finding]:
    findings = []
    for match in re.finditer(
        r"^%(?:Warning|Error)(?:-(\w+))?: (?:design\.sv:(\d+):\d+: )?(.*)$", printed, re.MULTILINE
    ):
        kind, line, message = match.groups()
        if message.startswith("Exiting due to"):  # it only counts what is above it
            continue
        where = design.source(int(line)) if line else design.top
        findings.append(Finding(_GUARDS.get(kind or "", "lint"), where, f"{kind or 'error'}: {message}"))
    return findings
