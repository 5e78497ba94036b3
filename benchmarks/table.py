"""The table that `make bench` prints: a row for each thing that was measured, a column for each system.

Also the definitions of a ratio and of a limit that is met. Arithmetic and text only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

OURS, THEIRS = "llmserve", "llama.cpp"
Better = Literal["more", "less"]
DISTURBED = "disturbed"


@dataclass(frozen=True)
class Bar:
    """A limit that our figure should keep to."""

    limit: float
    better: Better

    def met(self, value: float) -> bool:
        return value >= self.limit if self.better == "more" else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.better == 'more' else '≤'} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One line. `ours` or `theirs` None: measured, but never without company; NaN: there is nothing to measure."""

    label: str
    ours: float | None
    theirs: float | None = math.nan
    better: Better = "more"
    bar: Bar | None = None
    digits: int = 3

    @property
    def ratio(self) -> float | None:
        """Above 1: llmserve is ahead. None where one of the two is not given."""
        if not (_given(self.ours) and _given(self.theirs)):
            return None
        assert self.ours is not None and self.theirs is not None
        return self.ours / self.theirs if self.better == "more" else self.theirs / self.ours

    def as_json(self) -> dict[str, Any]:
        """What goes into the result: null for what is not given, with the reason where there was one."""
        found: dict[str, Any] = {"label": self.label, "better": self.better, "ratio": self.ratio}
        for name, value in ((OURS, self.ours), (THEIRS, self.theirs)):
            found[name] = value if _given(value) else DISTURBED if value is None else None
        if self.bar is not None:
            found["bar"] = str(self.bar)
            found["met"] = self.bar.met(self.ours) if self.ours is not None else None
        return found


def _given(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _cell(value: float | None, digits: int) -> str:
    """At least so many significant digits, and no exponent."""
    if value is None:
        return DISTURBED
    if math.isnan(value):
        return ""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"


def render(rows: Sequence[Row]) -> str:
    """A Markdown table that reads well as it is."""
    cells = [["", OURS, THEIRS, "ratio", "bar"]]
    for row in rows:
        bar = ""
        if row.bar is not None:
            state = "" if row.ours is None else ", met" if row.bar.met(row.ours) else ", NOT met"
            bar = f"{row.bar}{state}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells.append([row.label, _cell(row.ours, row.digits), _cell(row.theirs, row.digits), ratio, bar])
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = [_line(line, widths) for line in cells]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:4]), "-" * (widths[4] + 2)])
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        f"{cell:>{width}}" if 1 <= i <= 3 else f"{cell:<{width}}"
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(aligned)} |"
