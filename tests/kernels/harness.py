"""Compiles one PrimFunc for one instruction set and calls it on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm

from llmserve.compile.host import kernel_set
from llmserve.kernels.cpu.isa import ISAS, Isa
from llmserve.platforms import PLATFORMS

NATIVE = kernel_set(PLATFORMS["cpu"], None, "float32")[0].isa
RUNNABLE = [NATIVE, ISAS[-1]] if NATIVE is not ISAS[-1] else [NATIVE]
"""The best row of this machine, and the portable one, compiled for the plainest CPU of its kind."""


def target(isa: Isa) -> tvm.target.Target:
    return tvm.target.Target(dict(kernel_set(PLATFORMS["cpu"], isa.name, "float32")[1]))


def compiled(func: tvm.tirx.PrimFunc, isa: Isa) -> Callable[..., None]:
    """A callable over numpy arrays; arrays are shared, so outputs are written in place."""
    library = tvm.compile(func, target=target(isa))

    def call(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(a) for a in arrays]
        library(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if array.flags.writeable:
                array[...] = tensor.numpy()

    return call
