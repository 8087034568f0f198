"""Names and shapes of tensors against the models that transformers builds; groups against what the blocks run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quant.architectures import ARCHITECTURES, Sizes, find_architecture


@st.composite
def configurations(draw: st.DrawFn) -> Any:
    """A configuration object of transformers, of any supported architecture."""
    family = draw(st.sampled_from(["Llama", "Mistral", "GPTNeoX"]))
    heads = draw(st.integers(1, 6))
    arguments = {
        "vocab_size": draw(st.integers(2, 99)),
        "hidden_size": heads * 2 * draw(st.integers(1, 5)),
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if family != "GPTNeoX":
        fewer = st.sampled_from([count for count in range(1, heads + 1) if heads % count == 0])
        arguments["num_key_value_heads"] = draw(fewer | st.none() if family == "Llama" else fewer)
        arguments["head_dim"] = draw(st.none() | st.sampled_from([2, 4, 6]))
    if family != "Mistral":
        arguments["attention_bias"] = draw(st.booleans())
    if family == "Llama":
        arguments["mlp_bias"] = draw(st.booleans())
    return getattr(transformers, f"{family}Config")(architectures=[f"{family}ForCausalLM"], **arguments)


@given(configurations())
@settings(max_examples=25)
def test_tensors_are_those_of_transformers(config: Any) -> None:
    fields = config.to_dict()
    architecture = find_architecture(fields, "config.json")
    sizes = architecture.sizes(fields)
    with torch.device("meta"):
        model = getattr(transformers, architecture.name)(config)
    shapes = architecture.outer_tensors(sizes)
    for block in range(sizes.blocks):
        for name, shape in architecture.block_tensors(sizes).items():
            shapes[f"{architecture.block(block)}.{name}"] = shape
    assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    head = model.get_submodule(architecture.head)
    assert head.weight is model.get_parameter(architecture.head_weight(sizes))


@given(configurations())
@settings(max_examples=15)
def test_groups_share_their_inputs_and_follow_the_order_of_execution(config: Any) -> None:
    architecture = ARCHITECTURES[config.architectures[0]]
    sizes = architecture.sizes(config.to_dict())
    torch.manual_seed(0)
    model = getattr(transformers, architecture.name)(config).eval()
    block = model.get_submodule(architecture.block(0))
    seen: dict[str, torch.Tensor] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    with torch.no_grad():
        model(torch.zeros((1, 3), dtype=torch.int64))
    groups = architecture.groups(sizes)
    assert [name for group in groups for name in group.linears] == list(seen)
    assert [linear.name for linear in architecture.linears(sizes)] == list(seen)
    for group in groups:
        assert len({seen[name].data_ptr() for name in group.linears}) == 1
        if group.scaled_by is not None:
            assert group.scaled_by in dict(block.named_modules())


def llama(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not ...}


def test_what_old_configurations_leave_out_has_transformers_defaults() -> None:
    assert ARCHITECTURES["LlamaForCausalLM"].sizes(llama()) == Sizes(
        32000, 4096, 11008, 32, 32, 32, 128, attention_bias=False, mlp_bias=False, tied=False
    )
    assert ARCHITECTURES["MistralForCausalLM"].sizes(llama()).key_value_heads == 8
    assert ARCHITECTURES["GPTNeoXForCausalLM"].sizes(llama()).attention_bias


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": ...}, "config.json has no vocab_size; it must be a positive integer."),
        ({"hidden_size": 0}, "config.json has hidden_size = 0; it must be a positive integer."),
        ({"hidden_size": True}, "config.json has hidden_size = True; it must be a positive integer."),
        ({"num_hidden_layers": "32"}, "config.json has num_hidden_layers = '32'; it must be a positive integer."),
        ({"num_attention_heads": 33}, "config.json has hidden_size = 4096, which num_attention_heads = 33 do not div"),
        ({"num_key_value_heads": 5}, "num_attention_heads = 32, which num_key_value_heads = 5 do not divide."),
        ({"head_dim": -1}, "config.json has head_dim = -1; it must be a positive integer."),
        ({"attention_bias": 1}, "config.json has attention_bias = 1; it must be true or false."),
    ],
)
def test_refuses_sizes(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=r"^config\.json has") as caught:
        ARCHITECTURES["LlamaForCausalLM"].sizes(llama(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["Qwen2ForCausalLM"]},
            "c.json describes a Qwen2ForCausalLM, which is not supported; supported are LlamaForCausalLM, "
            "MistralForCausalLM, GPTNeoXForCausalLM.",
        ),
        ({"architectures": ...}, "c.json has architectures None; it must name one model class of LlamaForCausalLM, "),
        ({"architectures": []}, "c.json has architectures []; it must name one"),
        ({"architectures": [["x"]]}, "c.json has architectures [['x']]; it must name one"),
        ({"model_type": "qwen2"}, "c.json has model_type 'qwen2', but a LlamaForCausalLM has 'llama'."),
    ],
)
def test_refuses_architectures(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=r"^c\.json") as caught:
        find_architecture(llama(**changes), "c.json")
    assert words in str(caught.value)
