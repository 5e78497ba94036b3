"""Prompts that begin alike share pages; nothing else does."""

from __future__ import annotations

from llmserve.engine.plan.page_pool import PagePool
from llmserve.engine.plan.prefix_cache import ROOT, PrefixCache


def fill(cache: PrefixCache, pool: PagePool, tokens: list[int], size: int = 2) -> list[int]:
    """Cache the full pages of a sequence, which goes on holding them."""
    pages = pool.allocate(len(tokens) // size)
    assert pages is not None
    node = ROOT
    for i, page in enumerate(pages):
        node = cache.insert(node, tokens[i * size : (i + 1) * size], page)
    return pages


def test_finds_the_longest_run_of_full_pages() -> None:
    pool = PagePool(8)
    cache = PrefixCache(pool, 2)
    pages = fill(cache, pool, [1, 2, 3, 4, 5, 6])
    assert cache.acquire([1, 2, 3, 4, 5, 6, 7])[0] == pages
    assert cache.acquire([1, 2, 3, 4, 9, 9, 9])[0] == pages[:2]
    assert cache.acquire([1, 9, 3, 4, 5, 6, 7])[0] == []
    assert cache.acquire([1, 2])[0] == []


def test_the_last_token_is_never_covered() -> None:
    pool = PagePool(8)
    cache = PrefixCache(pool, 2)
    pages = fill(cache, pool, [1, 2, 3, 4])
    assert cache.acquire([1, 2, 3, 4])[0] == pages[:1]
    assert cache.acquire([1, 2, 3, 4, 5])[0] == pages


def test_equal_tokens_after_another_prefix_are_another_page() -> None:
    pool = PagePool(8)
    cache = PrefixCache(pool, 2)
    fill(cache, pool, [1, 2, 7, 7])
    assert cache.acquire([7, 7, 0])[0] == []
    other = fill(cache, pool, [3, 4, 7, 7])
    assert cache.acquire([3, 4, 7, 7, 0])[0] == other


def test_acquired_pages_are_held() -> None:
    pool = PagePool(2)
    cache = PrefixCache(pool, 2)
    pages = fill(cache, pool, [1, 2, 3, 4])
    pool.release(pages)
    assert pool.num_available == 2
    found, _ = cache.acquire([1, 2, 3])
    assert pool.num_available == 1
    pool.check_integrity([found])


def test_the_second_page_of_the_same_content_stays_private() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool, 2)
    first, second = fill(cache, pool, [1, 2, 3, 4]), fill(cache, pool, [1, 2, 3, 4])
    assert cache.acquire([1, 2, 3, 4, 5])[0] == first
    pool.release([*first, *first, *second])
    assert pool.allocate(2) == second[::-1]  # nobody looks for it, so it is free, and goes before what is kept
    assert cache.acquire([1, 2, 3, 4, 5])[0] == first


def test_reused_pages_leave_the_cache_the_end_of_a_prompt_first() -> None:
    pool = PagePool(3)
    cache = PrefixCache(pool, 2)
    pages = fill(cache, pool, [1, 2, 3, 4, 5, 6])
    pool.release(reversed(pages))
    taken = pool.allocate(1)
    assert taken == pages[2:]
    assert cache.acquire([1, 2, 3, 4, 5, 6, 7])[0] == pages[:2]


def test_forgotten_pages_are_not_found_and_not_lost() -> None:
    pool = PagePool(3)
    cache = PrefixCache(pool, 2)
    pages = fill(cache, pool, [1, 2, 3, 4])
    cache.forget(pages)
    assert cache.acquire([1, 2, 3, 4, 5])[0] == []
    pool.release(pages)
    pool.check_integrity([])
    assert pool.num_available == 3
