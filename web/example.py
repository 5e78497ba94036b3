"""Records the example that web/index.html runs: a linear layer with 4-bit weights, compared with numpy.

    python web/example.py [directory]

It needs the webgpu device (`pip install 'llmserve[webgpu]'`; a software driver will do), since a recording is made by
running. Float32, because not every browser's adapter has float16.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from llmserve import backends, toolchain

ROWS, OUTPUTS, INPUTS = 3, 512, 1024


def main(directory: Path) -> None:
    toolchain.without_torch()
    backends.load("webgpu")
    import tvm

    from llmserve.backends.recording import record
    from llmserve.compile.host import kernel_set, link_host_code
    from llmserve.compile.pipeline import build_context
    from llmserve.kernels.gpu.layout import WeightLayout
    from llmserve.kernels.gpu.linear import linear
    from llmserve.platforms import PLATFORMS
    from llmserve.quant.group import FORMATS, dequantize, quantize

    random = np.random.default_rng(0)
    fmt = FORMATS["int4"]
    q_weight, q_scale = quantize(random.standard_normal((OUTPUTS, INPUTS)).astype("float32"), fmt)
    layout = WeightLayout(OUTPUTS, INPUTS, fmt, "float32")
    weights = layout.arrange({"q_weight": q_weight, "q_scale": q_scale})
    x = random.standard_normal((ROWS, INPUTS)).astype("float32")

    platform = PLATFORMS["webgpu"]
    func = linear("linear", layout, platform.gpu("f32"), False, "float32")
    with build_context():
        target = tvm.target.Target(dict(kernel_set(platform, "f32", "float32")[1]))
        executable = tvm.compile(tvm.IRModule({"linear": func}), target=target)
    device = tvm.device("webgpu")
    with tempfile.TemporaryDirectory() as temporary:
        path = str(Path(temporary) / "linear.so")
        executable.export_library(path, fcompile=link_host_code)
        library = tvm.runtime.load_module(path)
        inputs = {name: tvm.runtime.tensor(array, device) for name, array in {"x": x, **weights}.items()}
        y = tvm.runtime.empty((ROWS, OUTPUTS), "float32", device)

        def run() -> dict[str, tvm.runtime.Tensor]:
            library["linear"](*inputs.values(), y)
            return {"y": y}

        matrix = dequantize(q_weight, q_scale, fmt, INPUTS).astype("float64")
        # Sums are float32, of terms whose sizes add up to at most this.
        size = (np.abs(x).astype("float64") @ np.abs(matrix).T).max()
        record(directory, library, inputs, run, {"y": x.astype("float64") @ matrix.T}, tolerance=2e-6 * float(size))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("recording"))
