"""Which format the weights of a checkpoint have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

#: Formats that can be read, by their names here, in one sentence each for messages and help.
FORMATS = {
    "pack-quantized": "compressed-tensors pack-quantized, 4-bit",
    "sparse-24-bitmask": "compressed-tensors sparse-24-bitmask (up to 0.14)",
    "sparse-bitmask": "compressed-tensors sparse-bitmask (up to 0.14)",
    "marlin-24": "compressed-tensors marlin-24 (up to 0.14), 4-bit",
    "gptq": "GPTQ version 1, 4-bit",
    "gptq_v2": "GPTQ version 2, 4-bit",
    "awq": "AWQ version GEMM, 4-bit",
}

#: Endings of tensors that only quantised or compressed layers have.
_TELLING = (".weight_packed", ".qweight", ".bitmask")

#: Formats by AutoRound's packing_format.
_AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantisation part of a config.json, or None. Files of 2024 call it compression_config.

    Raises
    ------
    ValueError
        If it is not an object.
    """
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if found is not None:
            if not isinstance(found, Mapping):
                raise ValueError(f"config.json has {key} {found!r}, but it must be an object.")
            return found
    return None


def detect(config: Mapping[str, Any], tensor_names: Collection[str] = ()) -> str | None:
    """Name the format of a checkpoint, a key of `FORMATS`, or None where its weights are plain floats.

    Parameters
    ----------
    config : mapping
        The whole config.json.
    tensor_names : collection of str
        Names of the checkpoint's tensors, by which a quantised checkpoint without a configuration is told from a
        plain one.

    Raises
    ------
    ValueError
        If the format is none of `FORMATS`; the message lists them.
    """
    quantization = quantization_config(config)
    if quantization is None:
        name = next((name for name in sorted(tensor_names) if name.endswith(_TELLING)), None)
        if name is not None:
            raise ValueError(
                f"The checkpoint holds {name}, but its config.json has no quantization_config that says how to read "
                "it; files of AutoGPTQ have it in quantize_config.json, from where it can be copied."
            )
        return None
    method = quantization.get("quant_method")
    if method is None and ("config_groups" in quantization or "sparsity_config" in quantization):
        method = "compressed-tensors"
    if method == "compressed-tensors":
        return _compressed_tensors(quantization)
    if method in ("auto-round", "intel/auto-round"):
        packing = quantization.get("packing_format")
        if not isinstance(packing, str) or packing not in _AUTO_ROUND:
            raise _unsupported(f"AutoRound files with packing_format {packing!r}")
        method = _AUTO_ROUND[packing]
    if method == "gptq":
        return _gptq(quantization)
    if method == "awq":
        return _awq(quantization)
    raise _unsupported(f"files with quant_method {method!r}")


def claims_two_of_four(quantization: Mapping[str, Any], layer: str) -> bool:
    """Whether a compressed-tensors configuration says that a layer is 2:4.

    Lists with regular expressions are not evaluated, and claim nothing.
    """
    sparsity = quantization.get("sparsity_config")
    if not isinstance(sparsity, Mapping) or sparsity.get("sparsity_structure") != "2:4":
        return False
    targets, ignored = sparsity.get("targets") or [], sparsity.get("ignore") or []
    listed = [*targets, *ignored] if isinstance(targets, list) and isinstance(ignored, list) else [None]
    if any(not isinstance(entry, str) or entry.startswith("re:") for entry in listed):
        return False
    return layer not in ignored and ("Linear" in targets or layer in targets)


def _compressed_tensors(quantization: Mapping[str, Any]) -> str:
    sparsity = quantization.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping):
        raise ValueError(f"quantization_config has sparsity_config {sparsity!r}, but it must be an object.")
    name = sparsity.get("format", "dense")
    if name == "dense":
        name = quantization.get("format")
    elif name == "sparse-24-bitmask" and sparsity.get("sparsity_structure", "2:4") != "2:4":
        raise ValueError(
            f"The file is a sparse-24-bitmask of {sparsity['sparsity_structure']} weights. The format holds two of "
            "every four and has dropped the others; save the model again in another format."
        )
    if name not in ("pack-quantized", "sparse-24-bitmask", "sparse-bitmask", "marlin-24"):
        raise _unsupported(f"compressed-tensors files of format {name!r}")
    return str(name)


def _gptq(quantization: Mapping[str, Any]) -> str:
    _check_bits(quantization, "GPTQ")
    # AutoGPTQ says checkpoint_format, GPTQModel from version 2 on also format.
    name = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    if name not in ("gptq", "gptq_v2"):
        raise _unsupported(f"GPTQ files with checkpoint_format {name!r}")
    return str(name)


def _awq(quantization: Mapping[str, Any]) -> str:
    _check_bits(quantization, "AWQ")
    version = str(quantization.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unsupported(f"AWQ files of version {version!r}")
    return "awq"


def _check_bits(quantization: Mapping[str, Any], what: str) -> None:
    # AutoAWQ's own files say w_bit.
    bits = quantization.get("bits", quantization.get("w_bit"))
    if bits != 4:
        raise _unsupported(f"{what} files of {bits!r} bits")


def _unsupported(what: str) -> ValueError:
    return ValueError(f"{what[0].upper()}{what[1:]} cannot be read; what can be read is {'; '.join(FORMATS.values())}.")
