"""The loading of TVM's CUDA runtime, which TVM leaves out silently where CUDA's libraries are not found.

They may come from pip (`llmserve[cuda]`), where the dynamic linker does not look, and on a machine that only compiles
there is no driver at all (cuda_stub.cc).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from .. import artifact
from ..errors import UnsupportedError
from ..machine import cuda_runtime
from .build import compile_plugin

DRIVER = "libcuda.so.1"
_SOURCE = Path(__file__).with_name("cuda_stub.cc")


def load_runtime(*, compiling: bool = False) -> None:
    """Makes TVM know `cuda`, before a library for it is loaded, or (`compiling`) kernels are compiled.

    Raises UnsupportedError for a missing driver, unless compiling, and for a missing CUDA 13.
    """
    import tvm_ffi
    from tvm_ffi.libinfo import load_lib_ctypes

    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    library = cuda_runtime() or "libcudart.so.13"
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UnsupportedError(
            f"CUDA 13's runtime does not load ({error}); run: pip install 'llmserve[cuda]'"
        ) from None
    try:
        ctypes.CDLL(DRIVER, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        if not compiling:
            raise UnsupportedError(f"NVIDIA's driver does not load ({error}); install version 580 or later.") from None
        ctypes.CDLL(str(_stub()), mode=ctypes.RTLD_GLOBAL)
    load_lib_ctypes(package="tvm", target_name="tvm_runtime_cuda", extra_lib_paths=[_libraries()], mode="RTLD_LOCAL")


def _stub() -> Path:
    """The stand-in, compiled into the cache; its soname has the dynamic linker take it for the driver."""

    def make(directory: Path) -> None:
        compile_plugin(_SOURCE, (), directory / DRIVER, (f"-Wl,-soname,{DRIVER}",))

    causes = {"platform": "cuda-stub", "sources": artifact.source_hash(f"backends/{_SOURCE.name}")}
    return artifact.obtain("backend", causes, make) / DRIVER


def _libraries() -> Path:
    import tvm

    return Path(tvm.__file__).parent / "lib"
