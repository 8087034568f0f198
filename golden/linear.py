"""A torch module on N:M INT4 weights that computes what the accelerator computes, bit for bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quant import QuantizedLinear

#: Weights expanded to float64 at a time, and activations beside them: 8 MiB each.
_NUMBERS_AT_A_TIME = 1 << 20

#: The largest |code − zero point| of a weight.
_LARGEST_CODE = 15

_INTEGER_TYPES = {4: torch.int8, 8: torch.int8, 16: torch.int16}


def quantise_tokens(x: Tensor, act_bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantise activations to signed integers with one scale a token, as the accelerator's host does.

    With limit = 2**(act_bits - 1) - 1, the scale of a token is max|x| / limit in float32 and a code is x / scale
    in float32, rounded half to even: -limit to limit, so that the most negative integer never occurs. A token of
    zeros has scale 1. The scale is at least 2**-126: below it, a float32 has too few bits to divide by.

    Parameters
    ----------
    x : floating [..., K]
        Activations, finite when rounded to float32; a token is everything but the last dimension.
    act_bits : int
        4, 8 or 16.

    Returns
    -------
    tuple
        Codes, int8 [..., K] (int16 for 16 bits), and scales, float32 [...].

    Raises
    ------
    TypeError
        If x is not of a floating dtype.
    ValueError
        If act_bits is not 4, 8 or 16, x has no features, or an activation is not finite.
    """
    _check_act_bits(act_bits)
    if not x.is_floating_point():
        raise TypeError(f"The activations have dtype {x.dtype}, but they must have a floating dtype.")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"The activations have shape {tuple(x.shape)}, but they must be [..., K] with K at least 1.")
    single = x.to(torch.float32)
    largest = single.abs().amax(dim=-1)  # NaN and inf survive it
    if not torch.isfinite(largest).all():
        place = tuple(int(i) for i in torch.nonzero(~torch.isfinite(single))[0])
        raise ValueError(
            f"The activation of token {', '.join(map(str, place[:-1])) or '0'}, feature {place[-1]} is "
            f"{x[place].item()}, but every activation must be finite in float32."
        )
    limit = (1 << act_bits - 1) - 1
    scale = (largest / limit).clamp_(min=torch.finfo(torch.float32).tiny)
    scale.masked_fill_(largest == 0, 1.0)
    # Both divisions together are off by 2**-23 of the quotient at most, so that none passes limit + 0.5.
    codes = (single / scale[..., None]).round_().to(_INTEGER_TYPES[act_bits])
    return codes, scale


