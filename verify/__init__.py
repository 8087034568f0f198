"""Proves that every level of the accelerator computes and takes the same."""

from verify.gemm import LEVELS, GemmRun, run_gemm
from verify.stimulus import Stalls

__all__ = ["LEVELS", "GemmRun", "Stalls", "run_gemm"]
