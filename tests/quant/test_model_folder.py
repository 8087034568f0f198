"""Folders as transformers writes them are read exactly; damaged and hostile ones are refused in a sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quant.model_folder import ModelFolder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def copied(tiny_folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies a tiny model's folder into the test's own one, to be damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_folders[name], tmp_path / name))

    return copy


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of an unsharded folder, or take out those given as None."""
    tensors: dict[str, Any] = {**load_file(folder / WEIGHTS), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def refused(folder: Path, kind: type[Exception], *words: str) -> None:
    """The folder is refused with a message that holds all the words."""
    with pytest.raises(kind) as caught:
        ModelFolder.open(folder).check()
    for part in words:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "llama-grouped", "mistral", "neox", "neox-sequential"])
def test_reads_what_transformers_saved(
    tiny_folders: dict[str, Path], tiny_model: Callable[..., Any], name: str
) -> None:
    model = tiny_model(name)
    folder = ModelFolder.open(tiny_folders[name])
    folder.check()
    assert (len(folder.files) > 1) == (name == "llama-grouped")
    expected = dict(model.named_parameters())
    assert folder.tensor_names == expected.keys()
    assert all(torch.equal(folder.tensor(key), expected[key]) for key in expected)
    linears = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted([*folder.linears, "lm_head"]) == sorted(linears)
    assert folder.quantization is None


def test_reads_old_names_and_unused_buffers_of_neox(copied: Callable[[str], Path]) -> None:
    folder = copied("neox")
    head = load_file(folder / WEIGHTS).get("lm_head.weight", load_file(folder / WEIGHTS).get("embed_out.weight"))
    buffers = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}
    edit_weights(folder, **{"lm_head.weight": None, "embed_out.weight": head, **buffers})
    assert head is not None
    opened = ModelFolder.open(folder)
    assert torch.equal(opened.tensor("lm_head.weight"), head)
    assert not opened.tensor_names & buffers.keys()


def test_keeps_the_type_of_a_tensor(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert ModelFolder.open(tmp_path / "half").tensor(f"{Q_PROJ}.weight").dtype == torch.bfloat16


def test_refuses_a_missing_folder_and_files(copied: Callable[[str], Path], tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", FileNotFoundError, "nowhere is not a folder; give one with a config.json")
    folder = copied("llama")
    (folder / "config.json").rename(folder / "config")
    refused(folder, FileNotFoundError, "llama has no config.json.")
    (folder / "config").rename(folder / "config.json")
    (folder / WEIGHTS).unlink()
    refused(folder, FileNotFoundError, f"has neither {WEIGHTS} nor {INDEX}.")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_never_loads_a_pickle(copied: Callable[[str], Path], name: str) -> None:
    folder = copied("llama")
    (folder / WEIGHTS).unlink()

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "pickle was run",))

    (folder / name).write_bytes(pickle.dumps(Trap()))
    refused(folder, FileNotFoundError, f"holds weights only as pickles ({name}), which run code when they are read and")
    assert not (folder / "pickle was run").exists()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'"x"'])
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_refuses_what_is_no_json_object(copied: Callable[[str], Path], file: str, content: bytes) -> None:
    folder = copied("llama-grouped")
    (folder / file).write_bytes(content)
    refused(folder, ValueError, file, "JSON")


def test_refuses_a_missing_shard(copied: Callable[[str], Path]) -> None:
    folder = copied("llama-grouped")
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.unlink()
    refused(folder, FileNotFoundError, f"{INDEX} names the shard {shard.name}, which is missing.")


@pytest.mark.parametrize(
    "place",
    ["../llama/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".hidden.safetensors", "x.bin", 3, None],
)
def test_refuses_places_outside_of_the_folder(copied: Callable[[str], Path], place: object) -> None:
    folder = copied("llama-grouped")
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={**places, "model.norm.weight": place})
    refused(folder, ValueError, f"says that model.norm.weight is in {place!r}; a shard is the name of a .safetensors")


def test_refuses_an_index_that_the_shards_contradict(copied: Callable[[str], Path]) -> None:
    folder = copied("llama-grouped")
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    first, last = sorted(set(places.values()))[:: len(set(places.values())) - 1]
    edit_json(folder / INDEX, weight_map={**places, "model.ghost.weight": first})
    refused(folder, ValueError, f"says that model.ghost.weight is in {first}, but no shard has it.")
    moved = next(name for name, place in places.items() if place == last)
    edit_json(folder / INDEX, weight_map={**places, moved: first})
    refused(folder, ValueError, f"says that {moved} is in {first}, but {last} has it.")
    edit_json(folder / INDEX, weight_map=...)
    refused(folder, ValueError, "has no weight_map, an object with the shard of each tensor.")


def test_refuses_a_tensor_that_two_shards_hold(copied: Callable[[str], Path]) -> None:
    folder = copied("llama-grouped")
    shards = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(shards[0]).items()))
    save_file({**load_file(shards[1]), name: tensor}, shards[1])
    refused(folder, ValueError, f"holds {name} twice: in {shards[0].name} and in {shards[1].name}.")


