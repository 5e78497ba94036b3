"""Helpers over TVM's IRBuilder: a kernel is plain Python that emits TIR.

Python `for` and `if` unroll and specialise at build time; `T.serial`, `T.parallel` and `when` emit loops and branches.
Nothing here knows a platform or an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.target.codegen import llvm_lookup_intrinsic_id
from tvm.tirx import PrimFunc
from tvm.tirx.script import builder as T

__all__ = [
    "T",
    "block",
    "build",
    "each_row",
    "f32",
    "full",
    "i32",
    "prefetch",
    "put",
    "scratch",
    "sized",
    "vec",
    "when",
]


def build(name: str, body: Callable[[], None]) -> PrimFunc:
    """The PrimFunc whose arguments and statements `body` emits: scheduled, opaque to fusion, without aliases."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        # op_pattern 8 is kOpaque: the compiler must not fuse into a kernel that is already scheduled.
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})
        body()
    return builder.get()


def sized(name: str, shape: tuple[Any, ...], dtype: str) -> Any:
    """A tensor argument; `shape` may hold symbolic sizes made with `T.int64()`."""
    return T.match_buffer(T.arg(name, T.handle()), shape, dtype)


@contextmanager
def block(name: str) -> Iterator[None]:
    """A scope for scratch buffers. Reads and writes are left empty: nothing reorders these kernels."""
    with T.sblock(name):
        T.reads()
        T.writes()
        yield


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Emit a branch; a condition that Python knows costs nothing if true."""
    if condition is True:
        yield
        return
    with T.If(condition), T.Then():
        yield


def each_row(m: Any, body: Callable[[Any], None]) -> None:
    """`body(row)`, a block, for each of `m` rows; by all threads if there are several, as waking one for a single row
    costs more than it does."""
    with T.If(m == 1):
        with T.Then(), block("row"):
            body(T.int64(0))
        with T.Else(), T.parallel(m) as row, block("row"):
            body(row)


def scratch(shape: int | tuple[Any, ...], dtype: str = "float32") -> Any:
    """A temporary of the enclosing block: on the stack when it is small and of fixed size."""
    return T.sblock_alloc_buffer(shape if isinstance(shape, tuple) else (shape,), dtype)


def vec(buffer: Any, *index: Any, lanes: int, stride: int = 1) -> Any:
    """`lanes` consecutive (or strided) elements along the last axis."""
    *lead, last = index
    at = (*lead, last if lanes == 1 else T.ramp(last, stride, lanes))
    return buffer[at]


def put(buffer: Any, value: Any, *index: Any, lanes: int = 1) -> None:
    """Store a scalar, or a vector of `lanes` along the last axis."""
    *lead, last = index
    T.buffer_store(buffer, value, [*lead, last if lanes == 1 else T.ramp(last, 1, lanes)])


def full(value: Any, lanes: int) -> Any:
    """`value` in every lane."""
    return value if lanes == 1 else T.Broadcast(value, lanes)


def prefetch(buffer: Any, *index: Any) -> None:
    """Ask for the cache line of an element that will be read soon, into the second level: a core can wait for few
    lines of the first one, and is twice as fast this way where memory is the limit."""
    hint = T.call_llvm_intrin(
        T.uint32(llvm_lookup_intrinsic_id("llvm.prefetch")),
        T.address_of(buffer[index]),
        *(T.int32(0), T.int32(2), T.int32(1)),  # read, second level, data
        dtype="void",
    )
    T.evaluate(hint)


def f32(value: float) -> Any:
    return T.float32(value)


def i32(value: int) -> Any:
    return T.int32(value)
