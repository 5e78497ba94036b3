"""The common part of GPTQ, AWQ and compressed-tensors: a safetensors checkpoint in which a weight is several tensors.

Each has integers packed into int32, scales by group, and zero points by group or none. The names and layouts of these
tensors are in the files beside this one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError, UnsupportedError
from ...quant.group import INT8, GroupFormat, unpack
from ...quant.takeover import Grid, narrowest
from ..container import TensorInfo
from ..source import Packed, PlainSource

Array = npt.NDArray[Any]

UNIT = 32  # inputs that share a scale in our formats
FLOATS = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class PackedLayout:
    """The layout of a packed weight in its file, known before its values are read.

    Attributes:
        shape: (out, in).
        groups: for each input the group whose scale and zero point are its own, int [in].
        packed: the facts for a conversion plan.
        zeros_differ: whether there are zero points to be read.
    """

    shape: tuple[int, int]
    file: Path
    bits: int
    groups: Array
    zeros_differ: bool = True
    packed: Packed = field(default_factory=lambda: Packed(INT8, 0))

    @property
    def ordered(self) -> bool:
        """Whether no group begins or ends within 32 inputs."""
        return bool((_units(self.groups) == self.groups[::UNIT, None]).all())


class PackedSource(PlainSource):
    """A checkpoint whose modules' weights are each told by `parts`, the endings of their tensors' names.

    The first of the parts marks a module as packed. One module's tensors are held in memory at a time.
    """

    parts: tuple[str, ...]

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        super().__init__(path, config)
        marks = (name for name in self.checkpoint.names() if name.endswith(self.parts[0]))
        self._modules = {f"{module}.weight": module for module in (m.removesuffix(self.parts[0]) for m in marks)}
        self._layouts: dict[str, PackedLayout] = {}
        self._kept: tuple[str, dict[str, Array]] = ("", {})
        if not self._modules:
            raise CheckpointError(
                f"{path} is said to hold weights quantized by {self.kind}, but has no tensor whose name ends in "
                f"{self.parts[0]}."
            )

    def names(self) -> list[str]:
        hidden = {module + part for module in self._modules.values() for part in self.parts}
        return [*(name for name in self.checkpoint.names() if name not in hidden), *self._modules]

    def info(self, name: str) -> TensorInfo:
        if name not in self._modules:
            return self.checkpoint.info(name)
        layout = self.layout(name)
        return TensorInfo(name, np.dtype(np.float32), layout.shape, layout.file, 0)

    def layout(self, name: str) -> PackedLayout:
        """The layout of a packed weight. Raises CheckpointError where its tensors contradict each other."""
        if name not in self._layouts:
            module = self._modules[name]
            layout = self._layout(module)
            values, reason = (1 << layout.bits) - 1, ""
            zeros = self._zeros(module, layout) if layout.zeros_differ else np.array([[(values + 1) // 2]])
            found = narrowest(layout.bits, zeros)
            if not layout.ordered:
                reason = "its groups are not of neighbouring inputs (desc_act)"
            elif found is None:
                reason = f"its {layout.bits}-bit integers have zero points of their own"
            size = sum(self.checkpoint.info(module + part).nbytes for part in self.parts if module + part in self)
            packed = Packed(found if found and not reason else INT8, size, reason)
            self._layouts[name] = PackedLayout(
                layout.shape, layout.file, layout.bits, layout.groups, layout.zeros_differ, packed
            )
        return self._layouts[name]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def packed(self, name: str) -> Packed | None:
        return self.layout(name).packed if name in self._modules else None

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        if name not in self._modules:
            return self.checkpoint.read_rows(name, start, stop)
        u, scale, zero = self._rows(name, start, stop)
        groups = self.layout(name).groups
        return np.asarray((u.astype(np.float32) - zero[:, groups]) * scale.astype(np.float32)[:, groups], np.float32)

    def read_grid(self, name: str, start: int, stop: int) -> Grid:
        layout = self.layout(name)
        u, scale, zero = self._rows(name, start, stop)
        groups = layout.groups[::UNIT]  # repeats a larger group's scale for each 32
        return Grid(u, scale[:, groups], zero[:, groups], layout.bits)

    def ignorable(self) -> list[str]:
        """Biases of zeros, which some quantizers write for every module."""
        biases = [f"{module}.bias" for module in self._modules.values() if f"{module}.bias" in self]
        return [name for name in biases if not self.checkpoint.read(name).any()]

    def _rows(self, name: str, start: int, stop: int) -> tuple[Array, Array, Array]:
        """(u uint8 [R, in], scale [R, groups], zero [R, groups]), by the groups of the file."""
        module, layout = self._modules[name], self.layout(name)
        scale = self._scales(module, layout)[start:stop]
        middle = np.full(scale.shape, 1 << (layout.bits - 1), np.int16)
        zero = self._zeros(module, layout)[start:stop] if layout.zeros_differ else middle
        return self._values(module, layout, start, stop), scale, zero.astype(np.int16)

    def _kept_for(self, module: str, what: str, read: Callable[[], Array]) -> Array:
        """`read()`, remembered as long as this module is the one that is read."""
        if self._kept[0] != module:
            self._kept = (module, {})
        if what not in self._kept[1]:
            self._kept[1][what] = read()
        return self._kept[1][what]

    @abstractmethod
    def _layout(self, module: str) -> PackedLayout:
        """The layout, without `packed`, its tensors' shapes and dtypes checked."""

    @abstractmethod
    def _values(self, module: str, layout: PackedLayout, start: int, stop: int) -> Array:
        """uint8 [R, in]."""

    @abstractmethod
    def _scales(self, module: str, layout: PackedLayout) -> Array:
        """Floats [out, groups]."""

    @abstractmethod
    def _zeros(self, module: str, layout: PackedLayout) -> Array:
        """Integers [out, groups]; asked for where `zeros_differ`."""

    # --- checks

    def part(self, module: str, part: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> TensorInfo:
        """A module's tensor, which must have one of `dtypes` and `shape`, None for any size. Raises CheckpointError."""
        info = self.checkpoint.info(module + part)
        if info.dtype.name not in dtypes:
            raise CheckpointError(f"{info.file}: {info.name} is {info.dtype}, not {' or '.join(dtypes)}.")
        sizes = zip(info.shape, shape, strict=False)
        if len(info.shape) != len(shape) or any(wanted not in (None, size) for size, wanted in sizes):
            wanted = "[" + ", ".join("…" if size is None else str(size) for size in shape) + "]"
            raise CheckpointError(f"{info.file}: {info.name} is {list(info.shape)} where {wanted} is needed.")
        return info


def packed_format(bits: int) -> GroupFormat:
    """32 integers of `bits` in `bits` words, one after another, lowest first."""
    return GroupFormat(f"{bits} bits", bits, UNIT)


def unpacked(words: Array, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """int32 [N, words] → `count` integers of `bits` a row, uint8 [N, count]; a row may end within 32 of them."""
    fmt = packed_format(bits)
    missing = -words.shape[1] % fmt.words_per_group
    whole = np.pad(words, ((0, 0), (0, missing))) if missing else words
    return unpack(np.ascontiguousarray(whole).view(np.uint32), fmt, count)


def check_group_size(kind: str, size: Any) -> int:
    """A group size that ours divide, or -1 for one scale a row. Raises UnsupportedError with what would fit."""
    if isinstance(size, bool) or not isinstance(size, int) or (size != -1 and (size < UNIT or size % UNIT)):
        raise UnsupportedError(
            f"The {kind} checkpoint has groups of {size!r}, which llmserve's groups of {UNIT} do not divide; "
            f"multiples of {UNIT} fit (64 and 128 are usual), and -1 for one scale a row."
        )
    return size


def regular_groups(kind: str, k: int, groups: int, size: int) -> Array:
    """Each input's group, where groups of `size` (-1: all of a row) follow each other. Raises CheckpointError."""
    size = k if size == -1 else size
    if groups != -(-k // size):
        raise CheckpointError(
            f"A row of {k} inputs in groups of {size} has {-(-k // size)} scales, and the {kind} checkpoint {groups}."
        )
    return np.arange(k) // size


def _units(groups: Array) -> Array:
    """Groups by input, as rows of 32; the last row is filled up with its own first."""
    pad = -len(groups) % UNIT
    last = groups[len(groups) - (UNIT - pad)] if pad else 0
    return np.concatenate([groups, np.full(pad, last, groups.dtype)]).reshape(-1, UNIT)
