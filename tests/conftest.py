"""Fixtures and hooks of all tests: a cache of their own, so that nothing a user has cached is used or touched, compiled
models that several tests take from it, and a line at the end that says what was not tested."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .skips import pytest_terminal_summary  # noqa: F401  # a hook


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests are left to `make test-all`. The file that takes longest goes first, so that at the end no process
    waits for another's."""
    items.sort(key=lambda item: item.path.name != "test_families.py")
    for item in items:
        if item.get_closest_marker("slow") and "LLMSERVE_TEST_ALL" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="what is slow: for time (make test-all)"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The artifact cache of this test run; subprocesses inherit it."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LLMSERVE_CACHE")
    os.environ["LLMSERVE_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["LLMSERVE_CACHE"]
    else:
        os.environ["LLMSERVE_CACHE"] = before


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name → directory of a random float32 checkpoint of its TINY config."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        from llmserve.compile.random_checkpoint import write_random_checkpoint
        from llmserve.models.base import family as find

        if family not in made:
            directory = tmp_path_factory.mktemp("checkpoints") / f"tiny-{family}"
            made[family] = write_random_checkpoint(directory, dict(find(family).tiny), dtype="float32")
        return made[family]

    return make
