"""The compile pipeline: passes that turn a traced model into a VM program, top to bottom.

Kernels are scheduled PrimFuncs already. Plain operators of a family are legalised, fused with their neighbours and
given the default schedule of the device; a model without any skips these passes. Then come memory planning and
lowering. Nothing is freed before a call ends: intermediates share planned storage, and dropping references cost 4 % of
a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import tvm
from tvm import relax
from tvm.relax import transform as rx
from tvm.s_tir import dlight

from .sharing import share_tensors


def compile_module(module: tvm.IRModule, target: Mapping[str, Any], upper_bounds: Mapping[str, int]) -> Any:
    """A traced module as an executable for `target`, which can be exported as a library."""
    on_cpu = target["kind"] == "llvm"
    with nullcontext() if on_cpu else build_context():
        made = tvm.target.Target(dict(target))
        if has_plain_operators(module):
            with made:
                module = plain_operators(on_cpu)(module)
        return tvm.compile(module, made, relax_pipeline=pipeline(upper_bounds))


def build_context() -> tvm.transform.PassContext:
    """The pass context in which GPU kernels are built.

    They hold every barrier that they need. TVM's own pass for that does not follow which element a thread touches, and
    refuses what it takes for a barrier under a condition. Without it, buffers must not share memory either: one that a
    thread is done with may still be read by others.
    """
    return tvm.transform.PassContext(disabled_pass=["s_tir.ThreadSync"], config={"tirx.disable_storage_rewrite": True})


def has_plain_operators(module: tvm.IRModule) -> bool:
    """Whether a family computes anything by itself, beside calls of kernels."""
    found: set[str] = set()

    def look(expr: Any) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            found.add(expr.op.name)

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, look)
    return not found <= {"relax.call_tir", "relax.call_tir_inplace"}


def plain_operators(on_cpu: bool) -> tvm.transform.Pass:
    """Operators as PrimFuncs, neighbours in one, scheduled."""
    schedule = (
        rows_in_parallel()
        if on_cpu
        else dlight.ApplyDefaultSchedule(dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback())
    )
    return tvm.transform.Sequential(
        [rx.LegalizeOps(), rx.AnnotateTIROpPattern(), rx.FoldConstant(), rx.FuseOps(), rx.FuseTIR(), schedule]
    )


def rows_in_parallel() -> tvm.transform.Pass:
    """The default schedule on CPUs: rows by threads; vectors within a row are LLVM's to make."""

    @tvm.transform.module_pass(opt_level=0, name="RowsInParallel")
    def apply(module: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        for name, function in module.functions_items():
            if isinstance(function, tvm.tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled"):
                module[name] = _rows_in_parallel(function)
        return module

    return apply


def _rows_in_parallel(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    schedule = tvm.s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        kinds = [int(var.iter_type) for var in schedule.get(block).iter_vars]
        if len(loops) > 1 and kinds[0] == 0:
            schedule.parallel(loops[0])
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def pipeline(upper_bounds: Mapping[str, int]) -> tvm.transform.Pass:
    """`upper_bounds`: the largest value of each symbolic size, which lets memory be planned once for all batches."""
    return tvm.transform.Sequential(
        [
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
