"""The generator: configuration, pattern schedule, packed stream, and the core at its levels."""

from accel.config import ConfigError, CoreConfig, load_preset, preset_names
from accel.stream import PackedStream, StreamError, pack, unpack

__all__ = [
    "ConfigError",
    "CoreConfig",
    "PackedStream",
    "StreamError",
    "load_preset",
    "pack",
    "preset_names",
    "unpack",
]
