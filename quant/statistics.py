"""Second moments of a linear layer's input, gathered over calibration text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Rows multiplied at a time, which bounds the float32 copy of an input in another dtype.
_ROWS_AT_A_TIME = 8192


class InputStatistics:
    """Running second moments of K input features, in float32.

    Parameters
    ----------
    in_features : int
        K, at least 1.
    full : bool
        Whether the whole matrix is held, K² floats, or only its diagonal.

    Raises
    ------
    ValueError
        If in_features is not positive.
    """

    def __init__(self, in_features: int, full: bool = True) -> None:
        if in_features < 1:
            raise ValueError(f"Statistics of {in_features} input features were asked for; a layer has at least 1.")
        #: Input rows (tokens) seen.
        self.rows = 0
        #: (1 / rows) Σ x xᵀ, float32 [K, K]; None unless full.
        self.hessian: Tensor | None = torch.zeros((in_features, in_features)) if full else None
        #: (1 / rows) Σ x², float32 [K].
        self.mean_square: Tensor = torch.zeros(in_features)

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.mean_square.shape[0])

    def add(self, x: Tensor) -> None:
        """Count every row of a floating x [..., K] in.

        Raises
        ------
        ValueError
            If x has another number of features, or holds an infinity or NaN; nothing is counted then.
        """
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"The input has shape {tuple(x.shape)}, but its last axis must hold {self.in_features} features."
            )
        rows = x.detach().reshape(-1, self.in_features)
        if not rows.isfinite().all():
            row, feature = (int(i) for i in (~rows.isfinite()).nonzero()[0])
            raise ValueError(
                f"Input feature {feature} is {rows[row, feature].item()} in row {row}, "
                "but every calibration input must be finite."
            )
        for first in range(0, len(rows), _ROWS_AT_A_TIME):
            part = rows[first : first + _ROWS_AT_A_TIME].float()
            product = None if self.hessian is None else part.T @ part / len(part)
            square = (part * part).mean(dim=0) if product is None else product.diagonal()
            self._blend(len(part), square, product)

    def merge(self, other: InputStatistics) -> None:
        """Count in what another one has seen of the same features.

        Raises
        ------
        ValueError
            If the number of features differs, or only one of the two holds the whole matrix.
        """
        if other.in_features != self.in_features:
            raise ValueError(
                f"Statistics of {other.in_features} features cannot be merged with those of {self.in_features}."
            )
        if (other.hessian is None) != (self.hessian is None):
            raise ValueError("Statistics with the whole matrix cannot be merged with those of the diagonal alone.")
        self._blend(other.rows, other.mean_square, other.hessian)

    def _blend(self, rows: int, square: Tensor, product: Tensor | None) -> None:
        # A running mean: a sum over millions of rows would lose the last ones to float32's rounding.
        self.rows += rows
        share = rows / max(self.rows, 1)
        self.mean_square.lerp_(square, share)
        if self.hessian is not None and product is not None:
            self.hessian.lerp_(product, share)

    def tensors(self) -> dict[str, Tensor]:
        """State as tensors, for a safetensors file; `from_tensors` is the inverse."""
        state = {"rows": torch.tensor(self.rows, dtype=torch.int64), "mean_square": self.mean_square}
        if self.hessian is not None:
            state["hessian"] = self.hessian
        return state

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InputStatistics:
        """Bring back what `tensors` gave.

        Raises
        ------
        ValueError
            If a tensor is missing or their shapes do not belong together.
        """
        missing = {"rows", "mean_square"} - set(tensors)
        if missing:
            raise ValueError(f"The stored statistics lack {' and '.join(sorted(missing))}.")
        mean_square, hessian = tensors["mean_square"], tensors.get("hessian")
        features = mean_square.shape[0] if mean_square.ndim == 1 else 0
        if hessian is not None and hessian.shape != (features, features):
            raise ValueError(
                f"The stored statistics hold a matrix of shape {tuple(hessian.shape)} "
                f"for mean squares of shape {tuple(mean_square.shape)}."
            )
        statistics = cls(features, full=False)
        statistics.rows = int(tensors["rows"])
        # Copies: what is added later must not change the caller's tensors.
        statistics.mean_square = mean_square.to(torch.float32, copy=True)
        statistics.hessian = None if hessian is None else hessian.to(torch.float32, copy=True)
        return statistics
