"""Python literals rewritten as JSON while they arrive: strings, numbers, True, None, lists, tuples, dicts."""

from __future__ import annotations

import json
import re

from .stream import CharSource, Emit, MismatchError, Reading

_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_NUMBER = re.compile(r"[-+]?(?:(0|[1-9][0-9_]*)(\.[0-9]*)?|(\.[0-9]+))([eE][-+]?[0-9]+)?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_ESCAPES |= {c: c for c in "\\'\""}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def python_value(source: CharSource, emit: Emit) -> Reading[None]:
    """Take a literal, giving its JSON on as it comes. Raises NotThisError; what was given until then stays given."""
    open_brackets: list[str] = []
    while True:
        opening = yield from source.peek()
        if opening and opening in "\"'":
            yield from _string(source, emit)
        elif opening in _CLOSING:
            yield from source.take()
            emit("{" if opening == "{" else "[")
            open_brackets.append(_CLOSING[opening])
            yield from source.space()
            if (yield from source.peek()) != open_brackets[-1]:
                yield from _key(source, emit, open_brackets)
                continue
        else:
            emit(_scalar((yield from _word(source))))
        while open_brackets:
            yield from source.space()
            char = yield from source.peek()
            closing = open_brackets[-1]
            if char == ",":
                yield from source.take()
                yield from source.space()
                char = yield from source.peek()
                if char != closing:  # and not a comma before the end, which Python allows
                    emit(", ")
                    yield from _key(source, emit, open_brackets)
                    break
            if char != closing:
                raise MismatchError
            yield from source.take()
            emit("}" if closing == "}" else "]")
            open_brackets.pop()
        else:
            return


def _key(source: CharSource, emit: Emit, open_brackets: list[str]) -> Reading[None]:
    if open_brackets[-1] != "}":
        return
    if (yield from source.peek()) not in ("'", '"'):
        raise MismatchError
    yield from _string(source, emit)
    yield from source.space()
    yield from source.expect(":")
    emit(": ")
    yield from source.space()


def _word(source: CharSource) -> Reading[str]:
    word = ""
    while (char := (yield from source.peek())) and (char.isalnum() or char in "+-._"):
        word += yield from source.take()
    return word


def _scalar(word: str) -> str:
    if word in _WORDS:
        return _WORDS[word]
    match = _NUMBER.fullmatch(word)
    if match is None:
        raise MismatchError
    text = word.replace("_", "")
    try:
        return json.dumps(float(text) if match[2] or match[3] or match[4] else int(text), allow_nan=False)
    except ValueError as error:  # too large for a float, or more digits than Python reads
        raise MismatchError from error


def _string(source: CharSource, emit: Emit) -> Reading[None]:
    quote = yield from source.take()
    if (yield from source.peek()) == quote:
        yield from source.take()
        if (yield from source.peek()) != quote:
            emit('""')
            return
        yield from source.take()
        quote *= 3
    emit('"')
    closing = ""
    while char := (yield from source.take()):
        if char == quote[0]:
            closing += char
            if closing == quote:
                emit('"')
                return
            continue
        if char == "\\":
            char = yield from _escape(source)
        emit(_json(closing + char))
        closing = ""
    raise MismatchError


def _escape(source: CharSource) -> Reading[str]:
    kind = yield from source.take()
    if kind in _DIGITS:
        digits = ""
        for _ in range(_DIGITS[kind]):
            digits += yield from source.take()
        try:
            return chr(int(digits, 16))
        except (ValueError, OverflowError) as error:
            raise MismatchError from error
    if not kind:
        raise MismatchError
    return _ESCAPES.get(kind, "\\" + kind)


def _json(text: str) -> str:
    """As it stands within a JSON string; halves of surrogate pairs are escaped, since they are no text."""
    plain = all(not "\ud800" <= char <= "\udfff" for char in text)
    return json.dumps(text, ensure_ascii=not plain)[1:-1]
