"""Preparation of a model for loading: from the note of an earlier build, else by a build, for which TVM is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..config import EngineConfig
from .compiled import CompiledModel
from .recall import BuildRequest, recall


class PreparedModel(Protocol):
    """A model that may still have to be compiled: its name, its tokenizer's files, and `run` for the rest."""

    @property
    def label(self) -> str:
        """The name for clients and listings."""

    @property
    def tokenizer_directory(self) -> Path:
        """Directory with config.json, tokenizer and chat template."""

    def run(self, max_model_len: int | None = None) -> CompiledModel:
        """Makes what is missing. `max_model_len` as in the engine's settings."""


def prepare(
    model: str | None,
    *,
    engine: EngineConfig,
    notify: Callable[[str, str, float | None], None],
    report: bool | None = False,
    **choices: Any,
) -> PreparedModel:
    """Arguments are those of `build.Build`, and so are the errors."""
    found = recall(BuildRequest(model, engine=engine, **choices), engine.max_model_len)
    if found is not None:
        return found
    from .build import Build

    return Build(model, engine=engine, notify=notify, report=report, **choices)
