"""The passes that turn a traced model into a VM program, top to bottom.

Every operator is a scheduled PrimFunc already, so nothing is legalised, fused or scheduled here: what is left is memory
planning and lowering. Platforms whose operators come from the compiler add their passes at the marked place.

Nothing is freed before a call ends, as intermediates lie in storage that was planned for all of them together: dropping
each reference after its last use took a small model 4 % of a step, and would free nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import tvm
from tvm import relax
from tvm.relax import transform as rx

from .sharing import share_tensors


def compile_module(module: tvm.IRModule, target: Mapping[str, Any], upper_bounds: Mapping[str, int]) -> Any:
    """A traced module as an executable for `target`, which can be exported as a library."""
    with nullcontext() if target["kind"] == "llvm" else build_context():
        return tvm.compile(module, tvm.target.Target(dict(target)), relax_pipeline=pipeline(upper_bounds))


def build_context() -> tvm.transform.PassContext:
    """What kernels for GPUs are built under.

    They hold every barrier that they need. TVM's own pass for that does not follow which element a thread touches, and
    refuses what it takes for a barrier under a condition. Without it, buffers must not share memory either: one that a
    thread is done with may still be read by others.
    """
    return tvm.transform.PassContext(disabled_pass=["s_tir.ThreadSync"], config={"tirx.disable_storage_rewrite": True})


def pipeline(upper_bounds: Mapping[str, int]) -> tvm.transform.Pass:
    """`upper_bounds`: the largest value of each symbolic size, which lets memory be planned once for all batches."""
    return tvm.transform.Sequential(
        [
            # (platform passes: legalise, fuse, schedule)
            _annotate(upper_bounds),
            rx.ToNonDataflow(),
            rx.RemovePurityChecking(),
            rx.CallTIRRewrite(),
            rx.StaticPlanBlockMemory(),
            rx.LowerAllocTensor(),
            share_tensors(),
            rx.LowerRuntimeBuiltin(),
            rx.ComputePrimValue(),
            rx.VMShapeLower(),
            rx.AttachGlobalSymbol(),
        ]
    )


def _annotate(upper_bounds: Mapping[str, int]) -> tvm.transform.Pass:
    @tvm.transform.module_pass(opt_level=0, name="AnnotateUpperBounds")
    def annotate(module: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[name] = function.with_attr("tir_var_upper_bound", dict(upper_bounds))
        return module

    return annotate
