"""Trace of a model: every matrix product that one forward pass runs, with its shape, and its KV cache.

transformers builds its own model from a configuration on PyTorch's meta device, where tensors have
shapes and no storage, and `flows.recorder` notes what runs. So the list of layers is never typed by
hand, follows whatever transformers builds, and a 20-billion-parameter model takes no memory.

A pass has `tokens` new tokens in each of `batch` sequences, whose cache holds `context` tokens already:
prefill is a pass at context 0, decode are passes of one token at a growing context. Attention's products are
counted in full, as transformers' own eager attention runs them: what the causal mask hides is multiplied, too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.model_trace import ModelFacts, ModelTrace, check_integer, check_sequence, load_trace

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from flows.recorder import Pass

#: Models known by name: transformers' configuration class and the published fields.
NAMED_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # The defaults of LlamaConfig are LLaMA-7B.
    "llama-7b": ("LlamaConfig", {}),
    "llama-2-7b": ("LlamaConfig", {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    "llama-3-8b": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
    ),
    "gpt-neox-20b": (
        "GPTNeoXConfig",
        {
            "vocab_size": 50432,
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "max_position_embeddings": 2048,
            "hidden_act": "gelu_fast",
        },
    ),
}


def trace_model(source: str | Path, tokens: int = 1, *, batch: int = 1, context: int = 0) -> ModelTrace:
    """Trace one forward pass of a causal language model, built from its configuration alone.

    Parameters
    ----------
    source
        A name in `NAMED_MODELS`, or a directory that holds a Hugging Face ``config.json``. A `Path` is
        always a directory. Nothing is downloaded, and code that a configuration names is never run.
    tokens
        New tokens of each sequence, from 1 on.
    batch
        Sequences, from 1 on.
    context
        Tokens of each sequence that are in the KV cache before the pass, from 0 on; with `tokens` at most the
        model's ``max_position_embeddings``.

    Returns
    -------
    ModelTrace
        Every `torch.nn.Linear` and every product of attention that ran, in order of execution, with what is
        left out in `excludes`.

    Raises
    ------
    TypeError
        `tokens`, `batch` or `context` is not an integer.
    ValueError
        The model is unknown, its configuration is unusable, it has no linear layer, or `tokens`, `batch` or
        `context` is out of range.
    FileNotFoundError
        The directory has no ``config.json``.
    """
    check_integer("tokens", tokens)
    check_integer("batch", batch)
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; a forward pass has at least 1 token.")
    if batch < 1:
        raise ValueError(f"batch is {batch}; a forward pass has at least 1 sequence.")
    name = str(source)
    directory = None if isinstance(source, str) and source in NAMED_MODELS else _model_directory(source)

    import torch
    import transformers

    from flows.recorder import NoCacheError, record_pass

    with _quiet_transformers():
        if directory is None:
            config_class, fields = NAMED_MODELS[name]
            config = getattr(transformers, config_class)(**fields)
        else:
            name = directory.resolve().name
            config = _read_config(directory)
        facts = _facts(config, name)
        check_sequence(name, facts, tokens, context)
        auto_model: Any = transformers.AutoModelForCausalLM
        try:
            with torch.device("meta"):
                # No shape depends on the type; fused experts accept bfloat16 only. Eager attention runs its
                # products one by one.
                model = auto_model.from_config(
                    config, dtype=torch.bfloat16, attn_implementation="eager", trust_remote_code=False
                )
        except Exception as error:
            raise ValueError(
                f"transformers cannot build a causal language model from the configuration of {name} "
                f"(model type {config.model_type!r}): {_first_line(error)}"
            ) from error
        try:
            with torch.no_grad():
                ran = record_pass(model.eval(), tokens, batch, context, facts.max_position_embeddings)
        except NoCacheError:
            raise ValueError(
                f"{name} (model type {config.model_type!r}) hands out no cache; only context 0 can be traced."
            ) from None
        except Exception as error:
            raise ValueError(
                f"The forward pass of {name} (model type {config.model_type!r}) does not run without "
                f"weights: {_first_line(error)}"
            ) from error
    if not ran.layers:
        raise ValueError(
            f"The forward pass of {name} (model type {config.model_type!r}) ran no torch.nn.Linear; "
            "only linear layers can be traced."
        )
    return ModelTrace(
        model=name,
        model_type=config.model_type,
        facts=facts,
        tokens=tokens,
        batch=batch,
        context=context,
        excludes=tuple(_left_out(model, ran)),
        layers=ran.layers,
        attention=ran.attention,
        kv_cache=ran.kv_cache,
        layers_on_cache=ran.on_cache,
    )


def read_trace(
    source: str | Path, tokens: int | None = None, *, batch: int | None = None, context: int | None = None
) -> ModelTrace:
    """Return the trace in a file that `save_trace` wrote, or else trace a model.

    Parameters
    ----------
    source
        A file, or what `trace_model` takes.
    tokens, batch, context
        As in `trace_model`; None for those of the file, or for one token of one sequence at context 0.

    Raises
    ------
    TypeError, ValueError, OSError
        As from `load_trace`, `ModelTrace.at_context` and `trace_model`; also ValueError where a file has
        another number of tokens or sequences.
    """
    if source in NAMED_MODELS or not Path(source).is_file():
        options = {"tokens": tokens, "batch": batch, "context": context}
        return trace_model(source, **{name: value for name, value in options.items() if value is not None})
    trace = load_trace(source)
    for name, value in (("tokens", tokens), ("batch", batch)):
        if value not in (None, getattr(trace, name)):
            raise ValueError(
                f"{name} is {value}, but {source} is the trace of a pass with {name} {getattr(trace, name)}; "
                "trace the model instead."
            )
    return trace if context is None else trace.at_context(context)


def _model_directory(source: str | Path) -> Path:
    directory = Path(source)
    if source == "" or not directory.is_dir():  # Path("") would be the current directory
        problem = "is a file" if directory.is_file() else "is neither a known model nor a directory"
        raise ValueError(
            f"{str(source)!r} {problem}; give one of {', '.join(NAMED_MODELS)}, "
            "or a directory that holds a Hugging Face config.json."
        )
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"The directory {directory} has no config.json; a Hugging Face model directory holds one."
        )
    return directory


def _read_config(directory: Path) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    path = directory / "config.json"
    # transformers reports bad JSON and a missing type as a model that cannot be found on its hub.
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if type(fields) is not dict or type(fields.get("model_type")) is not str:
        raise ValueError(f"{path} has no model_type; a Hugging Face configuration is an object that names one.")
    if fields["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"{path} has model_type {fields['model_type']!r}, which transformers {__version__} does not know."
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"transformers refuses {path}: {_first_line(error)}") from error
    return config


def _facts(config: PretrainedConfig, name: str) -> ModelFacts:
    text = config.get_text_config()  # the language model's part where there are others, as in Llama 4

    def size(field: str) -> int | None:
        value = getattr(text, field, None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def required_size(field: str) -> int:
        value = size(field)
        if value is None:
            raise ValueError(
                f"The configuration of {name} has {field} {getattr(text, field, None)!r}; "
                "it must be a positive integer."
            )
        return value

    return ModelFacts(
        hidden_size=required_size("hidden_size"),
        num_hidden_layers=required_size("num_hidden_layers"),
        vocab_size=required_size("vocab_size"),
        max_position_embeddings=size("max_position_embeddings"),
        num_attention_heads=size("num_attention_heads"),
        # Without the field, every attention head has its own keys and values.
        num_key_value_heads=size("num_key_value_heads") or size("num_attention_heads"),
    )


def _left_out(model: torch.nn.Module, ran: Pass) -> Iterator[str]:
    """Yield a phrase for the products, and for each sort of weight matrix, that a recorded pass leaves out."""
    import torch

    if ran.others:
        macs = sum(macs for _, macs in ran.others)
        yield (
            f"{len(ran.others)} matrix product{'s' if len(ran.others) > 1 else ''} outside of linear layers and "
            f"attention: {macs:,} MAC "
            f"(first: {ran.others[0][0]})"
        )

    called = {layer.name for layer in ran.layers}
    idle = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in called
    ]
    if idle:
        yield f"{len(idle)} linear layers that are not called as modules in a forward pass (first: {idle[0]})"

    others: dict[str, list[tuple[str, int]]] = {}
    for name, module in model.named_modules():
        # A look-up in an embedding table multiplies nothing.
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                others.setdefault(type(module).__name__, []).append((f"{name}.{parameter_name}", parameter.numel()))
    for module_type, found in others.items():
        yield (
            f"{len(found)} weight tensors of {module_type} modules, which are not torch.nn.Linear: "
            f"{sum(size for _, size in found):,} weights (first: {found[0][0]})"
        )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging the generation defaults of every model it builds."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
