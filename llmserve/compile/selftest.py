"""The self-test of a device: one of our own kernels compiled, run and compared with numpy.

    python -m llmserve.compile.selftest PLATFORM [ARCH]

The kernel multiplies 4-bit weights with a few rows, which uses storage, packing, host code, launches, shared memory and
barriers. The last line printed is JSON: "problem" (empty if there is none), the seconds of a run, the device's name.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends
from ..errors import LLMServeError
from ..platforms import find
from ..quant.group import INT4, dequantize, quantize
from ..toolchain import without_torch

ROWS, OUT, IN = 3, 96, 128


def run(platform_name: str, arch: str | None = None) -> tuple[float, str]:
    """Raises LLMServeError for what is missing or wrong; returns the seconds of a run, and the device's name."""
    backends.load(platform_name)

    import tvm
    from tvm.relax.frontend import nn
    from tvm.runtime.vm import VirtualMachine

    from ..kernels.base import using
    from .environment import environment
    from .host import compute_dtype, gpu_arch, kernel_set, linker
    from .pipeline import compile_module

    platform = find(platform_name)
    device = tvm.device(platform.name)
    if not device.exist:
        raise LLMServeError(f"TVM finds no {platform.name} device.")
    dtype = compute_dtype(platform, arch, None)
    kernels, target = kernel_set(platform, arch, dtype)
    environment(platform.name, gpu_arch(platform, arch))
    x, stored, expected, bound = problem(dtype)

    class Probe(nn.Module):
        def __init__(self) -> None:
            self.weight = kernels.weight(OUT, IN, INT4, False)
            for suffix, (shape, kind) in self.weight.params.items():
                setattr(self, suffix, nn.Parameter(shape, kind))

        def project(self, x: Any) -> Any:
            return self.weight.matmul(x, {suffix: getattr(self, suffix) for suffix in self.weight.params})

    with using(kernels):
        probe = Probe()
        spec = {"x": nn.spec.Tensor(["rows", IN], dtype), "$": {"param_mode": "plain", "effect_mode": "none"}}
        module, names = probe.export_tvm({"project": spec})
    executable = compile_module(module, target, {"rows": ROWS})
    with tempfile.TemporaryDirectory() as directory:
        library = str(Path(directory) / "probe.so")
        executable.export_library(library, fcompile=linker(platform))
        vm = VirtualMachine(tvm.runtime.load_module(library), device)
        arranged = probe.weight.arrange(stored)
        arguments = [tvm.runtime.tensor(a, device) for a in (x, *(arranged[name] for name, _ in names))]
        vm["project"](*arguments)  # pipelines are made at the first call
        device.sync()
        began = time.perf_counter()
        result = vm["project"](*arguments)
        device.sync()
        seconds = time.perf_counter() - began
        found = result.numpy().astype(np.float64)
    if not (np.abs(found - expected) <= bound).all():
        worst = float(np.nanmax(np.abs(found - expected) / bound)) if np.isfinite(found).any() else float("nan")
        raise LLMServeError(f"Its results are wrong (the furthest off is {worst:.3g} times the bound of rounding).")
    return seconds, str(device.device_name or "")


def problem(dtype: str) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """x [ROWS, IN], the stored weights, x Wᵀ in float64, and how far from it a correct result may be.

    The bound: CPUs round activations to 8 bits in groups, by half a step of max|x| / 127 at most. Scales, products,
    sums and result are rounded to float16 at worst, each by 2⁻¹¹ of numbers no larger than Σ|x w|.
    """
    generator = np.random.default_rng(7)
    w = generator.standard_normal((OUT, IN)).astype(np.float32)
    x = generator.standard_normal((ROWS, IN)).astype(dtype)
    q_weight, q_scale = quantize(w, INT4)
    exact = dequantize(q_weight, q_scale, INT4, IN).astype(np.float64)
    wide = x.astype(np.float64)
    size = np.abs(wide) @ np.abs(exact).T
    rounded = np.abs(wide).max() / 254 * np.abs(exact).sum(axis=1)
    return x, {"q_weight": q_weight, "q_scale": q_scale}, wide @ exact.T, rounded + size * 2.0**-9


def main(arguments: list[str]) -> None:
    without_torch()
    answer: dict[str, Any] = {"problem": "", "seconds": 0.0, "device": ""}
    try:
        answer["seconds"], answer["device"] = run(*arguments)
    except Exception as error:
        # Whatever a driver or compiler throws is the finding, and all that is wanted of it is its first line.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        answer["problem"] = lines[0] if isinstance(error, LLMServeError) else f"{type(error).__name__}: {lines[-1]}"
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
