"""A causal language model that is run block by block, so that only one decoder block lies in memory.

transformers builds the model on PyTorch's meta device, where tensors have shapes and no storage; weights come in one
block at a time. Masks and position embeddings are those that transformers' own forward pass hands its blocks, so that
the results are those of the whole model.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from quant.model_folder import ModelSource

#: Makes the module that stands in for a linear layer, given its full name in the checkpoint without ".weight". On a
#: source that has the layer quantised only, the linear layer is on the meta device and holds nothing but its shape.
Replace = Callable[[str, nn.Linear], nn.Module]

#: Positions whose logits are computed at a time: a vocabulary of 128,256 takes 131 MB for 256 of them.
_POSITIONS_AT_A_TIME = 256

#: Tokens that run through a block at a time, unless one sample has more.
TOKENS_AT_A_TIME = 2048


def samples_at_a_time(length: int) -> int:
    """Samples of so many tokens that run through a block at a time."""
    return max(1, TOKENS_AT_A_TIME // length)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging below errors: it reports defaults of every model that it builds."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


class _Catcher(nn.Module):
    """Stands in for a model's blocks and keeps what they would be called with."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return hidden


class BlockModel:
    """A causal language model whose decoder blocks are loaded one at a time, in float32.

    Parameters
    ----------
    source
        Where the configuration and the tensors come from, such as a `ModelFolder`.

    Raises
    ------
    ValueError
        If transformers refuses the configuration.
    """

    def __init__(self, source: ModelSource) -> None:
        import transformers

        self.source = source
        self._architecture = source.architecture
        name = source.architecture.name
        # What is quantised is none of transformers' business here: the skeleton has plain linear layers.
        fields = {key: value for key, value in source.config.items() if key != "quantization_config"}
        try:
            with quiet_transformers(), torch.device("meta"):
                model_class: Any = getattr(transformers, name)
                config: Any = model_class.config_class.from_dict(fields)
                model = model_class(config).eval()
            body = getattr(model, source.architecture.body)
            # The frequencies are computed, not stored, and need a real device.
            if body.rotary_emb.inv_freq.numel() > source.sizes.head_size:
                raise ValueError("it rotates more features than a head has.")
            body.rotary_emb = type(body.rotary_emb)(config=config)
        except Exception as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(f"transformers cannot build a {name} from this config.json: {reason}") from error
        self._skeletons = list(body.layers)
        self._norm: nn.Module = getattr(body, source.architecture.final_norm)
        self._norm_loaded = False
        self._catcher = _Catcher()
        body.layers = nn.ModuleList([self._catcher])
        setattr(body, source.architecture.final_norm, nn.Identity())
        self._body = body
        self._arguments: tuple[tuple[int, ...], dict[str, Any]] | None = None
        self._embedding: torch.Tensor | None = None
        self._head: torch.Tensor | None = None

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return len(self._skeletons)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the first block reads.

        Parameters
        ----------
        tokens
            int64 [B, T], 0 to the vocabulary's size - 1.

        Returns
        -------
        Tensor
            float32 [B, T, H].

        Raises
        ------
        ValueError
            If a token is not in the vocabulary.
        """
        vocabulary = self.source.sizes.vocabulary
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            wrong = tokens[(tokens < 0) | (tokens >= vocabulary)][0]
            raise ValueError(f"Token {int(wrong)} was given; the model's vocabulary is 0 to {vocabulary - 1}.")
        if self._embedding is None:
            embedding = f"{self._architecture.body}.{self._architecture.embedding}.weight"
            self._embedding = self.source.tensor(embedding)  # in its own type, which takes half the memory
        return nn.functional.embedding(tokens, self._embedding).float()

    def load_block(self, index: int, replace: Replace | None = None) -> nn.Module:
        """Read one decoder block.

        Parameters
        ----------
        index
            0 to blocks - 1.
        replace
            Stands modules in for linear layers, as `replace_linears` does.

        Returns
        -------
        Module
            With float32 weights that nothing else holds. A linear layer that the source has quantised only is on
            the meta device, unless it is replaced.
        """
        self._embedding = self._head = None  # one part of the model at a time
        prefix = self._architecture.block(index)
        block = copy.deepcopy(self._skeletons[index])
        for name, parameter in list(block.named_parameters()):
            full = f"{prefix}.{name}"
            if full not in self.source.tensor_names and name.endswith(".weight"):
                continue
            tensor = self.source.tensor(full).float()
            if tensor.shape != parameter.shape:
                raise ValueError(f"{full} has shape {list(tensor.shape)}, but it must be {list(parameter.shape)}.")
            owner, _, attribute = name.rpartition(".")
            setattr(block.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=False))
        if replace is not None:
            replace_linears(block, prefix, replace)
        return block

    def block_arguments(self, hidden: torch.Tensor) -> dict[str, Any]:
        """Mask and position embeddings that transformers hands its blocks for a hidden state [B, T, H]."""
        if self._arguments is None or self._arguments[0] != tuple(hidden.shape):
            with torch.no_grad():
                self._body(inputs_embeds=hidden, use_cache=False)
            self._arguments = (tuple(hidden.shape), self._catcher.arguments)
        return self._arguments[1]

    def run_block(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Output of a block for float32 [B, T, H], of the same shape."""
        arguments = self.block_arguments(hidden)
        with torch.no_grad():
            output: torch.Tensor = block(hidden, **arguments)
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and head: float32 [..., vocabulary] for the last block's output, float32 [..., H]."""
        architecture = self._architecture
        if not self._norm_loaded:
            for name, _ in list(self._norm.named_parameters()):
                tensor = self.source.tensor(f"{architecture.body}.{architecture.final_norm}.{name}").float()
                setattr(self._norm, name, nn.Parameter(tensor, requires_grad=False))
            self._norm_loaded = True
        if self._head is None:
            self._head = self.source.tensor(architecture.head_weight(self.source.sizes)).float()
        with torch.no_grad():
            return nn.functional.linear(self._norm(hidden), self._head)

    def loss(self, hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[float, int]:
        """Negative log-likelihood of each token after the first of its sample.

        Parameters
        ----------
        hidden
            float32 [B, T, H], the last block's output.
        tokens
            int64 [B, T].

        Returns
        -------
        tuple
            The sum in nats, and the number of predicted tokens.
        """
        states = hidden[:, :-1].reshape(-1, hidden.shape[-1]).split(_POSITIONS_AT_A_TIME)
        targets = tokens[:, 1:].reshape(-1).split(_POSITIONS_AT_A_TIME)
        total = 0.0
        for state, target in zip(states, targets, strict=True):
            total += float(nn.functional.cross_entropy(self.logits(state), target, reduction="sum"))
        return total, tokens.numel() - len(tokens)


def replace_linears(block: nn.Module, prefix: str, replace: Replace) -> None:
    """Stand `replace`'s modules in for the linear layers of a block, whose full name is `prefix`, in place.

    Raises
    ------
    ValueError
        If a quantised linear layer is left without weights.
    """
    for name, linear in block_linears(block).items():
        owner, _, attribute = name.rpartition(".")
        module = replace(f"{prefix}.{name}", linear)
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError(f"{prefix}.{name} is quantised and has no plain weight; nothing stands in for it.")
        setattr(block.get_submodule(owner), attribute, module)


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers of a block by their names within it."""
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def perplexity(
    model: BlockModel,
    tokens: torch.Tensor,
    replace: Replace | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Perplexity of a model on samples, e to the mean negative log-likelihood of a predicted token.

    Parameters
    ----------
    model
        Whose blocks are loaded one after the other. The hidden states of all samples stay in memory.
    tokens
        int64 [samples, length]; the first token of each sample is not predicted.
    replace
        Stands modules in for linear layers.
    progress
        Called after each block with how many are done and how many there are.
    """
    return perplexities(model, tokens, {"": replace}, progress)[""]


def perplexities(
    model: BlockModel,
    tokens: torch.Tensor,
    variants: Mapping[str, Replace | None],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Perplexities of several variants of a model, each a `replace`, while every block is read only once.

    Raises
    ------
    ValueError
        If the samples are too short, or a variant leaves a quantised linear layer without weights.
    """
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"The tokens have shape {list(tokens.shape)}; it must be [samples, length of 2 or more].")
    batches = tokens.split(samples_at_a_time(tokens.shape[1]))
    states = {variant: [model.embed(batch) for batch in batches] for variant in variants}
    for index in range(model.blocks):
        prefix = model.source.architecture.block(index)
        block = model.load_block(index)
        originals = block_linears(block)
        for variant, replace in variants.items():
            replace_linears(block, prefix, (lambda name, linear: linear) if replace is None else replace)
            states[variant] = [model.run_block(block, hidden) for hidden in states[variant]]
            for name, linear in originals.items():
                owner, _, attribute = name.rpartition(".")
                setattr(block.get_submodule(owner), attribute, linear)
        del block, originals
        if progress is not None:
            progress(index + 1, model.blocks)
    result = {}
    for variant, hidden_states in states.items():
        losses = [model.loss(hidden, batch) for hidden, batch in zip(hidden_states, batches, strict=True)]
        total, predicted = (sum(part) for part in zip(*losses, strict=True))
        result[variant] = math.exp(total / predicted)
    return result
