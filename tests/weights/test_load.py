"""Params in memory of their own: the same when they were read ahead."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llmserve.errors import ArtifactError
from llmserve.weights import load
from llmserve.weights.container import SafetensorsWriter, TensorSpec


@pytest.fixture
def params(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((64, 64)).astype(np.float32), "b": np.arange(7, dtype=np.int8)}
    specs = [TensorSpec(name, array.dtype, array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(tmp_path / load.PARAMS_FILE, specs) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return tmp_path


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["mapped", "read"])
@pytest.mark.parametrize("part", [100, 1 << 20])
def test_reading_ahead_changes_nothing(params: Path, monkeypatch: pytest.MonkeyPatch, part: int, share: float) -> None:
    monkeypatch.setattr(load, "_READ_BYTES", part)
    monkeypatch.setattr(load, "_HUGE_SHARE", share)
    mapped = load.load_params(params)
    for ahead in (False, True):
        if ahead:
            load.read_ahead(params)
        resident = load.load_params(params, resident=True)
        assert {name: array.tolist() for name, array in resident.items()} == {
            name: array.tolist() for name, array in mapped.items()
        }
    assert not load._ahead  # what was read belongs to who asked for it


def test_what_is_wrong_shows_when_the_params_are_asked_for(params: Path) -> None:
    load.read_ahead(params / "gone")
    with pytest.raises(ArtifactError, match=r"remove it and convert again.*is missing"):
        load.load_params(params / "gone", resident=True)
    assert not load._ahead


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a mapping's pages")
@pytest.mark.parametrize(("share", "file"), [(0.0, True), (2.0, False)])
def test_a_file_that_is_kept_in_huge_pages_is_not_copied(
    params: Path, monkeypatch: pytest.MonkeyPatch, share: float, file: bool
) -> None:
    monkeypatch.setattr(load, "_HUGE_SHARE", share)
    resident = load.load_params(params, resident=True)
    name = str(params / load.PARAMS_FILE)
    assert (name in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")) == file
    resident["a"][:] = 7  # where compiled code may write, it does not reach the file
    assert not np.array_equal(load.load_params(params)["a"], resident["a"])


def test_huge_pages_are_those_of_the_mapping() -> None:
    lines = """7f0000000000-7f0000400000 rw-p 00000000 fe:00 16 /params
FilePmdMapped:      2048 kB
7f0000400000-7f0000600000 rw-p 00400000 fe:00 16 /params
Rss:                2048 kB
FilePmdMapped:      2048 kB
7f0000600000-7f0000800000 r--p 00000000 fe:00 17 /other
FilePmdMapped:      2048 kB
""".splitlines()
    assert load.huge_bytes(lines, 0x7F0000000000, 0x7F0000600000) == 4 << 20
    assert load.huge_bytes(lines, 0x7F0000400000, 0x7F0000600000) == 2 << 20
