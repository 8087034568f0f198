"""What tests of synthesis share: its tools, and whether they are there."""

from __future__ import annotations

import pytest

from verify.synthesis.tools import SynthesisTool, find_nextpnr, find_yosys
from verify.toolchain import ToolError


@pytest.fixture(scope="session")
def yosys() -> SynthesisTool:
    """A yosys; tests that need one are skipped without."""
    try:
        return find_yosys()
    except ToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def nextpnr() -> SynthesisTool:
    """A nextpnr for ECP5; tests that need one are skipped without."""
    try:
        return find_nextpnr()
    except ToolError as error:
        pytest.skip(str(error))
