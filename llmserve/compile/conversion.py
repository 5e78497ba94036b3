"""Conversion, a build's first step: a checkpoint becomes params in a scheme's storage, with config and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import artifact
from ..errors import CheckpointError
from ..quant import group, scale_search
from ..quant.group import GroupFormat
from ..quant.report import Report
from ..quant.scheme import Scheme
from ..weights.convert import ConversionPlan, ConversionReport, convert
from . import judging
from .calibrate import Calibrator, Notify, needs_text
from .calibration_data import read
from .subject import Subject
from .texts import EvaluationText


@dataclass
class Conversion:
    """The settings of a checkpoint's conversion, and the conversion itself.

    Attributes:
        notes: sentences for the user, added as they come up.
        takeover: a sentence on weights that are quantized already; "" where there are none.
        report: judge the result; None does so where it takes half a minute at most.
        evaluation: the text of the report; None is the package's own.
    """

    subject: Subject
    scheme: Scheme
    notify: Notify
    notes: list[str] = field(default_factory=list)
    takeover: str = ""
    methods: tuple[str, ...] = ()
    calibration_data: Path | None = None
    report: bool | None = False
    evaluation: EvaluationText | None = None

    @cached_property
    def calibrator(self) -> Calibrator | None:
        """The calibrator, where the methods need a text, else None. Raises ConfigError for an unusable text."""
        if not needs_text(self.methods):
            return None
        config = self.subject.config
        text = read(
            self.calibration_data, self.subject.tokenizer_directory, config.vocab_size, config.max_position_embeddings
        )
        return Calibrator(self.subject, self.scheme, text, self.methods, self.notify)

    @property
    def causes(self) -> dict[str, Any]:
        """All that the result depends on."""
        calibrated: dict[str, Any] = {}
        if self.methods:
            text = self.calibrator.sequences.causes if self.calibrator else {}
            sources = artifact.source_hash("compile", "kernels")
            calibrated = {"calibration": {"methods": list(self.methods), **text, "sources": sources}}
        return {"model": self.subject.label, **calibrated, **self.scheme.stored, **self.subject.causes}

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
        """Fills an empty directory; returns the results for its manifest."""

        def progress(name: str, done: int, total: int) -> None:
            self.notify("convert", name, done / total if total else 1.0)

        source, plan = self.subject.source, self.subject.plan(self.scheme)
        made = self.calibrator.run(self.causes) if self.calibrator else {}
        quantizer = scale_search.quantize if self.methods else group.quantize
        converted = convert(source, directory, plan, progress, quantizer=quantizer, made=made)
        self.notes += self.calibrator.notes if self.calibrator else []
        self.subject.write_tokenizer_files(directory)
        if self.takeover:
            self.notes.append(self.takeover)
        self.notes.append(f"Converted to {self.scheme.name}: {converted}.")
        report = self._judge(directory, plan, converted)
        return {"bits_per_weight": converted.bits_per_weight} | ({"report": report.json} if report else {})

    def _judge(self, directory: Path, plan: ConversionPlan, converted: ConversionReport) -> Report | None:
        """The report on what has just been converted, if one is wanted and there is something to judge."""
        rounded = any(isinstance(param.storage, GroupFormat) for param in plan.params)
        if self.report is False or not rounded:
            return None
        tokens = judging.affordable_tokens(converted.parameters, thorough=bool(self.report))
        if not tokens:
            self.notes.append("The model is too large to be judged in passing; `llmserve convert` reports on quality.")
            return None
        text = self.evaluation or EvaluationText.packaged()
        try:
            report = judging.judge(self.subject, directory, plan, self.scheme, converted, text, tokens, self.notify)
        except CheckpointError as error:  # without a tokenizer there are weights all the same
            self.notes.append(f"The result was not judged: {error}")
            return None
        self.notes += [str(report) if self.report else f"Quality: {report.short}.", *report.warnings]
        return report
