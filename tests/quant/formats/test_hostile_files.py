"""Files that do not fit together are refused in a sentence that names layer and tensor."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern
from quant.formats.awq import read_awq
from quant.formats.folder import read_quantized_folder
from quant.formats.gptq import read_gptq
from quant.formats.marlin_24 import read_marlin_24
from quant.formats.pack_quantized import read_pack_quantized
from quant.formats.schemes import WeightScheme
from quant.formats.sparse_bitmask import read_sparse_24, read_sparse_bitmask
from quant.pattern_check import PatternBreach

Tensors = dict[str, Any]

EIGHTS = -0x77777778  # a word of eight nibbles of 8, zero in every format that adds 8


def packed() -> Tensors:
    """A 10 x 20 layer of zeros in groups of 10."""
    return {
        "a.weight_packed": np.full((10, 3), EIGHTS, np.int32),
        "a.weight_scale": np.ones((10, 2), np.float16),
        "a.weight_shape": np.array([10, 20]),
    }


def packed_asymmetric() -> Tensors:
    return {**packed(), "a.weight_zero_point": np.full((2, 2), EIGHTS, np.int32)}


def gptq() -> Tensors:
    """A 16 x 24 layer of zeros in groups of 8."""
    return {
        "a.qweight": np.full((3, 16), EIGHTS, np.int32),
        "a.qzeros": np.full((3, 2), EIGHTS, np.int32),
        "a.scales": np.ones((3, 16), np.float16),
        "a.g_idx": np.arange(24, dtype=np.int32) // 8,
    }


def awq() -> Tensors:
    return {
        "a.qweight": np.full((24, 2), EIGHTS, np.int32),
        "a.qzeros": np.full((3, 2), EIGHTS, np.int32),
        "a.scales": np.ones((3, 16), np.float16),
    }


def sparse() -> Tensors:
    """A 2 x 12 layer with columns 0 and 9 of each row kept."""
    return {
        "a.shape": np.array([2, 12]),
        "a.compressed": np.ones(4, np.float16),
        "a.bitmask": np.array([[1, 2], [1, 2]], np.uint8),
        "a.row_offsets": np.array([0, 2]),
    }


def sparse_24() -> Tensors:
    """A 2 x 8 layer with columns 0, 1, 6, 7 of each row kept."""
    return {
        "a.shape": np.array([[2], [8]]),
        "a.compressed": np.ones((2, 4), np.float16),
        "a.bitmask": np.array([[0b11000011], [0b11000011]], np.uint8),
    }


def sparse_24_codes() -> Tensors:
    return {**sparse_24(), "a.compressed": np.ones((2, 4), np.int8), "a.weight_scale": np.ones((2, 2), np.float16)}


def marlin() -> Tensors:
    """A 64 x 128 layer of zeros; positions 0 and 1 of every block are kept."""
    return {
        "a.weight_packed": np.full((4, 128), EIGHTS, np.int32),
        "a.meta": np.full((4, 128), 0x4444, np.int16),
        "a.scale_packed": np.ones((1, 64), np.float16),
    }


class PlainFolder(SimpleNamespace):
    """A folder of one layer, in memory but for what lies beside the model at `path`."""

    path: Path
    config: dict[str, Any]
    tensors: Tensors

    @property
    def tensor_names(self) -> set[str]:
        return set(self.tensors)

    def tensor(self, name: str) -> Any:
        return self.tensors[name]


def at(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def read_gptq_8(tensors: Tensors) -> Any:
    return read_gptq(tensors, "a", 8, 2)


FILES: dict[Callable[[], Tensors], Callable[[Tensors], Any]] = {
    packed: lambda tensors: read_pack_quantized(tensors, "a"),
    packed_asymmetric: lambda tensors: read_pack_quantized(tensors, "a"),
    gptq: read_gptq_8,
    awq: lambda tensors: read_awq(tensors, "a", 8),
    sparse: lambda tensors: read_sparse_bitmask(tensors, "a"),
    sparse_24: lambda tensors: read_sparse_24(tensors, "a"),
    sparse_24_codes: lambda tensors: read_sparse_24(tensors, "a"),
    marlin: lambda tensors: read_marlin_24(tensors, "a"),
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_the_files_are_whole_before_they_are_broken(make: Callable[[], Tensors]) -> None:
    FILES[make](make())


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_every_tensor_is_needed_and_checked(make: Callable[[], Tensors]) -> None:
    """Without a tensor, and with one of another dtype or shape, the message names layer and tensor."""
    whole = make()
    for name, array in whole.items():
        suffix = name.partition(".")[2]
        if suffix not in ("g_idx", "weight_zero_point"):
            without = {key: value for key, value in whole.items() if key != name}
            with pytest.raises(ValueError, match=f"^Layer a has no tensor {suffix}, which its format needs"):
                FILES[make](without)
        for wrong in (array.astype(np.float64), array.astype(np.uint16), array.astype(bool)):
            with pytest.raises(ValueError, match=f"^{suffix} of layer a has dtype {wrong.dtype}, but it must be "):
                FILES[make]({**whole, name: wrong})
        longer = np.concatenate((array, array, array))
        shapes = [array[None], array[..., None], array.ravel()[0], array[:0], longer]
        if suffix != "weight_scale":  # its columns say how long the groups are
            shapes += [np.tile(array, 2), array[..., :-1]]
        for wrong in shapes:
            with pytest.raises(ValueError, match=r"^[a-z_]+ of layer a (has|says|holds|puts) "):
                FILES[make]({**whole, name: wrong})


BROKEN = [
    (
        packed,
        {"a.weight_shape": np.array([10, 30])},
        "weight_packed of layer a has shape (10, 3), but weight_shape says [10, 30], which 4-bit codes fill (10, 4).",
    ),
    (
        packed,
        {"a.weight_shape": np.array([2**40, 2**40])},
        "weight_packed of layer a has shape (10, 3), but weight_shape says [1099511627776, 1099511627776], which 4-bit "
        "codes fill (1099511627776, 137438953472).",
    ),
    (
        packed,
        {"a.weight_shape": np.array([10, -20])},
        "weight_shape of layer a says [10, -20], but a weight has at least one row and column.",
    ),
    (
        packed,
        {"a.weight_scale": np.ones((10, 3), np.float16)},
        "weight_scale of layer a has 3 scales per row, which do not divide K = 20 evenly.",
    ),
    (
        packed,
        {"a.weight_scale": at(np.ones((10, 2), np.float16), (3, 1), np.nan)},
        "weight_scale of layer a holds nan at [3, 1], but every value must be finite.",
    ),
    (
        packed,
        {"a.weight_scale": at(np.ones((10, 2), np.float16), (9, 0), -np.inf)},
        "weight_scale of layer a holds -inf at [9, 0], but every value must be finite.",
    ),
    (
        packed,
        {"a.bias": np.ones(9, np.float32)},
        "bias of layer a has shape (9,), but it must be [O] = (10).",
    ),
    (
        packed,
        {"a.bias": at(np.ones(10, np.float32), 4, np.inf)},
        "bias of layer a holds inf at [4], but every value must be finite.",
    ),
    (
        packed_asymmetric,
        {"a.weight_zero_point": np.zeros((1, 2), np.int32)},
        "weight_zero_point of layer a has shape (1, 2), but it must be [⌈O / 8⌉, groups] = (2, 2).",
    ),
    (
        packed_asymmetric,
        {"a.weight_zero_point": at(np.zeros((10, 2), np.int8), (7, 1), 8)},
        "weight_zero_point of layer a holds 8 at [7, 1], but a 4-bit code is -8 to 7.",
    ),
    (
        packed_asymmetric,
        {"a.weight_zero_point": at(np.zeros((10, 2), np.int8), (0, 0), -9)},
        "weight_zero_point of layer a holds -9 at [0, 0], but a 4-bit code is -8 to 7.",
    ),
    (
        packed,
        {"a.weight_g_idx": np.arange(20, dtype=np.int32) // 5},
        "weight_g_idx of layer a puts column 10 in group 2, but there are groups 0 to 1.",
    ),
    (
        gptq,
        {"a.g_idx": at(gptq()["a.g_idx"], 5, -1)},
        "g_idx of layer a puts column 5 in group -1, but there are groups 0 to 2.",
    ),
    (
        gptq,
        {"a.g_idx": at(gptq()["a.g_idx"], 0, 2)},
        "g_idx of layer a puts 7 columns in group 0, but only groups of 8 can be made contiguous.",
    ),
    (
        gptq,
        {"a.scales": np.ones((2, 16), np.float16)},
        "scales of layer a has shape (2, 16), but it must be [groups, O] = (3, 16).",
    ),
    (
        sparse,
        {"a.bitmask": np.array([[1, 2], [3, 2]], np.uint8)},
        "compressed of layer a holds 4 values, but the bitmask keeps 5 weights.",
    ),
    (
        sparse,
        {"a.bitmask": np.array([[1, 2], [1, 32]], np.uint8)},
        "bitmask of layer a keeps a weight beyond column 11 in row 1.",
    ),
    (
        sparse,
        {"a.row_offsets": np.array([0, 2**60])},
        "row_offsets of layer a says that row 1 starts at 1152921504606846976, but by the bitmask it is 2.",
    ),
    (
        sparse,
        {"a.shape": np.array([2**50, 12])},
        "bitmask of layer a has shape (2, 2), but it must be [O, ⌈K / 8⌉] = (1125899906842624, 2).",
    ),
    (
        sparse,
        {"a.compressed": at(np.ones(4, np.float16), 2, np.nan)},
        "compressed of layer a holds nan at [2], but every value must be finite.",
    ),
    (
        sparse_24,
        {"a.bitmask": np.array([[0b01000011], [0b01100011]], np.uint8), "a.shape": np.array([[2], [7]])},
        "compressed of layer a has shape (2, 4), but it must be [O, K / 2] = (2, 3).",
    ),
    (
        sparse_24,
        {"a.bitmask": np.array([[0b11000011], [0b01000011]], np.uint8)},
        "compressed of layer a holds 8 values, but the bitmask keeps 7 weights.",
    ),
    (
        sparse_24_codes,
        {"a.compressed": at(np.ones((2, 4), np.int8), (1, 2), 100)},
        "compressed of layer a holds 100 at [6], but a 4-bit code is -8 to 7.",
    ),
    (
        marlin,
        {"a.meta": at(np.full((4, 128), 0x4444, np.int16), (0, 0), 0x4454)},
        "meta of layer a lists positions 1 and 1 in row 0, block 1 (columns 4 to 7); the second must be above the "
        "first.",
    ),
    (
        marlin,
        {"a.scale_packed": np.ones((2, 64), np.float16)},
        "scale_packed of layer a has 2 scales per row; K = 128 has 1, or one per 128 weights.",
    ),
    (
        marlin,
        {"a.weight_packed": np.zeros((4, 96), np.int32)},
        "weight_packed of layer a has shape (4, 96), but 4-bit marlin-24 has [K / 32, 2 * O] with 64 dividing O.",
    ),
]


@pytest.mark.parametrize(("make", "changes", "words"), BROKEN, ids=range(len(BROKEN)))
def test_what_does_not_fit_is_named(make: Callable[[], Tensors], changes: Tensors, words: str) -> None:
    tensors = {**make(), **changes}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            FILES[make](tensors)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_zero_points_that_version_1_cannot_store_are_refused() -> None:
    tensors = gptq()
    tensors["a.qzeros"] = at(tensors["a.qzeros"], (1, 0), np.int32(0x7F777777))
    words = "qzeros of layer a stores 15 in row 6, group 1, which version 1 of the format leaves open"
    with pytest.raises(ValueError, match=f"^{words}"):
        read_gptq(tensors, "a", 8, 1)
    assert read_gptq(tensors, "a", 8, 2).weight.zero_point[6, 1] == 15


@pytest.mark.parametrize("size", [0, -2, 1 << 31, 10**30, "8", None, True, 8.0])
def test_group_sizes_that_are_none_are_refused(size: Any, tmp_path: Path) -> None:
    for method, tensors in (("gptq", gptq()), ("awq", awq())):
        settings = {"quant_method": method, "bits": 4, "group_size": size}
        folder = PlainFolder(path=tmp_path, config={"quantization_config": settings}, tensors=tensors)
        with pytest.raises(ValueError, match=r"^(The file states|quantization_config has) group[_ ]size .*; it must"):
            next(read_quantized_folder(folder))
    for settings in (
        {"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "group", "group_size": size}}}},
        {"nimble": {"version": 1, "layers": {"a": {"pattern": "1:1", "group_size": size}}}},
    ):
        with pytest.raises(ValueError, match=r"[Gg]roup[_ ]size"):
            next(read_quantized_folder(pack_folder(packed(), **settings)))


def test_a_layer_takes_the_scheme_that_it_fits() -> None:
    schemes = [WeightScheme(-1, True), WeightScheme(5, True), WeightScheme(10, False), WeightScheme(16, True)]
    assert read_pack_quantized(packed_asymmetric(), "a", schemes).weight.group_size == 10
    # 16 does not divide 20: the second group is short.
    assert read_pack_quantized(packed(), "a", schemes).weight.group_size == 16
    words = (
        "weight_scale of layer a has 2 scales for each row of 20 symmetric weights, which fits no scheme of the file: "
        "symmetric weights in groups of -1, asymmetric weights in groups of 10."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        read_pack_quantized(packed(), "a", [schemes[0], schemes[2]])


def test_activation_order_needs_its_order() -> None:
    tensors = gptq()
    del tensors["a.g_idx"]
    assert read_gptq(tensors, "a", 8, 2).column_order is None
    with pytest.raises(ValueError, match=r"^Layer a has no tensor g_idx, which its format needs\.$"):
        read_gptq(tensors, "a", 8, 2, activation_order=True)
    with pytest.raises(ValueError, match=r"^Layer a has no tensor weight_g_idx, which its format needs\.$"):
        read_pack_quantized(packed(), "a", [WeightScheme(10, True, True)])
    with pytest.raises(ValueError, match=r"^Layer a has activation order, with which a sparse file cannot be read\.$"):
        read_sparse_24(sparse_24_codes(), "a", [WeightScheme(4, True, True)])
    # Files without activation order may hold -1.
    unordered = {**packed(), "a.weight_g_idx": np.full(20, -1, np.int32)}
    assert read_pack_quantized(unordered, "a").column_order is None


def pack_folder(tensors: Tensors, path: Path = Path("none"), **settings: Any) -> PlainFolder:
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", **settings}
    return PlainFolder(path=path, config={"quantization_config": quantization}, tensors=tensors)


def test_four_of_eight_is_not_read_as_two_of_four() -> None:
    tensors = {**sparse_24(), "a.bitmask": np.array([[0b11000011], [0b10000111]], np.uint8)}
    with pytest.raises(PatternBreach, match=r"a breaks its pattern: row 1, block 0 \(columns 0 to 3\) has 3 nonzero"):
        read_sparse_24(tensors, "a")


def test_masks_made_of_biased_codes_are_not_believed() -> None:
    """A sparse file of asymmetric codes lists codes that are not 0, and a pruned weight's code is its zero point."""
    tensors = {**sparse_24_codes(), "a.weight_zero_point": np.full((2, 2), 3, np.int8)}
    # Codes of 0 outside the bitmask are weights of -3: the layer is dense, whatever the bitmask says.
    with pytest.raises(PatternBreach, match=r"row 0, block 0 \(columns 0 to 3\) has 4 nonzero weights"):
        read_sparse_24(tensors, "a")
    assert (
        read_sparse_24(tensors, "a", pattern=NMPattern(1, 1)).weight.integers()[0] == [-2, -2, -3, -3] * 2
    ).sum() == 4


