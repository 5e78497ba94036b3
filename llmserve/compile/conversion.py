"""The first of a build's steps: a checkpoint becomes params in a scheme's storage, with all that goes with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..quant.scheme import Scheme
from ..weights.convert import convert
from ..weights.source import write_json
from . import artifact
from .subject import Subject

Notify = Callable[[str, str, float | None], None]
"""Called as (step, detail, fraction done or None) while something takes time; fraction 1.0 ends a step."""


@dataclass
class Conversion:
    """How a checkpoint is to be converted. `notes` are sentences for the user, added as they come up.

    `takeover` says what becomes of weights that are quantized already, if they are.
    """

    subject: Subject
    scheme: Scheme
    notify: Notify
    notes: list[str] = field(default_factory=list)
    takeover: str = ""

    @property
    def causes(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "model": self.subject.label,
            **self.scheme.stored,
            **self._subject_causes,
        }

    @property
    def _subject_causes(self) -> dict[str, Any]:
        return {
            "checkpoint": artifact.checkpoint_fingerprint(self.subject.source.path),
            "config": self.subject.raw_config,
            "sources": artifact.source_hash("quant", "weights", "models"),
            "version": __version__,
        }

    def words(self) -> Path:
        """A directory with config.json, tokenizer and chat template: the checkpoint's own, or one in the cache."""
        source = self.subject.source
        if source.has_words:
            return source.path
        return artifact.obtain("words", {**self._subject_causes, "model": self.subject.label}, self._write_words)

    def into_cache(self) -> Path:
        """The converted directory, from the cache if it is there."""
        return artifact.landed("weights", self.causes) or artifact.obtain("weights", self.causes, self._into)

    def into(self, out: Path) -> None:
        """The same in a directory of the user's choice."""
        results: dict[str, Any] = {}
        with artifact.landing(out, "weights", self.causes, results) as directory:
            results |= self._into(directory)

    def _into(self, directory: Path) -> dict[str, Any]:
        """Fills an empty directory; returns what its manifest is to keep."""

        def progress(name: str, done: int, total: int) -> None:
            self.notify("convert", name, done / total if total else 1.0)

        source = self.subject.source
        converted = convert(source, directory, self.subject.plan(self.scheme), progress)
        self._write_words(directory)
        if self.takeover:
            self.notes.append(self.takeover)
        self.notes.append(f"Converted to {self.scheme.name}: {converted}.")
        return {"bits_per_weight": converted.bits_per_weight}

    def _write_words(self, directory: Path) -> None:
        write_json(directory / "config.json", self.subject.raw_config)
        self.subject.source.write_companions(directory)
