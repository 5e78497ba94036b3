"""Compiles one PrimFunc for one instruction set and calls it on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm

from llmserve.compile.host import kernel_set
from llmserve.errors import UnsupportedError
from llmserve.kernels.cpu.isa import ISAS, Isa
from llmserve.platforms import PLATFORMS


def _runs(isa: Isa) -> bool:
    try:
        kernel_set(PLATFORMS["cpu"], isa.name, "float32")
    except UnsupportedError:
        return False
    return True


EXECUTABLE = [isa for isa in ISAS if _runs(isa)]
"""All rows that this machine can execute, best first: on a CPU with AVX-512 that of AVX2 as well."""
NATIVE = EXECUTABLE[0]
RUNNABLE = [NATIVE, ISAS[-1]] if NATIVE is not ISAS[-1] else [NATIVE]
"""The best row of this machine, and the portable one: for what instruction sets hardly differ in."""


def target(isa: Isa) -> tvm.target.Target:
    """This CPU for its best row; for another the plainest CPU that has it, so that nothing better is compiled in."""
    attributes = dict(kernel_set(PLATFORMS["cpu"], isa.name, "float32")[1])
    if isa is not NATIVE and isa.features:
        del attributes["mcpu"]
        attributes["mattr"] = [f"+{name}" for name in isa.features]
    return tvm.target.Target(attributes)


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
