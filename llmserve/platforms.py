"""Platforms: the hardware that llmserve compiles for, as rows of facts. Finding out which is there happens here too.

A row says what a compiler needs to know; the kernels that a platform prefers live in kernels/. No tvm: `target` is a
plain dict, which TVM's Target is made from where tvm may be imported.
"""

from __future__ import annotations

import difflib
import platform as host_platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UnsupportedError


@dataclass(frozen=True, eq=False)  # rows are themselves: compared and hashed by identity
class Platform:
    """One kind of device.

    Attributes:
        name: what `--device` takes.
        kernels: which kernel set serves it (a folder of kernels/).
        compute_dtype: activations' dtype; picks a scheme's variant (q4 → q4f32_1 or q4f16_1).
        unquantized: the scheme that "--quant none" stands for.
        target: TVM's target, less what is found out on the machine (`mcpu`).
    """

    name: str
    kernels: str
    compute_dtype: str
    unquantized: str
    target: Mapping[str, Any]


PLATFORMS: Mapping[str, Platform] = {
    row.name: row for row in (Platform("cpu", "cpu", "float32", "f32", {"kind": "llvm"}),)
}


def find(device: str | None) -> Platform:
    """The row of that name; None and "auto" mean the best one of this machine. Raises UnsupportedError."""
    if device in (None, "auto"):
        return PLATFORMS["cpu"]
    if device not in PLATFORMS:
        close = difflib.get_close_matches(str(device), PLATFORMS, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnsupportedError(f"There is no device {device!r}{hint}; this version runs on {', '.join(PLATFORMS)}.")
    return PLATFORMS[str(device)]


def describe_host() -> str:
    """The machine in a few words, for benchmark results."""
    model = host_platform.processor() or host_platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {host_platform.system()} {host_platform.machine()}"
