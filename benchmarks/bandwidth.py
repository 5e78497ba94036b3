"""The read bandwidth of this machine's memory, the bound of a decode step, which reads every weight once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SIZE = 1 << 30  # bytes; far beyond any cache


def read_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Bytes per second, the best of the passes made in so many seconds: numpy's sum of integers, a share of SIZE for
    each thread. It does one addition for each eight bytes, and releases the interpreter."""
    share = np.ones(SIZE // 8 // threads, np.int64)
    shares = [share, *(share.copy() for _ in range(threads - 1))]
    with ThreadPoolExecutor(threads) as pool:
        return sum(part.nbytes for part in shares) / fastest(lambda: list(pool.map(np.sum, shares)), seconds)


def fastest(call: Callable[[], Any], budget: float) -> float:
    """Seconds of the fastest of the calls that fit in `budget` seconds, two at least."""
    call()
    best, until = float("inf"), time.perf_counter() + budget
    while True:
        began = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > until:
            return best
