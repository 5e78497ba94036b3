"""Params in memory of their own: the same when they were read ahead."""

from __future__ import annotations

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


@pytest.mark.parametrize("part", [100, 1 << 20])
def test_reading_ahead_changes_nothing(params: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(load, "_READ_BYTES", part)
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
