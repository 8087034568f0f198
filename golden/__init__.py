"""PyTorch reference of the tensor core's arithmetic; independent of accel."""

from golden.gemm import dequantised_product, integer_gemm

__all__ = ["dequantised_product", "integer_gemm"]
