"""The list of kernels that are checked on a GPU: data only, for the side that compiles and the side that runs.

A case is a dict that JSON can hold: which kernel, of what storage and dtype, of what shape. `name` is its name in the
compiled library, and the key under which results are reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DTYPES = ("float16", "float32")
STORAGES = ("int3", "int3x40", "int4", "int4z", "int8", "float")
# (outputs, inputs): a partial tile and a partial group; whole ones, with more groups than lanes.
LINEAR = ((75, 88), (128, 1280))
ROWS = (1, 2, 7, 17, 70)  # one row; few; tiles, whole and partial
ATTENTION: dict[str, dict[str, int]] = {
    "gqa": {"heads": 8, "kv_heads": 2, "head_dim": 64, "page_size": 16},
    "gqa7": {"heads": 7, "kv_heads": 1, "head_dim": 80, "page_size": 16},
    "window": {"heads": 4, "kv_heads": 2, "head_dim": 128, "page_size": 16, "window": 21},
    "wide": {"heads": 2, "kv_heads": 1, "head_dim": 256, "page_size": 16},
    "pages32": {"heads": 2, "kv_heads": 2, "head_dim": 96, "page_size": 32, "window": 40},
}
# Keys already there and new queries of each sequence: decodes, chunks on history, page borders, a row in several parts.
BATCHES = (
    ((0, 1),),
    ((15, 1), (16, 1), (0, 17)),
    ((40, 9), (3, 1), (0, 50), (63, 2)),
    ((700, 1), (6, 1), (300, 4)),
)
# Matmuls that are timed: the gate and up projections of a model of 8B, but for their number.
TIMED = (14336, 4096)
TIMED_SMALL = (256, 256)
STREAM_WIDTH = 4096  # float32 values that one block of the streaming kernels takes


def cases() -> list[dict[str, Any]]:
    """Every kernel × storage × dtype."""
    return [{**case, "name": _name(case)} for dtype in DTYPES for case in _of(dtype)]


def timed(small: bool) -> list[dict[str, Any]]:
    """Kernels that are there to be timed: streams of memory, and matmuls of each storage in float16."""
    n, k = TIMED_SMALL if small else TIMED
    common = {"dtype": "float16", "out": "float16", "bias": False, "n": n, "k": k}
    matmuls = [{"kernel": "linear", "storage": storage, **common} for storage in STORAGES]
    streams = [{"kernel": kernel, "dtype": "float32"} for kernel in ("stream_copy", "stream_read")]
    return [{**case, "name": f"timed_{_name(case)}"} for case in (*streams, *matmuls)]


def _of(dtype: str) -> Iterator[dict[str, Any]]:
    for storage in STORAGES:
        for n, k in LINEAR:
            yield {
                "kernel": "linear",
                "storage": storage,
                "dtype": dtype,
                "n": n,
                "k": k,
                "out": dtype,
                "bias": True,
            }
            yield {"kernel": "rows_of", "storage": storage, "dtype": dtype, "n": n, "k": k}
    n, k = LINEAR[0]
    yield {
        "kernel": "linear",
        "storage": "int4",
        "dtype": dtype,
        "n": n,
        "k": k,
        "out": "float32",
        "bias": False,
    }
    for width in (64, 520):
        for add in (False, True):
            kind = {"width": width, "add": add, "centred": width == 64}
            yield {"kernel": "norm", "dtype": dtype, "x_dtype": dtype, **kind}
    if dtype != "float32":  # what comes from the residual sum
        yield {"kernel": "norm", "dtype": dtype, "x_dtype": "float32", "width": 520, "add": False, "centred": False}
    for activation in ("silu", "gelu_tanh"):
        yield {"kernel": "gated", "dtype": dtype, "width": 6000, "activation": activation}
    yield {"kernel": "take_rows", "dtype": dtype, "x_width": 300, "width": 130}
    if dtype == "float32":  # what logits are in
        yield {"kernel": "cap_logits", "dtype": dtype, "width": 1000}
        for vocab in (1000, 5003):
            yield {"kernel": "sample", "dtype": dtype, "width": vocab}
    for head_dim in (64, 80):
        for norm in (False, True):
            shape = {"heads": 6, "kv_heads": 2, "head_dim": head_dim, "page_size": 16}
            yield {"kernel": "rope_append", "dtype": dtype, "norm": norm, "shape": shape}
    for label, shape in ATTENTION.items():
        yield {"kernel": "paged_attention", "dtype": dtype, "label": label, "shape": shape}


def _name(case: dict[str, Any]) -> str:
    """Letters, digits and underscores: it names a function in C."""
    parts = [case["kernel"], case.get("storage"), case["dtype"]]
    if "n" in case:
        parts.append(f"{case['n']}x{case['k']}")
    if case.get("bias") is False:
        parts.append("plain")
    if "out" in case and case["out"] != case["dtype"]:
        parts.append("logits")
    if case.get("x_dtype", case["dtype"]) != case["dtype"]:
        parts.append(f"of_{case['x_dtype']}")
    if "width" in case:
        parts.append(str(case["width"]))
    parts += [case["activation"]] if "activation" in case else []
    parts += [word for word in ("add", "norm", "centred") if case.get(word)]
    if "shape" in case:
        parts.append(case.get("label") or f"d{case['shape']['head_dim']}")
    return "_".join(part for part in parts if part)
