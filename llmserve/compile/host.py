"""The kernel set and TVM target of a platform, and this machine's linker."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .. import backends, detect
from ..errors import ArtifactError, LLMServeError, UnsupportedError
from ..kernels.base import KernelSet
from ..platforms import Gpu, Platform

# Sources that are linked into each library for CPUs.
CPU_SOURCES = tuple(Path(__file__).parents[1] / "backends" / name for name in ("cpu_threads.c", "cpu_replay.c"))


def compute_dtype(platform: Platform, arch: str | None, quant: str | None) -> str:
    """The dtype of activations for a scheme's name on a family of a platform."""
    if platform.kernels == "gpu" and not _gpu_family(platform, arch).float16:
        return "float32"
    return platform.computes_in(quant)


@cache
def kernel_set(platform: Platform, arch: str | None, dtype: str) -> tuple[KernelSet, Mapping[str, Any]]:
    """The kernels and TVM's target for a platform; `arch` is its instruction set or GPU family, None the best here;
    `dtype` that of activations.

    Raises UnsupportedError for an `arch` that is not there, with what is.
    """
    return {"cpu": _cpu, "gpu": _gpu}[platform.kernels](platform, arch, dtype)


def _gpu(platform: Platform, arch: str | None, dtype: str) -> tuple[KernelSet, Mapping[str, Any]]:
    from ..kernels.gpu import GpuKernels

    gpu = _gpu_family(platform, arch)
    host = {"kind": "llvm"} if platform.name != "metal" else {"kind": "llvm", "mtriple": "arm64-apple-macosx"}
    kernels: Any = GpuKernels(platform.name, gpu, dtype)
    return kernels, {**platform.target, **gpu.attributes, "host": host}


def gpu_arch(platform: Platform, arch: str | None) -> str | None:
    """The family of GPUs that is compiled for, by name; None for CPUs. Raises UnsupportedError as `kernel_set` does."""
    return _gpu_family(platform, arch).name if platform.kernels == "gpu" else None


@cache
def _family_here(platform_name: str) -> str | None:
    """The family of this machine's GPU, else one that every GPU of the platform is of, else None."""
    if platform_name == "webgpu":
        try:
            return "f16" if backends.device_info("webgpu")["features"]["shader-f16"] else "f32"
        except LLMServeError:  # there is no such device here, so it is compiled for another machine's
            return "f16"
    return detect.arch(platform_name) or {"metal": "apple"}.get(platform_name)


def _gpu_family(platform: Platform, arch: str | None) -> Gpu:
    arch = arch or _family_here(platform.name)
    if arch is None:
        raise UnsupportedError(
            f"Compiling for {platform.name} needs to know the GPU's family, and this machine has none; "
            f"say it with --arch, one of {', '.join(platform.gpus)}."
        )
    return platform.gpu(arch)


def _cpu(platform: Platform, arch: str | None, dtype: str) -> tuple[KernelSet, Mapping[str, Any]]:
    import tvm
    from tvm.target import codegen

    from ..kernels.cpu import CpuKernels
    from ..kernels.cpu.isa import ISAS, choose

    mcpu = codegen.llvm_get_system_cpu()
    known = frozenset(map(str, codegen.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": mcpu}))))
    features = known - _hidden_features()
    wanted = choose(features) if arch is None else next((isa for isa in ISAS if isa.name == arch), None)
    if wanted is None or not features.issuperset(wanted.features):
        usable = [isa.name for isa in ISAS if features.issuperset(isa.features)]
        close = difflib.get_close_matches(str(arch), usable, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnsupportedError(f"This CPU has no instruction set {arch!r}{hint}; it has {', '.join(usable)}.")
    if features == known and wanted.features:
        return CpuKernels(wanted), {**platform.target, "mcpu": mcpu}
    # The portable row must run anywhere, and where features are hidden the CPU's name would bring them back.
    attributes = {"mattr": [f"+{name}" for name in wanted.features]} if wanted.features else {}
    return CpuKernels(wanted), {**platform.target, **attributes}


def _hidden_features() -> frozenset[str]:
    """LLVM goes by the CPU's model; a virtual machine may hide features of it, and Linux tells which are there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), None)
    if flags is None:
        return frozenset()
    names = {"avx512vnni": "avx512_vnni"}  # where Linux spells it otherwise
    checked = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni")
    return frozenset(name for name in checked if names.get(name, name) not in flags)


def linker(platform: Platform) -> Callable[..., None]:
    """The function that links objects to a shared library, as `export_library` takes it for `fcompile`."""
    return link if platform.kernels == "cpu" else link_host_code


def link(output: str, objects: list[str], **kwargs: Any) -> None:
    """Link a shared library, our threads in it, with the machine's C++ compiler. Raises ArtifactError without one."""
    # C, not C++: it takes a tenth of the time to compile. Said of each file, or g++ takes the second for C++.
    sources = [word for source in CPU_SOURCES for word in ("-x", "c", str(source))]
    _create_shared(output, objects, ["-pthread", "-O2", *sources, "-x", "none"], **kwargs)


def link_host_code(output: str, objects: list[str], **kwargs: Any) -> None:
    """Link a shared library whose kernels run elsewhere. Raises ArtifactError without a C++ compiler."""
    _create_shared(output, objects, [], **kwargs)


def _create_shared(output: str, objects: list[str], options: list[str], **kwargs: Any) -> None:
    from tvm.support import cc

    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ArtifactError("Linking the compiled model needs a C++ compiler; install g++ (Debian: apt install g++).")
    cc.create_shared(output, objects, options, **kwargs)


for _link in (link, link_host_code):
    _link.output_format = "so"  # type: ignore[attr-defined]  # read by export_library
