"""TVM's virtual machine by its runtime alone: a compiled library becomes functions without importing `tvm`.

That package is the compiler, and takes most of a second and a hundred megabytes; running a library takes a small shared
object of it. This does what `tvm.runtime.vm.VirtualMachine` does. Both may be used in one process.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, ConfigError

_POOLED = 2  # the allocator that keeps what was freed


def load_library(library: Path, device: str) -> Any:
    """The compiled library's functions by name (`machine["step"]`), for the first device of that kind.

    Raises ArtifactError when the library does not load.
    """
    _load_runtime()
    import tvm_ffi

    try:
        machine = tvm_ffi.load_module(str(library))["vm_load_executable"]()
    except (RuntimeError, AttributeError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{library} does not load; remove its directory and start again: {cause}") from error
    kinds = dict.fromkeys((device, "cpu"))  # the CPU for shapes, if for nothing else
    numbers = [(tvm_ffi.device(kind).dlpack_device_type(), 0, _POOLED) for kind in kinds]
    machine["vm_initialization"](*itertools.chain(*numbers))
    return machine


def _load_runtime() -> None:
    """Into this process, unless `tvm` has done so; of a second time the dynamic linker knows."""
    if "tvm" in sys.modules:
        return
    from tvm_ffi.libinfo import load_lib_ctypes

    found = importlib.util.find_spec("tvm")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("TVM is not installed; run: pip install llmserve")
    libraries = [Path(place) / "lib" for place in found.submodule_search_locations]
    # Global, as TVM has it: libraries for devices look for its symbols in the process.
    load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=libraries)
