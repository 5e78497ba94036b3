"""The webgpu plugin's kernels on whatever adapter there is (a software one in CI), against numpy.

What is computed has one answer in floating point (single products and sums), so equality is exact.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax

from llmserve import backends

from ..kernels.gpu.harness import needs_float16
from . import kernels, wgsl
from .conftest import TARGET

Build = Callable[[tvm.tirx.PrimFunc], tvm.runtime.Module]
Device = tvm.runtime.Device


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-40, 40, shape).astype(dtype)


def view(tensor: tvm.runtime.Tensor, start: int, size: int) -> tvm.runtime.Tensor:
    """`size` elements from `start` on, at an address of their own."""
    offset = start * np.dtype(tensor.dtype).itemsize
    return tvm_ffi.get_global_func("vm.builtin.ensure_zero_offset")(
        tensor._create_view((size,), tensor.dtype, relative_byte_offset=offset)
    )


@pytest.mark.parametrize("n", [1, 5, 64, 65, 100_003])
def test_a_kernel_with_scalars(webgpu: Device, build: Build, n: int) -> None:
    x = random(n)
    out = tvm.runtime.empty((n,), "float32", webgpu)
    build(kernels.scale)["scale"](tvm.runtime.tensor(x, webgpu), out, 2.5, n)
    np.testing.assert_array_equal(out.numpy(), x * np.float32(2.5))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint32"])
def test_types(webgpu: Device, build: Build, dtype: str) -> None:
    if dtype == "float16":
        needs_float16()
    a, b = random(1001, dtype="int32").astype(dtype), random(1001, dtype="int32", seed=1).astype(dtype)
    out = tvm.runtime.empty((1001,), dtype, webgpu)
    build(kernels.add(dtype))["add"](tvm.runtime.tensor(a, webgpu), tvm.runtime.tensor(b, webgpu), out)
    np.testing.assert_array_equal(out.numpy(), a + b)


def test_the_device_is_described(webgpu: Device) -> None:
    info = backends.device_info("webgpu")
    assert (
        webgpu.exist and webgpu.device_name == info["name"] and info["type"] in ("discrete", "integrated", "software")
    )
    assert webgpu.max_threads_per_block == info["limits"]["maxComputeInvocationsPerWorkgroup"] >= 128
    assert webgpu.max_shared_memory_per_block == info["limits"]["maxComputeWorkgroupStorageSize"] >= 16384
    assert not tvm.device("webgpu", 1).exist


def test_a_chain_of_kernels_is_one_submission(webgpu: Device, build: Build) -> None:
    step = build(kernels.increase)["increase"]
    x, total = random(300), tvm.runtime.tensor(np.zeros(300, "float32"), webgpu)
    one = tvm.runtime.tensor(x, webgpu)
    step(one, total, 300)
    total.numpy()
    before = backends.statistics("webgpu")
    for _ in range(499):
        step(one, total, 300)
    expected = np.zeros(300, "float32")
    for _ in range(500):
        expected += x
    np.testing.assert_array_equal(total.numpy(), expected)
    after = backends.statistics("webgpu")
    assert after["dispatches"] - before["dispatches"] == 499
    assert after["submissions"] - before["submissions"] == 1
    assert after["bind_groups"] == before["bind_groups"]


@pytest.mark.parametrize("n", [100, 100_000])  # through the arena, and straight to the queue
def test_writes_and_kernels_keep_their_order(webgpu: Device, build: Build, n: int) -> None:
    step = build(kernels.increase)["increase"]
    source, total = tvm.runtime.empty((n,), "float32", webgpu), tvm.runtime.tensor(np.zeros(n, "float32"), webgpu)
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")  # does not wait, as `copyfrom` does
    expected = np.zeros(n, "float32")
    for i in range(60):
        x = random(n, seed=i)
        copy(tvm.runtime.tensor(x), source)
        step(source, total, n)
        expected += x
    np.testing.assert_array_equal(total.numpy(), expected)
    for i in range(3):
        source.copyfrom(np.full(n, i, "float32"))
        step(source, total, n)
        expected += np.float32(i)
    np.testing.assert_array_equal(total.numpy(), expected)


def test_scalars_outlast_a_full_arena(webgpu: Device, build: Build) -> None:
    """More kernels than one batch has room for, each with another scalar."""
    step = build(kernels.scale)["scale"]
    x, n = tvm.runtime.tensor(np.ones(1, "float32"), webgpu), 40_000
    row = tvm.runtime.empty((1,), "float32", webgpu)
    outs = [tvm.runtime.empty((1,), "float32", webgpu) for _ in range(9)]
    before = backends.statistics("webgpu")["submissions"]
    for i in range(n):
        step(x, outs[i % 9] if i >= n - 9 else row, float(i), 1)
    got = sorted(float(out.numpy()[0]) for out in outs)
    assert got == [float(i) for i in range(n - 9, n)]
    assert backends.statistics("webgpu")["submissions"] > before + 1


@pytest.mark.parametrize("blocks", [65_535, 65_536, 70_001, 131_071, 0])
def test_more_blocks_than_a_dimension_has(webgpu: Device, build: Build, blocks: int) -> None:
    out = tvm.runtime.tensor(np.zeros(140_000, "int32"), webgpu)
    build(kernels.number_blocks)["number_blocks"](out, blocks, 140_000)
    expected = np.arange(1, 140_001, dtype="int32")
    expected[blocks:] = 0
    np.testing.assert_array_equal(out.numpy(), expected)


def test_views_are_arguments(webgpu: Device, build: Build) -> None:
    x = random(1000)
    whole, out = tvm.runtime.tensor(x, webgpu), tvm.runtime.empty((1000,), "float32", webgpu)
    step = build(kernels.scale)["scale"]
    step(view(whole, 256, 100), view(out, 512, 100), 2.0, 100)
    np.testing.assert_array_equal(out.numpy()[512:612], x[256:356] * 2)
    # One buffer, read through one argument and written through another.
    step(view(whole, 0, 64), view(whole, 512, 64), 3.0, 64)
    x[512:576] = x[:64] * 3
    np.testing.assert_array_equal(whole.numpy(), x)


def test_a_view_that_no_kernel_can_take(webgpu: Device, build: Build) -> None:
    step = backends.device_info("webgpu")["limits"]["minStorageBufferOffsetAlignment"]
    source, out = tvm.runtime.tensor(random(100), webgpu), tvm.runtime.empty((8,), "float32", webgpu)
    crooked = source._create_view((8,), "float32", relative_byte_offset=4)
    kernel = next(iter(build(kernels.scale).imports))["scale_kernel"]
    with pytest.raises(
        ValueError, match=f"kernel scale_kernel is a view that begins at byte 4; .* multiples of {step}"
    ):
        kernel(crooked, out, 8, 1.0, 1, 64)
    with pytest.raises(TypeError, match="Kernel scale_kernel takes 6 arguments and was given 2"):
        kernel(source, out)


def test_memory_freed_before_it_is_used(webgpu: Device, build: Build) -> None:
    step = build(kernels.scale)["scale"]
    x = random(5000)
    out = tvm.runtime.empty((5000,), "float32", webgpu)
    allocated = backends.statistics("webgpu")["allocated_bytes"]
    for _ in range(50):  # the others' memory is soon given to somebody else
        source, between = tvm.runtime.tensor(x, webgpu), tvm.runtime.empty((5000,), "float32", webgpu)
        step(source, between, 2.0, 5000)
        step(between, out, 3.0, 5000)
        del source, between
    np.testing.assert_array_equal(out.numpy(), x * 2 * 3)
    assert backends.statistics("webgpu")["allocated_bytes"] == allocated


def test_wgsl_that_does_not_compile(webgpu: Device) -> None:
    module = wgsl.load(wgsl.device_bytes("broken", "@compute fn broken() { nonsense(); }", [1]))
    out = tvm.runtime.empty((4,), "float32", webgpu)
    for _ in range(2):  # the second time it is not taken for compiled
        with pytest.raises(RuntimeError, match=r"(?s)Kernel broken does not compile for WebGPU.*nonsense"):
            module["broken"](out, 1, 1)
    with pytest.raises(RuntimeError, match="Kernel broken does not compile"):
        module["webgpu.compile"](2)
    assert out.numpy().shape == (4,)


def test_wgsl_that_contradicts_its_description(webgpu: Device) -> None:
    """The shader writes what the description says it reads."""
    code = """@group(0) @binding(0) var<storage, read_write> a : array<f32>;
    @compute @workgroup_size(1) fn liar() { a[0] = 1.0; }"""
    out = tvm.runtime.empty((4,), "float32", webgpu)
    with pytest.raises(RuntimeError, match="Kernel liar does not compile for WebGPU"):
        wgsl.load(wgsl.device_bytes("liar", code, [0]))["liar"](out, 1, 1)


def test_a_damaged_module(webgpu: Device) -> None:
    data = wgsl.device_bytes("kernel", "", [1])
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r"truncated|no description"):
            wgsl.load(data[:size])


def test_all_kernels_can_be_compiled_at_once(webgpu: Device, build: Build) -> None:
    module = build(kernels.scale)
    next(iter(module.imports))["webgpu.compile"](4)
    out = tvm.runtime.empty((3,), "float32", webgpu)
    module["scale"](tvm.runtime.tensor(np.ones(3, "float32"), webgpu), out, 4.0, 3)
    np.testing.assert_array_equal(out.numpy(), np.full(3, 4, "float32"))


def test_other_threads_may_use_it(webgpu: Device, build: Build) -> None:
    step = build(kernels.scale)["scale"]
    results: dict[int, bool] = {}

    def work(seed: int) -> None:
        x = random(700, seed=seed)
        for _ in range(20):
            source, out = tvm.runtime.tensor(x, webgpu), tvm.runtime.empty((700,), "float32", webgpu)
            step(source, out, float(seed), 700)
            results[seed] = results.get(seed, True) and bool((out.numpy() == x * np.float32(seed)).all())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), True)


def test_a_virtual_machine_with_a_symbolic_size(webgpu: Device, tmp_path: Path) -> None:
    """A Relax function: two kernels, a tensor between them that its allocator gives, a shape known at the call."""
    builder, n = relax.BlockBuilder(), tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n,), "float32"))
    y = relax.Var("y", relax.TensorType((n,), "float32"))
    add = builder.add_func(kernels.add("float32").with_attr("tirx.is_scheduled", True), "add")
    with builder.function("main", [x, y]):
        once = builder.emit(relax.call_tir(add, [x, y], relax.TensorType((n,), "float32")))
        builder.emit_func_output(builder.emit(relax.call_tir(add, [once, y], relax.TensorType((n,), "float32"))))
    module = tvm.tirx.transform.ForceNarrowIndexToInt32()(builder.get())
    library = tmp_path / "vm.so"
    relax.build(module, target=tvm.target.Target(TARGET)).export_library(str(library))
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), webgpu)
    for size in (1, 77, 4096, 77):
        a, b = random(size), random(size, seed=1)
        out = vm["main"](tvm.runtime.tensor(a, webgpu), tvm.runtime.tensor(b, webgpu))
        np.testing.assert_array_equal(out.numpy(), a + b + b)


def test_a_fresh_process_loads_the_library(webgpu: Device, build: Build, tmp_path: Path) -> None:
    build(kernels.scale)
    code = f"""
