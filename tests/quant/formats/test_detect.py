"""The format of a checkpoint by its config.json; schemes and patterns that a file does not spell out."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant import NMPattern
from quant.formats.detect import FORMATS, detect
from quant.formats.folder import _MARKS, read_quantized_folder
from quant.formats.infer import LISTED, infer_pattern
from quant.formats.schemes import WeightScheme, weight_schemes

COMPRESSED = {"quant_method": "compressed-tensors"}
KNOWN = "; what can be read is " + "; ".join(FORMATS.values()) + "."


def sparse(name: str, structure: str | None = None) -> dict[str, Any]:
    found = {"format": name}
    return {"sparsity_config": found if structure is None else {**found, "sparsity_structure": structure}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({**COMPRESSED, "format": "pack-quantized"}, "pack-quantized"),
        ({**COMPRESSED, "format": "pack-quantized", **sparse("dense", "2:4")}, "pack-quantized"),
        ({**COMPRESSED, "format": "marlin-24"}, "marlin-24"),
        ({**COMPRESSED, "format": "int-quantized", **sparse("sparse-24-bitmask")}, "sparse-24-bitmask"),
        ({**COMPRESSED, "format": "dense", **sparse("sparse-bitmask", "unstructured")}, "sparse-bitmask"),
        (sparse("sparse-24-bitmask", "2:4"), "sparse-24-bitmask"),
        ({"config_groups": {}, "format": "pack-quantized"}, "pack-quantized"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, "gptq_v2"),
        ({"quant_method": "gptq", "bits": 4, "format": "gptq_v2"}, "gptq_v2"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}, "gptq"),
        ({"quant_method": "intel/auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"}, "awq"),
        ({"quant_method": "awq", "bits": 4, "version": "GEMM"}, "awq"),
        ({"quant_method": "awq", "w_bit": 4}, "awq"),
    ],
)
def test_formats_are_told_by_the_configuration(settings: dict[str, Any], expected: str) -> None:
    assert detect({"quantization_config": settings}) == expected
    assert expected in _MARKS


def test_a_plain_model_has_no_format() -> None:
    assert detect({"model_type": "llama"}, ["model.norm.weight", "lm_head.weight"]) is None
    assert detect({"quantization_config": None}) is None
    assert FORMATS.keys() == _MARKS.keys()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "bitsandbytes"}, f"Files with quant_method 'bitsandbytes' cannot be read{KNOWN}"),
        ({}, f"Files with quant_method None cannot be read{KNOWN}"),
        ({"quant_method": ["gptq"]}, f"Files with quant_method ['gptq'] cannot be read{KNOWN}"),
        ({"quant_method": "gptq", "bits": 8}, f"GPTQ files of 8 bits cannot be read{KNOWN}"),
        ({"quant_method": "gptq"}, f"GPTQ files of None bits cannot be read{KNOWN}"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            f"GPTQ files with checkpoint_format 'marlin' cannot be read{KNOWN}",
        ),
        (
            {"quant_method": "awq", "bits": 4, "version": "gemv"},
            f"AWQ files of version 'gemv' cannot be read{KNOWN}",
        ),
        (
            {"quant_method": "auto-round", "packing_format": ["auto_round"]},
            f"AutoRound files with packing_format ['auto_round'] cannot be read{KNOWN}",
        ),
        (
            {**COMPRESSED, "format": "nvfp4-pack-quantized"},
            f"Compressed-tensors files of format 'nvfp4-pack-quantized' cannot be read{KNOWN}",
        ),
        (
            {**COMPRESSED, **sparse("sparse-24-bitmask", "4:8")},
            "The file is a sparse-24-bitmask of 4:8 weights. The format holds two of every four and has dropped the "
            "others; save the model again in another format.",
        ),
        ({**COMPRESSED, "sparsity_config": 3}, "quantization_config has sparsity_config 3, but it must be an object."),
    ],
)
def test_other_formats_are_refused_with_what_can_be_read(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        detect({"quantization_config": settings})


def test_a_quantised_checkpoint_without_configuration_is_no_plain_one() -> None:
    with pytest.raises(ValueError, match=r"^The checkpoint holds a\.qweight, but its config\.json has no quant"):
        detect({}, ["a.scales", "a.qweight", "b.weight"])
    with pytest.raises(ValueError, match=r"^config\.json has quantization_config 'gptq', but it must be an object"):
        detect({"quantization_config": "gptq"})


def test_a_folder_without_the_tensors_of_its_format_is_refused() -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    folder = SimpleNamespace(path="m", config={"quantization_config": settings}, tensor_names=["a.weight"])
    with pytest.raises(
        ValueError, match=r"^m says that it is GPTQ version 1, 4-bit, but no tensor ends in \.qweight\.$"
    ):
        next(read_quantized_folder(folder))
    folder.config = {}
    with pytest.raises(ValueError, match=r"^m holds plain float weights; what is read as quantised is compressed-"):
        next(read_quantized_folder(folder))


def group(**weights: Any) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", **weights}}


def test_schemes_are_those_of_int4_weights() -> None:
    settings = {
        "config_groups": {
            "a": group(strategy="group", group_size=128, symmetric=False),
            "b": group(strategy="channel", group_size=None),
            "c": group(num_bits=8, strategy="channel"),
            "d": group(strategy="group", group_size=64, actorder="group"),
            "e": group(strategy="group", group_size=32, actorder="weight"),
            "f": group(group_size=-1),
        }
    }
    assert weight_schemes(settings) == (
        WeightScheme(-1, True),
        WeightScheme(32, True),
        WeightScheme(64, True, True),
        WeightScheme(128, False),
    )
    assert weight_schemes({}) == ()


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"a": group(num_bits=8, strategy="channel")}, "The file holds 8-bit int weights per channel; of compressed"),
        ({"a": group(type="float", strategy="group", group_size=16)}, "The file holds 4-bit float weights per group; "),
        ({"a": group(strategy="tensor")}, "The file holds 4-bit int weights per tensor; of compressed"),
        (
            {"a": group(strategy="group", group_size="128")},
            "Config group a of quantization_config has group_size '128'",
        ),
        ({"a": group(strategy="group", group_size=0)}, "Config group a of quantization_config has group_size 0; "),
        ({"W4A16": ["Linear"]}, "Config group W4A16 of quantization_config says nothing about weights."),
        (3, "quantization_config has config_groups 3, but it must be an object."),
    ],
)
def test_other_schemes_are_refused(groups: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        weight_schemes({"config_groups": groups})


@given(
    st.sampled_from(LISTED),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from([-1, 8, 16, 20, 48]),
    st.integers(0, 2**32 - 1),
)
def test_the_smallest_pattern_that_the_zeros_obey_is_found(
    made_of: NMPattern, rows: int, columns: int, group_size: int, seed: int
) -> None:
    order = np.random.default_rng(seed).random((rows, -(-columns // made_of.m), made_of.m)).argsort(axis=2)
    nonzero = (order < made_of.n).reshape(rows, -1)[:, :columns]
    found = infer_pattern(nonzero, group_size)
    obeyed = []
    for pattern in LISTED:
        blocks = [nonzero[:, first : first + pattern.m].sum(axis=1).max() for first in range(0, columns, pattern.m)]
        if max(blocks) <= pattern.n and (group_size == -1 or group_size % pattern.m == 0):
            obeyed.append(pattern)
    assert found == (obeyed[0] if obeyed else NMPattern(1, 1))


def test_smaller_patterns_are_listed_first() -> None:
    order = [(pattern.density, pattern.m) for pattern in LISTED]
    assert order == sorted(order)
    assert not any(pattern.is_dense for pattern in LISTED)
    assert infer_pattern(np.ones((3, 16), bool)) == NMPattern(1, 1)
    assert infer_pattern(np.tile([True, True, False, False], (2, 8))) == NMPattern(2, 4)
    assert infer_pattern(np.tile([True, False], (2, 8))) == NMPattern(1, 2)
