"""Which core a command works on: a preset, or a file that states every parameter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from accel.config import CoreConfig

#: Declare ``preset: PresetOption = None, config: ConfigOption = None`` and call `choose_core`.
PresetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="A core that comes with Nimble: tiny, ulx3s, edge or wide.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A TOML file that states every parameter of a core, in place of a preset."),
]


class ChosenCore(NamedTuple):
    """A core and what the user called it."""

    name: str
    config: CoreConfig


def choose_core(preset: str | None, file: Path | None, default: str = "edge") -> ChosenCore:
    """Return the core of a preset or of a file, whichever is given, else of the preset `default`.

    Raises
    ------
    ValueError
        Both are given, the preset is unknown, or the file states no core.
    OSError
        The file cannot be read.
    """
    from accel.config import load_preset

    if preset is not None and file is not None:
        raise ValueError(f"Both --preset {preset} and --config {file} were given; a core comes from one of them.")
    if file is not None:
        return ChosenCore(file.stem, read_core(file))
    name = default if preset is None else preset
    return ChosenCore(name, load_preset(name))


def read_core(file: Path) -> CoreConfig:
    """Return the core whose parameters a TOML file states, each once and at the top level.

    Raises
    ------
    ValueError
        The file is not TOML, leaves a parameter out, states another, or the values make no core.
    OSError
        The file cannot be read.
    """
    from accel.config import ConfigError, CoreConfig

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    data = file.read_bytes()
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not TOML: byte {error.start} is not part of any UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not TOML: {error}.") from None
    try:
        return CoreConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
