"""The core as one SystemVerilog file and a manifest of what it was made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.config import CoreConfig
from accel.verilog import write_verilog


@dataclass(frozen=True)
class WrittenVerilog:
    """Files that were written, and what is in them."""

    #: SystemVerilog file and JSON manifest.
    verilog: Path
    manifest: Path
    #: Name of the top module.
    top: str
    lines: int
    #: Digest of the SystemVerilog file, as the manifest states it.
    sha256: str

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble verilog``."""
        return {
            "top": self.top,
            "verilog": self.verilog,
            "manifest": self.manifest,
            "lines": self.lines,
            "sha256": self.sha256,
        }


def generate_verilog(config: CoreConfig, folder: Path) -> WrittenVerilog:
    """Translate a core and write both files.

    Raises
    ------
    OSError
        The folder or a file in it cannot be written.
    """
    verilog, manifest = write_verilog(config, folder)
    # Read back: what is printed is what lies on the disk.
    data = verilog.read_bytes()
    top = json.loads(manifest.read_text(encoding="utf-8"))["top"]
    return WrittenVerilog(verilog, manifest, top, data.count(b"\n"), hashlib.sha256(data).hexdigest())
