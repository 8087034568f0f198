"""Layers that the real tools packed: what a reader finds is what went in, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quant import NMPattern
from quant.formats.awq import read_awq
from quant.formats.foreign_linear import ForeignLinear, PrunedLinear
from quant.formats.gptq import read_gptq
from quant.formats.marlin_24 import read_marlin_24
from quant.formats.pack_quantized import read_pack_quantized
from quant.formats.sparse_bitmask import read_sparse_24, read_sparse_bitmask

MAKER = Path(__file__).resolve().parent.parent / "fixtures" / "make_foreign_files.py"


def load_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_foreign_files", MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()
TENSORS = load_file(maker.FILE)
TRUTH = maker.truth()


def in_input_order(linear: ForeignLinear) -> np.ndarray:
    """Dense weight with column k for input feature k."""
    dense = linear.weight.to_dense()
    if linear.column_order is None:
        return dense
    unsorted = np.empty_like(dense)
    unsorted[:, linear.column_order] = dense
    return unsorted


#: Reader, group size and whether symmetric, by layer.
READERS = {
    "marlin": (lambda: read_marlin_24(TENSORS, "marlin"), 128, True),
    "marlin_rows": (lambda: read_marlin_24(TENSORS, "marlin_rows"), -1, True),
    "sparse_24_codes": (lambda: read_sparse_24(TENSORS, "sparse_24_codes"), 32, True),
    "sparse_codes": (lambda: read_sparse_bitmask(TENSORS, "sparse_codes"), 20, False),
    "packed": (lambda: read_pack_quantized(TENSORS, "packed"), -1, True),
    "packed_order": (lambda: read_pack_quantized(TENSORS, "packed_order"), 16, False),
    "gptq": (lambda: read_gptq(TENSORS, "gptq", 16), 16, False),
    "gptq_negative": (lambda: read_gptq(TENSORS, "gptq_negative", 32, symmetric=True), 32, True),
    "awq": (lambda: read_awq(TENSORS, "awq", 32), 32, False),
}


def test_every_layer_of_the_file_is_read() -> None:
    names = {name.partition(".")[0] for name in TENSORS}
    assert names == READERS.keys() | maker.float_truth().keys()
    assert names == TRUTH.keys() | maker.float_truth().keys()


@pytest.mark.parametrize("name", READERS)
def test_codes_of_real_tools_are_read_exactly(name: str) -> None:
    read, group_size, symmetric = READERS[name]
    linear, layer = read(), TRUTH[name]
    assert isinstance(linear, ForeignLinear)
    assert linear.scale_error == 0
    assert (linear.weight.group_size, linear.weight.symmetric) == (group_size, symmetric)
    assert np.array_equal(in_input_order(linear), layer.dense())
    integers = layer.integers()
    if linear.column_order is not None:
        integers = integers[:, linear.column_order]
        assert (np.diff(layer.group[linear.column_order]) >= 0).all()
    assert np.array_equal(linear.weight.integers(), integers)


@pytest.mark.parametrize("name", ["marlin", "marlin_rows", "sparse_24_codes"])
def test_two_of_every_four_are_kept_zeros_among_them(name: str) -> None:
    weight, layer = READERS[name][0]().weight, TRUTH[name]
    assert weight.pattern == NMPattern(2, 4)
    assert (weight.pattern.kept_per_block(weight.mask) == 2).all()
    assert not (layer.integers() != 0)[~weight.mask].any()
    assert (layer.integers() == 0)[weight.mask].any()


def test_patterns_are_found_where_the_file_says_none() -> None:
    assert READERS["sparse_codes"][0]().weight.pattern == NMPattern(2, 4)
    for name in ("packed", "packed_order", "gptq", "gptq_negative", "awq"):
        weight = READERS[name][0]().weight
        assert weight.pattern == NMPattern(1, 1), name
        assert weight.mask.all()


def test_float_weights_come_back_as_pruned_ones() -> None:
    truth = maker.float_truth()
    two_of_four = read_sparse_24(TENSORS, "sparse_24")
    assert isinstance(two_of_four, PrunedLinear)
    assert np.array_equal(two_of_four.weight, truth["sparse_24"])
    assert two_of_four.pattern == NMPattern(2, 4)
    assert (two_of_four.pattern.kept_per_block(two_of_four.mask) == 2).all()
    unstructured = read_sparse_bitmask(TENSORS, "sparse")
    assert isinstance(unstructured, PrunedLinear)
    assert np.array_equal(unstructured.weight, truth["sparse"])
    assert np.array_equal(unstructured.mask, truth["sparse"] != 0)
    assert unstructured.pattern == NMPattern(1, 1)


def test_bias_and_numpy_tensors_are_read() -> None:
    linear = READERS["awq"][0]()
    assert linear.bias is not None
    assert linear.bias.dtype == np.float32
    assert np.array_equal(linear.bias, np.arange(32) / 32)
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items() if tensor.dtype != torch.bfloat16}
    assert np.array_equal(read_awq(arrays, "awq", 32).weight.to_dense(), linear.weight.to_dense())


def test_activation_order_is_a_stable_sort() -> None:
    for name in ("gptq", "packed_order"):
        order = READERS[name][0]().column_order
        assert np.array_equal(order, np.argsort(TRUTH[name].group, kind="stable"))
