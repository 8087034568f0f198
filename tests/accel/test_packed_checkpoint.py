"""Folders of packed weights: what is written is read back and runs, and what is not exactly that is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from accel import ConfigError, PackedStream, load_preset, pack
from accel import packed_checkpoint as module
from accel.packed_checkpoint import PackedCheckpoint, write_packed
from accel.packed_manifest import PackedError
from golden import integer_gemm
from quant import NMPattern, NMWeight, QuantizedLinear, shard_writer
from quant.pattern_check import PatternBreach
from verify.gemm import run_gemm

TINY = load_preset("tiny")

CONFIG = {"model_type": "llama", "hidden_size": 24, "quantization_config": {"quant_method": "gptq"}}
OTHERS = {
    "model.norm.weight": torch.arange(24).to(torch.bfloat16),
    "model.embed_tokens.weight": torch.linspace(-1, 1, 96).reshape(4, 24).half(),
    "model.steps": torch.tensor(7),
}
FILES = {"tokenizer.json": b"{}", "LICENSE": b"words"}


def layer(
    pattern: str, shape: tuple[int, int], group_size: int, *, symmetric: bool = True, more: bool = False, seed: int = 0
) -> QuantizedLinear:
    """Random weights; with more, a bias and an order of columns."""
    rng = np.random.default_rng(seed)
    parsed = NMPattern.parse(pattern)
    rows, columns = shape
    groups = 1 if group_size == -1 else -(-columns // group_size)
    order = rng.random((rows, -(-columns // parsed.m), parsed.m)).argsort(axis=2)
    # Blocks that keep fewer than n are filled up in the stream.
    mask = order < rng.integers(0, parsed.n + 1, order.shape[:2])[:, :, None]
    return QuantizedLinear(
        NMWeight(
            values=rng.integers(-8, 8, shape) if symmetric else rng.integers(0, 16, shape),
            mask=mask.reshape(rows, -1)[:, :columns],
            group_scale=rng.integers(-128, 128, (rows, groups)),
            channel_scale=rng.standard_normal(rows),
            pattern=parsed,
            group_size=group_size,
            zero_point=None if symmetric else rng.integers(0, 16, (rows, groups)),
        ),
        bias=rng.standard_normal(rows).astype(np.float32) if more else None,
        column_order=rng.permutation(columns) if more else None,
    )


LAYERS = {
    "model.layers.0.q_proj": layer("2:4", (5, 24), 8),
    "model.layers.0.o_proj": layer("dense", (6, 24), 12, symmetric=False, more=True, seed=1),
    "model.layers.1.q_proj": layer("3:4", (3, 22), -1, seed=2),
}


def same_layer(a: QuantizedLinear, b: QuantizedLinear) -> bool:
    """Whether two layers compute the same."""
    pairs = [
        (a.weight.integers(), b.weight.integers()),
        (a.weight.to_dense(), b.weight.to_dense()),
        (a.weight.channel_scale, b.weight.channel_scale),
        (a.bias, b.bias),
        (a.column_order, b.column_order),
    ]
    return all(np.array_equal(x, y) if x is not None and y is not None else x is y for x, y in pairs)


def same_content(packed: PackedCheckpoint) -> bool:
    """Whether a folder holds what the `folder` fixture wrote."""
    return (
        packed.core == TINY
        and packed.config == {"model_type": "llama", "hidden_size": 24}
        and list(packed.layers) == list(LAYERS)
        and all(same_layer(packed.layers[name], linear) for name, linear in LAYERS.items())
        and list(packed.others) == list(OTHERS)
        and all(torch.equal(packed.others[name], tensor) for name, tensor in OTHERS.items())
        and {name: path.read_bytes() for name, path in packed.extra_files.items()} == FILES
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model"
    write_packed(path, LAYERS, OTHERS, CONFIG, TINY, FILES)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_everything_comes_back(folder: Path) -> None:
    packed = PackedCheckpoint.open(folder)
    assert same_content(packed)
    packed.check()
    assert packed.others["model.steps"].dtype == torch.int64
    assert packed.others["model.norm.weight"].dtype == torch.bfloat16
    entry = packed.manifest.layers["model.layers.0.o_proj"]
    assert (entry.pattern, entry.group_size, entry.symmetric, entry.code) == ("1:1", 12, False, "none")
    assert (entry.out_features, entry.in_features, entry.bias, entry.column_order) == (6, 24, True, True)
    with pytest.raises(KeyError):
        packed.layers["model.norm"]
    assert sorted(os.listdir(folder)) == [
        *("LICENSE", "config.json", "nimble-00001.safetensors", "nimble.json", "tokenizer.json")
    ]


def test_a_tensor_is_the_stream_that_runs(folder: Path) -> None:
    """The bytes on disk are those of pack, and run on the core without packing."""
    packed = PackedCheckpoint.open(folder)
    on_disk = load_file(folder / "nimble-00001.safetensors")
    for name, linear in LAYERS.items():
        stream = packed.stream(name)
        assert on_disk[f"{name}.stream"].numpy().tobytes() == stream.payload == pack(linear.weight, TINY).payload
        x = np.random.default_rng(3).integers(-128, 128, (3, linear.weight.in_features))
        expected = integer_gemm(x, linear.weight).numpy()
        assert np.array_equal(run_gemm(TINY, x, stream, "fl").y, expected)
    assert np.array_equal(run_gemm(TINY, x, stream, "rtl").y, expected)


def test_groups_that_were_cut_for_the_core_come_back_whole(folder: Path, tmp_path: Path) -> None:
    """Tiles of this core hold 32 weights; a core of larger ones must not inherit them."""
    layers = {
        "a": layer("2:4", (5, 120), 64, seed=3),
        "b": layer("3:5", (5, 120), -1, seed=4),
        "c": layer("1:4", (3, 100), 40, symmetric=False, seed=5),
    }
    write_packed(tmp_path / "model", layers, {}, {}, TINY)
    packed = PackedCheckpoint.open(tmp_path / "model")
    for name, linear in layers.items():
        assert packed.stream(name).layout.groups > linear.weight.groups
        assert same_layer(packed.layers[name], linear)
        assert packed.layers[name].weight.group_size == linear.weight.group_size
        assert np.array_equal(packed.layers[name].weight.group_scale, linear.weight.group_scale)
    edge = load_preset("edge")
    write_packed(tmp_path / "edge", packed.layers, {}, {}, edge)
    for name, linear in layers.items():
        assert PackedCheckpoint.open(tmp_path / "edge").stream(name).layout == pack(linear.weight, edge).layout


def test_parts_of_a_group_with_different_scales(tmp_path: Path) -> None:
    """A stream of two groups whose header says that they are one."""
    linear = layer("2:4", (2, 64), 32, seed=3)
    write_packed(tmp_path / "model", {"a": linear}, {}, {}, TINY)
    document = manifest_of(tmp_path / "model")
    fields = dataclasses.replace(pack(linear.weight, TINY).layout, group_size=-1)
    header = PackedStream(fields, pack(linear.weight, TINY).payload).to_bytes()[:64]
    document["layers"]["a"].update(header=header.hex(), group_size=-1)
    sign(tmp_path / "model", document)
    assert "layer a: Parts of one group have different scales in the stream." in rejected(tmp_path / "model")


def test_many_tensors_take_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 150)
    done: list[str] = []
    write_packed(tmp_path / "model", LAYERS, OTHERS, CONFIG, TINY, FILES, progress=done.append)
    packed = PackedCheckpoint.open(tmp_path / "model")
    assert same_content(packed)
    assert len(packed.manifest.shards) > 2
    assert done == [*LAYERS, *OTHERS]
    read: list[str] = []
    packed.check(read.append)
    assert read == done


def test_tied_and_strided_tensors_are_written_as_they_are(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    others = {"a": table, "b": table, "c": table.T, "empty": torch.empty(0, 3)}
    write_packed(tmp_path / "model", {}, others, {}, TINY)
    packed = PackedCheckpoint.open(tmp_path / "model")
    assert all(torch.equal(packed.others[name], tensor) for name, tensor in others.items())


@pytest.fixture(scope="module")
def spoiled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("spoiled") / "model"))


@given(st.sampled_from(["nimble.json", "config.json", "nimble-00001.safetensors", "LICENSE"]), st.data())
def test_no_bit_can_be_changed(folder: Path, spoiled: Path, file: str, data: st.DataObject) -> None:
    """Whatever bit changes, or wherever a file ends, it is refused, or is one of the spaces of a JSON text."""
    original = (folder / file).read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    if data.draw(st.booleans()):
        changed = original[:place]
    else:
        changed = bytearray(original)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        (spoiled / file).write_bytes(changed)
        packed = PackedCheckpoint.open(spoiled)
        packed.check()
        assert same_content(packed)
        assert file in ("nimble.json", "nimble-00001.safetensors")
    except PackedError:
        pass
    finally:
        (spoiled / file).write_bytes(original)


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "nimble.json").read_text())


def sign(path: Path, document: dict[str, Any]) -> None:
    """Write a manifest with its checksum right."""
    document.pop("checksum", None)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "nimble.json").write_text(json.dumps(document))


def rejected(path: Path) -> str:
    with pytest.raises(PackedError) as error:
        PackedCheckpoint.open(path).check()
    return str(error.value)


Q_PROJ = "model.layers.0.q_proj"


def change(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return apply


def remove(*keys: str) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return apply


def move(part: str, name: str, to: str) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        document[part][to] = document[part].pop(name)

    return apply


HOSTILE = [
    (change("format", to="other"), "is not the manifest of packed weights: its format is not 'nimble packed weights'."),
    (change("version", to=2), "has version 2, but this program reads version 1."),
    (change("version", to=True), "has version True, but this program reads version 1."),
    (remove("files"), "missing: files; unknown: none."),
    (change("more", to=1), "missing: none; unknown: more."),
    (change("layers", to=[]), "layers must be an object."),
    (change("core", "columns", to=4), "but this core has 4 columns of 2; pack the weights for this core."),
    (change("core", "columns", to=1 << 40), "columns must be between 1 and 64, but 1099511627776 was given."),
    (remove("core", "rows"), "missing: rows; unknown: none."),
    (change("layers", Q_PROJ, "pattern", to="1:4"), f"layer {Q_PROJ} is described otherwise in nimble.json"),
    (change("layers", Q_PROJ, "symmetric", to=False), f"layer {Q_PROJ} is described otherwise in nimble.json"),
    (change("layers", Q_PROJ, "symmetric", to=1), f"layer {Q_PROJ} has symmetric = 1, which is not allowed."),
    (change("layers", Q_PROJ, "out_features", to=1 << 30), f"tensor {Q_PROJ}.channel_scale is F32 [5], but it must be"),
    (change("layers", Q_PROJ, "out_features", to=0), f"layer {Q_PROJ} has out_features = 0, which is not allowed."),
    (change("layers", Q_PROJ, "header", to="00" * 64), "This is not a packed weight stream"),
    (change("layers", Q_PROJ, "header", to="00" * 9**6), f"layer {Q_PROJ} has header = '0000"),
    (change("layers", Q_PROJ, "bias", to=True), f"layer {Q_PROJ} has no tensor {Q_PROJ}.bias."),
    (remove("layers", Q_PROJ), f"tensor {Q_PROJ}.stream is none that a layer {Q_PROJ} says it has."),
    (change("layers", Q_PROJ, to=None), f"layer {Q_PROJ} must be an object."),
    (move("layers", Q_PROJ, "model.other"), "layer model.other has no tensor model.other.stream."),
    (change("tensors", f"{Q_PROJ}.stream", "sha256", to="0" * 64), "is altered: its checksum does not match."),
    (change("tensors", f"{Q_PROJ}.stream", "sha256", to="0" * 63), "which is not allowed."),
    (change("tensors", f"{Q_PROJ}.stream", "shape", to=[1 << 39]), "but nimble.json says U8 [549755813888]."),
    (change("tensors", f"{Q_PROJ}.stream", "shape", to=[1 << 62]), "has shape = [4611686018427387904]"),
    (change("tensors", f"{Q_PROJ}.stream", "shape", to=[-1]), "has shape = [-1], which is not allowed."),
    (change("tensors", f"{Q_PROJ}.stream", "dtype", to="I8"), "but it must be U8 [any]."),
    (change("tensors", "model.norm.weight", "dtype", to="F16"), "but nimble.json says F16 [24]."),
    (change("tensors", "model.norm.weight", "file", to="../nimble-00001.safetensors"), "tensor files are named"),
    (change("tensors", "model.norm.weight", "file", to="/etc/passwd"), "tensor files are named nimble-00001"),
    (change("tensors", "model.norm.weight", "file", to="nimble-00002.safetensors"), "unknown: model.norm.weight."),
    (remove("tensors", "model.norm.weight"), "unknown: model.norm.weight."),
    (move("tensors", "model.norm.weight", f"{Q_PROJ}.weight"), "is none that a layer"),
    (move("tensors", "model.norm.weight", "model.other.weight"), "missing: model.other.weight;"),
    (move("files", "LICENSE", "../LICENSE"), "names the file '../LICENSE'; it must be the plain name"),
    (move("files", "LICENSE", "nimble.json"), "names the file 'nimble.json'; it must be the plain name"),
    (move("files", "LICENSE", "model"), "has no model."),
    (remove("files", "config.json"), "names no config.json."),
    (change("files", "LICENSE", "bytes", to=4), "LICENSE has 5 bytes, but nimble.json says 4."),
    (change("files", "LICENSE", "sha256", to="0" * 64), "LICENSE is altered: its checksum does not match."),
]


@pytest.mark.parametrize(("spoil", "sentence"), HOSTILE, ids=[sentence for _, sentence in HOSTILE])
def test_a_manifest_that_is_signed_and_wrong(
    copy: Path, spoil: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    document = manifest_of(copy)
    spoil(document)
    sign(copy, document)
    message = rejected(copy)
    assert sentence in message
    assert message.endswith(".")
    assert len(message) < 700


NASTY: list[Any] = [
    *(None, True, 0, 1, -1, 3, 255, 1 << 31, 1 << 63, 10**400, 0.5, 1e308, "", "x", "1:4", "F64", "../x", "\x00"),
    *("nimble-00002.safetensors", "config.json", [], [[]], [1 << 40] * 3, [1] * 10, {}, {"a": 1}, {"": {}}),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values of a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@given(st.data())
def test_any_value_of_a_signed_manifest_may_lie(folder: Path, spoiled: Path, data: st.DataObject) -> None:
    """Whatever is written in its place, reading ends with a sentence or with the very weights, and no other way."""
    document = manifest_of(folder)
    original = (folder / "nimble.json").read_bytes()
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places(document)[1:]))
        node = document
        for key in path:
            node = node[key]
        if isinstance(node, dict) and data.draw(st.booleans()):
            node[data.draw(st.sampled_from(["x", "../x", "config.json", last + "x"]))] = node.pop(last)
        else:
            node[last] = deepcopy(data.draw(st.sampled_from(NASTY)))
    try:
        sign(spoiled, document)
        packed = PackedCheckpoint.open(spoiled)
        packed.check()
        shared = packed.layers.keys() & LAYERS.keys()
        assert all(same_layer(packed.layers[name], LAYERS[name]) for name in shared)
        assert all(torch.equal(tensor, OTHERS[name]) for name, tensor in packed.others.items())
    except PackedError as error:
        assert str(error).endswith(".")  # noqa: PT017 - success is fine, too
    finally:
        (spoiled / "nimble.json").write_bytes(original)


def test_a_manifest_that_is_changed_by_hand(copy: Path) -> None:
    """The number of rows is in no stream and in no file: only the checksum knows of it."""
    document = manifest_of(copy)
    document["core"]["rows"] = 3
    (copy / "nimble.json").write_text(json.dumps(document))
    assert rejected(copy) == f"{copy / 'nimble.json'} is altered: its checksum does not match."
    sign(copy, document)
    PackedCheckpoint.open(copy).check()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 10_000, "is not JSON"),
        (b"[]", "its format is not"),
        (b'{"format": 1, "format": 1}', "has the key 'format' twice."),
        (b'{"format": NaN}', "NaN is no number of JSON."),
        (b" " * ((1 << 24) + 2), "is too long for a manifest: it has more than 16777216 bytes."),
    ],
)
def test_a_manifest_that_is_no_json(copy: Path, text: bytes, sentence: str) -> None:
    (copy / "nimble.json").write_bytes(text)
    assert sentence in rejected(copy)


def test_links_are_not_followed(copy: Path, tmp_path: Path) -> None:
    for name in ("nimble-00001.safetensors", "LICENSE", "nimble.json"):
        (copy / name).rename(tmp_path / name)
        (copy / name).symlink_to(tmp_path / name)
        assert rejected(copy).startswith(f"{copy / name} is not a plain file;")
        (copy / name).unlink()
        (tmp_path / name).rename(copy / name)


def test_tensors_that_say_other_than_the_manifest(copy: Path) -> None:
    shard = copy / "nimble-00001.safetensors"
    tensors = load_file(shard)
    # Another layer's stream, with its checksum: only the header tells.
    document = manifest_of(copy)
    other = "model.layers.1.q_proj"
    tensors[f"{Q_PROJ}.stream"] = tensors[f"{other}.stream"].clone()
    save_file(tensors, shard)
    document["tensors"][f"{Q_PROJ}.stream"] = document["tensors"][f"{other}.stream"]
    sign(copy, document)
    assert "its header promises" in rejected(copy)
    document["layers"][Q_PROJ]["header"] = document["layers"][other]["header"]
    sign(copy, document)
    assert f"layer {Q_PROJ} is described otherwise in nimble.json than in its stream." in rejected(copy)


def test_pickles_and_missing_files(copy: Path) -> None:
    shard = copy / "nimble-00001.safetensors"
    torch.save({"model.norm.weight": torch.zeros(24)}, shard)
    assert "is not a safetensors file" in rejected(copy)
    shard.unlink()
    assert rejected(copy) == f"{copy} has no nimble-00001.safetensors."
    (copy / "nimble.json").unlink()
    assert rejected(copy) == f"{copy} has no nimble.json."
    with pytest.raises(FileNotFoundError, match=r"is not a folder; give one with a nimble\.json\."):
        PackedCheckpoint.open(copy / "nothing")


def test_only_packed_weights_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write_packed(target, {}, OTHERS, CONFIG, TINY)
    with pytest.raises(FileExistsError, match="it exists; give the name of a new one"):
        write_packed(target, LAYERS, OTHERS, CONFIG, TINY, FILES)
    write_packed(target, LAYERS, OTHERS, CONFIG, TINY, FILES, overwrite=True)
    assert same_content(PackedCheckpoint.open(target))
    (target / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"it holds notes\.txt, which is not part of the packed weights\."):
        write_packed(target, {}, {}, CONFIG, TINY, overwrite=True)
    (target / "notes.txt").unlink()
    (target / "nimble.json").unlink()
    with pytest.raises(FileExistsError, match="it is not a folder of packed weights"):
        write_packed(target, {}, {}, CONFIG, TINY, overwrite=True)
    assert os.listdir(tmp_path) == ["model"]


class _Interrupted(dict[str, torch.Tensor]):
    """Tensors of which reading the second is stopped by Ctrl-C."""

    def items(self) -> Any:
        yield "model.norm.weight", torch.zeros(3)
        raise KeyboardInterrupt


WRONG = NMWeight([[1, 2, 3, 4]], [[True, True, False, False]], [[1]], np.ones(1), NMPattern(2, 4), 4)

REFUSED: list[tuple[dict[str, Any], type[BaseException], str]] = [
    ({"others": _Interrupted()}, KeyboardInterrupt, ""),
    ({"layers": {"a": layer("2:4", (2, 160), 8)}}, ConfigError, "Layer a: The weights have 160 input features"),
    ({"layers": {"a": layer("2:12", (2, 24), 12)}}, ConfigError, "Layer a: Pattern 2:12 has blocks of 12 weights"),
    ({"others": {"a": torch.zeros(2, dtype=torch.complex64)}}, ValueError, "Tensor a has type torch.complex64"),
    ({"others": {f"{Q_PROJ}.stream": torch.zeros(2)}}, ValueError, f"Two tensors have the name {Q_PROJ}.stream."),
    ({"others": {f"{Q_PROJ}.weight": torch.zeros(2)}}, PackedError, "is none that a layer"),
    ({"model_config": {"a": torch.zeros(1)}}, ValueError, "config.json cannot be written as JSON"),
    ({"model_config": {"a": float("nan")}}, ValueError, "config.json cannot be written as JSON"),
    ({"extra_files": {"../a": b""}}, PackedError, "names the file '../a'; it must be the plain name of a file beside"),
    ({"extra_files": {".a": b""}}, PackedError, "names the file '.a'; it must be the plain name of a file beside"),
    ({"extra_files": {"config.json": b""}}, ValueError, "config.json is written from model_config"),
]


@pytest.mark.parametrize(("changes", "error", "sentence"), REFUSED)
def test_nothing_is_left_of_what_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[BaseException], sentence: str
) -> None:
    arguments: dict[str, Any] = {"layers": LAYERS, "others": OTHERS, "model_config": CONFIG, "core": TINY, **changes}
    with pytest.raises(error) as raised:
        write_packed(tmp_path / "model", **arguments)
    assert sentence in str(raised.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        ("values", PackedError, "Layer a: the packed stream holds another weight in row 1, column"),
        ("group_scale", PackedError, "Layer a: the packed stream holds other group scales."),
        ("mask", PatternBreach, "After stage pack, a breaks its pattern: row 0, block 0 (columns 0 to 3) keeps 3"),
    ],
)
def test_a_stream_that_is_not_the_weight_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str, error: type[Exception], sentence: str
) -> None:
    """A packer that is wrong in one code, in one scale, or keeps more than the pattern allows."""
    linear = layer("2:4", (5, 24), 8)

    def wrong_pack(weight: NMWeight, config: Any) -> Any:
        fields = {name: getattr(weight, name) for name in ("values", "mask", "group_scale")}
        pattern = weight.pattern
        if spoil == "values":
            row, column = 1, int(np.argmax(weight.mask[1]))
            fields["values"] = weight.values.copy()
            fields["values"][row, column] = -1 if weight.values[row, column] != -1 else 1
        elif spoil == "group_scale":
            fields["group_scale"] = weight.group_scale[:, ::-1]
        else:
            pattern = NMPattern(3, 4)
            fields["mask"] = np.tile([True, True, True, False], (5, 6))
        return pack(NMWeight(**fields, channel_scale=weight.channel_scale, pattern=pattern, group_size=8), config)

    monkeypatch.setattr(module, "pack", wrong_pack)
    with pytest.raises(error) as raised:
        write_packed(tmp_path / "model", {"a": linear}, {}, {}, TINY)
    assert sentence in str(raised.value)
    assert os.listdir(tmp_path) == []
