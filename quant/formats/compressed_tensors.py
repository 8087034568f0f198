"""Writing compressed-tensors files of the format pack-quantized, with the N:M zeros in place.

Other tools read such files as ordinary INT4 weights. What the format has no place for, the pattern, the group
size and the mask of each layer, goes to a key of its own in the configuration and to a file of masks in a
subfolder, which they do not look at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quant.formats.foreign_linear import SYMMETRIC_ZERO
from quant.formats.own_layers import MASK_SUFFIX, OWN_KEY, OWN_VERSION, own_settings
from quant.formats.packed_bits import pack_mask, pack_nibbles
from quant.formats.schemes import WeightScheme
from quant.linear import QuantizedLinear
from quant.weight import NMWeight


def compressed_tensors_tensors(
    name: str, linear: QuantizedLinear, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Tensors of a layer in a pack-quantized file.

    A pruned weight has the code of zero, which is the zero point in an asymmetric layer. Groups that do not divide
    K evenly, which the format does not know, are written as shorter groups of gcd(group size, K) weights that
    repeat the scale. transformers 5.23 loads symmetric layers as they are. Asymmetric ones, those that
    compressed-tensors itself wrote included, it loads only with CompressedTensorsConfig(dequantize=True), which
    takes one scheme for all layers of the model.

    Parameters
    ----------
    name : str
        Full name of the layer.
    linear : QuantizedLinear
        Without a column order, for which the format has had no place since compressed-tensors 0.19.
    dtype : torch.dtype
        float32, float16 or bfloat16, that of the model. Scales and bias are rounded to it; `scale_error` tells by
        how much.

    Raises
    ------
    ValueError
        If the layer has a column order, or a scale or bias is too large for the dtype.
    """
    if linear.column_order is not None:
        raise ValueError(
            f"Layer {name} takes its input features in an order of its own, which a compressed-tensors file cannot "
            "say; write it in the packed format of Nimble."
        )
    weight = linear.weight
    source = _source_of_groups(weight)
    nibbles = weight.integers().astype(np.int8)
    if weight.zero_point is None:
        nibbles += np.int8(SYMMETRIC_ZERO)
    else:
        zero = weight.zero_point.astype(np.int8)
        nibbles += np.take(zero, np.arange(weight.in_features) // weight.effective_group_size, axis=1)
    tensors = {
        "weight_packed": torch.from_numpy(pack_nibbles(nibbles.view(np.uint8))),
        "weight_scale": _rounded(name, "scale", _scales(weight)[:, source], dtype),
        "weight_shape": torch.tensor([weight.out_features, weight.in_features], dtype=torch.int64),
    }
    if weight.zero_point is not None:
        zero_words = pack_nibbles(weight.zero_point.astype(np.uint8)[:, source].T)
        tensors["weight_zero_point"] = torch.from_numpy(np.ascontiguousarray(zero_words.T))
    if linear.bias is not None:
        tensors["bias"] = _rounded(name, "bias", linear.bias, dtype)
    return {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def compressed_tensors_mask(name: str, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
    """Tensors of a layer in `own_layers.MASKS_FILE`: which weights are kept, zeros among them; none where a
    dense pattern keeps all.

    ``<name>.weight_mask`` is uint8 [O, ceil(K / 8)]; bit j of byte i is column 8 * i + j.
    """
    if linear.weight.pattern.is_dense and linear.weight.mask.all():
        return {}
    return {f"{name}.{MASK_SUFFIX}": torch.from_numpy(pack_mask(linear.weight.mask))}


def compressed_tensors_config(layers: Mapping[str, QuantizedLinear]) -> dict[str, Any]:
    """The quantization_config of config.json for a folder that holds these layers, and no other, in INT4.

    Layers are named one by one, so that a layer that stays float, such as the head, needs no entry. `layers` is
    gone through once.
    """
    targets: dict[WeightScheme, list[str]] = {}
    own = {}
    for name, linear in layers.items():
        weight = linear.weight
        targets.setdefault(WeightScheme(_written_group_size(weight), weight.symmetric), []).append(name)
        own[name] = own_settings(weight)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        "kv_cache_scheme": None,
        "config_groups": {
            f"group_{index}": {"targets": names, "weights": _arguments(scheme)}
            for index, (scheme, names) in enumerate(sorted(targets.items()))
        },
        OWN_KEY: {"version": OWN_VERSION, "layers": own},
    }


def scale_error(linear: QuantizedLinear, dtype: torch.dtype = torch.float32) -> float:
    """Largest relative error of a group's scale in a file of this dtype; 0.0 where every one is exact.

    It is 0.0 in float32 for what `quant.scales.split_scales` made, and in the dtype of a checkpoint for what
    `quant.scales.integer_scales` read from it.
    """
    exact = _scales(linear.weight)
    written = torch.from_numpy(exact).to(torch.float32).to(dtype).to(torch.float64).numpy()
    size = np.abs(exact)
    error = np.divide(np.abs(written - exact), size, out=np.zeros_like(exact), where=size > 0)
    return float(error.max())


def _arguments(scheme: WeightScheme) -> dict[str, Any]:
    per_row = scheme.group_size == -1
    return {
        "num_bits": 4,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else scheme.group_size,
        "dynamic": False,
    }


def _written_group_size(weight: NMWeight) -> int:
    return -1 if weight.groups == 1 else math.gcd(weight.group_size, weight.in_features)


def _source_of_groups(weight: NMWeight) -> NDArray[np.intp]:
    """Group of the weight that each written group lies in."""
    size = _written_group_size(weight)
    if size == -1:
        return np.zeros(1, dtype=np.intp)
    return np.arange(weight.in_features // size) * size // weight.group_size


def _scales(weight: NMWeight) -> NDArray[np.float64]:
    """channel_scale * group_scale, float64 [O, groups], which holds the product exactly."""
    return weight.channel_scale.astype(np.float64)[:, None] * weight.group_scale


def _rounded(name: str, what: str, values: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(torch.float32).to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"Layer {name} has a {what} of {np.abs(values).max()}, which is too large for {dtype}.")
    return tensor
