"""Comparison of a converted model with the unquantized one, side by side, a layer at a time.

Memory is that of two layers in float32, the hidden states of the text, and a block of logits, whatever the model's
size, so models larger than memory can be compared too. Both run in float32: the stored weights are measured, without
the rounding of activations that a platform's kernels may add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..models.config import LayerKind
from ..quant.group import GroupFormat, as_float32, dequantize
from ..quant.report import Comparison, MatrixError
from ..quant.scheme import Scheme, storage_name
from ..weights.convert import ConversionPlan, read_floats
from ..weights.source import Source
from .layerwise import LayerProgram

Array = npt.NDArray[np.float32]
Progress = Callable[[str, float], None]

WINDOW = 512
_ERROR_TOKENS = 1024  # of the text, on which the errors of single matrices are measured
_LOGITS = 1 << 25  # float32 values of one block of logits
_VOCABULARY_ROWS = 1 << 13  # of a head, turned to float32 at a time


class Weights(Protocol):
    """A model's parameters in float32, by our names."""

    def tensor(self, name: str) -> Array:
        """The whole parameter."""

    def rows(self, name: str, rows: Any) -> Array:
        """Some rows of a matrix; `rows` is a slice or an array of indices."""


class UnquantizedWeights:
    """The weights of a checkpoint."""

    def __init__(self, source: Source, plan: ConversionPlan) -> None:
        self._source = source
        self._params = {param.name: param for param in plan.params}

    def tensor(self, name: str) -> Array:
        param = self._params[name]
        return np.concatenate([rows for _, rows in read_floats(self._source, param)]).reshape(param.shape)

    def rows(self, name: str, rows: Any) -> Array:
        param = self._params[name]
        if param.transposed or param.order is not None or param.added or len(param.sources) > 1:
            return self.tensor(name)[rows]
        (source,) = param.sources  # embeddings and heads are taken as they are, and are large
        if isinstance(rows, slice):
            stop = min(rows.stop, self._params[name].shape[0])
            return as_float32(self._source.read_rows(source, rows.start, stop))
        return np.concatenate([as_float32(self._source.read_rows(source, int(i), int(i) + 1)) for i in rows])


class StoredWeights:
    """The weights of a converted directory, from its tensors by name."""

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]], plan: ConversionPlan) -> None:
        self._tensors = tensors
        self._params = {param.name: param for param in plan.params}

    def tensor(self, name: str) -> Array:
        return self.rows(name, ...)  # which a single number has too

    def rows(self, name: str, rows: Any) -> Array:
        param = self._params[name]
        if not isinstance(param.storage, GroupFormat):
            return as_float32(self._tensors[name][rows])
        base = name.removesuffix(".weight")
        zero = self._tensors.get(f"{base}.q_zero")
        return dequantize(
            self._tensors[f"{base}.q_weight"][rows],
            self._tensors[f"{base}.q_scale"][rows],
            param.storage,
            param.shape[-1],
            None if zero is None else zero[rows],
        )


@dataclass(frozen=True)
class LayerwiseModel:
    """The programs and names by which a model is run layer by layer.

    Attributes:
        programs: by kind of layer.
        kinds: of each layer.
        head: name of the matrix that makes logits, and head_bias whether it has one.
        vocab_size: its rows.
    """

    programs: Mapping[LayerKind, LayerProgram]
    kinds: Sequence[LayerKind]
    head: str
    vocab_size: int
    head_bias: bool = False

    def layers(self) -> Iterator[tuple[int, LayerProgram]]:
        return ((i, self.programs[kind]) for i, kind in enumerate(self.kinds))

    def program(self, i: int) -> LayerProgram:
        return self.programs[self.kinds[i]]

    def set_layer(self, i: int, weights: Weights, replaced: Mapping[str, Array] = {}) -> dict[str, Array]:
        """Has the layer's program run `weights`, but for `replaced` (names below the layer); returns what it runs."""
        program = self.program(i)
        names = [*(f"{name}.weight" for name in program.matrices()), *program.floats()]
        names += [f"{name}.bias" for name, matrix in program.matrices().items() if matrix.has_bias]
        layer = {
            name: replaced[name] if name in replaced else weights.tensor(f"model.layers.{i}.{name}") for name in names
        }
        program.set_weights(layer, {name: weights.tensor(name) for name in program.outer_floats()})
        return layer


