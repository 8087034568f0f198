"""Quantised weights from one format into another: of any tool into packed streams, and into compressed-tensors.

torch takes seconds to import; import this module inside functions only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accel.config import load_preset
from accel.packed_checkpoint import PackedCheckpoint, write_packed
from flows.core_choice import ChosenCore
from flows.info import pattern_name
from flows.stored_model import StoredModel, open_model
from quant import NMPattern, QuantizedLinear
from quant.formats.compressed_tensors_folder import write_compressed_tensors
from quant.formats.foreign_linear import ForeignLinear
from quant.lazy_mapping import LazyMapping

PACKED, COMPRESSED_TENSORS = FORMATS = ("packed", "compressed-tensors")


@dataclass(frozen=True)
class ConvertedLayer:
    """A quantised layer that was read from one folder and written into another."""

    name: str
    out_features: int
    in_features: int
    pattern: NMPattern
    group_size: int
    symmetric: bool
    #: Bits that its group scales need as integers: 8 or 16.
    scale_bits: int
    #: Largest relative error of a scale that writing it as an integer made; 0.0 where every one is exact.
    scale_error: float
    #: Bytes of the packed stream; None in another format.
    stream_bytes: int | None = None

    @property
    def weights(self) -> int:
        """Weights of the layer, pruned ones counted."""
        return self.out_features * self.in_features

    def document(self) -> dict[str, Any]:
        """Return one entry of ``layers``."""
        return {
            "name": self.name,
            "out_features": self.out_features,
            "in_features": self.in_features,
            "pattern": pattern_name(self.pattern),
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "scale_bits": self.scale_bits,
            "scale_error": self.scale_error,
            "stream_bytes": self.stream_bytes,
        }


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    source: Path
    #: ``packed``, or the name of another tool's format.
    kind: str
    output: Path
    format: str
    #: Core that the streams are packed for; None in another format.
    core: str | None
    layers: tuple[ConvertedLayer, ...]
    #: Largest relative error of a scale in a compressed-tensors file; None in the packed format, which has none.
    file_scale_error: float | None

    @property
    def scale_error(self) -> float:
        """Largest relative error of a scale that writing it as an integer made."""
        return max((layer.scale_error for layer in self.layers), default=0.0)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of ``nimble convert``."""
        return {
            "source": str(self.source),
            "source_format": self.kind,
            "output": str(self.output),
            "format": self.format,
            "core": self.core,
            "scale_error": self.scale_error,
            "file_scale_error": self.file_scale_error,
            "layers": [layer.document() for layer in self.layers],
        }


def convert(
    source: Path,
    output: Path,
    format: str = PACKED,
    core: ChosenCore | None = None,
    scale_bits: int | None = None,
    pattern: NMPattern | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Read a quantised model and write it in another format, or for another core.

    The pattern of each layer is checked when it is read, when it is packed or exported, and when it is read again
    from what was written, which only then gets its name.

    Parameters
    ----------
    source
        Folder of packed weights, or of any format of `quant.formats.detect.FORMATS`.
    output
        Folder to make.
    format
        One of `FORMATS`.
    core
        Core to pack for; None is the one that the source is packed for, else the preset edge.
    scale_bits
        Bits of the core's group scales in place of its own.
    pattern
        Pattern that every layer must obey; None takes what the files say, or what their zeros obey.
    overwrite
        Whether a folder of packed weights may be replaced.
    progress
        Called after each layer and tensor with how many are done and how many there are.

    Raises
    ------
    PatternBreach
        If a layer holds more than its pattern allows, at any stage.
    ValueError
        If the source is not quantised or corrupt, the core does not run a layer, or the format cannot hold one.
    OSError
        If the output exists and may not be replaced, or a file cannot be read or written.
    """
    if format not in FORMATS:
        raise ValueError(f"The format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    if format == COMPRESSED_TENSORS and overwrite:
        raise ValueError("--overwrite replaces packed weights by packed weights only; give the name of a new folder.")
    if os.path.lexists(output) and not overwrite:  # before hours of reading, and not only after them
        raise FileExistsError(f"{output} exists already; give the name of a new folder.")
    stored = open_model(source, pattern)
    if stored.kind == "float":
        raise ValueError(f"{source} holds plain float weights; nimble quantize makes quantised ones of them.")
    facts: dict[str, ConvertedLayer] = {}

    def read(name: str) -> QuantizedLinear:
        linear = stored.layers[name]
        facts[name] = _facts(name, linear)
        return linear

    layers = LazyMapping(stored.layers, read)
    extra = {name: path.read_bytes() for name, path in stored.extra_files.items()}
    total = len(layers) + len(stored.others) if format == PACKED else 2 * len(layers)
    done = 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    error: float | None = None
    if format == PACKED:
        chosen = _core_for(stored) if core is None else core
        if scale_bits is not None:
            name = f"{chosen.name} with {scale_bits}-bit scales"
            chosen = ChosenCore(name, chosen.config.replace(scale_bits=scale_bits))
        write_packed(
            output, layers, stored.others, stored.config, chosen.config, extra, overwrite=overwrite, progress=advance
        )
        tensors = PackedCheckpoint.open(output).manifest.tensors
        for name, layer in facts.items():
            facts[name] = replace(layer, stream_bytes=tensors[f"{name}.stream"].shape[0])
    else:
        error = write_compressed_tensors(output, layers, stored.others, stored.config, extra, progress=advance)
    return Conversion(
        source=source,
        kind=stored.kind,
        output=output,
        format=format,
        core=chosen.name if format == PACKED else None,
        layers=tuple(facts[name] for name in layers),
        file_scale_error=error,
    )


def _core_for(stored: StoredModel) -> ChosenCore:
    """The core that the layers are packed for already, else the preset edge."""
    return ChosenCore("edge", load_preset("edge")) if stored.core is None else ChosenCore("the source's", stored.core)


def _facts(name: str, linear: QuantizedLinear) -> ConvertedLayer:
    weight = linear.weight
    return ConvertedLayer(
        name=name,
        out_features=weight.out_features,
        in_features=weight.in_features,
        pattern=weight.pattern,
        group_size=weight.group_size,
        symmetric=weight.symmetric,
        scale_bits=weight.scale_bits,
        scale_error=linear.scale_error if isinstance(linear, ForeignLinear) else 0.0,
    )
