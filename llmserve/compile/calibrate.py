"""Calibrated rounding, layer by layer: the driver between the compiled layer and the arithmetic in quant/.

One layer's float weights are in memory at a time, beside the activations of the calibration text. Each layer is rounded
for the inputs that the layers before it, already rounded, give it (Frantar et al. 2022, section 3.3). A layer's
result lands in the cache as an artifact of its own, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import artifact
from ..errors import CheckpointError, ConfigError
from ..models.config import LayerKind
from ..quant import awq, gptq, scale_search
from ..quant.group import GroupFormat, as_float32, dequantize
from ..quant.scheme import Scheme
from ..toolchain import tvm_version
from ..weights.container import SafetensorsWriter
from ..weights.convert import ParamPlan, check_shapes, read_floats
from ..weights.load import PARAMS_FILE, load_params
from .calibration_data import Sequences
from .layerwise import LayerProgram
from .subject import Subject

Array = npt.NDArray[Any]
Notify = Callable[[str, str, float | None], None]
"""Called as (step, detail, fraction done or None) while something takes time; fraction 1.0 ends a step."""

METHODS: Mapping[str, str] = {
    "search": "scales by search",
    "awq": "channels scaled by what they carry",
    "gptq": "rounding that makes up for errors",
}
"""All of them search for scales; "search" by itself takes no text."""
DEFAULT = ("gptq",)
MAX_BITS = 4
"""With more, rounding to nearest costs nothing that could be measured."""
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
_CALL = 2048  # tokens in a call of the compiled layer
_CELLS = 1 << 25  # weights of a large matrix that are rounded at a time, 128 MB of float32
# A tied embedding is the head as well: its rounding is chosen for the head's inputs, of which this share is replaced by
# a plain count of all inputs, which is what looking up rows wants.
_LOOKUP_SHARE = 0.3
_HEAD_TOKENS = 4096  # of the calibration text that the float model is run on for that


def parse(text: str | None) -> tuple[str, ...]:
    """The methods that `--calibrate` names: () for None and "none", DEFAULT for "default". Raises ConfigError."""
    words = [word.strip() for word in (text or "none").split(",")]
    if words in (["none"], ["default"]):
        return DEFAULT if words == ["default"] else ()
    for word in words:
        if word not in METHODS:
            raise ConfigError(
                f"There is no calibration {word!r}; there are {', '.join(METHODS)} (several with commas), and none."
            )
    return tuple(name for name in METHODS if name in words and (name != "search" or len(set(words)) == 1))


def is_rounded(scheme: Scheme) -> bool:
    """Whether anything is rounded so coarsely that calibration helps."""
    storages = (scheme.storage, *scheme.overrides.values())
    return any(isinstance(storage, GroupFormat) and storage.bits <= MAX_BITS for storage in storages)


def is_methods(word: str) -> bool:
    """Whether a word after `--calibrate` is meant as methods, however misspelt, and not as a model."""
    known = [*METHODS, "none", "default"]
    return all(difflib.get_close_matches(part.strip(), known, 1) for part in word.split(","))


def needs_text(methods: tuple[str, ...]) -> bool:
    """Whether these methods look at activations; what does not is done while converting."""
    return bool(set(methods) - {"search"})


class Calibrator:
    """One model's calibration: `run` makes its parts, or finds them in the cache, and `discard` removes them there."""

    def __init__(
        self, subject: Subject, scheme: Scheme, sequences: Sequences, methods: tuple[str, ...], notify: Notify
    ) -> None:
        self.subject, self.scheme, self.sequences, self.methods = subject, scheme, sequences, methods
        self.config, self.notify = subject.config, notify
        self.notes: list[str] = []
        self._parts: list[Path] = []
        self._made: dict[str, Array] = {}
        self._programs: dict[LayerKind, LayerProgram] = {}
        self._states: npt.NDArray[np.float32] | None = None  # what layer `_layer` is given
        self._layer = 0
        self._threads = len(os.sched_getaffinity(0))
        self._damped: list[str] = []
        self._dead = 0

    def run(self, causes: Mapping[str, Any]) -> dict[str, Array]:
        """The calibrated tensors by output name, mapped from the cache. `causes` are those of the weights that they
        become.

        Raises CheckpointError for weights or activations that are no numbers, each named.
        """
        self.causes = causes
        plan = self.subject.plan(self.scheme)
        self._params = {param.name: param for param in plan.params}
        check_shapes(self.subject.source, plan)
        layers, tied = self.config.num_layers, self.config.tie_word_embeddings
        found = [self._part("embedding", 0.0, self._embedding)]
        for layer in range(layers):
            place = (layer + 1) / (layers + 2)
            found.append(self._part(f"layer {layer + 1} of {layers}", place, partial(self._round, layer)))
        if not tied:
            found.append(self._part("head", (layers + 1) / (layers + 2), self._head))
        self.notify("calibrate", "done", 1.0)
        self._states = None
        self._programs.clear()
        if dead := sum(part["dead"] for part in found):
            self.notes.append(f"{dead} inputs of matrices were 0 in all of the calibration text.")
        if damped := [name for part in found for name in part["damped"]]:
            self.notes.append(
                f"Damped more than usual, for want of variety in the calibration text: {', '.join(damped)}."
            )
        made, self._made = self._made, {}
        return made

    def discard(self) -> None:
        """Removes the parts, once the weights that they went into have landed."""
        for path in self._parts:
            shutil.rmtree(path, ignore_errors=True)

    def _part(self, name: str, fraction: float, make: Callable[[Path], None]) -> dict[str, Any]:
        """Takes a part from the cache or makes it; returns what its manifest says of dead and damped inputs."""

        def announced(directory: Path) -> dict[str, Any]:
            self.notify("calibrate", name, fraction)
            self._damped, self._dead = [], 0
            make(directory)
            return {"damped": self._damped, "dead": self._dead}

        path = artifact.obtain("calibration", {**self.causes, "part": name}, announced)
        self._parts.append(path)
        self._made |= load_params(path)
        return artifact.results_of(path)

    # --- the parts

    def _embedding(self, directory: Path) -> None:
        param, inputs = self._params[f"{_EMBEDDING}.weight"], None
        if self.config.tie_word_embeddings and isinstance(param.storage, GroupFormat) and "gptq" in self.methods:
            inputs = _Inputs(None, self._factor(self._tied_moments(), param.storage, _EMBEDDING))
        self._write_rows(directory, param, inputs)

    def _head(self, directory: Path) -> None:
        param, inputs = self._params[f"{_HEAD}.weight"], None
        if isinstance(param.storage, GroupFormat) and "gptq" in self.methods:
            last = self.config.num_layers
            program = self._set(last - 1, self._stored_layer(last - 1))
            moments = _Moments()
            for rows in self._calls(self._advance(last)):
                moments.add(program.normed(rows))
            inputs = _Inputs(None, self._factor(moments.total, param.storage, _HEAD))
        self._write_rows(directory, param, inputs)

    def _round(self, layer: int, directory: Path) -> None:
        """A layer's own parameters, as the plan stores them."""
        prefix = f"model.layers.{layer}."
        weights = self._float_layer(layer)
        program, states = self._program(layer), self._advance(layer)
        self._set(layer, weights)
        moments = {name: _Moments() for name in program.matrices()}
        for rows in self._calls(states):
            for total, inputs in zip(moments.values(), program.inputs(rows, self._length), strict=True):
                total.add(inputs)
        params = {name.removeprefix(prefix): p for name, p in self._params.items() if name.startswith(prefix)}
        rounded: dict[str, _Inputs] = {}
        for name, total in moments.items():
            if isinstance(fmt := params[f"{name}.weight"].storage, GroupFormat):
                factored = self._factor(total.total, fmt, prefix + name) if "gptq" in self.methods else None
                rounded[name] = _Inputs(total.total if self._keeps_moments else None, factored)
        moments.clear()
        if "awq" in self.methods:
            self._fold(program, params, weights, rounded)
        with SafetensorsWriter(
            directory / PARAMS_FILE, [spec for p in params.values() for spec in p.outputs]
        ) as writer:
            for name, param in params.items():
                stored = self._stored(param, weights.pop(name), rounded.pop(name.removesuffix(".weight"), None))
                for spec, array in zip(param.outputs, stored, strict=True):
                    writer.write(spec.name, array)

    def _fold(
        self,
        program: LayerProgram,
        params: Mapping[str, ParamPlan],
        weights: dict[str, Array],
        rounded: MutableMapping[str, _Inputs],
    ) -> None:
        """Scales the channels of a layer, in `weights` and in the moments of its matrices' inputs."""
        for fold in program.folds():
            inputs, fmt = rounded.get(fold.consumer), params[f"{fold.consumer}.weight"].storage
            if inputs is None or inputs.moments is None or not isinstance(fmt, GroupFormat):
                continue
            scales, _ = awq.choose(fold, weights[f"{fold.consumer}.weight"], inputs.moments, fmt, inputs.factored)
            awq.apply(fold, scales, weights)
            factored = awq.scaled(inputs.factored, scales) if inputs.factored else None
            rounded[fold.consumer] = _Inputs(awq.moments(scales, inputs.moments), factored)

    @property
    def _keeps_moments(self) -> bool:
        """Whether they are needed after they were factored."""
        return self.methods != ("gptq",)

    def _stored(self, param: ParamPlan, rows: Array, inputs: _Inputs | None) -> tuple[Array, ...]:
        """Float rows as the parameter's outputs."""
        if not isinstance(param.storage, GroupFormat):
            return (rows.astype(param.outputs[0].dtype),)
        try:
            if inputs and inputs.factored:
                return gptq.quantize(rows, param.storage, inputs.factored, self._threads)[:2]
            importance = None if inputs is None or inputs.moments is None else np.diagonal(inputs.moments).copy()
            return scale_search.quantize(rows, param.storage, importance)
        except CheckpointError as error:
            raise CheckpointError(f"{param.name}: {error}") from error

    def _write_rows(self, directory: Path, param: ParamPlan, inputs: _Inputs | None) -> None:
        """A matrix too large to be held in float32, block by block."""
        with SafetensorsWriter(directory / PARAMS_FILE, param.outputs) as writer:
            for first, rows in _gathered(read_floats(self.subject.source, param)):
                outputs = self._stored(param, rows, inputs)
                for spec, array in zip(param.outputs, outputs, strict=True):
                    writer.write(spec.name, array, first)

    # --- second moments of activations

    def _tied_moments(self) -> npt.NDArray[np.float32]:
        """Of the head's inputs in the float model, mixed with those of a lookup, which are those of one-hot rows."""
        ids = self.sequences.ids[: max(1, _HEAD_TOKENS // self._length)]
        states = self._embed(ids, None)
        for layer in range(self.config.num_layers):
            program = self._set(layer, self._float_layer(layer))
            for rows in self._calls(states):
                rows[:] = program.output(rows, self._length)
        moments = _Moments()
        for rows in self._calls(states):
            moments.add(program.normed(rows))
        total, width = moments.total, self.config.hidden_size
        total *= (1 - _LOOKUP_SHARE) * width / max(float(np.trace(total)), 1e-30)
        total[np.diag_indices_from(total)] += _LOOKUP_SHARE
        return total

    def _factor(self, moments: npt.NDArray[np.float32], fmt: GroupFormat, name: str) -> gptq.Factor:
        try:
            factored = gptq.factor(moments, fmt.group_size)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        self._dead += factored.dead
        if factored.damping > gptq.DAMPING:
            self._damped.append(name)
        return factored

    # --- the compiled layer

    @property
    def _length(self) -> int:
        return int(self.sequences.ids.shape[1])

    def _program(self, layer: int) -> LayerProgram:
        kind = self.config.layers[layer]
        if kind not in self._programs:
            count = max(1, _CALL // self._length)
            program = LayerProgram(self.subject.family, self.config, kind, self.subject.kernels, count, self._length)
            causes = {
                **self.causes,
                "part": f"program of {kind}",
                "platform": self.subject.kernels.name,
                "target": dict(self.subject.target),
                "tvm": tvm_version(),
            }
            path = artifact.obtain("calibration", causes, partial(program.compile, self.subject.target))
            self._parts.append(path)
            program.load(path)
            self._programs[kind] = program
        return self._programs[kind]

    def _set(self, layer: int, weights: Mapping[str, Array]) -> LayerProgram:
        program = self._program(layer)
        outer = {name: self._read(self._params[name]) for name in program.outer_floats()}
        program.set_weights(weights, outer)
        return program

    def _calls(self, states: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Views of the states, as many whole sequences in each as a call takes."""
        step = max(1, _CALL // self._length) * self._length
        return [states[start : start + step] for start in range(0, len(states), step)]

    def _advance(self, layer: int) -> npt.NDArray[np.float32]:
        """The states [tokens, hidden] that `layer` is given by the rounded layers before it."""
        if self._states is None:
            self._states = self._embed(self.sequences.ids, self._made)
        for done in range(self._layer, layer):
            program = self._set(done, self._stored_layer(done))
            for rows in self._calls(self._states):
                rows[:] = program.output(rows, self._length)
        self._layer = layer
        return self._states

    # --- weights

    def _embed(self, ids: npt.NDArray[np.int32], made: Mapping[str, Array] | None) -> npt.NDArray[np.float32]:
        """The first layer's input, [tokens, hidden], of the embedding as stored or, without `made`, as the checkpoint
        has it."""
        param = self._params[f"{_EMBEDDING}.weight"]
        flat, places = np.unique(ids.reshape(-1), return_inverse=True)
        if made is not None:
            rows = self._dequantized(param, {spec.name: made[spec.name][flat] for spec in param.outputs})
        else:
            source = self.subject.source
            rows = as_float32(np.concatenate([source.read_rows(param.sources[0], int(i), int(i) + 1) for i in flat]))
        program = self._set(0, self._float_layer(0))
        return program.begin(rows[places], np.tile(np.arange(ids.shape[1]), len(ids)))

    def _float_layer(self, layer: int) -> dict[str, Array]:
        prefix = f"model.layers.{layer}."
        return {
            name.removeprefix(prefix): self._read(param)
            for name, param in self._params.items()
            if name.startswith(prefix)
        }

    def _stored_layer(self, layer: int) -> dict[str, Array]:
        prefix = f"model.layers.{layer}."
        return {
            name.removeprefix(prefix): self._dequantized(param, self._made)
            for name, param in self._params.items()
            if name.startswith(prefix)
        }

    def _dequantized(self, param: ParamPlan, made: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        arrays = [made[spec.name] for spec in param.outputs]
        if isinstance(param.storage, GroupFormat):
            return dequantize(arrays[0], arrays[1], param.storage, param.shape[-1])
        return as_float32(arrays[0])

    def _read(self, param: ParamPlan) -> npt.NDArray[np.float32]:
        return np.concatenate([rows for _, rows in read_floats(self.subject.source, param)]).reshape(param.shape)


@dataclass(frozen=True)
class _Inputs:
    """The second moments [K, K] of a matrix's inputs, and these factored."""

    moments: npt.NDArray[np.float32] | None
    factored: gptq.Factor | None


class _Moments:
    """Σ xᵀx over calls, float32 [K, K]."""

    def __init__(self) -> None:
        self.total: npt.NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def add(self, inputs: npt.NDArray[np.float32]) -> None:
        square = inputs.T @ inputs  # one symmetric product in BLAS
        if self.total.size:
            self.total += square
        else:
            self.total = square


def _gathered(blocks: Iterable[tuple[int, Array]]) -> Iterator[tuple[int, Array]]:
    """Blocks of rows, with their first rows' numbers, put together to _CELLS values: small products are slow."""
    start = 0
    held: list[Array] = []
    for first, rows in blocks:
        start = start if held else first
        held.append(rows)
        if sum(array.size for array in held) >= _CELLS:
            yield start, np.concatenate(held)
            held.clear()
    if held:
        yield start, np.concatenate(held)
