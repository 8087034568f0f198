"""N:M pruning and INT4 quantisation; owns the data types that the other packages share."""

from quant.pattern import NMPattern
from quant.prune import magnitude_mask, prune_magnitude
from quant.rtn import quantize_rtn
from quant.weight import NMWeight

__all__ = ["NMPattern", "NMWeight", "magnitude_mask", "prune_magnitude", "quantize_rtn"]
