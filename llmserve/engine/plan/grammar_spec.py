"""Grammars as the engine knows them: a request for one, and the state of a sequence within it. Data and protocols only.

Grammars are compiled in engine/grammar, before a request reaches the engine's thread.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "ebnf", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A request for a grammar: the texts that a completion may be.

    Attributes:
        kind: "json_schema" and "choice" (a list of strings) are JSON; "regex" is the syntax of Rust's regex crate;
            "ebnf" is llama.cpp's GBNF or Lark, told apart by itself; "lark" is llguidance's Lark, which may name
            special tokens and embed schemas; "json_object" is any object.
        value: the text of it; empty for "json_object".
        param: the request's field that asked for it, for error messages.
        parts: grammars of any kind that one of kind "lark" refers to, as @part_0, @part_1, …
    """

    kind: GrammarKind
    value: str = ""
    param: str | None = field(default=None, compare=False)
    parts: tuple[Grammar, ...] = ()


class Matcher(Protocol):
    """The state of one sequence in its grammar. It moves on with every token of the sequence, and never back: a
    sequence that is preempted keeps its tokens."""

    def mask(self) -> bytes:
        """The tokens that may come next: token i is bit i % 8 of byte i // 8, and what lies beyond may not.

        Raises EngineError when nothing may, or when the grammar has become too complex to tell.
        """
        ...

    def accept(self, token_id: int) -> tuple[int, ...]:
        """Go on by a token that `mask` allowed. Returns the tokens that the grammar forces to follow, by which it has
        gone on already; none if it was made without `jump`. Raises EngineError as `mask` does."""
        ...


class CompiledGrammar(Protocol):
    """A grammar that is ready for use. Shared between sequences and threads."""

    def matcher(self, jump: bool) -> Matcher:
        """The state of a new sequence. With or without `jump`, a sequence comes to the same tokens: without, the forced
        ones are asked for one by one, each the only one in its mask."""
        ...


class Compiler(Protocol):
    """A compiler of grammars, beside the engine's thread."""

    def submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The compiled grammar, when it is ready, or the RequestError that says why it never will be.

        Raises QueueFullError. The future may be shared, so it must not be cancelled."""
        ...

    def close(self) -> None: ...
