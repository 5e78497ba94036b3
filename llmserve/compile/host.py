"""What the machine that compiles has: a CPU and its instruction sets, a linker."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, UnsupportedError
from ..kernels.base import KernelSet


@cache
def cpu_kernels(arch: str | None) -> tuple[KernelSet, Mapping[str, Any]]:
    """The kernel set and TVM target for this CPU, or for the instruction set that `arch` names."""
    import tvm
    from tvm.target import codegen

    from ..kernels.cpu import CpuKernels
    from ..kernels.cpu.isa import ISAS, choose

    mcpu = codegen.llvm_get_system_cpu()
    features = frozenset(map(str, codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": mcpu}))))
    features &= _host_flags(features)
    native = choose(features)
    if arch in (None, native.name):
        return CpuKernels(native), {"kind": "llvm", **({"mcpu": mcpu} if native.features else {})}
    wanted = next((isa for isa in ISAS if isa.name == arch), None)
    if wanted is None or not features.issuperset(wanted.features):
        usable = ", ".join(isa.name for isa in ISAS if features.issuperset(isa.features))
        raise UnsupportedError(f"This CPU has no instruction set {arch!r} for llmserve; it has {usable}.")
    # The portable row must run anywhere, so it does not get this CPU's other features either.
    return CpuKernels(wanted), {"kind": "llvm", **({"mcpu": mcpu} if wanted.features else {})}


def _host_flags(features: frozenset[str]) -> frozenset[str]:
    """LLVM goes by the CPU's model; a virtual machine may hide features of it, and the kernel tells which are there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return features
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), None)
    if flags is None:
        return features
    hidden = {f for f in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl") if f not in flags}
    if "avx512_vnni" not in flags:
        hidden.add("avx512vnni")
    return features - hidden


def link(output: str, objects: list[str], **kwargs: Any) -> None:
    """Link a shared library with the C++ compiler of the machine. Raises ArtifactError where there is none."""
    from tvm.support import cc

    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ArtifactError("Linking the compiled model needs a C++ compiler; install g++ (Debian: apt install g++).")
    cc.create_shared(output, objects, **kwargs)


link.output_format = "so"  # type: ignore[attr-defined]  # read by export_library
