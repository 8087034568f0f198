"""The tensors of one layer of a checkpoint, read with their dtype and shape checked and every fault named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Dtypes in which checkpoints hold scales, biases and float weights; all are exact in float32.
FLOATS = ("float16", "bfloat16", "float32")


class LayerTensors:
    """Tensors ``<layer>.<suffix>`` of a checkpoint.

    Parameters
    ----------
    tensors : mapping of full names to NumPy arrays or CPU torch tensors
        It may load a tensor when it is asked for one; only names and the tensors that a format needs are asked.
    layer : str
        Full name of the layer, such as "model.layers.0.mlp.up_proj".
    """

    def __init__(self, tensors: Mapping[str, Any], layer: str) -> None:
        self._tensors = tensors
        self.layer = layer

    def __contains__(self, suffix: str) -> bool:
        return f"{self.layer}.{suffix}" in self._tensors

    def fault(self, suffix: str, what: str) -> ValueError:
        """An error that names the tensor: "weight_packed of layer X what"."""
        return ValueError(f"{suffix} of layer {self.layer} {what}")

    def dtype(self, suffix: str) -> str:
        """Dtype of a tensor by its plain name, such as "int32"."""
        return str(self._tensors[f"{self.layer}.{suffix}"].dtype).removeprefix("torch.")

    def read(self, suffix: str, dtypes: Collection[str], shape: tuple[int | None, ...], words: str) -> NDArray[Any]:
        """Read a tensor whose dtype is one of `dtypes` and whose shape is `shape`, None being any size from 1.

        `words` names the axes for a message, such as "[O, K / 8]". bfloat16 comes back as float32.

        Raises
        ------
        ValueError
            If the tensor is missing, or its dtype or shape is another. Its data are not touched then.
        """
        if suffix not in self:
            raise ValueError(f"Layer {self.layer} has no tensor {suffix}, which its format needs.")
        tensor = self._tensors[f"{self.layer}.{suffix}"]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in dtypes:
            raise self.fault(suffix, f"has dtype {dtype}, but it must be {' or '.join(dtypes)}.")
        given = tuple(int(size) for size in tensor.shape)
        fits = len(given) == len(shape) and all(
            size >= 1 and wanted in (None, size) for size, wanted in zip(given, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.fault(suffix, f"has shape {given}, but it must be {words} = ({wanted}).")
        if isinstance(tensor, np.ndarray):
            return tensor
        tensor = tensor.detach().cpu()
        array: NDArray[Any] = (tensor.float() if dtype == "bfloat16" else tensor).numpy()
        return array

    def read_floats(self, suffix: str, shape: tuple[int | None, ...], words: str) -> NDArray[np.float32]:
        """Read a finite float16, bfloat16 or float32 tensor as float32, which holds it exactly.

        Raises
        ------
        ValueError
            As `read`, and if a value is NaN or infinite.
        """
        array = self.read(suffix, FLOATS, shape, words).astype(np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise self.fault(suffix, f"holds {array[index]!s} at {list(index)}, but every value must be finite.")
        return array

    def read_matrix_shape(self, suffix: str, column: bool = False) -> tuple[int, int]:
        """Read a tensor that holds a matrix shape (O, K): integers of shape [2], or [2, 1] if `column`.

        Raises
        ------
        ValueError
            As `read`, and if O or K is below 1.
        """
        given = self.read(suffix, ("int64", "int32"), (2, 1) if column else (2,), "(O, K)")
        rows, columns = (int(size) for size in given.ravel())
        if rows < 1 or columns < 1:
            raise self.fault(suffix, f"says [{rows}, {columns}], but a weight has at least one row and column.")
        return rows, columns

    def read_bias(self, rows: int) -> NDArray[np.float32] | None:
        """Read the bias, float32 [rows], or None where the layer has none.

        Raises
        ------
        ValueError
            As `read_floats`.
        """
        return self.read_floats("bias", (rows,), "[O]") if "bias" in self else None
