"""The account of KV pages: which are free, held, or idle but worth keeping. Counting only; the memory is elsewhere.

A page is `page_size` token slots in every layer. Several sequences may hold the same page. A page whose content
is to be found again (by the prefix cache) stays idle after its last release and is taken back, oldest first, when
the free ones have run out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable


class PagePool:
    """Pages 0 … num_pages - 1 with reference counts. Every operation is O(1) per page."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._refs = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: dict[int, None] = {}  # in order of release
        self._on_reuse: dict[int, Callable[[int], None]] = {}

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out: the free and the idle ones."""
        return len(self._free) + len(self._idle)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` pages, each held once; None, and nothing taken, if there are not that many."""
        if count > self.num_available:
            return None
        while len(self._free) < count:
            page = next(iter(self._idle))
            self._on_reuse[page](page)
            self.unkeep(page)
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._refs[page] = 1
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """Hold pages once more, idle ones included."""
        for page in pages:
            if self._refs[page] == 0:
                del self._idle[page]  # a KeyError here is a use after free
            self._refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Give up one hold on each page. Those released first are reused first."""
        for page in pages:
            if self._refs[page] <= 0:
                raise AssertionError(f"page {page} was released more often than it was taken")
            self._refs[page] -= 1
            if self._refs[page] == 0:
                if page in self._on_reuse:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def keep(self, page: int, on_reuse: Callable[[int], None]) -> None:
        """Let a held page idle after its last release; `on_reuse(page)` says that it is taken for something else."""
        if self._refs[page] == 0:
            raise AssertionError(f"page {page} cannot be kept: nobody holds it")
        self._on_reuse[page] = on_reuse

    def unkeep(self, page: int) -> None:
        """Forget that a page was worth keeping."""
        del self._on_reuse[page]
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    def check_integrity(self, holders: Iterable[Iterable[int]]) -> None:
        """Raise AssertionError unless the counts agree with each other and with the page tables that hold pages."""
        held = Counter(page for pages in holders for page in pages)
        for page, refs in enumerate(self._refs):
            if refs != held[page]:
                raise AssertionError(f"page {page} is counted {refs} times and held {held[page]} times")
        free, idle, used = set(self._free), set(self._idle), set(held)
        if len(free) != len(self._free):
            raise AssertionError("a page is free twice")
        if free & idle or free & used or idle & used:
            raise AssertionError(f"pages in two states: {sorted(free & idle | free & used | idle & used)}")
        if len(free) + len(idle) + len(used) != self.num_pages:
            raise AssertionError(f"pages lost: {sorted(set(range(self.num_pages)) - free - idle - used)}")
        if not idle <= set(self._on_reuse) or free & set(self._on_reuse):
            raise AssertionError("idle pages must be kept ones, and free pages not")
