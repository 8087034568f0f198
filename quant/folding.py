"""AWQ's scales of a block's inputs, folded into the weights around them so that the block computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from quant.architectures import LinearGroup


def fold_tensor(
    name: str, tensor: torch.Tensor, groups: Sequence[LinearGroup], scales: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """A tensor of a block with every scale folded in that concerns it.

    Parameters
    ----------
    name
        Name of the tensor within the block, such as ``self_attn.v_proj.weight``.
    tensor
        float32.
    groups
        The block's layers that share an input.
    scales
        float32 [K], positive, of a group's input features, by the name of the group's first layer. Groups without
        are as they were.

    Returns
    -------
    Tensor
        float32: columns times the scales of the layer's own input, rows divided by those of the input that the
        module produces.
    """
    module, _, attribute = name.rpartition(".")
    for group in groups:
        scale = scales.get(group.linears[0])
        if scale is None:
            continue
        if module in group.linears and attribute == "weight":
            tensor = tensor * scale
        if module == group.scaled_by:
            tensor = tensor / scale.reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor


def representable_scales(scales: torch.Tensor, producer: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales for which a norm's weights, divided by them, are numbers of the checkpoint's own type.

    A norm stays float and is stored in that type; with these scales its rounding is undone by the layers that read
    it, which are quantised after scaling.

    Parameters
    ----------
    scales
        float32 [K], positive.
    producer
        Weight of the norm, float32 [K].
    dtype
        Type that it is stored in.

    Returns
    -------
    Tensor
        float32 [K]: the nearest such scales; 1 where there is none, as for a weight of 0.
    """
    nearest = producer / (producer / scales).to(dtype).float()
    return torch.where(nearest.isfinite() & (nearest > 0), nearest, 1.0)
