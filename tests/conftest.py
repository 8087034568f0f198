"""Settings that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.database import DirectoryBasedExampleDatabase

HYPOTHESIS_HOME = Path(__file__).resolve().parent.parent / ".hypothesis"

# Tests run in scratch folders, where Hypothesis would leave a new .hypothesis behind each time.
set_hypothesis_home_dir(HYPOTHESIS_HOME)

# Elaborating a PyMTL3 design takes a good part of a second, so neither a deadline per example nor the
# health check on slow data generation says anything about the design.
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long",
    derandomize=False,
    deadline=None,
    max_examples=2000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=DirectoryBasedExampleDatabase(HYPOTHESIS_HOME / "examples"),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in a folder of its own: PyMTL3 passes write into the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
