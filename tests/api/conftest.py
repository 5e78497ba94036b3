"""One server for all tests that do not need their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .server import Running, serve


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serve() as running:
        yield running
