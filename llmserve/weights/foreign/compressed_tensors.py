"""compressed-tensors checkpoints (llm-compressor, vLLM): integers of 2 to 8 bits, packed along the inputs, or int8.

pack-quantized: a module has weight_packed int32 [out, ⌈in · bits / 32⌉], the integers one after another, lowest bits
first, less 2^(bits-1); weight_scale [out, groups], or [out, 1] for a scale a row; weight_shape; where it is not
symmetric weight_zero_point, packed alike along the outputs; with an activation order weight_g_idx.
int-quantized: weight int8 [out, in], weight_scale, weight_zero_point int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedError
from .packed import FLOATS, Array, PackedLayout, PackedSource, check_group_size, regular_groups, unpacked


def CompressedTensors(path: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> PackedSource:
    """The source for a quantization_config. Raises UnsupportedError for what is not read, CheckpointError for files
    that are broken."""
    stored = settings.get("format")
    if stored not in _FORMATS:
        raise UnsupportedError(
            f"compressed-tensors weights in the format {stored!r} are not read; {' and '.join(_FORMATS)} are "
            "(integers, as the presets W4A16, W8A16 and W8A8 give)."
        )
    return _FORMATS[stored](path, config)


class PackQuantized(PackedSource):
    kind = "compressed-tensors"
    parts = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")

    def _layout(self, module: str) -> PackedLayout:
        self.part(module, ".weight_shape", ("int64", "int32"), (2,))
        n, k = (int(size) for size in self.checkpoint.read(f"{module}.weight_shape"))
        weight = self.part(module, ".weight_packed", ("int32",), (n, None))
        bits = weight.shape[1] * 32 // max(k, 1)
        if not 2 <= bits <= 8 or weight.shape[1] != -(-k * bits // 32):
            raise CheckpointError(
                f"{weight.file}: {module}.weight_packed is {list(weight.shape)}, which for a weight of {[n, k]} is no "
                "dense packing in 2 to 8 bits."
            )
        scale = self.part(module, ".weight_scale", FLOATS, (n, None))
        count = scale.shape[1]
        has_zeros = f"{module}.weight_zero_point" in self
        if has_zeros:
            self.part(module, ".weight_zero_point", ("int32",), (-(-n * bits // 32), count))
        if f"{module}.weight_g_idx" in self:
            self.part(module, ".weight_g_idx", ("int32", "int64"), (k,))
            groups = self.checkpoint.read(f"{module}.weight_g_idx").astype(np.int64)
            if groups.min() < 0 or groups.max() >= count:
                raise CheckpointError(f"{weight.file}: {module}.weight_g_idx names groups beyond its {count}.")
        else:
            groups = _even_groups(module, k, count)
        return PackedLayout((n, k), weight.file, bits, groups, has_zeros)

    def _values(self, module: str, layout: PackedLayout, start: int, stop: int) -> Array:
        words = self.checkpoint.read_rows(f"{module}.weight_packed", start, stop)
        return unpacked(words, layout.bits, layout.shape[1])

    def _scales(self, module: str, layout: PackedLayout) -> Array:
        return self._kept_for(module, "scales", lambda: self.checkpoint.read(f"{module}.weight_scale"))

    def _zeros(self, module: str, layout: PackedLayout) -> Array:
        def read() -> Array:
            stored = self.checkpoint.read(f"{module}.weight_zero_point")
            return np.asarray(unpacked(stored.T, layout.bits, layout.shape[0]).T)

        return self._kept_for(module, "zeros", read)


class IntQuantized(PackedSource):
    """Whole bytes; activations' own scales are left out, since llmserve rounds activations as they come."""

    kind = "compressed-tensors"
    parts = (".weight_scale", ".weight", ".weight_zero_point", ".input_scale", ".input_zero_point")

    def _layout(self, module: str) -> PackedLayout:
        weight = self.part(module, ".weight", ("int8",), (None, None))
        n, k = weight.shape
        count = self.part(module, ".weight_scale", FLOATS, (n, None)).shape[1]
        has_zeros = f"{module}.weight_zero_point" in self
        if has_zeros:
            self.part(module, ".weight_zero_point", ("int8",), (n, count))
        return PackedLayout((n, k), weight.file, 8, _even_groups(module, k, count), has_zeros)

    def _values(self, module: str, layout: PackedLayout, start: int, stop: int) -> Array:
        signed = self.checkpoint.read_rows(f"{module}.weight", start, stop)
        return np.asarray(signed.view(np.uint8) ^ np.uint8(128))  # + 128

    def _scales(self, module: str, layout: PackedLayout) -> Array:
        return self._kept_for(module, "scales", lambda: self.checkpoint.read(f"{module}.weight_scale"))

    def _zeros(self, module: str, layout: PackedLayout) -> Array:
        def read() -> Array:
            return np.asarray(self.checkpoint.read(f"{module}.weight_zero_point").astype(np.int16) + 128)

        return self._kept_for(module, "zeros", read)


def _even_groups(module: str, k: int, count: int) -> Array:
    """Each input's group where `count` groups of one size share a row."""
    if count == 0 or k % count:
        raise CheckpointError(f"{module} has {count} scales for {k} inputs, which do not divide evenly.")
    size = -1 if count == 1 else check_group_size("compressed-tensors", k // count)
    return regular_groups("compressed-tensors", k, count, size)


_FORMATS = {"pack-quantized": PackQuantized, "int-quantized": IntQuantized}
