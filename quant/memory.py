"""What a quantisation run holds in memory, counted from the shapes of the model.

`tests/quant/test_memory.py` compares the count with the memory that a run takes.
"""

from __future__ import annotations

from typing import NamedTuple

from quant.architectures import Architecture, Sizes


class MemoryNeed(NamedTuple):
    """Bytes at the largest block and layer, beside the libraries themselves and what an allocator wastes."""

    #: The embedding matrix in the checkpoint's type, as mapped from its file and as copied; before any block is read.
    embedding: int
    #: A decoder block in float32.
    block: int
    #: A tensor while it is read: as mapped from its file, copied, and in float32.
    reading: int
    #: Intermediate results of a block's forward pass for the tokens of a piece.
    forward: int
    #: Second moments of a layer's input and the product of a piece that is added to them.
    statistics: int
    #: Hessian, its factor and copies of the weights while a layer is quantised.
    layer: int

    @property
    def peak(self) -> int:
        """The largest sum that is needed at one time."""
        with_block = max(self.reading, self.forward + self.statistics, self.layer)
        return max(self.embedding + self.forward, self.block + with_block)


def memory_need(
    architecture: Architecture, sizes: Sizes, samples: int, length: int, weight_bytes: int = 2
) -> MemoryNeed:
    """Count what `quant.quantize_model` holds in memory.

    Parameters
    ----------
    samples, length
        Shape of the calibration tokens.
    weight_bytes
        Bytes of a weight in the checkpoint.
    """
    from quant.blocks import samples_at_a_time

    linears = architecture.linears(sizes)
    numbers = 0
    largest = 0
    for shape in architecture.block_tensors(sizes).values():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        numbers += count
        largest = max(largest, count)
    tokens = length * min(samples, samples_at_a_time(length))
    # Of each linear layer its output, and as much again for what is made of it: rotated, activated, multiplied; of the
    # hidden state that in the piece, the residual, and a norm's output and square.
    features = 4 * sizes.hidden + sum(2 * linear.out_features for linear in linears)
    mask = tokens * length
    columns = max(linear.in_features for linear in linears)
    return MemoryNeed(
        embedding=2 * weight_bytes * sizes.vocabulary * sizes.hidden,
        block=4 * numbers,
        reading=(2 * weight_bytes + 4) * largest,
        forward=4 * tokens * features + mask,
        statistics=8 * columns * columns,
        layer=max(_layer_need(linear.out_features, linear.in_features) for linear in linears),
    )


def _layer_need(rows: int, columns: int) -> int:
    hessian, weights = 4 * columns * columns, 4 * rows * columns
    # `quant.second_order.factor_hessian`: the matrix, damped, its lower factor, a unit matrix and the inverse factor.
    factoring = 5 * hessian + weights
    # `quant.mask_search` holds the matrix, damped, and its factor; weights by column, those of the sweep, and masks of
    # bytes. Pulling to the pattern, the matrix scaled, inverted and copied for that; the goal, unconstrained weights
    # and the multiplier; in a step, no copy of the matrix, but legal weights, magnitudes and ranks.
    inverting = 6 * hessian + 5 * weights + weights // 4
    pulling = 5 * hessian + 7 * weights + 3 * (weights // 4)
    # Its conjugate gradients: both candidates, the weights found, gradient, direction, image, and two more for sums.
    fitting = 3 * hessian + 9 * weights + weights // 2
    # The layer's error: the matrix; codes and mask, the difference of the weights, and its energy in float32 and 64.
    judging = hessian + 5 * weights + weights // 2
    return max(factoring, inverting, pulling, fitting, judging)
