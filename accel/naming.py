"""Names of generated modules: every parameter is in the name, readable part first, then a hash."""

from __future__ import annotations

import hashlib
import json
from functools import cache

from accel.config import CoreConfig


@cache
def config_tag(config: CoreConfig) -> str:
    """Short tag that differs for any two configurations, free of double underscores (Verilator escapes those)."""
    text = json.dumps(config.as_dict(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{config.rows}x{config.columns}x{config.lanes}_w{config.window}_a{config.act_bits}_{digest}"


def module_name(block: str, config: CoreConfig) -> str:
    """Verilog module name of a block generated for a configuration, such as ``CoreRTL_16x16x4_w16_a8_…``."""
    return f"{block}_{config_tag(config)}"
