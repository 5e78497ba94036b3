"""The safetensors container: broken files of every kind, and files that the reference package reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from llmserve.errors import CheckpointError
from llmserve.weights.container import DTYPES, SafetensorsWriter, TensorSpec, read_header

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def raw(path: Path, header: Any, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": GOOD["a"] | changes}


BROKEN = {
    "not JSON": (b"{nonsense", 24, "its header is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 24, "its header is not JSON"),
    "deep": (b"[" * 100_000, 24, "its header is not JSON"),
    "a list": ([1, 2], 24, "no JSON object"),
    "cut short": (GOOD, 20, "cut short"),
    "too long": (GOOD, 25, "1 bytes follow"),
    "entry is no object": ({"a": 3}, 24, "entry of a is malformed"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 24, "malformed"),
    "offsets are three": (entry(data_offsets=[0, 1, 2]), 24, "malformed"),
    "negative shape": (entry(shape=[-2, -3]), 24, "malformed"),
    "fractional shape": (entry(shape=[2.0, 3]), 24, "malformed"),
    "unknown dtype": (entry(dtype="F4"), 24, "dtype F4"),
    "shape and offsets differ": (entry(shape=[2, 2]), 24, "16 bytes, but has offsets of 24 bytes"),
    "offsets backwards": (entry(data_offsets=[24, 0]), 24, "has offsets of -24 bytes"),
    "hole": (entry(data_offsets=[8, 32]), 32, "does not begin where"),
    "overlap": (GOOD | {"b": GOOD["a"]}, 24, "does not begin where"),
    "twice": (b'{"a": 1, "a": 2}', 24, "names a twice"),
    "absurd size": (entry(shape=[2**40, 2**40], data_offsets=[0, 2**82]), 24, "cut short"),
}


@pytest.mark.parametrize(("header", "size", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_cause(tmp_path: Path, header: Any, size: int, cause: str) -> None:
    path = raw(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and cause in message and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "does not fit its 0 bytes"),
        (b"\x10\0\0", "does not fit its 3 bytes"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "does not fit"),
        ((50).to_bytes(8, "little") + b"{}", "does not fit"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=cause):
        read_header(path)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors is missing"):
        read_header(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path)


@given(cut=st.integers(0, 10_000))
def test_no_cut_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    save_file({"a": np.arange(12, dtype=np.float32), "b": np.ones((3, 5), np.float16)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: cut % len(content)])
    with pytest.raises(CheckpointError):
        read_header(path)


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float16), "s": np.array(1.0), "e": np.zeros((0, 4), np.int8)}, tmp_path / "f")
    tensors = read_header(tmp_path / "f")
    assert {(name, info.shape, info.dtype.name) for name, info in tensors.items()} == {
        ("a", (2, 3), "float16"),
        ("s", (), "float64"),
        ("e", (0, 4), "int8"),
    }


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@given(specs=st.lists(st.tuples(st.sampled_from(["F32", "F16", "U32", "U8", "I64"]), shapes), max_size=8))
def test_the_reference_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, specs: list[Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    tensors = {
        f"t{i}": np.random.default_rng(i).integers(0, 99, shape).astype(DTYPES[code])
        for i, (code, shape) in enumerate(specs)
    }
    layout = [TensorSpec(name, array.dtype, array.shape) for name, array in tensors.items()]
    with SafetensorsWriter(path, layout, {"made": "here"}) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    assert path.stat().st_size == writer.nbytes
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(read[name], array)
    for info in read_header(path).values():
        assert info.offset % info.dtype.itemsize == 0
        assert info.offset % 64 == 0 or info.nbytes % 64
    with safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"made": "here"}


def test_rows_may_come_in_any_order_and_must_all_come(tmp_path: Path) -> None:
    spec = TensorSpec("a", np.dtype(ml_dtypes.bfloat16), (2, 3, 4))
    rows = np.arange(24).astype(ml_dtypes.bfloat16).reshape(6, 4)
    with SafetensorsWriter(tmp_path / "f", [spec]) as writer:
        writer.write("a", rows[4:], first=4)
        assert not (tmp_path / "f").exists()
        writer.write("a", rows[:4])
    assert (tmp_path / "f").read_bytes()[-48:] == rows.tobytes()

    with pytest.raises(ValueError, match="not all rows"), SafetensorsWriter(tmp_path / "g", [spec]) as writer:
        writer.write("a", rows[:4])
    with pytest.raises(ValueError, match="bfloat16, not float32"), SafetensorsWriter(tmp_path / "g", [spec]) as writer:
        writer.write("a", rows.astype(np.float32))
    with pytest.raises(ValueError, match="same name"):
        SafetensorsWriter(tmp_path / "g", [spec, spec])
    assert [file.name for file in tmp_path.iterdir()] == ["f"]
