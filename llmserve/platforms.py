"""Platforms: the hardware that llmserve compiles for, as rows of facts. detect.py and trial.py find what is there.

A row says what a compiler needs to know; the kernels that a platform prefers live in kernels/. No tvm: `target` is a
plain dict, which TVM's Target is made from where tvm may be imported.
"""

from __future__ import annotations

import difflib
import platform as host_platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .detect import best_device
from .errors import UnsupportedError
from .trial import works


@dataclass(frozen=True, eq=False)  # rows are themselves: compared and hashed by identity
class Gpu:
    """One family of GPUs, as its kernels and TVM's target need to know it.

    Attributes:
        name: what `--arch` takes.
        target: what it adds to the platform's target.
        warp: threads that run in lockstep.
        threads: the most that a block may have.
        shared_bytes: shared memory of a block that needs no asking for.
        float16: whether it computes in float16.
        matrix: how its matrix units are programmed ("wmma", "simdgroup"), empty where ours do not use any.
    """

    name: str
    target: Mapping[str, Any] = field(hash=False)
    warp: int = 32
    threads: int = 1024
    shared_bytes: int = 48 << 10
    float16: bool = True
    matrix: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """Its part of TVM's target."""
        return {
            **self.target,
            "max_num_threads": self.threads,
            "max_shared_memory_per_block": self.shared_bytes,
            "thread_warp_size": self.warp,
        }


@dataclass(frozen=True, eq=False)
class Platform:
    """One kind of device.

    Attributes:
        name: what `--device` takes.
        kernels: which kernel set serves it (a folder of kernels/).
        compute_dtypes: what activations may be in, the default first; picks a scheme's variant (q4f32_1, q4f16_1).
        target: TVM's target, less what is found out on the machine (`mcpu`) and what the family of GPUs adds.
        gpus: the families that are known, by what `--arch` takes. Of CPUs, see kernels/cpu/isa.py.
        step_tokens: tokens in a step that keep it busy.
    """

    name: str
    kernels: str
    compute_dtypes: tuple[str, ...]
    target: Mapping[str, Any]
    gpus: Mapping[str, Gpu] = field(default_factory=dict)
    step_tokens: int = 128

    def computes_in(self, quant: str | None) -> str:
        """The dtype of activations under a scheme: its name may ask for float32, and the platform must have it."""
        wanted = "float32" if "f32" in (quant or "") else self.compute_dtypes[0]
        return wanted if wanted in self.compute_dtypes else self.compute_dtypes[0]

    def gpu(self, arch: str) -> Gpu:
        """The family that `--arch` names. Raises UnsupportedError with those that there are."""
        if arch not in self.gpus:
            close = difflib.get_close_matches(arch, self.gpus, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UnsupportedError(f"{self.name} has no family {arch!r}{hint}; known are {', '.join(self.gpus)}.")
        return self.gpus[arch]


def _nvidia(*capabilities: int) -> Mapping[str, Gpu]:
    return {f"sm_{n}": Gpu(f"sm_{n}", {"arch": f"sm_{n}"}, matrix="wmma") for n in capabilities}


def _amd(warp: int, *names: str) -> Mapping[str, Gpu]:
    # 256 threads: what TVM tells LLVM that a block has at most, where it cannot ask a device.
    return {name: Gpu(name, {"mcpu": name}, warp=warp, threads=256, shared_bytes=64 << 10) for name in names}


_APPLE = Gpu("apple", {}, shared_bytes=32 << 10, matrix="simdgroup")
# What every WebGPU adapter has; whether it has float16 is its own to say.
_WEBGPU = Gpu("f16", {}, warp=1, threads=256, shared_bytes=16 << 10)
_WEBGPU_F32 = replace(_WEBGPU, name="f32", float16=False)
_BOTH = ("float16", "float32")

PLATFORMS: Mapping[str, Platform] = {
    row.name: row
    for row in (
        Platform("cpu", "cpu", ("float32",), {"kind": "llvm"}),
        Platform("cuda", "gpu", _BOTH, {"kind": "cuda"}, _nvidia(75, 80, 86, 87, 89, 90, 100, 120), 2048),
        Platform(
            "rocm",
            "gpu",
            _BOTH,
            {"kind": "rocm"},
            # CDNA runs 64 threads in lockstep, RDNA 32.
            {**_amd(64, "gfx90a", "gfx942"), **_amd(32, "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1201")},
            2048,
        ),
        Platform("metal", "gpu", _BOTH, {"kind": "metal"}, {"apple": _APPLE}, 512),
        Platform("webgpu", "gpu", _BOTH, {"kind": "webgpu"}, {"f16": _WEBGPU, "f32": _WEBGPU_F32}, 512),
    )
}


def find(device: str | None) -> Platform:
    """The row of that name; None and "auto" mean the best one of this machine. Raises UnsupportedError."""
    if device in (None, "auto"):
        return PLATFORMS[best_device(PLATFORMS, works)]
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
