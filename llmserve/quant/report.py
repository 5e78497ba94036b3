"""The quality report of a conversion: the loss against the unquantized model, on text that neither was fitted to.

Logits come in; figures, warnings and a table come out. numpy only: compile/quality.py runs the two models. Perplexity
is exp(mean of -ln p(next token)); KL divergence is Σ p·ln(p/q), p the unquantized model's distribution over the next
token and q the quantized one's, in nats, averaged over positions; top-1 is the share of positions at which both have
the same likeliest token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

# Beyond these a conversion is called poor. Well-rounded 4-bit weights stay far below all three, 3-bit ones below most.
MAX_PERPLEXITY_RATIO = 1.2
MAX_KL = 0.15
MIN_TOP1 = 0.8
_WORST = 5  # matrices named in the table
_CELLS = 1 << 21  # float64 values of a block of logits: a few such blocks are in memory at a time


@dataclass(frozen=True)
class MatrixError:
    """The relative error of a matrix's outputs: √(Σ‖x(Ŵ - W)ᵀ‖² / Σ‖xWᵀ‖²) over the unquantized model's inputs x."""

    name: str
    storage: str
    error: float


class Comparison:
    """Sums over positions of two models' logits."""

    def __init__(self) -> None:
        self.tokens = 0
        self._nll = [0.0, 0.0]
        self._kl: list[npt.NDArray[np.float64]] = []
        self._agreed = 0
        self.not_finite = [0, 0]

    def add(
        self, reference: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], targets: npt.NDArray[np.integer]
    ) -> None:
        """Logits [R, vocab] of the unquantized and the quantized model at the same positions; what came next [R]."""
        step = max(1, _CELLS // reference.shape[1])
        for at in range(0, len(targets), step):
            self._add(reference[at : at + step], logits[at : at + step], targets[at : at + step])

    def _add(self, reference: npt.NDArray[Any], logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        self.tokens += len(targets)
        bad = [int((~np.isfinite(rows).all(1)).sum()) for rows in (reference, logits)]
        self.not_finite = [count + more for count, more in zip(self.not_finite, bad, strict=True)]
        if any(bad):
            return
        log_p, log_q = log_softmax(reference), log_softmax(logits)
        rows = np.arange(len(targets))
        self._nll[0] -= float(log_p[rows, targets].sum())
        self._nll[1] -= float(log_q[rows, targets].sum())
        self._agreed += int((log_p.argmax(1) == log_q.argmax(1)).sum())
        self._kl.append(divergence(log_p, log_q))

    @property
    def failure(self) -> str | None:
        """In words, why there are no figures."""
        for count, model in zip(self.not_finite, ("unquantized", "quantized"), strict=True):
            if count:
                return f"the {model} model's outputs hold NaN or infinity at {count} of {self.tokens} positions"
        return None if self.tokens else "the text is too short to predict anything in"

    def figures(self) -> dict[str, float]:
        """Perplexities, KL divergence (mean, and its 99th percentile over positions) and top-1; {} after a failure."""
        if self.failure:
            return {}
        kl = np.concatenate(self._kl)
        unquantized, quantized = (_exp(nll / self.tokens) for nll in self._nll)
        return {
            "perplexity_unquantized": unquantized,
            "perplexity": quantized,
            "kl": float(kl.mean()),
            "kl_99": float(np.quantile(kl, 0.99)),
            "top1": self._agreed / self.tokens,
        }


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # of a broken model; JSON has no infinity


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(1, keepdims=True))
    return wide


def divergence(log_p: npt.NDArray[np.float64], log_q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """KL(p ‖ q) in nats for each row of two arrays of log-probabilities [R, vocab]."""
    kl: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return np.maximum(kl, 0.0)  # which it is but for rounding


@dataclass(frozen=True)
class Report:
    """The result, as a manifest keeps it (`asdict`).

    Attributes:
        text: what was evaluated on.
        tokens: positions that were scored, in windows of `window` tokens that know nothing of each other.
        bits_per_weight: of the whole file: norms and scales are in the bytes, and all parameters are counted.
        nbytes: size of the file.
        figures: as `Comparison.figures`.
        matrices: in the model's order.
        failure: why there are no figures, if there are none.
    """

    text: str
    tokens: int
    window: int
    bits_per_weight: float
    nbytes: int
    figures: dict[str, float]
    matrices: tuple[MatrixError, ...] = field(default=())
    failure: str | None = None

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Report:
        """From JSON. Raises KeyError or TypeError for what is no report."""
        return cls(**{**raw, "matrices": tuple(MatrixError(**row) for row in raw["matrices"])})

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def worst(self) -> list[MatrixError]:
        return sorted(self.matrices, key=lambda row: (-row.error, row.name))[:_WORST]

    @property
    def warnings(self) -> list[str]:
        """Sentences on what is bad, and what may help."""
        if self.failure:
            return [f"These weights could not be judged: {self.failure}."]
        figures, found = self.figures, []
        ratio = figures["perplexity"] / figures["perplexity_unquantized"]
        if ratio > MAX_PERPLEXITY_RATIO:
            found.append(f"perplexity is {ratio:.2f} times the unquantized model's (over {MAX_PERPLEXITY_RATIO:g})")
        if figures["kl"] > MAX_KL:
            found.append(f"mean KL divergence is {figures['kl']:.3f} nats (over {MAX_KL:g})")
        if figures["top1"] < MIN_TOP1:
            found.append(
                f"the likeliest token is the same at {figures['top1']:.0%} of positions (under {MIN_TOP1:.0%})"
            )
        if not found:
            return []
        return [f"This conversion has lost much: {'; '.join(found)}. More bits, or calibration, would keep more."]

    @property
    def short(self) -> str:
        """A few words for `llmserve list`."""
        if self.failure:
            return "not judged"
        ratio = self.figures["perplexity"] / self.figures["perplexity_unquantized"]
        return f"{self.bits_per_weight:.2f} bits, perplexity {ratio - 1:+.1%}, KL {self.figures['kl']:.3f}"

    def __str__(self) -> str:
        rows: list[tuple[str, str]] = [
            ("bits per weight, scales included", f"{self.bits_per_weight:.2f}"),
            ("file", f"{self.nbytes / 1e6:,.1f} MB"),
        ]
        if figures := self.figures:
            before, after = figures["perplexity_unquantized"], figures["perplexity"]
            rows += [
                ("perplexity, unquantized", f"{before:.3f}"),
                ("perplexity, as stored", f"{after:.3f}  ({after / before - 1:+.2%})"),
                ("KL divergence", f"{figures['kl']:.4f} nats  (99 %: {figures['kl_99']:.3f})"),
                ("same likeliest token", f"{figures['top1']:.1%}"),
            ]
        rows += [(f"error of {row.name} ({row.storage})", f"{row.error:.1%}") for row in self.worst]
        width = max(len(name) for name, _ in rows)
        head = f"Quality of the stored weights on {self.tokens:,} tokens of {self.text}:"
        return "\n".join([head, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def summary(results: Mapping[str, Any]) -> str:
    """For a line of `llmserve list`: what a manifest's results say of quality, in brackets, or ""."""
    try:
        return f"  ({Report.read(results['report']).short})"
    except (KeyError, TypeError, AttributeError):  # no report, or one of another version
        return ""


def picture(matrices: Sequence[MatrixError]) -> str:
    """An SVG: a bar for each matrix, as long as its error."""
    longest = max((row.error for row in matrices), default=0.0) or 1.0
    scale = min(1.0, 10 ** math.ceil(math.log10(longest))) if longest <= 1 else longest
    scale = next((s for s in (0.2 * scale, 0.5 * scale) if longest <= s), scale)
    line, left, width = 16, 330, 420
    height = line * (len(matrices) + 3)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" '
        f'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="{line}">'
        "relative error of each matrix's outputs</text>",
    ]
    for i, row in enumerate(matrices):
        y, length = line * (i + 2), width * row.error / scale
        colour = {"int3": "#c0504d", "int4": "#4f81bd", "int8": "#7f9f3f"}.get(row.storage, "#808080")
        out.append(
            f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(row.name)} {row.storage}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{line - 4}" fill="{colour}"/>'
            f'<text x="{left + length + 4:.1f}" y="{y + 11}">{row.error:.2%}</text>'
        )
    return "\n".join([*out, "</svg>"]) + "\n"
