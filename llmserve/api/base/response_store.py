"""The store of responses that later requests may go on from. In memory and bounded.

When there is no room, the least recently used go first; a conversation that goes on keeps its past.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError, ResponseNotFoundError

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """One response: its body, the items that it answered (without those before it), and what it takes in memory."""

    body: dict[str, Any]
    items: tuple[Item, ...]
    num_bytes: int

    @property
    def all_items(self) -> Iterator[Item]:
        yield from self.items
        yield from self.body["output"]


class ResponseStore:
    """Responses by id, and their items by theirs."""

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses, self._max_bytes = max_responses, max_bytes
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._owners: dict[str, str] = {}  # item id → response id
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, body: dict[str, Any], items: list[Item]) -> None:
        """Store a response; one that is larger than the whole store is not kept."""
        size = len(json.dumps([body, items]))
        if size > self._max_bytes or not self._max_responses:
            return
        stored = self._stored[body["id"]] = Stored(body, tuple(items), size)
        self.num_bytes += size
        for item in stored.all_items:
            self._owners[item["id"]] = body["id"]
        while len(self._stored) > self._max_responses or self.num_bytes > self._max_bytes:
            self.delete(next(iter(self._stored)))

    def get(self, response_id: str) -> Stored:
        """Raises ResponseNotFoundError."""
        if response_id not in self._stored:
            raise ResponseNotFoundError(f"There is no response {response_id!r}, or it is no longer stored.")
        self._stored.move_to_end(response_id)
        return self._stored[response_id]

    def delete(self, response_id: str) -> None:
        """Raises ResponseNotFoundError."""
        stored = self.get(response_id)
        del self._stored[response_id]
        self.num_bytes -= stored.num_bytes
        for item in stored.all_items:
            if self._owners.get(item["id"]) == response_id:
                del self._owners[item["id"]]

    def conversation(self, response_id: str | None) -> list[Item]:
        """All items up to and with a response, the oldest first; none for None. Raises RequestError if any is gone."""
        turns: list[Stored] = []
        try:
            while response_id is not None:
                turns.append(self.get(response_id))
                response_id = turns[-1].body["previous_response_id"]
        except ResponseNotFoundError as error:
            raise RequestError(
                f"{error} Send the conversation's items as input instead.",
                param="previous_response_id",
                code="previous_response_not_found",
            ) from error
        return [item for turn in reversed(turns) for item in turn.all_items]

    def item(self, item_id: str) -> Item | None:
        """An item of any stored response."""
        owner = self._owners.get(item_id)
        if owner is None:
            return None
        return next(item for item in self.get(owner).all_items if item["id"] == item_id)
