"""Blocks and threads in TIR: launches, shared memory, barriers and reductions, the same on every GPU.

Reductions use shared memory and barriers only, which all GPUs have, whatever the width of their warps.
A barrier must be reached by all threads of a block, so it may stand only under conditions that are the same for all of
them; where such a condition is read from memory, the tensor must not be written by the same kernel (WGSL's rule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..tir import T, block, put

AXES = ("x", "y")  # the third is not to be had in WebGPU, where TVM spreads large extents over it


@contextmanager
def grid(threads: int, *extents: Any) -> Iterator[tuple[Any, ...]]:
    """Launch `extents` blocks (one or two sizes; the first may be symbolic, the second is at most 65535) of `threads`
    threads. Yields the block's indices and the thread's, all int32."""
    with ExitStack() as stack:
        indices = [
            stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
            for axis, extent in zip(AXES, extents, strict=False)
        ]
        thread = stack.enter_context(T.launch_thread("threadIdx.x", threads))
        stack.enter_context(block("block"))
        yield (*indices, thread)


def shared(shape: int | tuple[int, ...], dtype: str = "float32") -> Any:
    """Memory of the whole block."""
    return T.sblock_alloc_buffer(shape if isinstance(shape, tuple) else (shape,), dtype, scope="shared")


def local(shape: int | tuple[int, ...], dtype: str = "float32") -> Any:
    """Registers of one thread."""
    return T.sblock_alloc_buffer(shape if isinstance(shape, tuple) else (shape,), dtype, scope="local")


def held(value: Any) -> Any:
    """`value` (int32) computed once and kept, where it would be written out at each use."""
    kept = local(1, "int32")
    put(kept, value, 0)
    return kept[0]


def barrier() -> None:
    """All threads of the block have got here, and see what the others wrote to shared memory."""
    T.evaluate(T.tvm_storage_sync("shared"))


def reduce(values: Any, width: int, thread: Any, combine: Callable[[Any, Any], Any]) -> None:
    """Combine each run of `width` (a power of two) consecutive elements of a shared buffer into its first; one thread
    for each element. `values[thread]` must be written before; all threads see the result."""
    reduce_all([values], width, thread, combine)


def reduce_all(buffers: Sequence[Any], width: int, thread: Any, combine: Callable[[Any, Any], Any]) -> None:
    """`reduce` for several buffers, at the barriers of one."""
    barrier()
    step = width // 2
    while step:
        with T.If(thread % width < step), T.Then():
            for values in buffers:
                put(values, combine(values[thread], values[thread + step]), thread)
        barrier()
        step //= 2


def ceil_div(a: Any, b: int) -> Any:
    return (a + (b - 1)) // b
