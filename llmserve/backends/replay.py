"""Replay of a compiled CPU library's functions: the same kernel calls again, without the virtual machine.

A traced model is a straight program: which kernels it calls, and with which tensors, follows from the tensors that it
gets, whatever is in them. So the calls are recorded once and made again from a list (cpu_replay.c), as a graph that was
captured on a GPU would be. This saves checking and unpacking arguments, allocating, and preparing each call: the same
for every model, and a fifth of a small one's step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

CALLS_BEFORE_RECORDING = 3  # equal calls in a row: a recording takes as long as many calls do
MAX_RECORDINGS = 8  # of one function that are kept, the latest
MAX_WORKSPACE_BYTES = 64 << 20  # that these may work in together; one alone may take more
ALIGNMENT = 64  # bytes, as compiled code wants it

_MAKES_TENSOR = "vm.builtin.alloc_tensor"
# What else a program may do between kernels: check and unpack what it was given, and prepare what it works in.
_PREPARES = frozenset(
    f"vm.builtin.{name}"
    for name in (
        *("alloc_shape_heap", "match_shape", "make_shape", "alloc_storage", "tuple_getitem", "null_value"),
        *("check_tensor_info", "check_tuple_info", "check_shape_info", "check_prim_value_info"),
    )
)


class _Value(ctypes.Structure):
    """TVMFFIAny, of an object."""

    _fields_ = (("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("object", ctypes.c_void_p))


class _Call(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_void_p), ("arguments", ctypes.POINTER(_Value)), ("num_arguments", ctypes.c_int64))


class Replayed:
    """A function of a virtual machine on the CPU, to be called in its place, by one thread at a time.

    Its arguments are tensors, and FFI arrays of tensors, told apart by identity: who calls with the very same objects
    again and again gets the recording. Kernels then work in memory of the recording's own, as much as these arguments'
    sizes need, so that what was planned for the largest ones goes back.
    """

    def __init__(self, machine: Any, name: str, library: str) -> None:
        """`library` is the file of the one that the machine runs."""
        # The same copy that TVM loaded; ctypes keeps it loaded.
        self._machine, self._function, self._library = machine, machine[name], ctypes.CDLL(library)
        self._recordings: dict[tuple[int, ...], _Recording] = {}
        self._current: _Recording | None = None
        self._last: tuple[int, ...] = ()
        self._times = 0  # that it came in a row

    def __call__(self, *arguments: Any) -> Any:
        current = self._current
        # Tuples look whether their elements are the same objects before they ask whether they are equal.
        if current is not None and current.arguments == arguments and current.run():
            return current.result
        key = tuple(map(id, arguments))
        found = self._recordings.get(key)
        if found is not None and found is not current and found.run():
            self._current = found
            return found.result
        # A kernel that failed fails here again, and the machine says why.
        self._times = self._times + 1 if key == self._last else 1
        self._last = key
        return self._recorded(key, arguments) if self._times == CALLS_BEFORE_RECORDING else self._function(*arguments)

    def _recorded(self, key: tuple[int, ...], arguments: tuple[Any, ...]) -> Any:
        recorder = _Recorder()
        self._machine["set_instrument"](recorder.note)
        try:
            result = self._function(*arguments)
        finally:
            self._machine["set_instrument"](None)
        if (recording := recorder.recording(self._library, arguments, result)) is not None:
            self._recordings[key] = self._current = recording
            kept = self._recordings
            while len(kept) > MAX_RECORDINGS or (
                len(kept) > 1 and sum(one.nbytes for one in kept.values()) > MAX_WORKSPACE_BYTES
            ):
                del kept[next(iter(kept))]
        return result


class _Recorder:
    """The calls that a virtual machine makes, as its instrument reports them."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, tuple[Any, ...]]] = []
        self._made: dict[int, Any] = {}  # tensors that kernels work in, by handle

    def note(self, function: Any, symbol: str, before: bool, result: Any, *arguments: Any) -> int:
        """The instrument: called before and after each call of a function."""
        if symbol == _MAKES_TENSOR:
            if not before:
                self._made[result.__chandle__()] = result
        elif before and symbol not in _PREPARES:
            self._calls.append((symbol, arguments))
        return 0

    def recording(self, library: ctypes.CDLL, arguments: tuple[Any, ...], result: Any) -> _Recording | None:
        """None where something else than a kernel is called, or a tensor is neither given nor made to work in."""
        given = {tensor.__chandle__(): tensor for tensor in _tensors(arguments)}
        workspaces = _workspaces(self._made)
        known = given | _moved(self._made, workspaces)
        calls = []
        for symbol, its in self._calls:
            kernel = getattr(library, f"__tvm_ffi_{symbol}", None)
            tensors = [known.get(tensor.__chandle__()) if hasattr(tensor, "__chandle__") else None for tensor in its]
            if kernel is None or None in tensors:
                return None
            calls.append((kernel, tensors))
        nbytes = sum(workspace.nbytes for workspace in workspaces.values())
        return _Recording(library, arguments, calls, result, nbytes) if result.__chandle__() in given else None


class _Recording:
    """Calls of kernels, each with its tensors, that do what a function did with some arguments; and what it returned,
    one of these. Beside its arguments it works in `nbytes` of memory."""

    def __init__(
        self,
        library: ctypes.CDLL,
        arguments: tuple[Any, ...],
        calls: list[tuple[Any, list[Any]]],
        result: Any,
        nbytes: int,
    ) -> None:
        self.arguments, self.result, self.nbytes = arguments, result, nbytes
        self._tensors = [tensors for _, tensors in calls]  # which must not go while they may be used
        self._calls = (_Call * len(calls))()
        for call, (kernel, tensors) in zip(self._calls, calls, strict=True):
            call.kernel = ctypes.cast(kernel, ctypes.c_void_p)
            call.arguments = (_Value * len(tensors))(*map(_value, tensors))
            call.num_arguments = len(tensors)
        self._first, self._count = ctypes.addressof(self._calls), len(calls)
        self._replay = library.llmserve_replay
        self._replay.argtypes = (ctypes.c_void_p, ctypes.c_int64)

    def run(self) -> bool:
        """False if a kernel failed."""
        return not self._replay(self._first, self._count)


def _tensors(arguments: tuple[Any, ...]) -> Iterator[Any]:
    import tvm_ffi

    for argument in arguments:
        if isinstance(argument, tvm_ffi.Array):
            yield from argument
        else:
            yield argument


def _value(tensor: Any) -> _Value:
    """A tensor as kernels take it; an object's type index stands behind its reference count."""
    handle = tensor.__chandle__()
    return _Value(ctypes.c_int32.from_address(handle + 8).value, 0, handle)


def _workspaces(tensors: dict[int, Any]) -> dict[int, np.ndarray]:
    """Fresh memory for the tensors, by where they are: one place for those at one place."""
    sizes: dict[int, int] = {}
    for tensor in tensors.values():
        start, nbytes = tensor.data_ptr(), tensor.numel() * np.dtype(str(tensor.dtype)).itemsize
        sizes[start] = max(sizes.get(start, 0), nbytes)
    return {start: _aligned(nbytes) for start, nbytes in sizes.items()}


def _moved(tensors: dict[int, Any], workspaces: dict[int, np.ndarray]) -> dict[int, Any]:
    """Tensors like these by the same handles, at these places."""
    import tvm_ffi

    return {
        handle: tvm_ffi.from_dlpack(np.ndarray(tensor.shape, str(tensor.dtype), workspaces[tensor.data_ptr()]))
        for handle, tensor in tensors.items()
    }


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.zeros(nbytes + ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :]
