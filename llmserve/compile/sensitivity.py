"""Sensitivity of each weight matrix to fewer bits: the KL divergence that rounding it alone causes.

The unquantized model runs once over some text, a layer at a time, together with variants of itself, each with a few
matrices rounded to the smallest format: one kind in one layer, or in deep models in a few neighbouring ones. A
variant's divergence is divided among its matrices, and scaled to the other formats, in proportion to the squared errors
of their outputs: small divergences are proportional to these (a Taylor expansion's second term).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from ..quant.group import GroupFormat, dequantize, quantize
from ..quant.mixed import CHOICES, Sensitivity
from ..quant.report import divergence, log_softmax
from .quality import Array, LayerwiseModel, Progress, Weights, embed, logits, positions, through

MAX_VARIANTS = 32  # beside those of embedding and head; deeper models have layers share one
_ERROR_TOKENS = 1024
_LOGITS = 1 << 25  # float32 values of logits that are in memory at a time
_PREDICTIONS = 1 << 26  # logits over all positions that a variant is judged by; large vocabularies get fewer positions

_TABLE_ROWS = 1 << 13  # of embedding and head, in float32 at a time

Rounder = Callable[[Array, GroupFormat], Array]
"""(matrix [n, k], format) → the matrix as it is after storage in the format, float32."""


def nearest(weight: Array, fmt: GroupFormat) -> Array:
    """A Rounder to the nearest level, without calibration."""
    return dequantize(*quantize(weight, fmt), fmt, weight.shape[1])


@dataclass
class _Variant:
    """Matrices that are rounded together, their squared relative errors by format, and the hidden states so far."""

    members: list[str] = field(default_factory=list)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    x: Array | None = None

    def note(self, name: str, shape: tuple[int, ...], errors: dict[str, float]) -> None:
        n, k = shape
        self.members.append(name)
        self.shapes[name], self.errors[name] = (n, k), errors

    def shared(self, harm: float) -> list[Sensitivity]:
        """The members, with `harm` nats, which is what all do in the smallest format, shared out."""
        total = sum(self.errors[name][CHOICES[0].name] for name in self.members) or 1.0
        return [
            Sensitivity(name, self.shapes[name], {fmt: harm * e / total for fmt, e in self.errors[name].items()})
            for name in self.members
        ]


def measure(
    model: LayerwiseModel,
    weights: Weights,
    ids: npt.NDArray[np.int64],
    prefix: int,
    progress: Progress,
    rounder: Rounder = nearest,
) -> list[Sensitivity]:
    """Sensitivities of all matrices, in the model's order, on windows of token ids [S, L] as in `quality.compare`.

    Raises CheckpointError when the unquantized model's outputs are NaN or infinite.
    """
    depth, length = len(model.kinds), ids.shape[1]
    x = embed(weights, model, ids)
    sample = max(1, _ERROR_TOKENS // length) * length
    variants: list[_Variant] = []
    embedding, rows = "model.embed_tokens", _RoundedWeights(weights, rounder)
    first = _Variant(x=embed(rows, model, ids))
    first.note(embedding, (model.vocab_size, x.shape[1]), _table_errors(weights, rounder, embedding, model))
    variants.append(first)
    heads: dict[int, Weights] = {0: rows} if model.head == embedding else {}
    open_: dict[str, _Variant] = {}
    for i, program in model.layers():
        progress(f"layer {i + 1} of {depth}", i / (depth + 1))
        kinds = list(program.matrices())
        if i % _layers_together(depth, len(kinds)) == 0:  # new variants begin here
            open_ = {name: _Variant(x=x) for name in kinds}
        layer = model.set_layer(i, weights)
        some = x[:sample]
        tapes = [program.inputs(some[at : at + length], length) for at in range(0, len(some), length)]
        following = through(program, x, length, program.output)
        for variant in variants:
            if all(variant is not other for other in open_.values()):
                variant.x = through(program, _states(variant), length, program.output)
        for m, name in enumerate(kinds):
            weight, variant = layer[f"{name}.weight"], open_[name]
            rounded = {fmt.name: rounder(weight, fmt) for fmt in CHOICES}
            inputs = np.concatenate([tape[m] for tape in tapes])
            size = _energy(inputs @ weight.T) or 1.0
            errors = {fmt: _energy(inputs @ (other - weight).T) / size for fmt, other in rounded.items()}
            variant.note(f"model.layers.{i}.{name}", weight.shape, errors)
            model.set_layer(i, weights, {f"{name}.weight": rounded[CHOICES[0].name]})
            variant.x = through(program, _states(variant), length, program.output)
            if len(variant.members) == 1:
                variants.append(variant)
        x = following
    if model.head != embedding:
        last = _Variant(x=x)
        last.note(model.head, (model.vocab_size, x.shape[1]), _table_errors(weights, rounder, model.head, model))
        heads[len(variants)] = rows
        variants.append(last)
    harm = _divergences(model, weights, x, [_states(v) for v in variants], heads, ids, prefix, progress)
    found = {row.name: row for variant, nats in zip(variants, harm, strict=True) for row in variant.shared(nats)}
    names = [embedding, *(f"model.layers.{i}.{name}" for i, p in model.layers() for name in p.matrices())]
    return [found[name] for name in names + ([model.head] if model.head != embedding else [])]


@dataclass(frozen=True)
class _RoundedWeights:
    """Weights whose matrices are rounded to the smallest format when rows of them are asked for."""

    weights: Weights
    rounder: Rounder

    def tensor(self, name: str) -> Array:
        return self.weights.tensor(name)

    def rows(self, name: str, rows: Any) -> Array:
        return self.rounder(self.weights.rows(name, rows), CHOICES[0])


def _table_errors(weights: Weights, rounder: Rounder, name: str, model: LayerwiseModel) -> dict[str, float]:
    """Squared relative errors of embedding or head by format, of the weights themselves."""
    size, off = 0.0, dict.fromkeys((fmt.name for fmt in CHOICES), 0.0)
    for at in range(0, model.vocab_size, _TABLE_ROWS):
        rows = weights.rows(f"{name}.weight", slice(at, at + _TABLE_ROWS))
        size += _energy(rows)
        for fmt in CHOICES:
            off[fmt.name] += _energy(rounder(rows, fmt) - rows)
    return {fmt: error / (size or 1.0) for fmt, error in off.items()}


def _energy(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _layers_together(depth: int, kinds: int) -> int:
    return -(-depth * kinds // MAX_VARIANTS)


def _states(variant: _Variant) -> Array:
    assert variant.x is not None
    return variant.x


def _divergences(
    model: LayerwiseModel,
    weights: Weights,
    reference: Array,
    states: Sequence[Array],
    heads: dict[int, Weights],
    ids: npt.NDArray[np.int64],
    prefix: int,
    progress: Progress,
) -> list[float]:
    """Mean KL divergence of each variant from the unquantized model, from the last layer's outputs.

    `heads`: where to take the head from instead of the model, by the variant's number."""
    program, length = model.program(-1), ids.shape[1]
    wanted, _ = positions(ids, prefix)
    wanted = wanted[:: max(1, len(wanted) * model.vocab_size // _PREDICTIONS)]

    def normed(x: Array) -> Array:
        return through(program, x, length, lambda rows, _: program.normed(rows))[wanted]

    expected, others = normed(reference), [normed(x) for x in states]
    sums = np.zeros(len(states))
    step = max(1, _LOGITS // model.vocab_size)
    depth = len(model.kinds)
    for at in range(0, len(wanted), step):
        progress("comparing", (depth + at / len(wanted)) / (depth + 1))
        log_p = log_softmax(logits(weights, model, expected[at : at + step]))
        if not np.isfinite(log_p).all():
            raise CheckpointError("The unquantized model's outputs hold NaN or infinity, so it cannot be measured.")
        for v, x in enumerate(others):
            out = logits(heads.get(v, weights), model, x[at : at + step])
            sums[v] += divergence(log_p, log_softmax(out)).sum()
    progress("done", 1.0)
    return [float(total) / len(wanted) for total in sums]
