"""The effort of quality reports and sensitivities: the tokens that a model's size allows, the programs, the results.

The measuring itself is in quality.py and sensitivity.py. Costs are counted in multiply-adds of weights and tokens; two
cores of a server do about 3e10 a second.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from .. import artifact
from ..errors import CheckpointError
from ..quant.mixed import Sensitivity
from ..quant.report import Report
from ..quant.scheme import SCHEMES, Scheme
from ..weights.convert import ConversionPlan, ConversionReport
from ..weights.load import load_params
from . import calibration_data, quality, sensitivity
from .layerwise import LayerProgram
from .subject import Subject
from .texts import EvaluationText

Notify = Callable[[str, str, float | None], None]

THOROUGH = 5e12
"""Cost of a report when a user converts: some minutes."""
QUICK = 5e11
"""When a model is to be served: half a minute."""
SENSITIVITY = 1e13
_MIN_TOKENS = 1024  # fewer say little
_MAX_TOKENS = 1 << 16
_MAX_QUICK_TOKENS = 4096
_SENSITIVITY_TOKENS = (256, 4096)  # at least and at most
_SENSITIVITY_WINDOW = 256
_TOKENS_PER_CALL = 2048
_SENSITIVITY_FILE = "sensitivity.json"


def affordable_tokens(parameters: int, thorough: bool) -> int:
    """Tokens that a report on a model of this size may take; 0 if that is too few to be worth it.

    A thorough report takes at least _MIN_TOKENS, however long that is."""
    cost = 2 * parameters  # two models
    if thorough:
        return int(min(max(THOROUGH / cost, _MIN_TOKENS), _MAX_TOKENS))
    tokens = int(min(QUICK / cost, _MAX_QUICK_TOKENS))
    return tokens if tokens >= _MIN_TOKENS else 0


def judge(
    subject: Subject,
    directory: Path,
    plan: ConversionPlan,
    scheme: Scheme,
    converted: ConversionReport,
    text: EvaluationText,
    tokens: int,
    notify: Notify,
) -> Report:
    """The report on the params in `directory`, on so many tokens of the text.

    Raises CheckpointError where the checkpoint has no tokenizer, or one that does not fit.
    """
    ids, prefix = text.encode(subject.tokenizer_directory)
    if max(ids, default=0) >= subject.config.vocab_size:
        raise CheckpointError(f"The tokenizer has ids up to {max(ids)} for {subject.config.vocab_size} embeddings.")
    length = min(quality.WINDOW, subject.config.max_position_embeddings)
    windows = quality.windows(ids, prefix, length, tokens)
    with layerwise_model(subject, windows.shape[1]) as layers:
        comparison, matrices = quality.compare(
            layers,
            quality.UnquantizedWeights(subject.source, plan),
            quality.StoredWeights(load_params(directory), plan),
            scheme,
            windows,
            len(prefix),
            lambda detail, done: notify("report", detail, done),
        )
    return Report(
        text=text.name,
        tokens=comparison.tokens,
        window=windows.shape[1],
        bits_per_weight=converted.bits_per_weight,
        nbytes=converted.bytes_out,
        figures=comparison.figures(),
        matrices=matrices,
        failure=comparison.failure,
    )


def sensitivities(subject: Subject, notify: Notify, data: Path | None = None) -> list[Sensitivity]:
    """The sensitivity of each matrix to fewer bits, on the calibration text (`data`, or the package's own).

    Measured once for a checkpoint, whatever the budget, and kept in the cache.
    """
    causes = {
        "model": subject.label,
        **subject.causes,
        "tokens": hashlib.sha256(chosen_sequences(subject, data).tobytes()).hexdigest()[:16],
        "sources": artifact.source_hash("quant", "weights", "models", "kernels", "compile"),
    }

    def make(directory: Path) -> None:
        rows = [asdict(row) for row in measure(subject, notify, data)]
        (directory / _SENSITIVITY_FILE).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")

    path = artifact.landed("sensitivity", causes) or artifact.obtain("sensitivity", causes, make)
    return [Sensitivity.read(row) for row in json.loads((path / _SENSITIVITY_FILE).read_text("utf-8"))]


def measure(subject: Subject, notify: Notify, data: Path | None = None) -> list[Sensitivity]:
    """The same without the cache."""
    ids = chosen_sequences(subject, data)
    weights = quality.UnquantizedWeights(subject.source, subject.plan(SCHEMES["f32"]))
    with layerwise_model(subject, ids.shape[1]) as layers:
        return sensitivity.measure(layers, weights, ids, 1, lambda detail, done: notify("sensitivity", detail, done))


def chosen_sequences(subject: Subject, data: Path | None = None) -> npt.NDArray[np.int64]:
    """As many sequences [S, L] of the calibration text as the model's size allows."""
    config = subject.config
    ids = calibration_data.read(
        data, subject.tokenizer_directory, config.vocab_size, config.max_position_embeddings
    ).ids
    least, most = _SENSITIVITY_TOKENS
    # A variant runs through half of the layers on average.
    cost = subject.plan(SCHEMES["f32"]).parameters * (sensitivity.MAX_VARIANTS / 2 + 2)
    tokens = int(min(max(SENSITIVITY / cost, least), most))
    length = min(ids.shape[1], _SENSITIVITY_WINDOW)
    count = max(1, min(len(ids), tokens // length))
    return ids[np.linspace(0, len(ids) - 1, count).astype(int), :length].astype(np.int64)


@contextmanager
def layerwise_model(subject: Subject, length: int) -> Iterator[quality.LayerwiseModel]:
    """The model's layers, compiled for windows of `length` tokens."""
    config, programs = subject.config, {}
    with TemporaryDirectory(prefix="llmserve-") as directory:
        for number, kind in enumerate(dict.fromkeys(config.layers)):
            path = Path(directory) / str(number)
            path.mkdir()
            sequences = max(1, _TOKENS_PER_CALL // length)
            program = LayerProgram(subject.family, config, kind, subject.kernels, sequences, length)
            program.compile(subject.target, path)
            program.load(path)
            programs[kind] = program
        head, bias = subject.unbound_model.head_name, subject.unbound_model.head_matrix.has_bias
        yield quality.LayerwiseModel(programs, config.layers, head, config.vocab_size, bias)
