"""The sandbox of chat templates: Jinja as they are written for it, with a bound on work and memory.

A template comes out of a checkpoint that someone else made, and meets text that someone else sent. It gets Jinja's
immutable sandbox with the filters and functions that transformers gives, and the limits of `bounds.py`: at each place
where a template can make a text, a number or a container, what it makes is checked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from . import bounds


class _Bounds(jinja2.ext.Extension):
    """Puts counts and checks into a template, and lets `{% generation %}` (a mark for training) stand for its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def bound(self, template: nodes.Template) -> nodes.Template:
        """Put a count into whatever may run twice, and a check around whatever makes something without a call."""
        for node in template.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            node.body.insert(0, nodes.ExprStmt(self.call_method("count")))  # type: ignore[attr-defined]
        _swap(template, self._checked)
        return template

    def _checked(self, node: Any) -> Any:
        if isinstance(node, nodes.Concat):
            return self.call_method("join", node.nodes)
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.NSRef):
            node.node = self.call_method("check_assigned", [node.node])  # type: ignore[list-item]
        # A target of an assignment is a tuple too; arguments beyond a macro's own become one.
        literal = isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
        rest = isinstance(node, nodes.Name) and node.ctx == "load" and node.name in ("varargs", "kwargs")
        return self.call_method("check_result", [node]) if literal or rest else node

    def count(self) -> None:
        bounds.count_step()

    def check_result(self, value: Any) -> Any:
        return bounds.check_result(value)

    def check_assigned(self, value: Any) -> Any:
        return bounds.check_assigned(value)

    def join(self, *values: object) -> str:
        bounds.weigh(values)
        return str(bounds.check_result("".join(map(str, values))))


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, (str, list, tuple)) and isinstance(times, int):
                    bounds.weigh(sized, max(times, 0))
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            bounds.check_size(len(left) + len(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            bounds.check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            bounds.check_format(left, right)
        return bounds.check_result(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and (check := _METHOD_CHECKS.get(function.__name__)):
            check(owner, *args, **kwargs)
        return bounds.check_result(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        wrapped = super().wrap_str_format(value)
        if wrapped is None or not isinstance(owner, str):
            return wrapped

        def checked(*args: Any, **kwargs: Any) -> str:
            bounds.check_format(owner, [*args, kwargs])
            return wrapped(*args, **kwargs)

        return checked

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # type: ignore[override]
        """Joins what a template, macro or `{% set %}` block has put out."""
        kept, size = [], 0
        for part in parts:
            bounds.check_size(size := size + len(part))
            kept.append(part)
        return str(bounds.check_result("".join(kept)))


def _swap(node: nodes.Node, swapped: Callable[[Any], Any]) -> None:
    """Replace every node below this one, innermost first."""
    for field, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, nodes.Node):
                _swap(child, swapped)
        new = [swapped(child) if isinstance(child, nodes.Node) else child for child in children]
        setattr(node, field, new if isinstance(value, list) else new[0])


def _pad(text: str, *args: object, **kwargs: object) -> None:
    bounds.check_width(*args, *kwargs.values())


def _refuse(*_: object, **__: object) -> None:
    raise SecurityError("the template translates a text character by character")


_METHOD_CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "expandtabs"), _pad),
    **dict.fromkeys(("split", "rsplit"), bounds.check_split),
    "splitlines": bounds.check_words,
    "replace": bounds.check_replace,
    "join": lambda text, parts=(), *_: bounds.check_join(parts, text),
    "translate": _refuse,  # a character may become any text
}
_FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "indent": bounds.check_indent,
    "replace": bounds.check_replace,
    "join": bounds.check_join,
    **dict.fromkeys(("title", "striptags"), bounds.check_words),
    **dict.fromkeys(("list", "batch", "slice", "sort", "unique", "groupby", "reverse"), bounds.check_characters),
}
_WITHHELD = ("center", "format", "wordwrap", "wordcount", "urlize", "xmlattr", "pprint")


def _checked(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test with its checks. The wrapper keeps the marks by which Jinja passes an environment or context."""
    check = _FILTER_CHECKS.get(name)
    marked = hasattr(run, "jinja_pass_arg")

    @functools.wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if name == "join" and len(args) > marked and not isinstance(args[marked], str):
            args = (*args[:marked], list(args[marked]), *args[marked + 1 :])  # a generator has no size
        if check is not None:
            check(*args[marked:], **kwargs)
        return bounds.check_result(run(*args, **kwargs))

    return checked


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    bounds.check_widths(pattern)
    bounds.check_words(pattern)
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML, which a model has not seen in training.
    bounds.check_width(indent, *map(len, separators or ()))
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, check_circular=False
    )
    # With an indent a short value can become a long text; in pieces, it is stopped on the way.
    return encoder.encode(value) if indent is None else _Environment.concat(encoder.iterencode(value))


def _environment() -> _Environment:
    env = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Bounds, jinja2.ext.loopcontrols])
    env.filters["tojson"] = _tojson
    for withheld in _WITHHELD:
        del env.filters[withheld]
    env.filters.update({name: _checked(name, run) for name, run in env.filters.items()})
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
    extension: _Bounds = _ENVIRONMENT.extensions[_Bounds.identifier]  # type: ignore[assignment]
    tree = extension.bound(_ENVIRONMENT.parse(source))
    code = _ENVIRONMENT.compile(tree)
    return _ENVIRONMENT.template_class.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals))


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The template's text. Raises whatever the template's code raises; SecurityError when it passes a bound."""
    with bounds.fresh_budget():
        return _Environment.concat(template.generate(variables))
