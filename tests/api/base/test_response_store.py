"""The store of responses: bounded by count and by bytes, and what of a conversation it finds again."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llmserve.api.base.response_store import ResponseStore
from llmserve.errors import RequestError, ResponseNotFoundError


def response(name: str, previous: str | None = None, text: str = "") -> dict[str, Any]:
    return {"id": name, "previous_response_id": previous, "output": [{"id": f"out-{name}", "text": text}]}


def asked(name: str) -> list[dict[str, Any]]:
    return [{"id": f"in-{name}"}]


def names(store: ResponseStore, last: str) -> list[str]:
    return [item["id"] for item in store.conversation(last)]


def test_a_conversation_is_found_from_its_last_response() -> None:
    store = ResponseStore(10, 10_000)
    store.put(response("a"), asked("a"))
    store.put(response("b", "a"), asked("b"))
    store.put(response("c", "a"), asked("c"))  # two go on from the first
    assert names(store, "b") == ["in-a", "out-a", "in-b", "out-b"]
    assert names(store, "c") == ["in-a", "out-a", "in-c", "out-c"]
    assert store.conversation(None) == []
    assert store.item("out-b") == {"id": "out-b", "text": ""} and store.item("in-a") == {"id": "in-a"}
    assert store.item("out-x") is None


def test_a_gap_in_a_conversation_is_an_error() -> None:
    store = ResponseStore(10, 10_000)
    store.put(response("a"), asked("a"))
    store.put(response("b", "a"), asked("b"))
    store.delete("a")
    assert store.item("out-a") is None
    with pytest.raises(RequestError, match="no longer stored") as caught:
        store.conversation("b")
    assert caught.value.code == "previous_response_not_found" and caught.value.status == 400
    with pytest.raises(ResponseNotFoundError):
        store.delete("a")


def test_the_count_is_bounded_and_what_is_used_stays() -> None:
    store = ResponseStore(2, 10_000)
    store.put(response("a"), [])
    store.put(response("b"), [])
    store.conversation("a")
    store.put(response("c"), [])
    assert len(store) == 2 and store.get("a") and store.get("c")
    with pytest.raises(ResponseNotFoundError):
        store.get("b")


def test_bytes_are_bounded() -> None:
    store = ResponseStore(1000, 1000)
    store.put(response("large", text="x" * 2000), [])
    assert len(store) == 0
    for i in range(50):
        store.put(response(f"r{i}", text="x" * 300), [])
        assert store.num_bytes <= 1000
    assert 1 <= len(store) <= 3 and store.get("r49")


def test_none_may_be_stored() -> None:
    store = ResponseStore(0, 1000)
    store.put(response("a"), [])
    assert len(store) == 0


def test_random_use_keeps_the_books() -> None:
    rng = random.Random(0)
    store = ResponseStore(20, 5000)
    for i in range(500):
        if rng.random() < 0.2 and len(store):
            store.delete(rng.choice(list(store._stored)))
        store.put(response(f"r{i}", text="x" * rng.randrange(600)), [{"id": f"in-{rng.randrange(50)}"}])
        assert store.num_bytes == sum(s.num_bytes for s in store._stored.values()) <= 5000 and len(store) <= 20
        assert set(store._owners.values()) <= set(store._stored)
    for name in list(store._stored):
        store.delete(name)
    assert not store._owners and store.num_bytes == 0
