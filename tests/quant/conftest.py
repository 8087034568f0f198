"""Tiny models of each supported architecture, as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: Constructor arguments that the tiny models share: sizes that no two of them have in common, where they may differ.
SIZES = {"vocab_size": 256, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}

#: Class of the model, and what its configuration has besides `SIZES`.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_attention_heads": 4}),
    "llama-grouped": (
        "Llama",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("Mistral", {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 7}),
    "neox": ("GPTNeoX", {"num_attention_heads": 4}),
    "neox-sequential": ("GPTNeoX", {"num_attention_heads": 2, "use_parallel_residual": False, "attention_bias": False}),
}


def make_model(name: str, **changes: Any) -> Any:
    """A model of random weights: norms and biases, too, which transformers initialises to ones and zeros."""
    import torch
    import transformers

    family, arguments = MODELS[name]
    config = getattr(transformers, f"{family}Config")(
        **{**SIZES, **arguments, "bos_token_id": None, "eos_token_id": None, **changes}
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif key.endswith("proj.weight") or "dense" in key or "query" in key:
                parameter.mul_(8)  # attention that is not uniform, so that masks and positions matter
    return model


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`make_model`, for tests that need the model of transformers itself."""
    return make_model


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of all tiny models by name, in float32; they are read only. "llama-grouped" is in shards."""
    folders = {}
    for name in MODELS:
        folders[name] = tmp_path_factory.mktemp("models") / name
        make_model(name).save_pretrained(folders[name], max_shard_size="12KB" if name == "llama-grouped" else "1GB")
    return folders


def correlated_inputs(features: int, seed: int = 0, rows: int = 0) -> Any:
    """float32 [rows, features]: a few hidden causes, noise, and sizes of features that differ by orders."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    causes = max(1, features // 8)
    rows = rows or 4 * features
    x = torch.randn(rows, causes, generator=generator) @ torch.randn(causes, features, generator=generator)
    x = x / causes**0.5 + 0.3 * torch.randn(rows, features, generator=generator)
    return x * torch.randn(features, generator=generator).exp()


@pytest.fixture(scope="session")
def correlated() -> Callable[..., Any]:
    """`correlated_inputs`, for tests of methods that use second moments."""
    return correlated_inputs
