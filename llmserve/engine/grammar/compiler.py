"""The grammar compiler, on llguidance: compiles beside the engine's thread, caches, and bounds size, depth and time.

What cannot be enforced exactly is refused: an answer that only looks like what was asked for is worse than none. The
library limits its own work by counting it; what it does not count (the depth of its recursion, the size of some
automata) is bounded here, before it sees a grammar (`bounds.py`).
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from ...errors import EngineError, QueueFullError, RequestError, is_exit
from ...text.tokenizer import Tokenizer
from ..plan.grammar_spec import CompiledGrammar, Grammar
from .bounds import check_rules, check_schema, check_text, check_total, read_choices
from .schema_keywords import without_annotations

MAX_CACHED = 64  # those that are being compiled among them
MAX_PENDING = 32
# The library recurses as deeply as rules refer to rules. What is never touched of a stack takes no memory.
_STACK_BYTES = 256 * 2**20
# White space is after commas and colons alone: a space, or after a comma a line and its indentation. Where a model may
# write more, some drift through tabs until they are out of tokens. As overrides, so that no schema can set them for
# itself through x-guidance.
_JSON_OPTIONS: Any = {
    "whitespace_flexible": False,
    "item_separator": r",( |\n[ \t]{0,16})?",
    "key_separator": r": ?",
    "lenient": False,
    "coerce_one_of": False,
}
_LIMITS = LLParserLimits(
    max_items_in_row=5_000,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=500_000,  # some 50 milliseconds for one mask, with a vocabulary of 150 000
    step_max_items=50_000,
    max_lexer_states=10_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)

# The keyword that is meant where the library's words do not say it.
_KEYWORDS = {
    "regex parse error": "pattern",
    "Regex is empty": "pattern or format",
    "regex is empty": "pattern or format",
    "present in a registry": "$ref",
    "Pointer '": "$ref",
    "circular references": "$ref",
    "intersection stack": "allOf",
    "integer interval": "minimum and maximum",
    "a multiple of": "multipleOf",
    "incompatible types": "type",
}
_DEAD_ENDS = ("NoExtension", "NoExtensionBias")


class GrammarCompiler:
    """Makes `CompiledGrammar`s for one tokenizer. Thread-safe; compiles one at a time, in a thread of its own."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None  # made when the first grammar comes: it takes a second
        self._pool: ThreadPoolExecutor | None = None
        self._cache: OrderedDict[Grammar, Future[CompiledGrammar]] = OrderedDict()
        self._lock = threading.Lock()

    def submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The grammar, once it is ready; a RequestError if it cannot be enforced. Do not cancel it: it is shared."""
        with self._lock:
            future = self._cache.get(grammar)
            if future is not None and not (future.done() and future.exception()):
                self._cache.move_to_end(grammar)
                return future
            if sum(not f.done() for f in self._cache.values()) >= MAX_PENDING:
                raise QueueFullError(f"The server is busy: {MAX_PENDING} grammars wait to be compiled.")
            if self._pool is None:
                self._pool = _thread_with_deep_stack()
            future = self._cache[grammar] = self._pool.submit(self._compile, grammar)
            self._cache.move_to_end(grammar)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
            return future

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        if self._vocabulary is None:
            self._vocabulary = vocabulary(self._tokenizer, grammar.param)
        try:
            beginning = LLMatcher(self._vocabulary, _source(grammar), log_level=0, limits=_LIMITS)
            if beginning.is_error():
                raise _refusal(grammar, beginning.get_error())
            compiled = _Compiled(beginning, self._vocabulary.eos_token)
            try:
                compiled.matcher(jump=True).mask()
            except EngineError as error:
                raise _refusal(grammar, str(error)) from error
        except RequestError:
            for part in grammar.parts:  # if one of them is to blame, its own refusal says more
                self._compile(part)
            raise
        except BaseException as error:  # the library's panics are no `Exception`
            if is_exit(error):
                raise
            raise _refusal(grammar, f"{type(error).__name__}: {error}") from error
        return compiled


def vocabulary(tokenizer: Tokenizer, param: str | None = None) -> LLTokenizer:
    """A tokenizer's tokens as the library wants them. RequestError if they have no bytes of their own, or no end."""
    if not tokenizer.spells_bytes:
        raise RequestError("This model's tokenizer does not spell token by token, so no grammar fits it.", param=param)
    if not tokenizer.eos_token_ids:
        raise RequestError("This model has no token that ends a text, so no grammar can be kept to.", param=param)
    return LLTokenizer(TokenizerWrapper(_Tokens(tokenizer)), eos_token=sorted(tokenizer.eos_token_ids))