class NMLinear(nn.Module):
    """A linear layer on quantised N:M weights, with the accelerator's arithmetic from activations to result.

    `quantise_tokens` makes the activations integers. Integers are multiplied and added exactly, group scales
    included. The sum becomes float32 (round to nearest even), is multiplied by the channel scale, then by the
    token's scale, and the bias is added: four float32 roundings. The result has the dtype of the activations.

    Weights take one byte each; portions of them are expanded while they are used. There are no parameters and
    no gradients.

    Parameters
    ----------
    linear : QuantizedLinear
        Weight [O, K], and bias [O] and order of columns [K] if it has them.
    act_bits : int
        Bits of an activation: 4, 8 or 16.

    Raises
    ------
    ValueError
        If act_bits is not 4, 8 or 16, if bias or order do not fit the weight, or if K is so large that sums
        might pass 2**53, up to which float64 counts in ones.
    """

    integers: Tensor
    group_scale: Tensor
    channel_scale: Tensor
    bias: Tensor | None
    column_order: Tensor | None

    def __init__(self, linear: QuantizedLinear, act_bits: int = 8) -> None:
        super().__init__()
        _check_act_bits(act_bits)
        weight = linear.weight
        self.act_bits = act_bits
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.group_size = min(weight.effective_group_size, self.in_features)
        self.pattern = weight.pattern
        self._check_exact(int(abs(weight.group_scale).max()))
        self.register_buffer("integers", torch.from_numpy(weight.integers()))
        self.register_buffer("group_scale", torch.tensor(weight.group_scale, dtype=torch.int16))
        self.register_buffer("channel_scale", torch.tensor(weight.channel_scale))
        bias = None if linear.bias is None else torch.tensor(linear.bias)
        if bias is not None and (bias.dtype != torch.float32 or bias.shape != (self.out_features,)):
            raise ValueError(
                f"The bias is {bias.dtype} {tuple(bias.shape)}, but it must be float32 [{self.out_features}]."
            )
        self.register_buffer("bias", bias)
        order = None if linear.column_order is None else torch.tensor(linear.column_order, dtype=torch.int64)
        if order is not None and not torch.equal(order.sort().values, torch.arange(self.in_features)):
            raise ValueError(f"column_order must name each of the {self.in_features} input features once.")
        self.register_buffer("column_order", order)

    def _check_exact(self, largest_scale: int) -> None:
        bound = self.in_features * (1 << self.act_bits - 1) * _LARGEST_CODE * largest_scale
        if bound >= 1 << 53:
            raise ValueError(
                f"{self.in_features} input features of {self.act_bits}-bit activations and group scales up to "
                f"{largest_scale} may sum to {bound}, but sums are exact below 2**53 only."
            )

    def extra_repr(self) -> str:
        """What stands between the brackets of the module's repr."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, pattern={self.pattern}, "
            f"group_size={self.group_size}, act_bits={self.act_bits}, bias={self.bias is not None}"
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Multiply activations by the weights.

        Parameters
        ----------
        x : floating [..., K]
            Finite activations.

        Returns
        -------
        Tensor
            [..., O], of x's dtype: the float32 result rounded to it once.

        Raises
        ------
        TypeError
            If x is not of a floating dtype, or the module's own float buffers are no longer float32.
        ValueError
            If x has another K, or an activation is not finite.
        """
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"The activations have shape {tuple(x.shape)}, but the layer takes [..., {self.in_features}]."
            )
        if self.channel_scale.dtype != torch.float32:
            raise TypeError(
                f"The layer's channel scales were made {self.channel_scale.dtype}, but the accelerator's are "
                "float32; convert activations, not the layer."
            )
        codes, token_scale = quantise_tokens(x, self.act_bits)
        if self.column_order is not None:
            codes = codes[..., self.column_order]
        tokens = codes.reshape(-1, self.in_features)
        y = torch.empty(tokens.shape[0], self.out_features, dtype=torch.float32, device=x.device)
        rows_at_a_time = max(1, _NUMBERS_AT_A_TIME // self.in_features)
        for first in range(0, self.out_features, rows_at_a_time):
            part = slice(first, first + rows_at_a_time)
            weight = self._expanded(part).T
            for token in range(0, tokens.shape[0], rows_at_a_time):
                few = slice(token, token + rows_at_a_time)
                acc = tokens[few].to(torch.float64) @ weight
                acc += 0.0  # a product of 0 and a negative number is -0.0, which no integer is
                y[few, part] = acc.to(torch.float32)
        y *= self.channel_scale
        y *= token_scale.reshape(-1, 1)
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def _expanded(self, part: slice) -> Tensor:
        """Rows of ``integer · group_scale`` in float64, every one an exact integer."""
        expanded = self.integers[part].to(torch.float64)
        whole = self.in_features // self.group_size * self.group_size
        scale = self.group_scale[part].to(torch.float64)
        by_group = expanded[:, :whole].unflatten(1, (-1, self.group_size))
        by_group *= scale[:, : whole // self.group_size, None]
        expanded[:, whole:] *= scale[:, math.ceil(whole / self.group_size) :]
        return expanded


def _check_act_bits(act_bits: int) -> None:
    if act_bits not in _INTEGER_TYPES:
        raise ValueError(f"act_bits is {act_bits!r}, but it must be 4, 8 or 16.")
