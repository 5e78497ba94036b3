"""TVM's environment for compiling to a platform: the compilers that it calls, their options and their places.

Without this, TVM decides by the GPU that is in this machine, one directory of CUDA, and AMD's device libraries for one
width of wavefronts, which are wrong for other machines.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..backends import cuda
from ..errors import UnsupportedError
from . import tools

_CODE_OBJECT = Path(__file__).parents[1] / "backends" / "rocm_code_object.ll"


def environment(platform: str, arch: str | None) -> None:
    """Has TVM compile for a family of GPUs with what `tools.needed` has found. May be called again, for another.

    Raises what `tools.require` raises, and UnsupportedError for a family that the compiler does not know.
    """
    tools.require(platform, arch)
    if arch is not None and platform in _OWN:
        _OWN[platform](arch)


def _cuda(arch: str) -> None:
    """Kernels are compiled with the model (by default TVM would keep their source where there is no driver), for `arch`
    (where it would ask the GPU), and the headers of pip's packages are found in all their directories."""
    import tvm_ffi
    from tvm.support import nvcc
    from tvm.target import Target

    compiler = tools.cuda_compiler(arch)
    assert compiler is not None, "require has seen to it"
    os.environ["TVM_CUDA_COMPILE_MODE"] = compiler.mode
    if compiler.mode == "nvcc":
        os.environ["PATH"] = _with(str(compiler.home / "bin"), os.environ.get("PATH", ""), os.pathsep)
    else:
        _check_nvrtc(arch)
        os.environ["CUDA_PATH"] = str(compiler.home)
        headers = f"-I{compiler.home / 'include' / 'cccl'}"
        os.environ["TVM_CUDA_NVRTC_EXTRA_OPTS"] = _with(headers, os.environ.get("TVM_CUDA_NVRTC_EXTRA_OPTS", ""), " ")
    cuda.load_runtime(compiling=True)

    @tvm_ffi.register_global_func("tvm_callback_cuda_compile", override=True)
    def compile_cuda(code: str) -> Any:
        with Target({"kind": "cuda", "arch": arch}):
            return nvcc.compile_cuda(code, target_format="cubin", compiler=compiler.mode)


def _check_nvrtc(arch: str) -> None:
    from cuda.bindings import nvrtc  # type: ignore[import-not-found,unused-ignore]

    known = {str(number) for number in nvrtc.nvrtcGetSupportedArchs()[1]}
    if tools.family(arch) not in known:
        raise UnsupportedError(
            f"NVRTC does not know {arch}, only {', '.join(f'sm_{n}' for n in sorted(known, key=int))}; "
            f"update it with: {tools.CUDA_PACKAGES}"
        )


def _rocm(arch: str) -> None:
    """No device libraries are linked in (TVM's choice of them is for wavefronts of 64, wrong for RDNA), only a file
    that asks for code objects that are widely understood."""
    import tvm_ffi
    from tvm.support import rocm

    linker = tools.llvm_linker()

    @tvm_ffi.register_global_func("tvm_callback_rocm_bitcode_path", override=True)
    def bitcode(directory: str | None = None) -> Any:
        return tvm_ffi.convert([str(_CODE_OBJECT)])

    @tvm_ffi.register_global_func("tvm_callback_rocm_link", override=True)
    def link(compiled: Any) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            source, linked = Path(directory) / "kernels.o", Path(directory) / "kernels.co"
            source.write_bytes(bytes(compiled))
            rocm.rocm_link(str(source), str(linked), linker)
            return linked.read_bytes()


def _with(item: str, items: str, separator: str) -> str:
    return items if item in items.split(separator) else separator.join(filter(None, (item, items)))


_OWN: Mapping[str, Callable[[str], None]] = {"cuda": _cuda, "rocm": _rocm}
