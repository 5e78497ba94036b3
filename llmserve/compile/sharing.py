"""A pass that merges equal objects of a planned program: shapes, and views of planned memory.

The memory planner assigns a storage to each intermediate tensor, and the compiler makes a shape and a tensor for each
of them, in every step again, though most are equal: the layers of a decoder have the same few. Making them takes longer
than a small model's kernels do. Two tensors of one storage are never alive together, so one view serves both. Straight
programs only, which is what tracing a model gives: a function with branches is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

_ALLOC_TENSOR = tvm.ir.Op.get("relax.memory.alloc_tensor")


def share_tensors() -> tvm.transform.Pass:
    """For functions after LowerAllocTensor: aliases, tuples of which only parts are used, and repeated shapes and
    tensors are gone."""

    @relax.transform.function_pass(opt_level=0, name="ShareTensors")
    def share(function: relax.Function, module: tvm.IRModule, context: tvm.transform.PassContext) -> relax.Function:
        return _Sharing(function).result() if _is_straight(function) else function

    return share


def _is_straight(function: relax.Function) -> bool:
    blocks = function.body.blocks if isinstance(function.body, relax.SeqExpr) else []
    return all(
        isinstance(binding, relax.VarBinding) and not isinstance(binding.value, relax.If)
        for block in blocks
        for binding in block.bindings
    )


class _Sharing:
    """One function, rewritten binding by binding."""

    def __init__(self, function: relax.Function) -> None:
        self._function = function
        self._stands_for: dict[relax.Var, relax.Expr] = {}
        self._tuples: dict[relax.Var, relax.Tuple] = {}
        self._shapes: list[tuple[tuple[Any, ...], relax.Var]] = []
        self._tensors: dict[tuple[Any, ...], relax.Var] = {}  # by storage, offset, shape and dtype
        self._bindings: list[relax.VarBinding] = []

    def result(self) -> relax.Function:
        old = self._function
        for block in old.body.blocks:
            for binding in block.bindings:
                self._take(binding.var, self._renamed(binding.value))
        returned = self._renamed(old.body.body)
        used = {var for expr in (*(b.value for b in self._bindings), returned) for var in _variables(expr)}
        kept = [b for b in self._bindings if b.var not in self._tuples or b.var in used]
        body = relax.SeqExpr([relax.BindingBlock(kept)], returned)
        return relax.Function(old.params, body, old.ret_ty, old.is_pure, old.attrs)

    def _take(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var):
            self._stands_for[var] = value
            return
        if isinstance(value, relax.Tuple):
            self._tuples[var] = value
        if isinstance(value, relax.Call) and value.op == _ALLOC_TENSOR:
            storage, offset, shape, dtype, *rest = value.args
            shape = self._shared_shape(shape)
            key = (storage, str(offset), shape, str(dtype))
            if key in self._tensors:
                self._stands_for[var] = self._tensors[key]
                return
            self._tensors[key] = var
            value = relax.Call(value.op, [storage, offset, shape, dtype, *rest], value.attrs, value.ty_args)
        self._bindings.append(relax.VarBinding(var, value))

    def _shared_shape(self, shape: relax.Expr) -> relax.Expr:
        """A variable that holds this shape."""
        if not isinstance(shape, relax.ShapeExpr):
            return shape
        key = tuple(shape.values)
        # Symbolic sizes are equal if they are the same variable; text would not tell two of one name apart.
        same = [var for known, var in self._shapes if len(known) == len(key) and all(map(_equal, known, key))]
        if same:
            return same[0]
        var = relax.Var("shape", relax.ShapeType(list(key)))
        self._shapes.append((key, var))
        self._bindings.append(relax.VarBinding(var, shape))
        return var

    def _renamed(self, expr: relax.Expr) -> relax.Expr:
        """The expression with what is known in the place of its variables."""
        if isinstance(expr, relax.Var):
            return self._stands_for.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._renamed(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            source = self._renamed(expr.tuple_value)
            if source in self._tuples:
                return self._tuples[source].fields[expr.index]
            return relax.TupleGetItem(source, expr.index)
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [self._renamed(a) for a in expr.args], expr.attrs, expr.ty_args, None, expr.ty)
        return expr


def _equal(a: Any, b: Any) -> bool:
    return bool(tvm_ffi.structural_equal(a, b))


def _variables(expr: relax.Expr) -> Iterator[relax.Var]:
    """Those that the expression reads; programs at this stage nest nothing but tuples."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.TupleGetItem):
        yield from _variables(expr.tuple_value)
    elif isinstance(expr, (relax.Tuple, relax.Call)):
        for part in expr.fields if isinstance(expr, relax.Tuple) else expr.args:
            yield from _variables(part)
