"""Figures of a report against their definitions, and what is said when they are bad."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from llmserve.quant import report as module
from llmserve.quant.report import Comparison, MatrixError, Report, picture

RNG = np.random.default_rng(0)
REFERENCE = (RNG.standard_normal((60, 37)) * 3).astype(np.float32)
LOGITS = (REFERENCE + RNG.standard_normal((60, 37)) * 0.4).astype(np.float32)
TARGETS = RNG.integers(0, 37, 60)


def probabilities(row: np.ndarray) -> list[float]:
    powers = [math.exp(float(value)) for value in row]
    return [power / sum(powers) for power in powers]


def report(**changes: float) -> Report:
    figures = {"perplexity_unquantized": 10.0, "perplexity": 10.1, "kl": 0.01, "kl_99": 0.1, "top1": 0.95} | changes
    rows = (MatrixError("a", "int4", 0.05), MatrixError("b", "int3", 0.25))
    return Report("some text", 100, 50, 4.53, 2_800_000, figures, rows)


def test_the_figures_are_their_definitions() -> None:
    """Sums written out in Python's floats; the logits are float32 in both, so only the order of sums differs: 1e-12."""
    comparison = Comparison()
    for at in range(0, 60, 7):  # in blocks of any size
        comparison.add(REFERENCE[at : at + 7], LOGITS[at : at + 7], TARGETS[at : at + 7])
    ps, qs = [probabilities(row) for row in REFERENCE], [probabilities(row) for row in LOGITS]
    kl = [sum(p * math.log(p / q) for p, q in zip(*both, strict=True)) for both in zip(ps, qs, strict=True)]
    figures = comparison.figures()
    assert comparison.tokens == 60 and comparison.failure is None
    for name, rows in (("perplexity_unquantized", ps), ("perplexity", qs)):
        loss = -sum(math.log(row[target]) for row, target in zip(rows, TARGETS, strict=True)) / 60
        assert figures[name] == pytest.approx(math.exp(loss), rel=1e-12)
    assert figures["kl"] == pytest.approx(sum(kl) / 60, rel=1e-12)
    assert figures["kl_99"] == pytest.approx(float(np.quantile(kl, 0.99)), rel=1e-12)
    same = [p.index(max(p)) == q.index(max(q)) for p, q in zip(ps, qs, strict=True)]
    assert figures["top1"] == sum(same) / 60 and 0 < sum(same) < 60


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = Comparison(), Comparison()
    whole.add(REFERENCE, LOGITS, TARGETS)
    monkeypatch.setattr(module, "_CELLS", 100)
    parts.add(REFERENCE, LOGITS, TARGETS)
    assert parts.figures() == pytest.approx(whole.figures(), rel=1e-12)


def test_a_model_is_as_good_as_itself() -> None:
    comparison = Comparison()
    comparison.add(REFERENCE, REFERENCE.copy(), TARGETS)
    figures = comparison.figures()
    assert figures["kl"] == 0 and figures["top1"] == 1
    assert figures["perplexity"] == figures["perplexity_unquantized"]


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_said_in_words(broken: int, value: float) -> None:
    pair = [REFERENCE.copy(), LOGITS.copy()]
    pair[broken][3:5, 2] = value
    comparison = Comparison()
    comparison.add(*pair, TARGETS)
    model = ("unquantized", "quantized")[broken]
    assert comparison.failure == f"the {model} model's outputs hold NaN or infinity at 2 of 60 positions"
    assert comparison.figures() == {}
    failed = Report("some text", 60, 60, 4.5, 100, {}, (), comparison.failure)
    [warning] = failed.warnings
    assert "could not be judged" in warning and comparison.failure in warning
    assert failed.short == "not judged" and "perplexity" not in str(failed)


def test_a_text_without_predictions() -> None:
    assert Comparison().failure == "the text is too short to predict anything in"


def test_a_good_conversion_is_not_warned_about() -> None:
    good = report()
    assert not good.warnings
    assert good.short == "4.53 bits, perplexity +1.0%, KL 0.010"
    table = str(good)
    for words in ("4.53", "2.8 MB", "10.000", "10.100  (+1.00%)", "0.0100 nats", "95.0%", "error of b (int3)"):
        assert words in table
    assert table.index("error of b") < table.index("error of a")  # the worst first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perplexity": 13.0}, r"perplexity is 1.30 times the unquantized model's \(over 1.2\)"),
        ({"kl": 0.4}, r"mean KL divergence is 0.400 nats \(over "),
        ({"top1": 0.5}, r"the likeliest token is the same at 50% of positions \(under "),
    ],
)
def test_a_bad_one_is(changes: dict[str, float], words: str) -> None:
    [warning] = report(**changes).warnings
    assert re.search(words, warning) and warning.startswith("This conversion has lost much: ")


def test_it_survives_json() -> None:
    assert Report.read(json.loads(json.dumps(report().json, allow_nan=False))) == report()


def test_the_picture_has_a_bar_for_each_matrix() -> None:
    root = ElementTree.fromstring(picture(report().matrices))
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(rect.get("width", "0")) for rect in root.iter(f"{space}rect") if rect.get("x")]
    assert len(bars) == 2 and bars[1] == pytest.approx(5 * bars[0], rel=0.01)
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "a int4" in texts and "25.00%" in texts
    ElementTree.fromstring(picture([]))
    ElementTree.fromstring(picture([MatrixError("a&b<c", "int4", 1e9)]))
