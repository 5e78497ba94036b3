"""The loader of converted params: mapped or read into memory, with no parsing beyond the header."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArtifactError, CheckpointError
from .container import ALIGNMENT, TensorInfo, read_header

PARAMS_FILE = "params.safetensors"
_READ_BYTES = 32 << 20
_READERS = 4
_HUGE_SHARE = 0.75  # of a file that must be in huge pages for its mapping to be read as fast as memory of our own
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python has no name for
_ahead: dict[Path, Future[mmap.mmap]] = {}


def read_ahead(path: str | Path) -> None:
    """Begins to read what `load_params(path, resident=True)` is about to be asked for, which then takes it over.

    For a start, which has much to import meanwhile. Errors wait until then too.
    """
    file = (Path(path) / PARAMS_FILE).absolute()
    done: Future[mmap.mmap] = Future()
    _ahead[file] = done

    def read() -> None:
        try:
            done.set_result(_resident(file))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=read, name="llmserve-read-ahead", daemon=True).start()


def load_params(path: str | Path, *, resident: bool = False) -> dict[str, npt.NDArray[Any]]:
    """The tensors of the artifact directory `path` by name, each starting on 64 bytes.

    They are views of one private mapping, which lives as long as any of them; writing to an array (DLPack wants it
    possible) never reaches the file. The few tensors whose size breaks the alignment are copied.

    By default the mapping is of the file: pages are read on first touch and shared between processes. `resident` has it
    all read now, and in huge pages where the system has them: streaming weights through 4 KiB pages reads a fifth to a
    third less per second. That is the file's mapping too if the system keeps the file so, else memory of its own.
    Raises ArtifactError when the file is missing or broken.
    """
    file = Path(path) / PARAMS_FILE
    begun = _ahead.pop(file.absolute(), None) if resident else None
    try:
        tensors = read_header(file)
        if resident:
            mapping = _resident(file) if begun is None else begun.result()
        else:
            with file.open("rb") as opened:
                mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    except (CheckpointError, OSError) as error:
        raise ArtifactError(f"{path} holds no usable params; remove it and convert again. {error}") from error
    return {name: aligned(_view(mapping, info)) for name, info in tensors.items()}


def huge_memory(nbytes: int) -> mmap.mmap:
    """Zeroed private memory that is not there until touched, in huge pages where the system has them."""
    memory = mmap.mmap(-1, max(nbytes, 1), **({"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _resident(file: Path) -> mmap.mmap:
    return _mapped(file) or _read(file)


def _mapped(file: Path) -> mmap.mmap | None:
    """The file as the system keeps it, without a copy, which a start after a pause may wait two seconds for; None if it
    is not kept in huge pages, as files are that were written or read in small parts, or on some file systems."""
    size = file.stat().st_size
    if sys.platform != "linux" or not size:
        return None
    with file.open("rb") as opened:
        mapping = mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    start = np.frombuffer(mapping, np.uint8).ctypes.data
    # Not by the mapping's own method, which would keep other threads from running Python while the disk is read.
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with contextlib.suppress(OSError):  # of a system that does not tell
        if madvise(start, size, _POPULATE_READ) == 0:  # or an older kernel
            with open("/proc/self/smaps", encoding="ascii", errors="replace") as areas:
                if huge_bytes(areas, start, start + size) >= _HUGE_SHARE * size:
                    return mapping
    mapping.close()
    return None


def huge_bytes(areas: Iterable[str], start: int, end: int) -> int:
    """Of a file's mapping at [start, end), the bytes that are in huge pages, by the lines of /proc/PID/smaps."""
    found, ours = 0, False
    for line in areas:
        if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            ours = start <= int(area[1], 16) < end
        elif ours and line.startswith("FilePmdMapped:"):
            found += int(line.split()[1]) << 10
    return found


def _read(file: Path) -> mmap.mmap:
    """The file in memory of its own, read in parts by a few threads: what takes time is getting the memory."""
    memory = huge_memory(file.stat().st_size)

    def read(start: int) -> int:
        with file.open("rb", buffering=0) as opened, view[start : start + _READ_BYTES] as part:
            opened.seek(start)
            done = 0
            while done < len(part) and (count := opened.readinto(part[done:])):
                done += count
            return done

    with memoryview(memory) as view, ThreadPoolExecutor(_READERS) as readers:
        done = sum(readers.map(read, range(0, len(memory), _READ_BYTES)))
    if done != len(memory):
        raise OSError(f"{file} ended after {done} of {len(memory)} bytes")
    return memory


def _view(mapping: mmap.mmap, info: TensorInfo) -> npt.NDArray[Any]:
    raw = np.frombuffer(mapping, np.uint8, info.nbytes, info.offset)
    return raw.view(info.dtype).reshape(info.shape)


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, or a copy of it that starts on 64 bytes, as compiled code may assume, and has its rows in order."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