def windows(token_ids: Sequence[int], prefix: Sequence[int], length: int, limit: int) -> npt.NDArray[np.int64]:
    """The text in windows [S, L ≤ length], each opened by `prefix`: as many whole ones as `limit` tokens fill.

    A text, or a limit, shorter than one window makes a shorter one.
    """
    own = max(1, min(length - len(prefix), len(token_ids), limit))
    count = max(1, min(limit, len(token_ids)) // own)
    body = np.asarray(token_ids[: count * own], np.int64).reshape(count, -1)
    return np.concatenate([np.tile(np.asarray(prefix, np.int64), (len(body), 1)), body], 1)


def through(program: LayerProgram, x: Array, length: int, run: Callable[[Array, int], Array]) -> Array:
    """`run` over x [S · length, hidden] in calls of as many sequences as the program takes."""
    step = program.max_sequences * length
    return np.concatenate([run(x[at : at + step], length) for at in range(0, len(x), step)])


def embed(weights: Weights, model: LayerwiseModel, ids: npt.NDArray[np.int64]) -> Array:
    """The first layer's input [S · L, hidden] for ids [S, L]."""
    unique, place = np.unique(ids, return_inverse=True)
    rows = weights.rows("model.embed_tokens.weight", unique)[place.reshape(-1)]
    model.set_layer(0, weights)  # with what the model has beside the embedding
    return model.program(0).begin(rows, np.tile(np.arange(ids.shape[1]), len(ids)))


def logits(weights: Weights, model: LayerwiseModel, normed: Array) -> Array:
    """normed [R, hidden] → [R, vocab], with the head in float32 by blocks of rows."""
    out = np.empty((len(normed), model.vocab_size), np.float32)
    for at in range(0, model.vocab_size, _VOCABULARY_ROWS):
        block = slice(at, at + _VOCABULARY_ROWS)
        out[:, block] = normed @ weights.rows(f"{model.head}.weight", block).T
    if model.head_bias:
        out += weights.tensor(f"{model.head}.bias")
    return model.program(-1).finish(out)


def positions(ids: npt.NDArray[np.int64], prefix: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(rows of the flattened windows that predict a token of the text, the token that each is to predict)."""
    rows = np.arange(ids.size).reshape(ids.shape)[:, max(prefix - 1, 0) : -1]
    return rows.reshape(-1), ids[:, max(prefix, 1) :].reshape(-1)


def compare(
    model: LayerwiseModel,
    unquantized: Weights,
    stored: Weights,
    scheme: Scheme,
    ids: npt.NDArray[np.int64],
    prefix: int,
    progress: Progress,
) -> tuple[Comparison, tuple[MatrixError, ...]]:
    """Both models over windows of token ids [S, L], of which the first `prefix` of each are not predicted."""
    length = ids.shape[1]
    sample = max(1, _ERROR_TOKENS // length) * length
    reference, ours = embed(unquantized, model, ids), embed(stored, model, ids)
    wanted, targets = positions(ids, prefix)
    name = "model.embed_tokens"
    errors = [MatrixError(name, storage_name(scheme.storage_of(name)), relative(reference, ours))]
    for i, program in model.layers():
        progress(f"layer {i + 1} of {len(model.kinds)}", i / (len(model.kinds) + 1))
        float_layer = model.set_layer(i, unquantized)
        some = reference[:sample]
        inputs = [program.inputs(some[at : at + length], length) for at in range(0, len(some), length)]
        reference = through(program, reference, length, program.output)
        stored_layer = model.set_layer(i, stored)
        ours = through(program, ours, length, program.output)
        folded = any((stored_layer[name] != float_layer[name]).any() for name in program.floats())
        for m, name in enumerate(program.matrices()):
            x, w = np.concatenate([tape[m] for tape in inputs]), float_layer[f"{name}.weight"]
            whole, other = f"model.layers.{i}.{name}", stored_layer[f"{name}.weight"]
            off = x @ ((unfolded(other, w) if folded else other) - w).T
            error = _ratio(off, x @ w.T)
            errors.append(MatrixError(whole, storage_name(scheme.storage_of(whole)), error))
    # The last layer's program holds the last norm of either model; they are the same float32 numbers.
    normed = [through(program, x, length, lambda rows, _: program.normed(rows))[wanted] for x in (reference, ours)]
    comparison = Comparison()
    step = max(1, _LOGITS // model.vocab_size)
    for at in range(0, len(wanted), step):
        progress("comparing", (len(model.kinds) + at / len(wanted)) / (len(model.kinds) + 1))
        expected = logits(unquantized, model, normed[0][at : at + step])
        got = logits(stored, model, normed[1][at : at + step])
        comparison.add(expected, got, targets[at : at + step])
        if at == 0 and model.head != "model.embed_tokens":
            off = logits(stored, model, normed[0][:sample][:step]) - expected[:sample]
            storage = storage_name(scheme.storage_of(model.head))
            errors.append(MatrixError(model.head, storage, _ratio(off, expected[:sample])))
    progress("done", 1.0)
    return comparison, tuple(errors)


def unfolded(stored: Array, weight: Array) -> Array:
    """Stored weights [N, K] without factors of whole columns and rows, which calibration may have moved from a matrix
    into what comes before or after it: those of least squares, columns and rows in turns."""
    for axis in (0, 1, 0, 1):
        product, square = (stored * weight).sum(axis, keepdims=True), np.square(weight).sum(axis, keepdims=True)
        factor = np.divide(product, square, out=np.ones_like(product), where=(square > 0) & (product > 0))
        stored = stored / factor
    return stored


def relative(expected: Array, got: Array) -> float:
    """‖got - expected‖ / ‖expected‖."""
    return _ratio(got - expected, expected)


def _ratio(off: Array, expected: Array) -> float:
    size = float(np.square(expected, dtype=np.float64).sum())
    error = float(np.square(off, dtype=np.float64).sum())
    return float(np.sqrt(error / size)) if size and np.isfinite(error / size) else 0.0 if not error else 1e9
