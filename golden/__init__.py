"""PyTorch reference of the tensor core's arithmetic; independent of accel."""

from golden.gemm import dequantised_product, integer_gemm
from golden.linear import NMLinear, quantise_tokens

__all__ = ["NMLinear", "dequantised_product", "integer_gemm", "quantise_tokens"]
