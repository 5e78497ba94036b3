"""The threads under compiled CPU libraries: every task once, a late worker is not waited for, two callers at a time.

The pool is compiled alone, around a stand-in for a library's launch pointer, and driven through ctypes.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmserve.compile.host import CPU_SOURCES

HARNESS = r"""
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>
typedef struct { void* sync; int32_t num_task; } Group;
typedef int (*Task)(int, Group*, void*);
static int serial(Task t, void* d, int n) { Group g = {0, 1}; (void)n; return t(0, &g, d); }
int (*__TVMBackendParallelLaunch)(Task, void*, int) = serial;

typedef struct {
  int64_t extent; _Atomic int32_t* seen; int sleep_us; int fail_at; _Atomic int64_t tasks; pthread_t caller;
} Loop;
_Atomic int64_t by_others; /* tasks that a loop's caller did not run itself */
static int body(int id, Group* g, void* data) {
  Loop* loop = data;
  int64_t chunk = (loop->extent + g->num_task - 1) / g->num_task, first = id * chunk;
  atomic_fetch_add(&loop->tasks, 1);
  if (!pthread_equal(loop->caller, pthread_self())) atomic_fetch_add(&by_others, 1);
  for (int64_t i = first; i < first + chunk && i < loop->extent; ++i) {
    atomic_fetch_add(&loop->seen[i], 1);
    if (loop->sleep_us) usleep(loop->sleep_us);
    if (i == loop->fail_at) return -1;
  }
  return 0;
}
/* `rounds` loops over `extent` elements; returns the number of elements not seen once per loop, or -1 for a failure. */
int64_t drive(int64_t extent, int rounds, _Atomic int32_t* seen, int sleep_us, int fail_at, int64_t* tasks) {
  Loop loop = {extent, seen, sleep_us, fail_at, 0, pthread_self()};
  int64_t wrong = 0;
  for (int r = 1; r <= rounds; ++r) {
    if (__TVMBackendParallelLaunch(body, &loop, 0)) return -1;
    for (int64_t i = 0; i < extent; ++i) wrong += seen[i] != r;
  }
  *tasks = loop.tasks;
  return wrong;
}
"""


class Pool:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.drive.restype = ctypes.c_int64
        self.start, self.stop = library.llmserve_threads_start, library.llmserve_threads_stop

    @property
    def by_others(self) -> int:
        """Tasks that a loop's caller did not run itself, so far."""
        return ctypes.c_int64.in_dll(self._library, "by_others").value

    def drive(self, extent: int, rounds: int = 1, sleep_us: int = 0, fail_at: int = -1) -> tuple[int, int]:
        """(elements that were not done exactly once in each round, tasks that ran)."""
        seen, tasks = (ctypes.c_int32 * max(extent, 1))(), ctypes.c_int64()
        wrong = self._library.drive(ctypes.c_int64(extent), rounds, seen, sleep_us, fail_at, ctypes.byref(tasks))
        return wrong, tasks.value


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    if not shutil.which("g++"):
        pytest.skip("threads of CPUs: g++ is not installed (apt install g++)")
    directory: Path = tmp_path_factory.mktemp("threads")
    (directory / "harness.c").write_text(HARNESS)
    library = directory / "pool.so"
    sources = [word for file in (*CPU_SOURCES, directory / "harness.c") for word in ("-x", "c", str(file))]
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-O2",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(library),
        *sources,
    ]
    subprocess.run(command, check=True)
    return Pool(ctypes.CDLL(str(library)))


@pytest.fixture
def running(pool: Pool) -> Iterator[Pool]:
    assert pool.start(4) == 4
    yield pool
    pool.stop()


@pytest.mark.parametrize("extent", [0, 1, 3, 31, 32, 33, 1000])
def test_every_element_is_done_once_in_every_loop(running: Pool, extent: int) -> None:
    wrong, tasks = running.drive(extent, rounds=2000)
    assert wrong == 0 and tasks == 2000 * 64  # 4 threads, 16 tasks each


def test_sleeping_workers_are_woken(running: Pool) -> None:
    time.sleep(0.1)  # far longer than a worker spins
    before = running.by_others
    assert running.drive(64, sleep_us=20_000)[0] == 0
    assert running.by_others - before >= 7  # of 64: the caller alone did not do more than nine tenths


def test_a_failing_task_is_reported_and_the_next_loop_runs(running: Pool) -> None:
    assert running.drive(100, fail_at=50)[0] == -1
    assert running.drive(100)[0] == 0


def test_a_second_caller_runs_its_loop_alone(running: Pool) -> None:
    results: list[tuple[int, int]] = []
    callers = [threading.Thread(target=lambda: results.append(running.drive(64, rounds=3000))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [wrong for wrong, _ in results] == [0, 0, 0]


def test_without_users_the_library_has_its_own_launcher_back(pool: Pool) -> None:
    assert pool.drive(10) == (0, 1)
    assert pool.start(2) == 2 and pool.start(8) == 2  # the first user decides
    assert pool.drive(10)[1] == 32
    pool.stop()
    assert pool.drive(10)[1] == 32
    pool.stop()
    assert pool.drive(10) == (0, 1)
