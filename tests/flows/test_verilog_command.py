"""`nimble verilog`: both files, and what is printed about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from accel.config import load_preset
from accel.verilog import core_verilog


def test_both_files_and_what_is_said_about_them(nimble_json: Any, tmp_path: Path) -> None:
    folder = tmp_path / "build" / "tiny"
    document = nimble_json("verilog", "--preset", "tiny", "-o", folder)
    verilog, manifest = Path(document["verilog"]), Path(document["manifest"])
    assert {verilog, manifest} == set(folder.iterdir())
    text = verilog.read_text(encoding="utf-8")
    assert text == core_verilog(load_preset("tiny"))
    assert document["core"] == "tiny"
    assert document["lines"] == len(text.splitlines())
    assert document["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert f"module {document['top']}\n" in text
    stated = json.loads(manifest.read_text(encoding="utf-8"))
    assert stated["sha256"] == document["sha256"]
    assert stated["parameters"] == load_preset("tiny").as_dict()


def test_the_same_for_people(nimble: Any, tmp_path: Path) -> None:
    result = nimble("verilog", "--preset", "tiny", "-o", tmp_path / "tiny")
    assert result.exit_code == 0
    assert "Top module: CoreRTL_2x2x2_" in result.stdout
    assert "SHA-256: " in result.stdout


def test_an_output_that_is_a_file(tmp_path: Path, refusal: Any) -> None:
    file = tmp_path / "tiny"
    file.write_text("mine", encoding="utf-8")
    assert refusal("verilog", "--preset", "tiny", "-o", file) == f"Cannot use {file}: File exists."
    assert file.read_text(encoding="utf-8") == "mine"


def test_the_output_folder_is_asked_for(nimble: Any) -> None:
    result = nimble("verilog", "--preset", "tiny")
    assert result.exit_code == 2
    assert "Missing option '-o' / '--output'" in " ".join(result.stderr.replace("│", " ").split())
