"""The prefix cache: pages that already hold the keys and values of a prompt's beginning, found by their tokens.

A trie over full pages, kept as one dictionary: (name of the parent node, the page's tokens) → (name, page). Names are
never used twice and tokens are compared, so there is no hash to collide. The pool counts who holds these pages and
decides when they are given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count

from .page_pool import PagePool

ROOT = 0


class PrefixCache:
    """Full pages by content. Bounded by the pool: a page that is reused leaves the cache."""

    def __init__(self, pool: PagePool, page_size: int) -> None:
        self._pool = pool
        self._page_size = page_size
        self._nodes: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._keys: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._names = count(ROOT + 1)

    def acquire(self, token_ids: Sequence[int]) -> tuple[list[int], int]:
        """Hold the longest known run of full pages that begins `token_ids`; return it and the name of its last node.

        Never covers the last token: that one must be computed, or there would be no logits.
        """
        pages: list[int] = []
        node, size = ROOT, self._page_size
        for start in range(0, len(token_ids) - size, size):
            found = self._nodes.get((node, tuple(token_ids[start : start + size])))
            if found is None:
                break
            node, page = found
            pages.append(page)
        self._pool.retain(pages)
        return pages, node

    def insert(self, parent: int, token_ids: Sequence[int], page: int) -> int:
        """Make a held, full, computed page findable under its parent; return its node's name.

        If another page with the same content is known already, that one stays and this one remains private.
        """
        key = (parent, tuple(token_ids))
        known = self._nodes.get(key)
        if known is not None:
            return known[0]
        name = next(self._names)
        self._nodes[key] = (name, page)
        self._keys[page] = key
        self._pool.keep(page, self._drop)
        return name

    def forget(self, pages: Iterable[int]) -> None:
        """Make pages unfindable, because their content is not to be trusted. Others may go on holding them."""
        for page in pages:
            if page in self._keys:
                self._drop(page)
                self._pool.unkeep(page)

    def _drop(self, page: int) -> None:
        del self._nodes[self._keys.pop(page)]
