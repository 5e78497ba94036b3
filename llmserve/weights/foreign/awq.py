"""AWQ checkpoints, as AutoAWQ writes them for its gemm kernels: 4 bits, packed along the outputs.

A module has qweight int32 [in, out / 8], qzeros int32 [groups, out / 8] and scales [groups, out]:
w[o, i] = (q[i, o] - zero[g, o]) · scale[g, o]. The nibbles of a word, lowest first, are outputs 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedError
from .packed import FLOATS, Array, PackedLayout, PackedSource, check_group_size, regular_groups, unpacked

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_NIBBLE_OF = np.argsort(_ORDER)  # output within its eight → nibble


class AWQ(PackedSource):
    kind = "awq"
    parts = (".qweight", ".qzeros", ".scales")

    def __init__(self, path: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """`settings` is the quantization_config. Raises UnsupportedError for what is not read, CheckpointError for
        files that are broken."""
        version = str(settings.get("version") or "gemm").lower()
        if version != "gemm":
            raise UnsupportedError(
                f"AWQ weights of version {version!r} are not read; those of version 'gemm' are, AutoAWQ's default."
            )
        bits = settings.get("bits", settings.get("w_bit", 4))
        if bits != 4:
            raise UnsupportedError(f"AWQ with {bits!r} bits is not read; 4 bits are.")
        self.group_size = check_group_size("AWQ", settings.get("group_size", settings.get("q_group_size", 128)))
        super().__init__(path, config)

    def _layout(self, module: str) -> PackedLayout:
        count, n = self.part(module, ".scales", FLOATS, (None, None)).shape
        if n % 8 or n == 0:
            raise CheckpointError(f"{self.path}: {module} has {n} outputs, and AWQ packs them by eight.")
        weight = self.part(module, ".qweight", ("int32",), (None, n // 8))
        has_zeros = f"{module}.qzeros" in self
        if has_zeros:
            self.part(module, ".qzeros", ("int32",), (count, n // 8))
        k = weight.shape[0]
        return PackedLayout((n, k), weight.file, 4, regular_groups("AWQ", k, count, self.group_size), has_zeros)

    def _values(self, module: str, layout: PackedLayout, start: int, stop: int) -> Array:
        words = self._kept_for(module, "weight", lambda: self.checkpoint.read(f"{module}.qweight"))
        first = start // 8
        values = _in_order(words[:, first : -(-stop // 8)])
        return np.ascontiguousarray(values[:, start - 8 * first : stop - 8 * first].T)

    def _scales(self, module: str, layout: PackedLayout) -> Array:
        return self._kept_for(module, "scales", lambda: self.checkpoint.read(f"{module}.scales").T)

    def _zeros(self, module: str, layout: PackedLayout) -> Array:
        return self._kept_for(module, "zeros", lambda: _in_order(self.checkpoint.read(f"{module}.qzeros")).T)


def _in_order(words: Array) -> Array:
    """int32 [R, W] → the values uint8 [R, 8 W] in the order of the outputs."""
    raw = unpacked(words, 4, 8 * words.shape[1]).reshape(len(words), -1, 8)
    return raw[:, :, _NIBBLE_OF].reshape(len(words), -1)
