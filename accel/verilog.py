"""Translation of the core to one SystemVerilog file, with a manifest of what it was made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accel.config import CoreConfig
from accel.naming import module_name

MANIFEST_SCHEMA = "nimble.verilog"
MANIFEST_VERSION = 1


@lru_cache(maxsize=8)
def core_verilog(config: CoreConfig) -> str:
    """SystemVerilog of the core; its top module is ``module_name("CoreRTL", config)``."""
    from pymtl3.passes.backends.verilog import VerilogTranslationPass

    from accel.core.CoreRTL import CoreRTL

    core = CoreRTL(config)
    name = module_name("CoreRTL", config)
    core.set_metadata(VerilogTranslationPass.enable, True)
    core.set_metadata(VerilogTranslationPass.explicit_module_name, name)
    core.elaborate()
    with _scratch_folder() as folder:
        core.apply(VerilogTranslationPass())
        text = (folder / f"{name}__pickled.v").read_text(encoding="utf-8")
    # Comments say where a block's source lies: without the folder, the same core is the same file on any machine.
    return re.sub(r"// At .*/(accel|pymtl3)/", r"// At \1/", text)


def manifest(config: CoreConfig) -> dict[str, Any]:
    """Parameters, derived widths and checksum of the generated Verilog, JSON-ready."""
    text = core_verilog(config)
    return {
        "schema": MANIFEST_SCHEMA,
        "version": MANIFEST_VERSION,
        "top": module_name("CoreRTL", config),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "parameters": config.as_dict(),
        "derived": derived_widths(config),
        "tools": {"pymtl3": version("pymtl3")},
    }


def derived_widths(config: CoreConfig) -> dict[str, int]:
    """Widths and sizes that follow from the parameters."""
    return {
        "weight_bits": config.weight_bits,
        "product_bits": config.product_bits,
        "partial_bits": config.partial_bits,
        "scaled_bits": config.scaled_bits,
        "acc_bits": config.acc_bits,
        "weight_word_bits": 8 * config.word_bytes,
        "act_word_bits": config.act_ports * config.act_port_bits,
        "code_window_bits": config.code_window_bits,
        "code_ring_slices": config.code_words,
        "value_ring_slices": config.value_words,
        "header_slots": config.header_slots,
        "accumulators": 2 * config.columns * config.drain_chains * config.acc_words,
        "multipliers": config.rows * config.columns * config.lanes,
    }


def write_verilog(config: CoreConfig, folder: Path) -> tuple[Path, Path]:
    """Write ``<top>.sv`` and ``<top>.json`` into ``folder``; both appear whole or not at all.

    Returns
    -------
    tuple
        Paths of the Verilog file and of the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = module_name("CoreRTL", config)
    paths = folder / f"{name}.sv", folder / f"{name}.json"
    texts = core_verilog(config), json.dumps(manifest(config), indent=2) + "\n"
    partials = [path.with_name(f".{path.name}.{os.getpid()}") for path in paths]
    try:
        for partial, text in zip(partials, texts, strict=True):
            partial.write_text(text, encoding="utf-8")
        for partial, path in zip(partials, paths, strict=True):
            partial.replace(path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    return paths


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """PyMTL3's passes write into the current directory: give them one of their own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="nimble-") as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
