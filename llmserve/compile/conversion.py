"""The first of a build's steps: a checkpoint becomes params in a scheme's storage, with all that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..quant import group, scale_search
from ..quant.scheme import Scheme
from ..weights.convert import convert
from ..weights.source import write_json
from . import artifact
from .calibrate import Calibrator, Notify, needs_text
from .calibration_data import read
from .subject import Subject


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
    methods: tuple[str, ...] = ()
    calibration_data: Path | None = None

    @cached_property
    def calibrator(self) -> Calibrator | None:
        """What rounds the weights where that takes a text. Raises ConfigError for a text that is of no use."""
        if not needs_text(self.methods):
            return None
        config = self.subject.config
        text = read(self.calibration_data, self.words(), config.vocab_size, config.max_position_embeddings)
        return Calibrator(self.subject, self.scheme, text, self.methods, self.notify)

    @property
    def causes(self) -> dict[str, Any]:
        """All that the result depends on."""
        calibrated: dict[str, Any] = {}
        if self.methods:
            text = self.calibrator.sequences.causes if self.calibrator else {}
            sources = artifact.source_hash("compile", "kernels")
            calibrated = {"calibration": {"methods": list(self.methods), **text, "sources": sources}}
        return {
            "model": self.subject.label,
            **calibrated,
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
        causes = self.causes
        if path := artifact.landed("weights", causes):
            return path
        path = artifact.obtain("weights", causes, self._into)
        if self.calibrator:
            self.calibrator.discard()
        return path

    def into(self, out: Path) -> None:
        """The same in a directory of the user's choice."""
        results: dict[str, Any] = {}
        with artifact.landing(out, "weights", self.causes, results) as directory:
            results |= self._into(directory)
        if self.calibrator:
            self.calibrator.discard()

    def _into(self, directory: Path) -> dict[str, Any]:
        """Fills an empty directory; returns what its manifest is to keep."""

        def progress(name: str, done: int, total: int) -> None:
            self.notify("convert", name, done / total if total else 1.0)

        source = self.subject.source
        made = self.calibrator.run(self.causes) if self.calibrator else {}
        quantizer = scale_search.quantize if self.methods else group.quantize
        plan = self.subject.plan(self.scheme)
        converted = convert(source, directory, plan, progress, quantizer=quantizer, made=made)
        self.notes += self.calibrator.notes if self.calibrator else []
        self._write_words(directory)
        if self.takeover:
            self.notes.append(self.takeover)
        self.notes.append(f"Converted to {self.scheme.name}: {converted}.")
        return {"bits_per_weight": converted.bits_per_weight}

    def _write_words(self, directory: Path) -> None:
        write_json(directory / "config.json", self.subject.raw_config)
        self.subject.source.write_companions(directory)
