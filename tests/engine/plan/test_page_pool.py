"""Pages are handed out once, shared by count, and come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.plan.page_pool import PagePool


def test_allocates_all_pages_once_and_then_none() -> None:
    pool = PagePool(4)
    pages = pool.allocate(4)
    assert pages is not None and sorted(pages) == [0, 1, 2, 3]
    assert pool.allocate(1) is None
    assert pool.allocate(0) == []
    pool.release(pages)
    assert pool.num_available == 4


def test_takes_nothing_if_there_is_not_enough() -> None:
    pool = PagePool(4)
    pool.allocate(2)
    assert pool.allocate(3) is None
    assert pool.num_available == 2


def test_a_shared_page_is_free_after_its_last_release() -> None:
    pool = PagePool(1)
    pages = pool.allocate(1)
    assert pages is not None
    pool.retain(pages)
    pool.release(pages)
    assert pool.num_available == 0
    pool.release(pages)
    assert pool.num_available == 1


def test_release_and_retain_of_a_free_page_are_refused() -> None:
    pool = PagePool(2)
    with pytest.raises(AssertionError):
        pool.release([0])
    with pytest.raises(KeyError):
        pool.retain([0])
    with pytest.raises(AssertionError):
        pool.keep(0, lambda page: None)


def test_kept_pages_idle_and_are_reused_oldest_first_after_the_free_ones() -> None:
    pool = PagePool(4)
    pages = pool.allocate(3)
    assert pages is not None
    a, b, c = pages
    reused: list[int] = []
    for page in (a, b, c):
        pool.keep(page, reused.append)
    pool.release([b])
    pool.release([a, c])
    assert pool.num_available == 4
    pool.retain([a])  # found again
    assert pool.allocate(1) not in ([a], [b], [c]) and reused == []
    assert pool.allocate(2) is not None and reused == [b, c]
    pool.release([a])
    pool.check_integrity([[b], [c], [3]])


def test_integrity_check_notices_leaks_and_double_use() -> None:
    pool = PagePool(3)
    pages = pool.allocate(2)
    assert pages is not None
    pool.check_integrity([pages])
    with pytest.raises(AssertionError):
        pool.check_integrity([])  # a leak
    with pytest.raises(AssertionError):
        pool.check_integrity([pages, pages[:1]])  # held more often than counted
    pool._free.append(pages[0])
    with pytest.raises(AssertionError):
        pool.check_integrity([pages])


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "drop", "keep"]), st.integers(0, 7)), max_size=60))
def test_any_order_of_operations_keeps_the_counts(operations: list[tuple[str, int]]) -> None:
    pool = PagePool(8)
    tables: list[list[int]] = []
    for what, number in operations:
        table = tables[number % len(tables)] if tables else None
        if what == "take":
            available = pool.num_available
            pages = pool.allocate(number)
            assert (pages is None) == (number > available)
            tables.append(pages or [])
        elif table is None:
            continue
        elif what == "share":
            pool.retain(table)
            tables.append(list(table))
        elif what == "keep":
            for page in table:
                pool.keep(page, lambda page: None)
        else:
            tables.remove(table)
            pool.release(table)
        pool.check_integrity(tables)
    for table in tables:
        pool.release(table)
    assert pool.num_available == 8
