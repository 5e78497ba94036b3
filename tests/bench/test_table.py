"""The comparison's table: ratios the right way round, bars, and what stands where there is no figure."""

from __future__ import annotations

import math

import pytest
from table import DISTURBED, Bar, Row, render


@pytest.mark.parametrize(("better", "ratio"), [("more", 2.0), ("less", 0.5)])
def test_a_ratio_above_one_means_that_we_are_ahead(better: str, ratio: float) -> None:
    assert Row("x", 10.0, 5.0, better).ratio == ratio  # type: ignore[arg-type]


@pytest.mark.parametrize(("ours", "theirs"), [(None, 5.0), (5.0, None), (5.0, math.nan), (None, math.nan)])
def test_there_is_no_ratio_without_two_figures(ours: float | None, theirs: float | None) -> None:
    row = Row("x", ours, theirs)
    assert row.ratio is None
    assert row.as_json()["ratio"] is None


def test_a_figure_that_was_disturbed_is_told_from_one_that_there_is_not() -> None:
    found = Row("x", None).as_json()
    assert (found["llmserve"], found["llama.cpp"]) == (DISTURBED, None)
    line = render([Row("x", None)]).splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["x", DISTURBED, "", "", ""]


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (Bar(1.5, "less"), 1.5, True),
        (Bar(1.5, "less"), 1.51, False),
        (Bar(0.25, "more"), 0.25, True),
        (Bar(0.25, "more"), 0.24, False),
    ],
)
def test_bars(bar: Bar, value: float, met: bool) -> None:
    row = Row("x", value, bar=bar)
    assert bar.met(value) == met == row.as_json()["met"]
    assert ("NOT met" in render([row])) != met


def test_a_bar_is_neither_met_nor_missed_without_a_figure() -> None:
    row = Row("x", None, bar=Bar(1.0, "more"))
    assert row.as_json()["met"] is None
    assert "met" not in render([row])


@pytest.mark.parametrize(
    ("value", "shown"), [(1234.4, "1234"), (30.65, "30.6"), (0.8123, "0.812"), (0.0, "0"), (7.0, "7.00")]
)
def test_figures_have_three_digits_at_least_and_no_exponent(value: float, shown: str) -> None:
    line = render([Row("x", value)]).splitlines()[-1]
    assert line.strip("|").split("|")[1].strip() == shown


def test_the_table_is_one_that_markdown_knows() -> None:
    lines = render([Row("a long label", 1.0, 2.0), Row("b", None, 3.0)]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1, "columns stand below each other"
    assert {line.count("|") for line in lines} == {6}