@st.composite
def any_array(draw: st.DrawFn) -> np.ndarray:
    """A small array of any dtype that a safetensors file may hold, its extremes and infinities among the values."""
    dtype = np.dtype(draw(st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "?"])))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    octets = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).bytes(int(np.prod(shape)) * dtype.itemsize)
    return np.zeros(shape, dtype) if draw(st.booleans()) else np.frombuffer(octets, dtype).reshape(shape)


@given(st.sampled_from(list(FILES)), st.data())
def test_any_tensor_is_read_or_refused(make: Callable[[], Tensors], data: st.DataObject) -> None:
    """Whatever stands in the place of a tensor, the file is read or a ValueError says why not."""
    tensors = make()
    name = data.draw(st.sampled_from(sorted(tensors)))
    given_array = data.draw(any_array())
    if data.draw(st.booleans()) and given_array.size:
        # Of the right dtype and shape, so that the values are read.
        with np.errstate(all="ignore"):
            given_array = np.resize(given_array, tensors[name].shape).astype(tensors[name].dtype)
    with contextlib.suppress(ValueError):
        FILES[make]({**tensors, name: given_array})


@given(
    st.sampled_from([packed, packed_asymmetric, gptq, sparse_24_codes, marlin]),
    st.dictionaries(
        st.sampled_from(
            [
                "quant_method",
                "format",
                "config_groups",
                "sparsity_config",
                "nimble",
                "bits",
                "group_size",
                "sym",
                "version",
            ]
        ),
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(-(10**20), 10**20),
                st.floats(),
                st.sampled_from([4, 8, -1, 1, "gptq", "awq", "compressed-tensors", "pack-quantized", "marlin-24"]),
                st.sampled_from(["2:4", "sparse-24-bitmask", "sparse-bitmask", "group", "channel", "int", ""]),
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2),
                st.dictionaries(
                    st.sampled_from(
                        ["a", "weights", "format", "sparsity_structure", "targets", "ignore", "num_bits", "group_size"]
                        + ["type", "strategy", "symmetric", "version", "layers", "pattern", "actorder"]
                    ),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=8,
        ),
        min_size=1,
    ),
)
def test_any_configuration_is_read_or_refused(make: Callable[[], Tensors], settings: dict[str, Any]) -> None:
    folder = PlainFolder(path=Path("none"), config={"quantization_config": settings}, tensors=make())
    with contextlib.suppress(ValueError):
        list(read_quantized_folder(folder))
