"""Device modules written by hand, as TVM writes them, to load WGSL that its compiler would not make."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import tvm
import tvm_ffi


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def device_bytes(name: str, code: str, writes: Sequence[int]) -> bytes:
    """One kernel of `len(writes)` tensors, no scalars, launched with blockIdx.x and threadIdx.x."""
    tags = ["blockIdx.x", "threadIdx.x", f"paramWriteAccess:[{','.join(map(str, writes))}]"]
    handle = struct.pack("<BBH", 3, 64, 1)
    info = [
        _text(name),
        struct.pack("<Q", len(writes)) + handle * len(writes),
        struct.pack("<Q", len(tags)) + b"".join(map(_text, tags)),
        struct.pack("<Q", 0),
    ]
    one = struct.pack("<Q", 1)
    return b"".join([one, _text(name), *info, one, _text(name), _text(code)])


def load(data: bytes) -> tvm.runtime.Module:
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.webgpu")(data)
