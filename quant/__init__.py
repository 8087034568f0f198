"""N:M pruning and INT4 quantisation; owns the data types that the other packages share."""

from quant.linear import METHODS, LayerSettings, QuantizedLinear
from quant.pattern import NMPattern
from quant.prune import magnitude_mask, prune_magnitude
from quant.rtn import quantize_rtn
from quant.scales import integer_scales, split_scales
from quant.weight import NMWeight

__all__ = [
    "METHODS",
    "LayerSettings",
    "NMPattern",
    "NMWeight",
    "QuantizedLinear",
    "integer_scales",
    "magnitude_mask",
    "prune_magnitude",
    "quantize_rtn",
    "split_scales",
]
