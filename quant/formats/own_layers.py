"""What our compressed-tensors files say beyond the format: pattern, group size and mask of each layer.

Other tools have no place for them. Pattern and group size are in a key of our own in quantization_config, masks in
a file of a subfolder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quant.pattern import NMPattern
from quant.weight import NMWeight

#: File of the masks within a model folder. A subfolder keeps it from tools that take every safetensors file of a
#: folder for weights.
MASKS_FILE = "nimble/masks.safetensors"

#: Tensor of a layer in that file, uint8 [O, ceil(K / 8)]; bit j of byte i is column 8 * i + j.
MASK_SUFFIX = "weight_mask"

#: Key of quantization_config.
OWN_KEY = "nimble"

#: Version of what is under the key.
OWN_VERSION = 1


class StoredLayer(NamedTuple):
    """What our own files say of a layer, so that its `NMWeight` comes back as it was."""

    pattern: NMPattern
    #: Group size of the weight, a multiple of that of the file's scales, or -1.
    group_size: int
    #: Kept positions as `packed_bits.pack_mask` packs them. None where a dense pattern keeps all, or where the
    #: file of masks is gone: then the weights that are not zero stand for them.
    mask: NDArray[np.uint8] | None


def own_settings(weight: NMWeight) -> dict[str, Any]:
    """Entry of a layer under `OWN_KEY`."""
    return {"pattern": str(weight.pattern), "group_size": weight.group_size}


class OwnLayers:
    """Our additions in a folder; none in a folder of another tool.

    Parameters
    ----------
    settings : mapping
        The quantization_config.
    path : Path
        The folder, for the file of masks.

    Raises
    ------
    ValueError
        If `OWN_KEY` is malformed or of another version.
    """

    def __init__(self, settings: Mapping[str, Any], path: Path) -> None:
        own = settings.get(OWN_KEY, {"version": OWN_VERSION, "layers": {}})
        if not isinstance(own, Mapping) or own.get("version") != OWN_VERSION:
            raise ValueError(
                f"quantization_config has {OWN_KEY} = {own!r:.80}, but it must be an object of version {OWN_VERSION}."
            )
        layers = own.get("layers")
        if not isinstance(layers, Mapping):
            raise ValueError(f"{OWN_KEY} in quantization_config has layers {layers!r:.80}, but it must be an object.")
        self._layers = layers
        self._file = path / MASKS_FILE

    def get(self, name: str) -> StoredLayer | None:
        """What is said of a layer, or None.

        Raises
        ------
        ValueError
            If its entry or the file of masks is malformed.
        """
        entry = self._layers.get(name)
        if entry is None:
            return None
        where = f"{OWN_KEY} in quantization_config says of layer {name}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("pattern"), str):
            raise ValueError(f"{where} {entry!r:.80}, but it must be an object with pattern and group_size.")
        try:
            pattern = NMPattern.parse(entry["pattern"])
            size = entry.get("group_size")
            pattern.check_group_size(size)  # type: ignore[arg-type]  # it refuses what is not an integer
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} what cannot be: {error}") from error
        return StoredLayer(pattern, int(size), self._mask(f"{name}.{MASK_SUFFIX}"))  # type: ignore[arg-type]

    def _mask(self, tensor: str) -> NDArray[np.uint8] | None:
        if not self._file.is_file():
            return None
        try:
            with safe_open(self._file, framework="np") as masks:
                if tensor not in masks.keys():  # noqa: SIM118 - not a mapping
                    return None
                mask: NDArray[np.uint8] = masks.get_tensor(tensor)
                return mask
        except SafetensorError as error:
            raise ValueError(f"{self._file} is not a safetensors file: {error}.") from None
