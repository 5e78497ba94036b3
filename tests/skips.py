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
_COMMAND = re.compile(r"\b(?:(?:apt|dnf|zypper|brew|pip) install|pacman -S)(?: [a-z0-9'][\w'\[\]+-]*)+|\bmake [a-z]+")


def package(name: str, what: str, command: str = TEST_EXTRA) -> Any:
    """A package that `what` is tested with, imported; skips the test, or the file, where it is not installed."""
    __tracebackhide__ = True  # the place that is reported is the caller's
    return pytest.importorskip(name, reason=f"{what}: {name} is not installed ({command})")


def not_tested(reports: Iterable[Any]) -> str:
    """One line about skipped tests and files (pytest's reports of them): how many of what, and what would change that.
    Empty where nothing was skipped."""
    tests: Counter[tuple[str, str]] = Counter()
    files: Counter[tuple[str, str]] = Counter()
    others = 0
    for report in reports:
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        command = _COMMAND.search(reason)
        if command is None:
            others += 1
        else:
            counts = files if isinstance(report, pytest.CollectReport) else tests
            counts[reason.partition(": ")[0], command[0]] += 1
    parts = []
    for command, _ in _totals(tests + files):
        kinds = [
            f"{count} {unit if count == 1 else unit + 's'} of {what}"
            for counts, unit in ((tests, "test"), (files, "file"))
            for (what, its), count in counts.most_common()
            if its == command
        ]
        parts.append(f"{', '.join(kinds)} ({command})")
    if others:
        parts.append(f"{others} that no package would change")
    return f"Not tested: {'; '.join(parts)}." if parts else ""


def _totals(counts: Counter[tuple[str, str]]) -> list[tuple[str, int]]:
    """(command, tests and files that it would bring), the most first."""
    totals: Counter[str] = Counter()
    for (_, command), count in counts.items():
        totals[command] += count
    return totals.most_common()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """pytest's hook. With xdist it is called in the process that has all reports."""
    if line := not_tested(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line)