from llmserve import backends, toolchain
toolchain.without_torch()
backends.load("webgpu")
import numpy, tvm
scale = tvm.runtime.load_module({str(tmp_path / "scale.so")!r})["scale"]
out = tvm.runtime.empty((3,), "float32", tvm.device("webgpu"))
scale(tvm.runtime.tensor(numpy.arange(3, dtype="float32"), tvm.device("webgpu")), out, 2.0, 3)
print(out.numpy().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0, 2.0, 4.0]"


def test_the_adapter_is_chosen_by_name(webgpu: Device) -> None:
    name = backends.device_info("webgpu")["name"]
    code = """
from llmserve import backends, toolchain
toolchain.without_torch()
print(backends.device_info("webgpu")["name"])
"""

    def ask(wanted: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LLMSERVE_WEBGPU_ADAPTER": wanted}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )

    assert ask(name[:6].upper()).stdout.strip() == name == ask("0").stdout.strip()
    failed = ask("no such card")
    assert f"LLMSERVE_WEBGPU_ADAPTER is no such card, but there is only 0: {name}" in failed.stderr


def test_a_trace_tells_what_ran(webgpu: Device, build: Build) -> None:
    step = build(kernels.scale)["scale"]
    x, out = tvm.runtime.tensor(random(1000), webgpu), tvm.runtime.empty((1000,), "float32", webgpu)
    short = view(x, 0, 640), view(out, 0, 640)
    with backends.trace("webgpu") as dispatches:
        for i in range(1500):  # more than one batch can time
            step(*((x, out) if i % 2 == 0 else short), float(i), 640 if i % 2 else 1000)
    assert [d.kernel for d in dispatches] == ["scale_kernel"] * 1500
    assert [d.workgroups for d in dispatches[:2]] == [(16, 1, 1), (10, 1, 1)]
    assert sorted(dispatches[3].scalars) == [9, 640, int(np.float32(3).view("uint32"))]
    assert dispatches[1].bindings == dispatches[0].bindings
    assert [binding[1:] for binding in dispatches[0].bindings] == [(4000, 0, 4000)] * 2
    timed = backends.device_info("webgpu")["features"]["timestamp-query"]
    assert all(d.microseconds >= 0 if timed else d.microseconds < 0 for d in dispatches)
    step(x, out, 1.0, 1000)
    with backends.trace("webgpu") as dispatches:
        pass
    assert not dispatches
