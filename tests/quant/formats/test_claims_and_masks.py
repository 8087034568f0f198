"""What a file says of a layer's pattern and mask, foreign claims and our own additions, against what it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quant import NMPattern
from quant.formats.folder import read_quantized_folder
from quant.formats.own_layers import MASKS_FILE, OwnLayers, StoredLayer
from quant.formats.pack_quantized import read_pack_quantized
from quant.pattern_check import PatternBreach

Tensors = dict[str, Any]


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


def nonzero_packed(columns: list[int]) -> Tensors:
    """A 10 x 20 layer in groups of 4, zero but for weights of 1 at some columns of row 4."""
    nibbles = np.full((10, 24), 8, np.uint32)
    nibbles[:, 20:] = 0
    nibbles[4, columns] = 9
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    words = (nibbles.reshape(10, 3, 8) << shifts).sum(axis=2).astype(np.uint32)
    return {
        "a.weight_packed": words.view(np.int32),
        "a.weight_scale": np.ones((10, 5), np.float16),
        "a.weight_shape": np.array([10, 20]),
    }


def pack_folder(tensors: Tensors, path: Path = Path("none"), **settings: Any) -> PlainFolder:
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", **settings}
    return PlainFolder(path=path, config={"quantization_config": quantization}, tensors=tensors)


CLAIM = {"format": "dense", "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": []}


def test_a_broken_claim_is_refused_by_row_and_block() -> None:
    whole, broken = nonzero_packed([0, 1, 6, 7]), nonzero_packed([8, 9, 11])
    ((_, linear),) = read_quantized_folder(pack_folder(whole, sparsity_config=CLAIM))
    assert linear.weight.pattern == NMPattern(2, 4)
    words = (
        "After stage read, a breaks its pattern: row 4, block 2 (columns 8 to 11) has 3 nonzero weights, but 2:4 "
        "allows at most 2."
    )
    with pytest.raises(PatternBreach, match=f"^{re.escape(words)}$"):
        next(read_quantized_folder(pack_folder(broken, sparsity_config=CLAIM)))
    # Without the claim, or against it, the layer is what its zeros make it, or what the caller says.
    for claim in (
        {**CLAIM, "ignore": ["a"]},
        {**CLAIM, "targets": ["b"]},
        {**CLAIM, "ignore": ["re:(x+)+y"]},
        {**CLAIM, "sparsity_structure": "unstructured"},
        {},
    ):
        ((_, linear),) = read_quantized_folder(pack_folder(broken, sparsity_config=claim))
        assert linear.weight.pattern == NMPattern(3, 4)
    ((_, linear),) = read_quantized_folder(pack_folder(broken, sparsity_config=CLAIM), NMPattern(1, 1))
    assert linear.weight.mask.all()
    with pytest.raises(PatternBreach, match=r"^After stage read, a breaks"):
        next(read_quantized_folder(pack_folder(whole), NMPattern(1, 4)))
    with pytest.raises(ValueError, match=r"^Layer a cannot have pattern 1:3: Group size 4 is not a multiple of m = 3"):
        next(read_quantized_folder(pack_folder(whole), NMPattern(1, 3)))


def own_folder(path: Path, own: Any = None, masks: Tensors | None = None) -> PlainFolder:
    """Our own file of a layer in groups of 20, with five scales for each, columns 0 and 6 of row 4 nonzero."""
    if own is None:
        own = {"version": 1, "layers": {"a": {"pattern": "2:4", "group_size": 20}}}
    if masks is not None:
        (path / MASKS_FILE).parent.mkdir()
        save_file(masks, path / MASKS_FILE)
    return pack_folder(nonzero_packed([0, 6]), path, nimble=own)


def kept(*columns: int) -> np.ndarray:
    mask = np.zeros((10, 24), bool)
    mask[4, list(columns)] = True
    return np.packbits(mask, axis=1, bitorder="little")


def test_our_masks_keep_zeros(tmp_path: Path) -> None:
    ((_, linear),) = read_quantized_folder(own_folder(tmp_path, masks={"a.weight_mask": kept(0, 1, 6, 19)}))
    assert np.flatnonzero(linear.weight.mask[4]).tolist() == [0, 1, 6, 19]
    assert np.flatnonzero(linear.weight.integers()[4]).tolist() == [0, 6]
    assert linear.weight.group_size == 20
    ((_, same),) = read_quantized_folder(own_folder(tmp_path), NMPattern(2, 4))
    assert np.array_equal(same.weight.mask, linear.weight.mask)
    ((_, other),) = read_quantized_folder(own_folder(tmp_path), NMPattern(2, 5))
    assert np.flatnonzero(other.weight.mask[4]).tolist() == [0, 6]
    assert (other.weight.pattern, other.weight.group_size) == (NMPattern(2, 5), 20)
    (tmp_path / MASKS_FILE).unlink()
    ((_, linear),) = read_quantized_folder(own_folder(tmp_path))
    assert np.flatnonzero(linear.weight.mask[4]).tolist() == [0, 6]
    assert linear.weight.pattern == NMPattern(2, 4)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (
            kept(0, 1),
            "Layer a has a weight that is not zero in row 4, column 6, where its mask says that it is pruned.",
        ),
        (kept(0, 1, 2, 6), "After stage read, a breaks its pattern: row 4, block 0 (columns 0 to 3) has 3 nonzero"),
        (kept(0, 6)[:9], "weight_mask of layer a has dtype uint8 and shape (9, 3); it must be uint8 (10, 3)."),
        (
            kept(0, 6).astype(np.int8),
            "weight_mask of layer a has dtype int8 and shape (10, 3); it must be uint8 (10, 3).",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: np.ndarray, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        next(read_quantized_folder(own_folder(tmp_path, masks={"a.weight_mask": mask})))


def test_a_file_of_masks_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / MASKS_FILE).parent.mkdir()
    (tmp_path / MASKS_FILE).write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"masks\.safetensors is not a safetensors file: "):
        next(read_quantized_folder(own_folder(tmp_path)))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ([], "quantization_config has nimble = [], but it must be an object of version 1."),
        ({"version": 2}, "quantization_config has nimble = {'version': 2}, but it must be an object of version 1."),
        ({"version": 1, "layers": 3}, "nimble in quantization_config has layers 3, but it must be an object."),
        (
            {"version": 1, "layers": {"a": {"pattern": 24}}},
            "nimble in quantization_config says of layer a {'pattern': 24}, but it must be an object with pattern and "
            "group_size.",
        ),
        (
            {"version": 1, "layers": {"a": {"pattern": "2:4", "group_size": "20"}}},
            "nimble in quantization_config says of layer a what cannot be: The group size must be an integer",
        ),
        (
            {"version": 1, "layers": {"a": {"pattern": "4:2", "group_size": 20}}},
            "nimble in quantization_config says of layer a what cannot be: Pattern 4:2 has n = 4",
        ),
        (
            {"version": 1, "layers": {"a": {"pattern": "1:1", "group_size": 10}}},
            "weight_scale of layer a is not one value per group of 10, the group size that the file states.",
        ),
        (
            {"version": 1, "layers": {"a": {"pattern": "1:1", "group_size": -1}}},
            "weight_scale of layer a has 5 scales per row; groups of -1 have 1.",
        ),
    ],
)
def test_what_we_add_is_checked(own: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        next(read_quantized_folder(own_folder(tmp_path, own)))


def test_scales_that_differ_within_a_group_of_ours_are_refused() -> None:
    tensors = nonzero_packed([])
    tensors["a.weight_scale"][3, 1] = 2
    with pytest.raises(ValueError, match=r"^weight_scale of layer a is not one value per group of 20"):
        read_pack_quantized(tensors, "a", stored=StoredLayer(NMPattern(1, 1), 20, None))


def test_a_layer_that_we_say_nothing_of_is_read_as_any() -> None:
    assert OwnLayers({}, Path("none")).get("a") is None
    assert OwnLayers(json.loads('{"nimble": {"version": 1, "layers": {}}}'), Path("none")).get("a") is None