def test_refuses_other_shapes_than_the_configuration_says(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    edit_json(folder / "config.json", intermediate_size=1 << 40)
    refused(folder, ValueError, "gate_proj.weight in", f"has shape [40, 24], but config.json says [{1 << 40}, 24].")


@pytest.mark.parametrize("blocks", [1, 3, 1 << 60])
def test_refuses_another_number_of_blocks_before_making_anything_for_each(
    copied: Callable[[str], Path], blocks: int
) -> None:
    folder = copied("llama")
    edit_json(folder / "config.json", num_hidden_layers=blocks)
    refused(
        folder,
        ValueError,
        f"num_hidden_layers = {blocks}, but the weights hold 2 blocks, the last of them model.layers.1.",
    )


def test_refuses_missing_unknown_and_integer_tensors(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    weight = load_file(folder / WEIGHTS)[f"{Q_PROJ}.weight"]
    edit_weights(folder, **{f"{Q_PROJ}.weight": None})
    refused(folder, ValueError, f"holds no {Q_PROJ}.weight, which a LlamaForCausalLM needs.")
    edit_weights(folder, **{f"{Q_PROJ}.weight": weight, f"{Q_PROJ}.bias": torch.zeros(24)})
    refused(folder, ValueError, f"holds {Q_PROJ}.bias, which a LlamaForCausalLM of its config.json does not have.")
    edit_weights(folder, **{f"{Q_PROJ}.weight": weight.to(torch.int8), f"{Q_PROJ}.bias": None})
    refused(folder, ValueError, f"{Q_PROJ}.weight in", "has type I8, but a plain weight must be of F16, BF16, F32, F64")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_refuses_bad_numbers_by_row_and_column(
    copied: Callable[[str], Path], number: float, dtype: torch.dtype
) -> None:
    folder = copied("llama")
    weight = load_file(folder / WEIGHTS)[f"{Q_PROJ}.weight"].to(dtype)
    weight[5, 7] = weight[6, 0] = number
    edit_weights(folder, **{f"{Q_PROJ}.weight": weight})
    ModelFolder.open(folder).tensor("model.layers.0.self_attn.q_proj.weight")
    refused(folder, ValueError, f"{Q_PROJ}.weight of {folder} holds {number} in row 5, column 7, but every number")
    norm = torch.ones(24)
    norm[3] = number
    edit_weights(folder, **{f"{Q_PROJ}.weight": None, "model.norm.weight": norm})
    edit_weights(folder, **{f"{Q_PROJ}.weight": weight.nan_to_num(0, 0, 0)})
    refused(folder, ValueError, f"model.norm.weight of {folder} holds {number} in position 3, but every number")


def test_a_tied_head_of_its_own_must_be_the_embedding(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    embedding = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    edit_json(folder / "config.json", tie_word_embeddings=True)
    refused(folder, ValueError, "ties lm_head.weight to model.embed_tokens.weight in config.json, but holds a diff")
    edit_weights(folder, **{"lm_head.weight": embedding.clone()})
    ModelFolder.open(folder).check()


def test_a_quantised_folder_opens_and_withholds_plain_weights(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    quantised = {f"{Q_PROJ}.weight_packed": torch.zeros(24, 3, dtype=torch.int32), f"{Q_PROJ}.weight": None}
    edit_weights(folder, **quantised)
    refused(folder, ValueError, f"holds no {Q_PROJ}.weight")
    edit_json(folder / "config.json", quantization_config={"quant_method": "compressed-tensors"})
    opened = ModelFolder.open(folder)
    opened.check()
    assert opened.quantization == {"quant_method": "compressed-tensors"}
    assert opened.tensor(f"{Q_PROJ}.weight_packed").dtype == torch.int32
    with pytest.raises(ValueError, match=r"is quantised \(compressed-tensors\) in .* read it with quant.formats, or"):
        opened.tensor(f"{Q_PROJ}.weight")
    with pytest.raises(KeyError, match=r"holds no tensor model\.ghost"):
        opened.tensor("model.ghost")
    edit_json(folder / "config.json", quantization_config="gptq")
    refused(folder, ValueError, "has quantization_config 'gptq'; it must be an object.")


@given(st.data())
@settings(max_examples=40)
def test_a_damaged_file_is_refused_or_read_as_it_is(
    tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut off anywhere, or with bytes of the header changed: a sentence, never another exception."""
    original = (tiny_folders["llama"] / WEIGHTS).read_bytes()
    header = int.from_bytes(original[:8], "little") + 8
    damaged = bytearray(original)
    if data.draw(st.booleans(), label="cut"):
        damaged = damaged[: data.draw(st.integers(0, len(original) - 1), label="length")]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, header - 1), label="place")] = data.draw(st.integers(0, 255), label="byte")
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copy(tiny_folders["llama"] / "config.json", folder)
    (folder / WEIGHTS).write_bytes(damaged)
    message = ""
    try:
        opened = ModelFolder.open(folder)
        opened.check()
    except ValueError as error:
        message = str(error)
    if message:
        assert message.endswith(".")
    else:
        assert opened.tensor_names == ModelFolder.open(tiny_folders["llama"]).tensor_names
    shutil.rmtree(folder)
