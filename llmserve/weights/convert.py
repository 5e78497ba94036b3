"""The conversion of a checkpoint by a plan: read | check | quantize | write, a few megabytes of rows at a time.

The plan comes from the model and the scheme; this file knows neither. Memory does not grow with the model or with its
largest tensor. artifact.py decides the place of the result, and whether it can be trusted.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..disk import disk_errors, require_space
from ..errors import CheckpointError, UnsupportedError
from ..quant.group import GroupFormat, Storage, as_float32, quantize
from ..quant.takeover import Grid, holders
from .container import SafetensorsWriter, TensorInfo, TensorSpec
from .load import PARAMS_FILE
from .source import PlainSource, Source

Array = npt.NDArray[Any]
Quantizer = Callable[[Array, GroupFormat], tuple[Array, Array]]
"""Float weights [N, K] → (q_weight, q_scale), as `quant.group.quantize`."""
ByteProgress = Callable[[str, int, int], None]
"""Called after each parameter with its name, the bytes read so far, and the bytes to read in all."""

FLOATS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class ParamPlan:
    """A parameter, and the tensors that it is made of.

    Attributes:
        shape: before storage.
        sources: the tensors whose rows it is, stacked.
        added: to every number.
        transposed: the tensors are stored [in, out].
        order: row r of the parameter is row order[r] of the stacked tensors; None is as they are.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    storage: Storage
    added: float = 0.0
    transposed: bool = False
    order: npt.NDArray[np.int64] | None = field(default=None, compare=False)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors it becomes: itself, or `<name less .weight>.q_weight` and `.q_scale`, packed along K, and
        `.q_zero` in formats with a zero point."""
        if not isinstance(self.storage, GroupFormat):
            return (TensorSpec(self.name, FLOATS[self.storage], self.shape),)
        *rows, k = self.shape
        base, groups = self.name.removesuffix(".weight"), (*rows, self.storage.groups(k))
        zero = (TensorSpec(f"{base}.q_zero", np.dtype(np.uint8), groups),) if self.storage.zero_point else ()
        return (
            TensorSpec(f"{base}.q_weight", np.dtype(np.uint32), (*rows, self.storage.words(k))),
            TensorSpec(f"{base}.q_scale", np.dtype(np.float16), groups),
            *zero,
        )


@dataclass(frozen=True)
class ConversionPlan:
    """The parameters, in the order in which they are converted, and strings for the file's own metadata."""

    params: tuple[ParamPlan, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers in all of them, before storage."""
        return sum(math.prod(param.shape) for param in self.params)


@dataclass(frozen=True)
class ConversionReport:
    """The figures of a conversion. `peak_rss` is the high-water mark of the whole process, in bytes."""

    tensors: int
    parameters: int
    bytes_in: int
    bytes_out: int
    seconds: float
    peak_rss: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_out / self.parameters

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:,.1f} M parameters in {self.tensors} tensors, "
            f"{self.bytes_in / 1e6:,.1f} MB → {self.bytes_out / 1e6:,.1f} MB, "
            f"{self.bits_per_weight:.2f} bits per weight, {self.seconds:.1f} s, "
            f"peak memory {self.peak_rss / 1e6:,.0f} MB"
        )


def convert(
    source: Source | str | Path,
    out_dir: str | Path,
    plan: ConversionPlan,
    progress: ByteProgress | None = None,
    *,
    quantizer: Quantizer = quantize,
    made: Mapping[str, Array] | None = None,
) -> ConversionReport:
    """Writes `out_dir/params.safetensors` from a source, or a checkpoint's directory; the file gets that name only once
    it is complete.

    `quantizer` rounds what is to be stored in groups. `made` holds output tensors that are there already, by name, and
    are written as they are.

    Raises CheckpointError when the checkpoint contradicts the plan or holds values that the storage cannot,
    UnsupportedError when it is no float checkpoint, ArtifactError when the disk refuses.
    """
    began = time.perf_counter()
    checkpoint = source if isinstance(source, Source) else PlainSource(Path(source))
    check_shapes(checkpoint, plan)
    total = sum(checkpoint.nbytes(name) for param in plan.params for name in param.sources)
    outputs = [spec for param in plan.params for spec in param.outputs]
    path = Path(out_dir) / PARAMS_FILE
    done = 0
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = SafetensorsWriter(path, outputs, plan.metadata)
        require_space(path.parent, writing.nbytes)
        with writing as writer:
            for param in plan.params:
                if made and all(spec.name in made for spec in param.outputs):
                    for spec in param.outputs:
                        writer.write(spec.name, made[spec.name])
                else:
                    for first, stored in _read(checkpoint, param, quantizer):
                        for spec, block in zip(param.outputs, stored, strict=True):
                            writer.write(spec.name, block, first)
                done += sum(map(checkpoint.nbytes, param.sources))
                if progress:
                    progress(param.name, done, total)
    return ConversionReport(
        tensors=len(outputs),
        parameters=plan.parameters,
        bytes_in=total,
        bytes_out=path.stat().st_size,
        seconds=time.perf_counter() - began,
        peak_rss=_peak_rss(),
    )


def _peak_rss() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _rows(param: ParamPlan) -> tuple[int, int]:
    return TensorSpec(param.name, FLOATS["float32"], param.shape).rows


def check_shapes(checkpoint: Source, plan: ConversionPlan) -> None:
    """Raises CheckpointError or UnsupportedError unless every parameter's tensors are floats of the right shapes."""
    for param in plan.params:
        _check_shape(checkpoint, param)


def _check_shape(checkpoint: Source, param: ParamPlan) -> None:
    infos = [_info(checkpoint, source, param) for source in param.sources]
    for info in infos:
        if info.dtype not in FLOATS.values():
            raise UnsupportedError(
                f"{info.file}: {info.name} is {info.dtype}, and only float32, float16 and bfloat16 are converted; "
                "take the model's unquantized checkpoint."
            )
    rows, width = _rows(param)
    vector = len(param.shape) == 1
    fits = sum(info.rows[0] for info in infos) == rows and all(
        info.rows[1] == width and (len(info.shape) == 1) == vector for info in infos
    )
    if len(infos) == 1:
        fits = infos[0].shape == param.shape
    if not fits:
        found = " + ".join(f"{info.name} {list(info.shape)}" for info in infos)
        raise CheckpointError(
            f"{infos[0].file} contradicts config.json: found {found}, but {param.name} needs {list(param.shape)}."
        )


def _info(checkpoint: Source, source: str, param: ParamPlan) -> TensorInfo:
    """The tensor as the parameter takes it."""
    info = checkpoint.info(source)
    return replace(info, shape=info.shape[::-1]) if param.transposed else info


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of a parameter, from `start` on, that lie in one tensor: `rows` of it, in the order wanted."""

    info: TensorInfo
    start: int
    rows: npt.NDArray[np.int64]

    @property
    def span(self) -> tuple[int, int]:
        return int(self.rows.min()), int(self.rows.max()) + 1

    @property
    def picked(self) -> npt.NDArray[np.int64] | None:
        """Of the span's rows; None if they are all of them, in order."""
        own = self.rows - self.span[0]
        return None if len(own) == self.span[1] - self.span[0] and (np.diff(own) == 1).all() else own


def _blocks(checkpoint: Source, param: ParamPlan) -> Iterator[_Block]:
    """The parameter from its first row to its last, some megabytes at a time, each from a single tensor."""
    infos = [_info(checkpoint, source, param) for source in param.sources]
    ends = np.cumsum([info.rows[0] for info in infos])
    count = int(ends[-1])
    order = np.arange(count) if param.order is None else param.order
    of_tensor = np.searchsorted(ends, order, side="right")
    start = 0
    while start < count:
        tensor = int(of_tensor[start])
        info, before = infos[tensor], int(ends[tensor]) - infos[tensor].rows[0]
        step = max(1, _BLOCK_BYTES // max(1, info.rows[1] * info.dtype.itemsize))
        same = of_tensor[start : start + step] == tensor
        stop = start + (int(np.argmin(same)) if not same.all() else len(same))
        yield _Block(info, start, order[start:stop] - before)
        start = stop


def _rows_of(checkpoint: Source, param: ParamPlan, block: _Block) -> Array:
    """A block's rows in the tensor's dtype, or in float32 where something is added."""
    first, last = block.span
    if param.transposed:  # small models only: the whole tensor for each block of it
        whole = checkpoint.read_rows(block.info.name, 0, block.info.shape[1])
        rows: Array = np.ascontiguousarray(whole[:, first:last].T)
    else:
        rows = checkpoint.read_rows(block.info.name, first, last)
    rows = rows if block.picked is None else rows[block.picked]
    return rows if not param.added else as_float32(rows) + np.float32(param.added)


def read_floats(checkpoint: Source, param: ParamPlan) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The parameter in float32, in blocks of rows with their first row's number. Raises CheckpointError, which names
    the tensor, for NaN and infinity."""
    for block in _blocks(checkpoint, param):
        wide = as_float32(_rows_of(checkpoint, param, block))
        if not np.isfinite(wide).all():
            raise CheckpointError(f"{block.info.file}, {block.info.name}: The weights hold NaN or infinity.")
        yield block.start, wide


def _read(checkpoint: Source, param: ParamPlan, quantizer: Quantizer) -> Iterator[tuple[int, tuple[Array, ...]]]:
    """The parameter's outputs in blocks of rows, with their first row's number."""
    for block in _blocks(checkpoint, param):
        packed = checkpoint.packed(block.info.name)
        kept = packed is not None and packed.exact and param.storage in holders(packed.format)
        try:
            if kept and not param.added and not param.transposed:
                grid = checkpoint.read_grid(block.info.name, *block.span)
                rows: Array | Grid = grid if block.picked is None else grid.take(block.picked)
            else:
                rows = _rows_of(checkpoint, param, block)
            stored = _stored(rows, param.storage, quantizer)
        except CheckpointError as error:
            raise CheckpointError(f"{block.info.file}, {block.info.name}: {error}") from error
        yield block.start, stored


def _stored(rows: Array | Grid, storage: Storage, quantizer: Quantizer) -> tuple[Array, ...]:
    """A block of rows as the outputs of that storage; a grid's is one that holds it."""
    if isinstance(rows, Grid):
        assert isinstance(storage, GroupFormat)
        return rows.store(storage)
    if isinstance(storage, GroupFormat):
        return quantizer(rows, storage)
    dtype = FLOATS[storage]
    with np.errstate(over="ignore"):
        stored = rows if rows.dtype == dtype else as_float32(rows).astype(dtype)
    if not np.isfinite(as_float32(stored)).all():
        overflow = np.isfinite(as_float32(rows)).all()
        raise CheckpointError(
            f"The weights hold {f'a value too large for {dtype}' if overflow else 'NaN or infinity'}."
        )
    return (stored,)
