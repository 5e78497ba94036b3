"""Memory of host and device behind one interface: shared on a CPU, two memories on anything else.

What a step needs is laid out in one buffer on the host and travels in one copy; kernels get views of its mirror on the
device. On a CPU the buffer is its own mirror, and nothing travels.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...weights.load import aligned, huge_memory

ALIGNMENT = 256  # bytes at which views of a buffer begin: what devices ask for at most
CHUNK_BYTES = 32 << 20  # of a parameter that is copied at once
MAX_STAGED = 256  # sets of arrays whose views are remembered

Shape = tuple[int, ...]
Spec = tuple[Shape, str]
"""Shape and dtype."""


class Memory(Protocol):
    """A device's memory. Tensors are what compiled code takes; a buffer is memory that tensors are views of."""

    def tensor(self, shape: Shape, dtype: str) -> Any:
        """Zeros."""

    def put(self, array: npt.NDArray[Any]) -> Any:
        """The array as a tensor; its memory is shared where that is possible, so it must not change."""

    def get(self, tensor: Any) -> npt.NDArray[Any]:
        """A copy of what compiled code returned."""

    def buffer(self, nbytes: int) -> Any:
        """Bytes of any content, or zeros, for `view` and `reader`."""

    def view(self, buffer: Any, start: int, shape: Shape, dtype: str) -> Any:
        """A part of a buffer as a tensor; `start` is a multiple of ALIGNMENT bytes."""

    def reader(self, buffer: Any, start: int, shape: Shape, dtype: str) -> Callable[[], npt.NDArray[Any]]:
        """A function that reads a part of a buffer: it waits for the device, and shares memory if that is possible."""

    def staging(self, nbytes: int) -> tuple[npt.NDArray[np.uint8], Any, Callable[[int], None]]:
        """Bytes on the host, a buffer that mirrors them, and what brings so many bytes of it up to date."""


class HostMemory:
    """The device is the CPU: all memory is shared, and a buffer is an array."""

    def __init__(self) -> None:
        import tvm_ffi

        # As `tvm.runtime.from_dlpack` does it, without importing that: what compiled code assumes is checked.
        self._tensor = partial(tvm_ffi.from_dlpack, require_alignment=64, require_contiguous=True)

    def tensor(self, shape: Shape, dtype: str) -> Any:
        return self.view(self.buffer(math.prod(shape) * np.dtype(dtype).itemsize), 0, shape, dtype)

    def put(self, array: npt.NDArray[Any]) -> Any:
        return self._tensor(aligned(array))

    def get(self, tensor: Any) -> npt.NDArray[Any]:
        return np.array(np.from_dlpack(tensor))

    def buffer(self, nbytes: int) -> Any:
        return np.frombuffer(huge_memory(nbytes), np.uint8)

    def view(self, buffer: Any, start: int, shape: Shape, dtype: str) -> Any:
        return self._tensor(part(buffer, start, shape, dtype))

    def reader(self, buffer: Any, start: int, shape: Shape, dtype: str) -> Callable[[], npt.NDArray[Any]]:
        array = part(buffer, start, shape, dtype)
        return lambda: array

    def staging(self, nbytes: int) -> tuple[npt.NDArray[np.uint8], Any, Callable[[int], None]]:
        host = self.buffer(nbytes)
        return host, host, lambda used: None


class DeviceMemory:
    """The device has memory of its own; a buffer is a tensor of bytes there."""

    def __init__(self, device: Any) -> None:
        """`device` is TVM's."""
        import tvm

        self._device, self._runtime = device, tvm.runtime

    def tensor(self, shape: Shape, dtype: str) -> Any:
        tensor = self._runtime.empty(shape, dtype, self._device)
        self._fill(tensor, None)
        return tensor

    def put(self, array: npt.NDArray[Any]) -> Any:
        tensor = self._runtime.empty(array.shape, str(array.dtype), self._device)
        self._fill(tensor, np.ascontiguousarray(array).reshape(-1))
        return tensor

    def get(self, tensor: Any) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = tensor.numpy()
        return array

    def buffer(self, nbytes: int) -> Any:
        return self._runtime.empty((nbytes,), "uint8", self._device)

    def view(self, buffer: Any, start: int, shape: Shape, dtype: str) -> Any:
        return self._runtime.from_dlpack(_Moved(buffer._create_view(shape, dtype, start)))

    def reader(self, buffer: Any, start: int, shape: Shape, dtype: str) -> Callable[[], npt.NDArray[Any]]:
        read: Callable[[], npt.NDArray[Any]] = buffer._create_view(shape, dtype, start).numpy
        return read

    def staging(self, nbytes: int) -> tuple[npt.NDArray[np.uint8], Any, Callable[[int], None]]:
        host, buffer = np.frombuffer(huge_memory(nbytes), np.uint8), self.buffer(nbytes)
        source = self._runtime.from_dlpack(host)

        def send(used: int) -> None:
            source._create_view((used,)).copyto(buffer._create_view((used,)))

        return host, buffer, send

    def _fill(self, tensor: Any, flat: npt.NDArray[Any] | None) -> None:
        """Copies the values, or zeros, in parts, so that what is staged on the way stays small."""
        dtype = np.dtype(str(tensor.dtype))
        count, step = math.prod(tensor.shape), CHUNK_BYTES // dtype.itemsize
        zeros = np.zeros(min(step, count), dtype) if flat is None else None
        for start in range(0, count, step):
            size = min(step, count - start)
            values = flat[start : start + size] if flat is not None else zeros[:size]  # type: ignore[index]
            tensor._create_view((size,), str(dtype), start * dtype.itemsize).copyfrom(values)


