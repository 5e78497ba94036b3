"""Limits of a chat template's work: turns, seconds, and the sizes of the texts and containers that it makes.

`sandbox.py` calls these checks wherever a template can make something. Jinja's immutable sandbox keeps a template from
changing a list, but not from putting one into the next twice, sixty times over: a container is therefore weighed when
it is made, with all that is in it as often as it is in it, and so none exists that would be too long to print.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_STEPS = 300_000  # turns of loops, calls of macros and blocks
MAX_SECONDS = 10.0  # of one thread's time
MAX_CHARS = 1 << 26  # of a text, or of all texts in a container
MAX_WORK = 1 << 28  # characters of all texts that are made, also those that are thrown away
MAX_ITEMS = 1 << 17  # of a container, nested ones included
MAX_WIDTH = 1000  # of a padded or indented field
MAX_BITS = 1 << 14  # of a number
MAX_WORDS = 1 << 22  # characters of a text that is taken apart at every blank or line


@dataclass(slots=True)
class Budget:
    """The rest of one rendering's allowance."""

    steps: int = field(default_factory=lambda: MAX_STEPS)
    chars: int = field(default_factory=lambda: MAX_WORK)
    until: float = field(default_factory=lambda: time.thread_time() + MAX_SECONDS)


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def fresh_budget() -> Iterator[None]:
    """A new budget for the block; the work in it must stay in one thread."""
    token = _budget.set(Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def count_step() -> None:
    """Count one more turn of a loop, or call of a macro or block."""
    left = _budget.get()
    if left is not None:
        left.steps -= 1
        if left.steps < 0:
            raise SecurityError(f"the template loops more than {MAX_STEPS} times")
        check_time(left)


def check_time(left: Budget | None) -> None:
    if left is not None and time.thread_time() > left.until:
        raise SecurityError(f"the template takes more than {MAX_SECONDS:g} seconds")


def check_result(value: Any) -> Any:
    """Check what an operation, a filter or a function has made, and hand it on."""
    left = _budget.get()
    if isinstance(value, str):
        check_size(len(value))
        if left is not None:
            left.chars -= len(value)
            if left.chars < 0:
                raise SecurityError(f"the template builds texts of more than {MAX_WORK} characters in all")
    elif isinstance(value, int):
        check_bits(value.bit_length())
    elif isinstance(value, (list, tuple, dict, Namespace)):
        weigh(value)
    check_time(left)
    return value


def weigh(value: object, times: int = 1) -> int:
    """Characters in a value, or in all that a container holds. Raises SecurityError for too many, or too many items."""
    if isinstance(value, str):
        check_size(len(value) * times)
        return len(value)
    items = chars = 0
    inner = [_contents(value)]
    while inner:
        for item in inner.pop():
            items += 1
            if isinstance(item, str):
                chars += len(item)
            elif isinstance(item, Namespace):
                raise SecurityError("the template puts a namespace into something else")
            elif isinstance(item, (list, tuple, dict)):
                inner.append(_contents(item))
            if items * times > MAX_ITEMS:
                raise SecurityError(f"the template builds a list of more than {MAX_ITEMS} items")
        check_size(chars * times)
    return chars + 8 * items


def _contents(value: object) -> Iterable[object]:
    if isinstance(value, Namespace):
        value = dict(object.__getattribute__(value, "_Namespace__attrs"))
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, (list, tuple)) else ()


def check_assigned(value: Any) -> Any:
    """Check what becomes an attribute of a namespace."""
    weigh((value,))
    return value


def check_size(chars: int) -> None:
    if chars > MAX_CHARS:
        raise SecurityError(f"the template builds a text of more than {MAX_CHARS} characters")


def check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise SecurityError(f"the template computes a number of more than {MAX_BITS} bits")


def check_width(*values: object) -> None:
    if any(isinstance(value, int) and value > MAX_WIDTH for value in values):
        raise SecurityError(f"the template pads a text to more than {MAX_WIDTH} characters")


def check_widths(pattern: str) -> None:
    """Of a format. A width can also be an argument, as in "%*d" or "{:{}}": those are refused whole."""
    if re.search(r"\d{4}", pattern) or re.search(r"%[^a-zA-Z%]*\*|\{[^}]*\{", pattern):
        raise SecurityError("the template pads a text to a width that is too large or not written out")


def check_format(pattern: str, values: object) -> None:
    """Every field of a pattern may name the longest of the values."""
    check_widths(pattern)
    check_size(len(pattern) + (pattern.count("%") + pattern.count("{")) * weigh((values,)))


def check_power(base: int, exponent: int) -> None:
    check_bits(base.bit_length() * abs(exponent))


def check_replace(text: object, old: object = "", new: object = "", *_: object, **__: object) -> None:
    text, old, new = str(text), str(old), str(new)
    check_size(len(text) + text.count(old) * len(new))


def check_join(parts: object, d: object = "", *_: object, **__: object) -> None:
    if isinstance(parts, (list, tuple)):
        check_size(weigh(parts) + len(str(d)) * len(parts))


def check_indent(text: str, width: int | str = 4, *_: object, **__: object) -> None:
    wide = len(width) if isinstance(width, str) else width
    check_width(wide)
    check_size(len(text) + wide * text.count("\n"))


def check_split(text: str, sep: str | None = None, *_: object, **__: object) -> None:
    if not isinstance(sep, str):
        check_words(text)
    elif sep and text.count(sep) > MAX_ITEMS:
        raise SecurityError(f"the template splits a text into more than {MAX_ITEMS} pieces")


def check_words(text: object, *_: object, **__: object) -> None:
    """For what makes an object of each word or line."""
    if isinstance(text, str) and len(text) > MAX_WORDS:
        raise SecurityError(f"the template takes a text of more than {MAX_WORDS} characters apart")


def check_characters(text: object = None, *_: object, **__: object) -> None:
    """For what makes an object of each character."""
    if isinstance(text, str) and len(text) > MAX_ITEMS:
        raise SecurityError(f"the template makes a list of a text's more than {MAX_ITEMS} characters")
