"""A layer file gives back what was written, and a damaged one is never taken for whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import NMPattern, NMWeight, QuantizedLinear, magnitude_mask
from quant.layer_file import read_checked, read_error, read_layer, write_checked, write_layer


@st.composite
def linears(draw: st.DrawFn) -> QuantizedLinear:
    m = draw(st.integers(1, 32))
    pattern = NMPattern(draw(st.integers(1, m)), m)
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 70))
    group = draw(st.just(-1) | st.integers(1, 3).map(lambda count: count * m))
    groups = 1 if group == -1 else -(-columns // group)
    draws = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    symmetric = draw(st.booleans())
    low, high = (-8, 8) if symmetric else (0, 16)
    weight = NMWeight(
        values=draws.integers(low, high, (rows, columns)),
        mask=magnitude_mask(draws.normal(size=(rows, columns)), pattern),
        group_scale=draws.integers(-(1 << 15), 1 << 15, (rows, groups)),
        channel_scale=draws.normal(size=rows),
        pattern=pattern,
        group_size=group,
        zero_point=None if symmetric else draws.integers(0, 16, (rows, groups)),
    )
    bias = draws.normal(size=rows).astype(np.float32) if draw(st.booleans()) else None
    order = draws.permutation(columns) if draw(st.booleans()) else None
    return QuantizedLinear(weight, bias, order)


def same(first: object, second: object) -> bool:
    if first is None or second is None:
        return first is second
    one, other = np.asarray(first), np.asarray(second)
    return one.dtype == other.dtype and np.array_equal(one, other)


@given(linear=linears(), error=st.floats(0, allow_infinity=False))
def test_gives_back_every_field(
    tmp_path_factory: pytest.TempPathFactory, linear: QuantizedLinear, error: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "layer.safetensors"
    write_layer(path, linear, error)
    content = path.read_bytes()
    found = read_layer(path)
    assert found.error == read_error(path) == error
    for name in ("values", "mask", "group_scale", "channel_scale", "zero_point"):
        assert same(getattr(found.linear.weight, name), getattr(linear.weight, name)), name
    assert found.linear.weight.pattern == linear.weight.pattern
    assert found.linear.weight.group_size == linear.weight.group_size
    assert same(found.linear.bias, linear.bias)
    assert same(found.linear.column_order, linear.column_order)
    write_layer(path, found.linear, found.error)
    assert path.read_bytes() == content


def small_linear() -> QuantizedLinear:
    weight = NMWeight(
        values=np.arange(-8, 8).reshape(2, 8),
        mask=np.tile([True, False, False, True], (2, 2)),
        group_scale=np.array([[1, 300], [3, 4]]),
        channel_scale=np.array([0.5, 0.25]),
        pattern=NMPattern(2, 4),
        group_size=4,
    )
    return QuantizedLinear(weight, np.array([1.0, 2.0], dtype=np.float32))


@given(st.data())
@settings(max_examples=100)
def test_damage_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write_layer(path, small_linear(), 0.5)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        damaged = content.copy()
        place = data.draw(st.integers(0, len(content) - 1))
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        found = read_layer(path)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert str(path) in message
    else:  # a change of the header that says the same, as of its white space
        assert same(found.linear.weight.to_dense(), small_linear().weight.to_dense())
        assert same(found.linear.bias, small_linear().bias)


def test_a_checksum_alone_does_not_make_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_checked(path, {"codes": np.zeros((1, 1), dtype=np.uint8)}, {"format": "nimble.layer.1", "columns": 2})
    assert read_checked(path)[1] == {"format": "nimble.layer.1", "columns": 2}
    with pytest.raises(ValueError, match="does not hold a quantised layer"):
        read_layer(path)
    with pytest.raises(ValueError, match="does not hold the error of a quantised layer"):
        read_error(path)
    write_checked(path, {}, {"format": "other"})
    with pytest.raises(ValueError, match=r"has format 'other'; a layer of this version has 'nimble.layer.1'\."):
        read_layer(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    for read in (read_layer, read_error, read_checked):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")  # type: ignore[operator]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layer.safetensors"
    write_layer(path, small_linear(), 0.5)

    def fail(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_layer(path, small_linear(), 0.75)
    assert read_error(path) == 0.5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