class _Moved:
    """A view whose data begin where it does: TVM's own keep their buffer's address and an offset, which compiled code
    refuses. What DLPack hands over is a description of the view's own, so it can be changed there."""

    class _Description(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_uint64),
            ("device", ctypes.c_int32 * 2),
            ("ndim", ctypes.c_int32),
            ("dtype", ctypes.c_uint8 * 4),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("byte_offset", ctypes.c_uint64),
        )

    def __init__(self, view: Any) -> None:
        self._view = view

    def __dlpack_device__(self) -> Any:
        return self._view.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._view.__dlpack__()
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        description = self._Description.from_address(address(capsule, b"dltensor"))
        description.data += description.byte_offset
        description.byte_offset = 0
        return capsule


class StagedArrays:
    """Arrays of fixed shapes in a staging buffer.

    Attributes:
        arrays: on the host, to be written.
        tensors: the same on the device, once `send` was called.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[Any]], tensors: Sequence[Any], send: Callable[[], None]) -> None:
        self.arrays, self.tensors, self.send = tuple(arrays), tuple(tensors), send


class Staging:
    """One buffer for arrays of many shapes, each on ALIGNMENT bytes. Values stay until other arrays are written."""

    def __init__(self, memory: Memory, nbytes: int = 1 << 16) -> None:
        self._memory = memory
        self._staged: dict[tuple[Spec, ...], StagedArrays] = {}
        self._host, self._buffer, self._send = memory.staging(nbytes)

    def arrays(self, specs: tuple[Spec, ...]) -> StagedArrays:
        """The same object for the same specs, as long as it is remembered: making views costs more than a call."""
        found = self._staged.get(specs)
        if found is None:
            if len(self._staged) == MAX_STAGED:
                self._staged.clear()
            found = self._staged[specs] = self._lay_out(specs)
        return found

    def _lay_out(self, specs: tuple[Spec, ...]) -> StagedArrays:
        starts, end = [], 0
        for shape, dtype in specs:
            starts.append(end)
            end += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
        if end > len(self._host):
            self._staged.clear()
            self._host, self._buffer, self._send = self._memory.staging(2 * end)
        arrays, tensors = [], []
        for start, (shape, dtype) in zip(starts, specs, strict=True):
            arrays.append(part(self._host, start, shape, dtype))
            tensors.append(self._memory.view(self._buffer, start, shape, dtype))
        send = self._send
        return StagedArrays(arrays, tensors, lambda: send(end))


class RowBuffer:
    """Memory for a tensor of which each call takes as many leading rows as it needs."""

    def __init__(self, memory: Memory, shape: Shape, dtype: str) -> None:
        self._memory, self._shape, self._dtype = memory, shape, dtype
        self._row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        self._buffer = memory.buffer(shape[0] * self._row_bytes)
        self._first: dict[int, Any] = {}
        self._readers: dict[int, Callable[[], npt.NDArray[Any]]] = {}

    def first(self, count: int) -> Any:
        """The first `count` rows as a tensor."""
        found = self._first.get(count)
        if found is None:
            found = self._first[count] = self._memory.view(self._buffer, 0, (count, *self._shape[1:]), self._dtype)
        return found

    def read(self, count: int) -> npt.NDArray[Any]:
        """The first `count` rows on the host."""
        reader = self._readers.get(count)
        if reader is None:
            shape = (count, *self._shape[1:])
            reader = self._readers[count] = self._memory.reader(self._buffer, 0, shape, self._dtype)
        return reader()

    def read_row(self, index: int) -> npt.NDArray[Any]:
        return self._memory.reader(self._buffer, index * self._row_bytes, self._shape[1:], self._dtype)()


def memory_of(device: str) -> Memory:
    """The memory of the first device of that kind."""
    if device == "cpu":
        return HostMemory()
    import tvm

    return DeviceMemory(tvm.device(device))


def part(array: npt.NDArray[np.uint8], start: int, shape: Shape, dtype: str) -> npt.NDArray[Any]:
    """A part of some bytes as an array of its own shape."""
    view: npt.NDArray[Any] = np.ndarray(shape, dtype, array, start)
    return view
