"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them: 2, 3, 4 or 8 bits, packed along the inputs.

A module has qweight int32 [in · bits / 32, out], qzeros int32 [groups, out · bits / 32], scales [groups, out] and g_idx
int32 [in], each input's group: w[o, i] = (q[i, o] - zero[g, o]) · scale[g, o]. Integers follow each other in the words,
lowest bits first; those of 3 bits run over words' ends. Zero points are stored less one unless the format is gptq_v2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedError
from .packed import FLOATS, Array, PackedLayout, PackedSource, check_group_size, regular_groups, unpacked

_BITS = (2, 3, 4, 8)
_FORMATS = {"gptq": 1, "gptq_v2": 0}  # name → what has to be added to a stored zero point


class GPTQ(PackedSource):
    kind = "gptq"
    parts = (".qweight", ".qzeros", ".scales", ".g_idx")

    def __init__(self, path: Path, config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """`settings` is the quantization_config. Raises UnsupportedError for what is not read, CheckpointError for
        files that are broken."""
        self.group_size = check_group_size("GPTQ", settings.get("group_size", -1))
        if settings.get("bits") not in _BITS:
            raise UnsupportedError(f"GPTQ with {settings.get('bits')!r} bits is not read; 2, 3, 4 and 8 bits are.")
        stored = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if stored not in _FORMATS:
            raise UnsupportedError(
                f"GPTQ weights in the format {stored!r} are not read; {' and '.join(_FORMATS)} are, which GPTQModel "
                "can save."
            )
        self._less = _FORMATS[stored]
        super().__init__(path, config)

    def _layout(self, module: str) -> PackedLayout:
        n = self.part(module, ".scales", FLOATS, (None, None)).shape[1]
        zeros = self.part(module, ".qzeros", ("int32",), (None, None))
        weight = self.part(module, ".qweight", ("int32",), (None, n))
        bits = zeros.shape[1] * 32 // max(n, 1)  # of this very module: GPTQModel can give some more than others
        if bits not in _BITS or zeros.shape[1] * 32 != n * bits or weight.shape[0] % bits or weight.shape[0] == 0:
            raise CheckpointError(
                f"{weight.file}: {module} has qweight {list(weight.shape)} and qzeros {list(zeros.shape)} for {n} "
                "outputs, which is no packing in 2, 3, 4 or 8 bits."
            )
        k = weight.shape[0] // bits * 32
        count = self.part(module, ".scales", FLOATS, (zeros.shape[0], n)).shape[0]
        if f"{module}.g_idx" in self:
            self.part(module, ".g_idx", ("int32", "int64"), (k,))
            groups = self.checkpoint.read(f"{module}.g_idx").astype(np.int64)
            if groups.min() < 0 or groups.max() >= count:
                raise CheckpointError(f"{weight.file}: {module}.g_idx names groups beyond the {count} that there are.")
        else:
            groups = regular_groups("GPTQ", k, count, self.group_size)
        return PackedLayout((n, k), weight.file, bits, groups)

    def _values(self, module: str, layout: PackedLayout, start: int, stop: int) -> Array:
        words = self._kept_for(module, "weight", lambda: self.checkpoint.read(f"{module}.qweight"))
        return unpacked(words[:, start:stop].T, layout.bits, layout.shape[1])

    def _scales(self, module: str, layout: PackedLayout) -> Array:
        return self._kept_for(module, "scales", lambda: self.checkpoint.read(f"{module}.scales").T)

    def _zeros(self, module: str, layout: PackedLayout) -> Array:
        def read() -> Array:
            stored = unpacked(self.checkpoint.read(f"{module}.qzeros"), layout.bits, layout.shape[0])
            # Less one in as many bits: what was 0 is stored as the largest.
            return np.asarray((stored.astype(np.int16) + self._less).T & ((1 << layout.bits) - 1))

        return self._kept_for(module, "zeros", read)
