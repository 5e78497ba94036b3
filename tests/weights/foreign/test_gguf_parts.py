"""A model in several GGUF files, of which any stands for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from llmserve.errors import CheckpointError
from llmserve.weights.foreign import open_source

from .gguf_files import split
from .test_gguf import write


def test_any_part_of_a_model_opens_all(tmp_path: Path) -> None:
    file, _ = write(tmp_path)
    whole = open_source(file)
    parts = split(file, 3)
    for part in parts:
        source = open_source(part)
        assert source.config == whole.config and sorted(source.names()) == sorted(whole.names())
        for name in source.names():
            rows = source.info(name).rows[0]
            np.testing.assert_array_equal(source.read_rows(name, 0, rows), whole.read_rows(name, 0, rows))
    assert len({source.info(name).file for name in source.names()}) == 3
    file.unlink()
    shutil.rmtree(tmp_path / "twin")
    assert open_source(tmp_path).names() == source.names()  # a directory that holds one model
    parts[0].rename(tmp_path / "first.gguf")
    missing = (
        r"big-00003-of-00003\.gguf is one of 3 parts of a model, and big-00001-of-00003\.gguf is missing beside it"
    )
    with pytest.raises(CheckpointError, match=missing):
        open_source(parts[2])
    with pytest.raises(CheckpointError, match=r"first\.gguf is one of 3 parts of a model, which are found by names"):
        open_source(tmp_path / "first.gguf")


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    file, _ = write(tmp_path)
    parts = split(file, 3)
    contents = [part.read_bytes() for part in parts]
    parts[1].write_bytes(contents[2])
    with pytest.raises(CheckpointError, match=r"big-00002-of-00003\.gguf says that it is part 3 of the model"):
        open_source(parts[0])
    parts[1].write_bytes(contents[1][: len(contents[1]) // 2])
    with pytest.raises(CheckpointError, match=r"big-00002-of-00003\.gguf is no intact GGUF file"):
        open_source(parts[0])
