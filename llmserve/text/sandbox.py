"""Jinja as chat templates are written for it, with a bound on work and memory.

A template comes out of a checkpoint that someone else made, and meets text that someone else sent. It gets Jinja's
immutable sandbox with the filters and functions that transformers gives, and two limits that Jinja lacks: turns of
loops and calls of macros are counted, and no operation may build a text above a size.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 300_000
MAX_CHARS = 1 << 26
MAX_WIDTH = 1000  # of a padded or indented field

_steps: ContextVar[int] = ContextVar("steps")


class _Bounds(jinja2.ext.Extension):
    """Counts steps, checks concatenations, and lets `{% generation %}` (a mark for training) stand for its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def bound(self, template: nodes.Template) -> nodes.Template:
        """Put a count into every loop and macro, and a check around every `~`."""
        for node in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            node.body.insert(0, nodes.ExprStmt(self.call_method("count")))  # type: ignore[attr-defined]
        _replace_concats(template, lambda concat: self.call_method("join", concat.nodes))
        return template

    def count(self) -> None:
        _steps.set(left := _steps.get(MAX_STEPS) - 1)
        if left < 0:
            raise SecurityError(f"the template loops more than {MAX_STEPS} times")

    def join(self, *values: object) -> str:
        texts = [str(value) for value in values]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, (str, list)) and isinstance(right, (str, list)):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, (str, list, tuple)) and isinstance(times, int):
                    _check_size(len(sized) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _check_widths(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            name = function.__name__
            if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
                _check_width(*args, *kwargs.values())
            elif name == "replace":
                _check_replace(owner, *args[:2])
            elif name == "join":
                _check_join(args[0], owner)
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and value.__name__.startswith("format"):
            _check_widths(owner)
        return super().wrap_str_format(value)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # type: ignore[override]
        """Joins what a template, macro or `{% set %}` block has put out."""
        kept, size = [], 0
        for part in parts:
            _check_size(size := size + len(part))
            kept.append(part)
        return "".join(kept)


def _replace_concats(node: nodes.Node, checked: Callable[[nodes.Concat], nodes.Node]) -> None:
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, nodes.Node):
                _replace_concats(child, checked)
        swapped = [checked(child) if isinstance(child, nodes.Concat) else child for child in children]
        setattr(node, field, swapped if isinstance(value, list) else swapped[0])


def _check_size(chars: int) -> None:
    if chars > MAX_CHARS:
        raise SecurityError(f"the template builds a text of more than {MAX_CHARS} characters")


def _check_replace(text: str, old: str, new: str, *_: object) -> None:
    _check_size(len(text) + text.count(old) * len(new))


def _check_join(parts: Iterable[object], separator: str = "", *_: object) -> None:
    if isinstance(parts, (list, tuple)):
        _check_size(sum(len(part) if isinstance(part, str) else 8 for part in parts) + len(separator) * len(parts))


def _check_indent(text: str, width: int | str = 4, *_: object) -> None:
    step = len(width) if isinstance(width, str) else width
    _check_width(step)
    _check_size(len(text) + step * text.count("\n"))


def _checked(check: Callable[..., None], run: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is checked first. The wrapper keeps the marks by which Jinja passes an environment or context."""

    @functools.wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        marked = hasattr(run, "jinja_pass_arg")
        check(*args[marked:], **kwargs)
        return run(*args, **kwargs)

    return checked


def _check_width(*values: object) -> None:
    if any(isinstance(value, int) and value > MAX_WIDTH for value in values):
        raise SecurityError(f"the template pads a text to more than {MAX_WIDTH} characters")


def _check_widths(pattern: str) -> None:
    # A width can also be an argument, as in "%*d" or "{:{}}": those are refused whole.
    if re.search(r"\d{4}", pattern) or re.search(r"%[^a-zA-Z%]*\*|\{[^}]*\{", pattern):
        raise SecurityError("the template pads a text to a width that is too large or not written out")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    _check_widths(pattern)
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which a model has not seen in training.
    _check_width(indent)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Environment:
    env = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Bounds, jinja2.ext.loopcontrols])
    env.filters["tojson"] = _tojson
    for unbounded in ("center", "format", "wordwrap", "urlize", "xmlattr", "pprint"):
        del env.filters[unbounded]
    checks: dict[str, Callable[..., None]] = {"indent": _check_indent, "replace": _check_replace, "join": _check_join}
    for name, check in checks.items():
        env.filters[name] = _checked(check, env.filters[name])
    env.globals.pop("lipsum")
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


_ENVIRONMENT = _environment()


def compile_template(source: str) -> jinja2.Template:
    """A template that `render` can run.

    Raises:
        jinja2.TemplateSyntaxError: the source is not Jinja, or uses a filter that is withheld.
    """
    bounds: _Bounds = _ENVIRONMENT.extensions[_Bounds.identifier]  # type: ignore[assignment]
    tree = bounds.bound(_ENVIRONMENT.parse(source))
    code = _ENVIRONMENT.compile(tree)
    return _ENVIRONMENT.template_class.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The template's text. Raises whatever the template's code raises; SecurityError when it passes a bound."""
    token = _steps.set(MAX_STEPS)
    try:
        return _Environment.concat(template.generate(variables))
    finally:
        _steps.reset(token)
