"""The webgpu device, where this machine has one, and compiling for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tvm

from ..kernels.gpu.harness import needs_device

TARGET = {"kind": "webgpu", "max_num_threads": 256, "host": {"kind": "llvm"}}


@pytest.fixture(scope="session")
def webgpu(cache: Path) -> tvm.runtime.Device:
    needs_device()
    return tvm.device("webgpu")


@pytest.fixture
def build(webgpu: tvm.runtime.Device, tmp_path: Path) -> Callable[[tvm.tirx.PrimFunc], tvm.runtime.Module]:
    """PrimFunc → the library it compiles to, exported and loaded; its function is the entry of that name."""

    def make(func: tvm.tirx.PrimFunc) -> tvm.runtime.Module:
        path = tmp_path / f"{func.attrs['global_symbol']}.so"
        module = tvm.tirx.transform.ForceNarrowIndexToInt32()(tvm.IRModule({func.attrs["global_symbol"]: func}))
        tvm.compile(module, target=tvm.target.Target(TARGET)).export_library(str(path))
        return tvm.runtime.load_module(str(path))

    return make
