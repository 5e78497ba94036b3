"""Repeated shapes and tensors of a planned program become one, and the program computes what it did."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax import transform as rx
from tvm.runtime.vm import VirtualMachine

from llmserve.compile.sharing import share_tensors
from llmserve.kernels.base import NormKind
from llmserve.kernels.cpu.elementwise import prologue_alone
from llmserve.kernels.cpu.prologue import NormPrologue

from ..kernels.harness import NATIVE, target

WIDTH = 32
PLANNED = tvm.transform.Sequential(
    [
        *(rx.ToNonDataflow(), rx.RemovePurityChecking(), rx.CallTIRRewrite()),
        *(rx.StaticPlanBlockMemory(), rx.LowerAllocTensor()),
    ]
)
LOWERED = tvm.transform.Sequential(
    [rx.LowerRuntimeBuiltin(), rx.ComputePrimValue(), rx.VMShapeLower(), rx.AttachGlobalSymbol()]
)


def chain(depth: int) -> tvm.IRModule:
    """x, weight → (the last norm, the last sum) of `depth` times x, r = norm(x + r), x + r."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(prologue_alone("add", WIDTH, NATIVE, NormPrologue(NormKind(1e-5), True)), "add")
    size = tvm.tirx.Var("n", "int64")
    row = relax.TensorType((size, WIDTH), "float32")
    x, weight = relax.Var("x", row), relax.Var("weight", relax.TensorType((WIDTH,), "float32"))
    with builder.function("main", [x, weight], attrs={"tir_var_upper_bound": {"n": 8}}):
        with builder.dataflow():
            a, r = x, x
            for _ in range(depth):
                both = builder.emit(relax.call_tir(kernel, (a, r, weight), [row, row]))
                a, r = builder.emit(relax.TupleGetItem(both, 0)), builder.emit(relax.TupleGetItem(both, 1))
            out = builder.emit_output(relax.Tuple([a, r]))
        builder.emit_func_output(out)
    return builder.get()


def calls(module: tvm.IRModule, name: str) -> int:
    blocks = module["main"].body.blocks
    values = [binding.value for block in blocks for binding in block.bindings]
    ops = [v.op for v in values if isinstance(v, relax.Call)]
    return sum((op.name_hint if isinstance(op, tvm.ir.GlobalVar) else op.name).endswith(name) for op in ops)


def run(module: tvm.IRModule, *arrays: np.ndarray) -> list[np.ndarray]:
    program = tvm.compile(module, target(NATIVE), relax_pipeline=LOWERED)
    return [t.numpy() for t in VirtualMachine(program, tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))]


def test_equal_tensors_are_made_once_and_the_result_is_the_same():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, WIDTH)).astype(np.float32), rng.uniform(0.5, 2, WIDTH).astype(np.float32)
    with target(NATIVE):
        planned = PLANNED(chain(7))
        shared = share_tensors()(planned)
    assert calls(planned, "alloc_tensor") == 14
    assert calls(shared, "alloc_tensor") <= 6  # two results, and what two steps of the chain have alive together
    assert calls(shared, "add") == calls(planned, "add") == 7
    for ours, theirs in zip(run(shared, x, weight), run(planned, x, weight), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_results_of_two_calls_do_not_share_memory():
    """What a call returns is the caller's, however often the program runs after that."""
    with target(NATIVE):
        program = tvm.compile(share_tensors()(PLANNED(chain(2))), target(NATIVE), relax_pipeline=LOWERED)
    machine = VirtualMachine(program, tvm.cpu())
    weight = tvm.runtime.tensor(np.ones(WIDTH, np.float32))
    first = machine["main"](tvm.runtime.tensor(np.full((1, WIDTH), 2, np.float32)), weight)[1]
    kept = first.numpy().copy()
    machine["main"](tvm.runtime.tensor(np.full((1, WIDTH), -5, np.float32)), weight)
    np.testing.assert_array_equal(first.numpy(), kept)
