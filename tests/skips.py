"""Reasons of skips, and the line at the end of a run that adds them up.

A reason says what is not tested and why: "the chat page: Chromium is not installed (apt install chromium)". A command
in it is what would have it tested; a reason without one is about a test that makes no sense on this machine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

TEST_EXTRA = "pip install 'llmserve[test]'"
# Packages are written in lower case, or quoted.
_COMMAND = re.compile(r"\b(?:(?:apt|dnf|zypper|brew|pip) install|pacman -S)(?: [a-z0-9'][\w'\[\]+-]*)+|\bmake [a-z-]+")

_NO_COMMAND = "no package would change that"


def package(name: str, what: str, command: str = TEST_EXTRA) -> Any:
    """A package that `what` is tested with, imported; skips the test, or the file, where it is not installed."""
    __tracebackhide__ = True  # the place that is reported is the caller's
    return pytest.importorskip(name, reason=f"{what}: {name} is not installed ({command})")


def not_tested(reports: Iterable[Any]) -> str:
    """One line about skipped tests and files (pytest's reports of them): how many of what, and what would change that.
    Empty where nothing was skipped."""
    counts: dict[str, Counter[tuple[str, str]]] = {}  # by remedy; of what, and in which unit
    for report in reports:
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        what, colon, _ = reason.partition(": ")
        command = _COMMAND.search(reason)
        unit = "file" if isinstance(report, pytest.CollectReport) else "test"
        kind = (what if colon else "other things", unit)
        counts.setdefault(command[0] if command else _NO_COMMAND, Counter())[kind] += 1
    parts = []
    for remedy in sorted(counts, key=lambda its: (its == _NO_COMMAND, -counts[its].total())):
        kinds = [f"{n} {unit}{'s' * (n > 1)} of {what}" for (what, unit), n in counts[remedy].most_common()]
        parts.append(f"{', '.join(kinds)} ({remedy})")
    return f"Not tested: {'; '.join(parts)}." if parts else ""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """pytest's hook. With xdist it is called in the process that has all reports."""
    if line := not_tested(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line)
