"""Generated Verilog: one file and its manifest, the same wherever and however often it is made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from accel import CoreConfig, load_preset
from accel import verilog as verilog_module
from accel.naming import module_name
from accel.verilog import core_verilog, manifest, write_verilog

ROOT = Path(__file__).resolve().parents[2]
TINY = load_preset("tiny")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_one_file_and_a_manifest_that_describes_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "build"
    verilog, described = write_verilog(TINY, folder)
    assert sorted(folder.iterdir()) == sorted([verilog, described])
    name = module_name("CoreRTL", TINY)
    assert (verilog.name, described.name) == (f"{name}.sv", f"{name}.json")
    text = verilog.read_text(encoding="utf-8")
    assert text == core_verilog(TINY)
    modules = re.findall(r"^module (\S+)", text, flags=re.MULTILINE)
    assert modules.count(name) == 1
    assert len(set(modules)) == len(modules)
    assert modules[-1] == name, "the top module comes last"
    document = json.loads(described.read_text(encoding="utf-8"))
    assert list(document) == ["schema", "version", "top", "sha256", "parameters", "derived", "tools"]
    assert (document["schema"], document["version"]) == ("nimble.verilog", 1)
    assert document["top"] == name
    assert document["sha256"] == hashlib.sha256(verilog.read_bytes()).hexdigest()
    assert CoreConfig.from_dict(document["parameters"]) == TINY
    assert document["tools"] == {"pymtl3": version("pymtl3")}
    assert document["derived"] == {
        "weight_bits": 5,
        "product_bits": 12,
        "partial_bits": 17,
        "scaled_bits": 24,
        "acc_bits": 26,
        "weight_word_bits": 32,
        "act_word_bits": 64,
        "code_window_bits": 8,  # a bitmask of eight, or two of four
        "code_ring_slices": 12,  # two tiles of 11 bytes: 7:8 by index, four blocks of 21 bits
        "value_ring_slices": 16,
        "header_slots": 8,
        "accumulators": 16,
        "multipliers": 8,
    }
    assert manifest(TINY) == document
    # Written again, it replaces what is there.
    verilog.write_text("old")
    assert write_verilog(TINY, folder) == (verilog, described)
    assert verilog.read_text(encoding="utf-8") == text


def test_nothing_is_left_in_the_current_folder(scratch_folder: Path) -> None:
    core_verilog.cache_clear()
    core_verilog(TINY)
    assert Path.cwd() == scratch_folder
    assert list(scratch_folder.iterdir()) == []


def test_the_text_names_no_folder_of_this_machine() -> None:
    places = re.findall(r"// At (.*)", core_verilog(TINY))
    assert places
    assert all(re.match(r"(accel|pymtl3)/\S+\.py(:\d+)?$", place) for place in places)
    assert str(ROOT) not in core_verilog(TINY)
    assert str(Path.home()) + os.sep not in core_verilog(TINY)


def test_two_processes_with_different_hashing_agree() -> None:
    program = (
        "import hashlib; from accel import load_preset; from accel.verilog import core_verilog;"
        "print(hashlib.sha256(core_verilog(load_preset('tiny')).encode()).hexdigest())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "4242")
    ]
    digests = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert digests == {digest(core_verilog(TINY))}


def test_cores_that_were_translated_before_change_nothing() -> None:
    """PyMTL3 keeps sources by class: blocks that differ between configurations must not meet in it."""
    configs = [
        TINY,
        TINY.replace(asymmetric=False),
        TINY.replace(window=3, act_words=128),
        TINY.replace(rows=3, drain_chains=2, codes=("index",)),
        TINY.replace(window=1, lanes=1, act_words=128),
    ]
    texts = []
    for order in (configs, configs[::-1]):
        core_verilog.cache_clear()
        texts.append({module_name("CoreRTL", config): digest(core_verilog(config)) for config in order})
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == len(configs)


def test_no_type_or_module_of_one_core_stands_for_that_of_another() -> None:
    """Verilog of two cores in one simulation: modules and types of one name must be the same."""
    found: dict[str, str] = {}
    for config in (TINY, TINY.replace(scale_bits=7), TINY.replace(rows=3)):
        text = re.sub(r"^ *//.*\n", "", core_verilog(config), flags=re.MULTILINE)
        for body, name in re.findall(r"(typedef struct packed \{.*?\} (\w+);)", text, flags=re.DOTALL):
            assert found.setdefault(name, body) == body
        for body, name in re.findall(r"(^module (\w+)\n.*?^endmodule)", text, flags=re.DOTALL | re.MULTILINE):
            assert found.setdefault(name, body) == body, f"two modules are named {name}"


def test_a_failed_translation_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_verilog(TINY, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(config: CoreConfig) -> str:
        raise RuntimeError("no translation")

    monkeypatch.setattr(verilog_module, "core_verilog", fails)
    with pytest.raises(RuntimeError, match="no translation"):
        write_verilog(TINY, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == set(paths)
    with pytest.raises(RuntimeError, match="no translation"):
        write_verilog(TINY, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_leaves_no_part_of_a_file(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two files cannot be written: both stay as they were."""
    real = Path.write_text
    calls = []

    def write_text(path: Path, text: str, **options: object) -> int:
        calls.append(path)
        if len(calls) - 1 == failing:
            real(path, text[:10], **options)
            raise OSError("No space left on device")
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        write_verilog(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_translation_that_fails_halfway_goes_back_to_the_folder(
    scratch_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pymtl3.passes.backends.verilog import VerilogTranslationPass

    def fails(self: object, top: object) -> None:
        Path("half_written.v").write_text("module")
        raise RuntimeError("no translation")

    monkeypatch.setattr(VerilogTranslationPass, "__call__", fails)
    core_verilog.cache_clear()
    with pytest.raises(RuntimeError, match="no translation"):
        core_verilog(TINY.replace(subtiles=3))
    assert Path.cwd() == scratch_folder
    assert list(scratch_folder.iterdir()) == []
