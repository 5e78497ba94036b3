"""A model, ready to be loaded: from the note of an earlier build, else by a build. TVM is imported for the latter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ..config import EngineConfig
from .compiled import CompiledModel
from .recall import BuildRequest, recall


class PreparedModel(Protocol):
    """What there is to know of a model before it is compiled, and the compiled model."""

    @property
    def label(self) -> str:
        """What clients and listings call it."""

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