class _Tokens:
    """A tokenizer as `TokenizerWrapper` takes it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids | tokenizer.eos_token_ids)
        hidden = frozenset(self.special_token_ids)
        self._ids = {token: i for i, token in reversed(list(enumerate(self.tokens))) if token and i not in hidden}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text that is forced: the tokenizer's own, or else the longest ones from left to right."""
        wanted = text.encode() if isinstance(text, str) else text
        # Some tokenizers put a space before a text; a control character takes it, and what follows is plain.
        for prefix in (b"", b"\x02"):
            ids = self._tokenizer.encode((prefix + wanted).decode("utf-8", "replace"), add_special_tokens=False)
            start = 0
            while prefix and start < len(ids) and prefix not in b"".join(self.tokens[i] for i in ids[:start]):
                start += 1
            ids = ids[start:]
            if b"".join(self.tokens[i] for i in ids) == wanted and not set(ids) & set(self.special_token_ids):
                return ids
        return self._longest_first(wanted)

    def _longest_first(self, wanted: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(wanted):
            ends = range(min(len(wanted), at + self._longest), at, -1)
            end = next((end for end in ends if wanted[at:end] in self._ids), None)
            if end is None:
                break  # what cannot be spelt is not forced
            ids.append(self._ids[wanted[at:end]])
            at = end
        return ids


class _Compiled:
    """A grammar at its beginning, to be copied for each sequence."""

    def __init__(self, beginning: LLMatcher, end: int) -> None:
        self._beginning, self._end = beginning, end
        self._lock = threading.Lock()

    def matcher(self, jump: bool) -> _Matcher:
        with self._lock:
            return _Matcher(self._beginning.deep_copy(), self._end, jump)


class _Matcher:
    """See `grammar_spec.Matcher`. What is forced is settled when the token before it is known, and then holds."""

    def __init__(self, state: LLMatcher, end: int, jump: bool) -> None:
        self._state, self._end, self._jump = state, end, jump
        self._pending = self._forced()

    def mask(self) -> bytes:
        if self._pending:
            return _only(self._pending[0])
        mask = self._state.compute_bitmask()
        self._check()
        if not any(mask):
            raise EngineError("the grammar allows nothing to follow, and not the end")
        return mask

    def accept(self, token_id: int) -> tuple[int, ...]:
        if self._pending:
            self._pending = self._pending[1:]
        else:
            self._state.consume_token(token_id)
            self._check()
            self._pending = self._forced()
        if not self._jump:
            return ()
        forced, self._pending = self._pending, ()
        return forced

    def _forced(self) -> tuple[int, ...]:
        """The tokens that the grammar leaves no choice about, consumed; the end among them, where it is reached."""
        tokens: list[int] = self._state.compute_ff_tokens()
        tokens = tokens[: self._state.validate_tokens(tokens)] if tokens else []
        self._state.consume_tokens(tokens)
        self._check()
        if self._state.is_stopped() and self._state.stop_reason() != "EndOfSentence":
            tokens.append(self._end)
        return tuple(tokens)

    def _check(self) -> None:
        if self._state.is_error():
            raise EngineError(f"the grammar cannot be kept to any further: {_sentence(self._state.get_error())}")


def _source(grammar: Grammar) -> str:
    """The grammar in the library's own form. RequestError if it is out of bounds or not well formed."""
    value, param = grammar.value, grammar.param
    try:
        if grammar.kind == "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=_JSON_OPTIONS)
        if grammar.kind == "json_schema":
            schema = check_schema(value, param)
            if schema is False:
                raise _refusal(grammar, "no text fits false")
            text = "{}" if schema is True else json.dumps(without_annotations(schema))
            return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
        if grammar.kind == "choice":
            return LLMatcher.grammar_from_regex("|".join(map(_literally, read_choices(value, param))))
        if grammar.kind == "regex":
            check_text(value, param)
            return LLMatcher.grammar_from_regex(value.removeprefix("^"))
        check_rules(value, param)
        if grammar.parts:
            check_total(map(len, (value, *(part.value for part in grammar.parts))), param)
            return json.dumps(
                {"grammars": [{"lark_grammar": value}, *map(_part, range(len(grammar.parts)), grammar.parts)]}
            )
        return LLMatcher.grammar_from_lark(any_to_lark(value) if grammar.kind == "ebnf" else value)
    except RequestError:
        raise
    except Exception as error:  # the converter from GBNF raises many kinds, RecursionError among them
        raise _refusal(grammar, str(error)) from error


def _part(index: int, grammar: Grammar) -> dict[str, Any]:
    """A grammar as an entry in the library's list of them, where others refer to it by its name."""
    source = _source(grammar)
    entry = json.loads(source)["grammars"][0] if source.startswith("{") else {"lark_grammar": source}
    return {**entry, "name": f"part_{index}"}


def _literally(text: str) -> str:
    """A regular expression for exactly this text."""
    return re.sub(r"[\\.+*?()|\[\]{}^$#&~/-]", r"\\\g<0>", text)


def _refusal(grammar: Grammar, complaint: str) -> RequestError:
    what = {"json_schema": "JSON schema", "regex": "regular expression"}.get(grammar.kind, "grammar")
    return RequestError(
        f"The {what} cannot be enforced, so it is refused: {_sentence(complaint)}.",
        param=grammar.param,
        code="unsupported_grammar",
    )


def _sentence(complaint: str) -> str:
    """The library's complaint on one line of bounded length."""
    line = " ".join(complaint.replace("<non-verbose/>", "").split())
    for word, keyword in _KEYWORDS.items():
        if word in line and keyword not in line:
            line = f"{keyword}: {line}"
    if line in _DEAD_ENDS:
        return "no text fits it"
    return (line if len(line) <= 400 else f"{line[:400]} …").rstrip(".")


def _only(token_id: int) -> bytes:
    mask = bytearray(token_id // 8 + 1)
    mask[token_id // 8] = 1 << token_id % 8
    return bytes(mask)


def _thread_with_deep_stack() -> ThreadPoolExecutor:
    usual = threading.stack_size(_STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(1, thread_name_prefix="llmserve-grammar")
        pool.submit(int).result()  # which starts the thread
    finally:
        threading.stack_size(usual)
    return pool
