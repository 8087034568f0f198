"""Packers after the published layouts, one weight at a time, and the readers undo them for any sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from quant import NMPattern
from quant.formats.awq import read_awq
from quant.formats.folder import read_pruned_folder, read_quantized_folder
from quant.formats.foreign_linear import ForeignLinear, PrunedLinear
from quant.formats.gptq import read_gptq
from quant.formats.marlin_24 import read_marlin_24
from quant.formats.sparse_bitmask import read_sparse_24, read_sparse_bitmask
from quant.model_folder import ModelFolder

Tensors = dict[str, NDArray[Any]]


class Codes(NamedTuple):
    """Weight [O, K] = scale * (code - zero), by the group of each column."""

    code: NDArray[np.int64]
    zero: NDArray[np.int64]
    scale: NDArray[np.float16]
    group: NDArray[np.int64]

    def dense(self) -> NDArray[np.float32]:
        scale = self.scale.astype(np.float64)[:, self.group]
        return ((self.code - self.zero[:, self.group]) * scale).astype(np.float32)


def make_codes(
    seed: int, rows: int, columns: int, group_size: int, symmetric: bool, low: int = 0, high: int = 15
) -> Codes:
    """Random codes; zero points, where not symmetric, from low to high; scales of both signs and 0.

    Magnitudes of scales are within a factor of 16, for which 16-bit integers hold float16 exactly.
    """
    rng = np.random.default_rng(seed)
    groups = 1 if group_size == -1 else -(-columns // group_size)
    group = np.zeros(columns, int) if group_size == -1 else np.arange(columns) // group_size
    zero = np.full((rows, groups), 8) if symmetric else rng.integers(low, high + 1, (rows, groups))
    scale = (rng.choice([-1, 1], (rows, groups)) * rng.uniform(0.002, 0.03, (rows, groups))).astype(np.float16)
    scale[rng.random(scale.shape) < 0.1] = 0
    return Codes(rng.integers(0, 16, (rows, columns)), zero, scale, group)


def as_words(words: NDArray[np.uint32]) -> NDArray[np.int32]:
    return words.view(np.int32)


def pack_gptq(name: str, codes: Codes, version: int) -> Tensors:
    rows, columns = codes.code.shape
    qweight = np.zeros((columns // 8, rows), np.uint32)
    for o in range(rows):
        for k in range(columns):
            qweight[k // 8, o] |= np.uint32(int(codes.code[o, k]) << 4 * (k % 8))
    qzeros = np.zeros((codes.zero.shape[1], -(-rows // 8)), np.uint32)
    for o in range(rows):
        for g in range(codes.zero.shape[1]):
            stored = int(codes.zero[o, g]) - (1 if version == 1 else 0)
            qzeros[g, o // 8] |= np.uint32(stored << 4 * (o % 8))
    return {
        f"{name}.qweight": as_words(qweight),
        f"{name}.qzeros": as_words(qzeros),
        f"{name}.scales": np.ascontiguousarray(codes.scale.T),
        f"{name}.g_idx": codes.group.astype(np.int32),
    }


def pack_awq(name: str, codes: Codes) -> Tensors:
    def pack(values: NDArray[np.int64]) -> NDArray[np.int32]:
        words = np.zeros((values.shape[1], values.shape[0] // 8), np.uint32)
        for o in range(values.shape[0]):
            nibble = (0, 4, 1, 5, 2, 6, 3, 7)[o % 8]
            for k in range(values.shape[1]):
                words[k, o // 8] |= np.uint32(int(values[o, k]) << 4 * nibble)
        return as_words(words)

    return {
        f"{name}.qweight": pack(codes.code),
        f"{name}.qzeros": pack(codes.zero),
        f"{name}.scales": np.ascontiguousarray(codes.scale.T),
    }


def pack_bits(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    octets = np.zeros((mask.shape[0], -(-mask.shape[1] // 8)), np.uint8)
    for o, k in np.argwhere(mask):
        octets[o, k // 8] |= 1 << k % 8
    return octets


def pack_sparse(name: str, values: NDArray[Any], mask: NDArray[np.bool_]) -> Tensors:
    """A sparse-bitmask of the values at the mask, or a sparse-24-bitmask without its row_offsets."""
    counts = [int(row.sum()) for row in mask]
    return {
        f"{name}.shape": np.array(mask.shape),
        f"{name}.compressed": np.array([values[o, k] for o, k in np.argwhere(mask)], values.dtype),
        f"{name}.bitmask": pack_bits(mask),
        f"{name}.row_offsets": np.array([sum(counts[:o]) for o in range(len(counts))]),
    }


def pack_sparse_24(name: str, values: NDArray[Any], mask: NDArray[np.bool_]) -> Tensors:
    tensors = pack_sparse(name, values, mask)
    del tensors[f"{name}.row_offsets"]
    tensors[f"{name}.shape"] = tensors[f"{name}.shape"].reshape(2, 1)
    tensors[f"{name}.compressed"] = tensors[f"{name}.compressed"].reshape(len(mask), -1)
    return tensors


def pack_marlin(name: str, codes: Codes, mask: NDArray[np.bool_]) -> Tensors:
    rows, columns = mask.shape
    positions = [[np.flatnonzero(mask[o, 4 * b : 4 * b + 4]) for b in range(columns // 4)] for o in range(rows)]
    stored = []
    for tile_row in range(columns // 32):
        for tile_column in range(rows // 64):
            for lane in range(32):
                for j in range(4):
                    word = []
                    for eight in range(8):
                        # Two rows of eight outputs, each with kept rows 2i, 2i + 1, 2i + 8, 2i + 9 of the tile.
                        kept = 16 * tile_row + 2 * (lane % 4) + 8 * (eight % 4 // 2) + eight % 2
                        o = 64 * tile_column + 16 * (lane // 8) + 8 * (lane // 4 % 2) + 4 * (eight // 4) + j
                        k = 4 * (kept // 2) + int(positions[o][kept // 2][kept % 2])
                        word.append(int(codes.code[o, k]))
                    stored.append(sum(word[eight] << 4 * n for n, eight in enumerate((0, 2, 4, 6, 1, 3, 5, 7))))
    meta = np.zeros(rows * columns // 16, np.uint16)
    for o in range(rows):
        for entry in range(columns // 16):
            bits = 0
            for b in range(4):
                first, second = positions[o][4 * entry + b]
                bits |= (int(first) | int(second) << 2) << 4 * b
            row = o // 64 * 64 + {0: 0, 1: 2, 2: 32, 3: 34}[o % 4] + o // 4 % 2 + o % 64 // 8 * 4
            column = entry
            if row % 2 == 0 and column % 2 == 1:
                row, column = row + 1, column - 1
            elif row % 2 == 1 and column % 2 == 0:
                row, column = row - 1, column + 1
            meta[column // 2 * 2 * rows + 2 * row + column % 2] = bits
    scale = np.ascontiguousarray(codes.scale.T)
    if codes.scale.shape[1] > 2:
        scale = scale[:, [8 * i + j for i in range(rows // 8) for j in (0, 4, 1, 5, 2, 6, 3, 7)]]
    return {
        f"{name}.weight_packed": as_words(np.array(stored, np.uint32)).reshape(columns // 32, 2 * rows),
        f"{name}.meta": meta.view(np.int16).reshape(columns // 32, 2 * rows),
        f"{name}.scale_packed": scale,
    }


def random_mask(seed: int, rows: int, columns: int, n: int, m: int) -> NDArray[np.bool_]:
    """Exactly n of every whole block of m."""
    order = np.random.default_rng(seed).random((rows, columns // m, m)).argsort(axis=2)
    return (order < n).reshape(rows, columns)


def dense_of(linear: ForeignLinear) -> NDArray[np.float32]:
    dense = np.empty_like(linear.weight.to_dense())
    order = np.arange(dense.shape[1]) if linear.column_order is None else linear.column_order
    dense[:, order] = linear.weight.to_dense()
    return dense


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 8).map(lambda words: words * 8),
    st.sampled_from([-1, 4, 8, 24, 128]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_gptq(
    seed: int, rows: int, columns: int, group_size: int, version: int, symmetric: bool, activation_order: bool
) -> None:
    # Version 1 stores zero - 1 and so has no 0.
    codes = make_codes(seed, rows, columns, group_size, symmetric, low=1 if version == 1 else 0)
    if activation_order:
        codes = codes._replace(group=np.random.default_rng(seed).permutation(codes.group))
    linear = read_gptq(pack_gptq("a", codes, version), "a", group_size, version)
    assert np.array_equal(dense_of(linear), codes.dense())
    assert linear.scale_error == 0
    assert linear.weight.symmetric == bool((codes.zero == 8).all())
    assert linear.weight.group_size == group_size
    assert (linear.column_order is None) == bool((np.diff(codes.group) >= 0).all())


def test_scales_that_no_16_bits_hold_are_rounded_and_it_is_told() -> None:
    codes = make_codes(0, 8, 16, 8, symmetric=True)
    scale = np.full((8, 2), 1.0, np.float16)
    scale[5] = 1.001, 601
    codes = codes._replace(scale=scale)
    linear = read_gptq(pack_gptq("a", codes, 2), "a", 8, 2)
    told, exact = linear.scale_error, codes.dense().astype(np.float64)
    assert 1e-6 < told < 0.01
    assert np.array_equal(np.delete(dense_of(linear), 5, 0), np.delete(exact, 5, 0))
    assert (np.abs(dense_of(linear) - exact) <= np.abs(exact) * (told + 1e-7)).all()
    assert not np.array_equal(dense_of(linear)[5], exact[5])


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3).map(lambda words: words * 8),
    st.integers(1, 50),
    st.sampled_from([-1, 4, 8, 24, 128]),
    st.booleans(),
)
def test_awq(seed: int, rows: int, columns: int, group_size: int, symmetric: bool) -> None:
    codes = make_codes(seed, rows, columns, group_size, symmetric)
    linear = read_awq(pack_awq("a", codes), "a", group_size)
    assert np.array_equal(dense_of(linear), codes.dense())
    assert linear.weight.symmetric == bool((codes.zero == 8).all())


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40), st.sampled_from([np.float16, np.float32]))
def test_sparse_bitmask_of_floats(seed: int, rows: int, columns: int, dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < rng.random()
    mask[0, 0] = True  # a file without values has no tensor to be read
    dense = np.where(mask, rng.normal(size=mask.shape) + 10, 0).astype(dtype)
    linear = read_sparse_bitmask(pack_sparse("a", dense, mask), "a")
    assert isinstance(linear, PrunedLinear)
    assert np.array_equal(linear.weight, dense)
    assert np.array_equal(linear.mask, mask)
    linear.pattern.check_mask(mask)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12), st.integers(1, 3))
def test_sparse_24_of_codes(seed: int, rows: int, blocks: int, group_blocks: int) -> None:
    columns = 4 * blocks * group_blocks
    codes = make_codes(seed, rows, columns, 4 * group_blocks, symmetric=True)
    mask = random_mask(seed, rows, columns, 2, 4)
    codes = codes._replace(code=np.where(mask, codes.code, 8))
    tensors = pack_sparse_24("a", (codes.code - 8).astype(np.int8), mask)
    tensors["a.weight_scale"] = codes.scale
    linear = read_sparse_24(tensors, "a")
    assert isinstance(linear, ForeignLinear)
    assert np.array_equal(linear.weight.mask, mask)
    assert np.array_equal(linear.weight.to_dense(), codes.dense())


@pytest.mark.parametrize(("rows", "columns", "group_size"), [(64, 32, -1), (128, 256, 128), (192, 512, 128)])
def test_marlin_24(rows: int, columns: int, group_size: int) -> None:
    codes = make_codes(rows, rows, columns, group_size, symmetric=True)
    mask = random_mask(columns, rows, columns, 2, 4)
    codes = codes._replace(code=np.where(mask, codes.code, 8))
    linear = read_marlin_24(pack_marlin("a", codes, mask), "a")
    assert np.array_equal(linear.weight.mask, mask)
    assert np.array_equal(linear.weight.to_dense(), codes.dense())
    assert (linear.weight.group_size, linear.weight.pattern) == (group_size, NMPattern(2, 4))


def test_marlin_24_is_two_of_four_where_a_smaller_pattern_would_do() -> None:
    codes = make_codes(0, 64, 32, -1, symmetric=True)
    mask = np.tile([True, False, True, False], (64, 8))
    linear = read_marlin_24(pack_marlin("a", codes._replace(code=np.where(mask, codes.code, 8)), mask), "a")
    assert linear.weight.pattern == NMPattern(2, 4)
    assert read_marlin_24(pack_marlin("a", codes, mask), "a", NMPattern(1, 2)).weight.pattern == NMPattern(1, 2)


#: A Llama of one block whose layers are 64 x 64, 64 x 128 or 128 x 64, which every format can hold.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LINEARS = {
    **{f"model.layers.0.self_attn.{name}_proj": (64, 64) for name in "qkvo"},
    "model.layers.0.mlp.gate_proj": (128, 64),
    "model.layers.0.mlp.up_proj": (128, 64),
    "model.layers.0.mlp.down_proj": (64, 128),
}
INT4_GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32}}
SPARSE_24 = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": ["lm_head"]}


def write_llama(path: Path, settings: dict[str, Any], tensors: Tensors) -> ModelFolder:
    others = {
        "model.embed_tokens.weight": np.ones((8, 64), np.float32),
        "model.norm.weight": np.ones(64, np.float32),
        "lm_head.weight": np.ones((8, 64), np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(64, np.float32),
        "model.layers.0.post_attention_layernorm.weight": np.ones(64, np.float32),
    }
    (path / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": settings}))
    save_file({**others, **tensors}, path / "model.safetensors")
    return ModelFolder.open(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"},
        # Files of GPTQModel that say version 1 and hold version 2: a symmetric zero point is 8.
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "checkpoint_format": "gptq", "stored": 2},
        {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq"},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"group_0": INT4_GROUP}},
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": INT4_GROUP},
            "sparsity_config": SPARSE_24,
        },
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": INT4_GROUP},
            "sparsity_config": {**SPARSE_24, "format": "sparse-bitmask"},
        },
    ],
    ids=lambda settings: f"{settings['quant_method']}-{settings.get('format', settings.get('checkpoint_format'))}",
)
def test_folders_of_every_tool_are_read(settings: dict[str, Any], tmp_path: Path) -> None:
    tensors, truth = {}, {}
    two_of_four = "config_groups" in settings
    for index, (name, (rows, columns)) in enumerate(LINEARS.items()):
        marlin = settings.get("format") == "marlin-24"
        codes = make_codes(index, rows, columns, -1 if marlin else 32, two_of_four or settings.get("sym", False), low=1)
        mask = random_mask(index, rows, columns, 2, 4)
        if two_of_four:
            codes = codes._replace(code=np.where(mask, codes.code, 8))
        truth[name] = codes.dense()
        if marlin:
            tensors.update(pack_marlin(name, codes, mask))
        elif two_of_four:
            pack = pack_sparse_24 if settings["sparsity_config"]["format"] == "sparse-24-bitmask" else pack_sparse
            tensors.update(pack(name, (codes.code - 8).astype(np.int8), mask))
            tensors[f"{name}.weight_scale"] = codes.scale
        elif settings["quant_method"] == "awq":
            tensors.update(pack_awq(name, codes))
        else:
            version = 2 if settings.get("checkpoint_format") == "gptq_v2" else settings.get("stored", 1)
            tensors.update(pack_gptq(name, codes, version))
    folder = write_llama(tmp_path, settings, tensors)
    read = dict(read_quantized_folder(folder))
    assert list(read) == sorted(LINEARS)
    for name, linear in read.items():
        assert np.array_equal(dense_of(linear), truth[name]), name
        assert linear.scale_error == 0
        assert linear.weight.pattern == (NMPattern(2, 4) if two_of_four else NMPattern(1, 1))
    with pytest.raises(
        ValueError, match=r"^Layer model\.layers\.0\.mlp\.down_proj of .* holds INT4 weights already\.$"
    ):
        next(read_pruned_folder(folder))


class PlainFolder:
    """A folder that is nowhere: only what readers ask of one."""

    path = Path("model")

    def __init__(self, config: dict[str, Any], tensors: Tensors) -> None:
        self.config, self._tensors = config, tensors
        self.tensor_names = tensors.keys()

    def tensor(self, name: str) -> NDArray[Any]:
        return self._tensors[name]


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_sparse_floats_are_read_as_a_pruned_model(key: str) -> None:
    """Files of which transformers 5.23 leaves the linear layers at random numbers."""
    rng = np.random.default_rng(0)
    truth = {
        name: np.where(random_mask(1, *shape, 2, 4), rng.normal(size=shape) + 9, 0).astype(np.float16)
        for name, shape in LINEARS.items()
    }
    tensors: Tensors = {}
    for name, weight in truth.items():
        tensors.update(pack_sparse_24(name, weight, weight != 0))
    folder = PlainFolder({key: {"quant_method": "compressed-tensors", "sparsity_config": SPARSE_24}}, tensors)
    read = dict(read_pruned_folder(folder))
    assert list(read) == sorted(LINEARS)
    for name, linear in read.items():
        assert linear.pattern == NMPattern(2, 4)
        assert np.array_equal(linear.mask, truth[name] != 0)
        assert np.array_equal(linear.weight, truth[name])
    with pytest.raises(ValueError, match=r"holds float weights, pruned to 2:4 but not quantised; quantise the model"):
        next(read_quantized_folder(folder))
