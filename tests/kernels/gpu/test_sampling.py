"""The sampling kernel is compiled for each kind of GPU; what it computes is in tests/kernels/test_sampling.py."""

from __future__ import annotations

import pytest
import tvm

from llmserve.compile.environment import environment
from llmserve.compile.host import kernel_set
from llmserve.compile.pipeline import build_context
from llmserve.errors import LLMServeError
from llmserve.kernels.gpu.sampling import sample
from llmserve.platforms import PLATFORMS

KERNELS = 6
"""Copy and mask; adjust; maxima; the best; weights; the draw."""


@pytest.mark.parametrize(
    ("platform", "arch"), [("cuda", "sm_90"), ("rocm", "gfx1100"), ("rocm", "gfx942"), ("metal", "apple")]
)
def test_it_compiles(platform: str, arch: str) -> None:
    try:
        environment(platform, arch)
    except LLMServeError as error:
        pytest.skip(f"compiling for {platform}: {error}")
    kernels, target = kernel_set(PLATFORMS[platform], arch, "float16")
    func = sample("sample", 32003, kernels.gpu)
    with build_context():
        executable = tvm.compile(tvm.IRModule({"sample": func}), target=tvm.target.Target(dict(target)))
    (device,) = executable.mod.imports
    source = device.inspect_source()
    assert all(f"sample_kernel{'' if i == 0 else f'_{i}'}" in source for i in range(KERNELS))
