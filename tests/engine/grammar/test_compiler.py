"""Grammars: what is compiled is kept to, what is forced is what would be asked for, and what is too much is refused."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest

from llmserve.engine import EngineCore, Grammar, SamplingParams, SchedulerConfig
from llmserve.engine.grammar.compiler import MAX_CACHED, GrammarCompiler
from llmserve.engine.plan.grammar_spec import GrammarKind, Matcher
from llmserve.errors import EngineError, RequestError
from llmserve.text.tokenizer import Tokenizer
from tests.fakes import FakeExecutor, allowed_tokens, drain
from tests.text import samples

BYTES = Tokenizer(samples.byte_level(), special_tokens={"eos_token": "<|end|>", "bos_token": "<|begin|>"})
PIECES = Tokenizer(samples.sentencepiece(), special_tokens={"eos_token": "</s>"})
TOKENIZERS = {"byte-level": BYTES, "sentencepiece": PIECES}


@pytest.fixture(scope="module")
def compilers() -> dict[str, GrammarCompiler]:
    return {name: GrammarCompiler(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def walk(matcher: Matcher, tokenizer: Tokenizer, seed: int, limit: int = 300) -> tuple[list[int], int]:
    """Tokens drawn at random among those allowed, the end preferred; and how often a draw was needed."""
    (end,) = tokenizer.eos_token_ids
    tokens: list[int] = []
    draws = 0
    while end not in tokens:
        assert len(tokens) < limit, "no end in sight"
        allowed = allowed_tokens(matcher.mask(), tokenizer.vocab_size)
        # A hash of the position, so that tokens that are not drawn take nothing from the others.
        token = end if end in allowed else random.Random(f"{seed} {len(tokens)}").choice(allowed)
        tokens += (token, *matcher.accept(token))
        draws += 1
    assert tokens.index(end) == len(tokens) - 1, "something was forced after the end"
    return tokens, draws


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, tokens[:-1])).decode()


CASES: list[tuple[Grammar, str]] = [
    (Grammar("regex", r"[0-9]{3}-(he|hello) ?x"), r"[0-9]{3}-(he|hello) ?x"),
    (Grammar("regex", r"^he+llo$"), r"he+llo"),
    (Grammar("choice", json.dumps(["a.*[b]\n/^$", "é{2}", "-&~#"])), r"a\.\*\[b\]\n/\^\$|é\{2\}|-&~#"),
    (Grammar("ebnf", 'root ::= "hello" (" " [a-c]+)* "."'), r"hello( [a-c]+)*\."),
    (Grammar("ebnf", 'start: "hello" /[0-9]{2}/'), r"hello[0-9]{2}"),
    (Grammar("lark", 'start: "<" num ">"\nnum: /[1-9][0-9]?/'), r"<[1-9][0-9]?>"),
    (Grammar("json_schema", '{"enum": ["hello", 1.5, null]}'), r'"hello"|1\.5|null'),
    (Grammar("lark", 'start: "<" json ">"\njson: %json {"enum": ["hello", 3]}'), r'<("hello"|3)>'),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("grammar", "pattern"), CASES, ids=[g.kind + str(i) for i, (g, _) in enumerate(CASES)])
def test_every_kind_is_kept_to(
    compilers: dict[str, GrammarCompiler], name: str, grammar: Grammar, pattern: str
) -> None:
    compiled = compilers[name].submit(grammar).result()
    for seed in range(10):
        tokens, draws = walk(compiled.matcher(jump=True), TOKENIZERS[name], seed)
        assert re.fullmatch(pattern, text_of(TOKENIZERS[name], tokens)), text_of(TOKENIZERS[name], tokens)
        one_by_one = walk(compiled.matcher(jump=False), TOKENIZERS[name], seed)
        assert one_by_one == (tokens, len(tokens)), "a forced token is not what is asked for without forcing"
        assert draws < len(tokens)


def test_the_whole_of_a_text_that_is_certain_takes_one_draw(compilers: dict[str, GrammarCompiler]) -> None:
    compiled = compilers["byte-level"].submit(Grammar("regex", "hello world, hello")).result()
    tokens, draws = walk(compiled.matcher(jump=True), BYTES, 0)
    assert draws == 1
    assert tokens[:-1] == BYTES.encode("hello world, hello"), "what is forced is spelt as the tokenizer would"


SPACED: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def is_allowed(matcher: Matcher, text: str) -> bool:
    for token in BYTES._backend.encode("\0".join(text)).ids[::2]:  # a character at a time
        if token not in allowed_tokens(matcher.mask(), BYTES.vocab_size):
            return False
        matcher.accept(token)
    return True


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"a":1,"b":[1,2]}', True),
        ('{"a": 1, "b": [1, 2]}', True),
        ('{"a": 1,\n  "b": [1,\n\t\t2]}', True),
        ('{"a": 1,\n' + " " * 16 + '"b":[]}', True),
        ('{"a" :1', False),
        ('{"a"\n:1', False),
        ('{"a"\t:1', False),
        ('{"a":1 ,', False),
        ('{"a":1\n,', False),
        ('{"a":  1', False),
        ('{"a":1,  "b"', False),
        ('{"a":1,\n\n', False),
        ('{"a":1,\n' + "\t" * 17, False),
        ('{ "a"', False),
        ('{"a":1,"b":[]\n', False),
        (' {"a"', False),
    ],
)
def test_json_has_white_space_after_commas_and_colons_alone(
    compilers: dict[str, GrammarCompiler], text: str, allowed: bool
) -> None:
    for grammar in (Grammar("json_schema", json.dumps(SPACED)), Grammar("json_object")):
        matcher = compilers["byte-level"].submit(grammar).result().matcher(jump=False)
        assert is_allowed(matcher, text) is allowed


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "colour"},
        {"type": "string", "format": "int64"},
        {"type": "object", "properties": {"x": {"type": "string", "format": "uri-reference"}}, "required": ["x"]},
        {"type": "array", "items": {"type": "string", "format": "regex"}, "minItems": 1},
        {"anyOf": [{"type": "string", "format": "idn-email"}, {"type": "null"}]},
        {"$defs": {"p": {"type": "string", "format": "password"}}, "$ref": "#/$defs/p"},
        {"type": "object", "patternProperties": {"^a$": {"type": "string", "format": "byte"}}},
        {"type": "string", "format": "json-pointer", "minLength": 2, "maxLength": 5},
    ],
)
def test_formats_that_nobody_knows_are_annotations(compilers: dict[str, GrammarCompiler], schema: Any) -> None:
    bare = json.loads(re.sub(r'"format": "[^"]*",? ?', "", json.dumps(schema)).replace(", }", "}"))
    for it in (schema, bare):
        matcher = compilers["byte-level"].submit(Grammar("json_schema", json.dumps(it))).result().matcher(jump=False)
        assert any(matcher.mask())


def test_formats_that_are_known_hold_and_names_and_values_stay(compilers: dict[str, GrammarCompiler]) -> None:
    submit = compilers["byte-level"].submit
    date = submit(Grammar("json_schema", '{"type": "string", "format": "date"}')).result()
    assert is_allowed(date.matcher(False), '"2024-02-28"') and not is_allowed(date.matcher(False), '"x')
    named = {"properties": {"format": {"const": {"format": "foo"}}}, "required": ["format"], "type": "object"}
    named["additionalProperties"] = False
    only = submit(Grammar("json_schema", json.dumps(named))).result()
    assert is_allowed(only.matcher(False), '{"format":{"format":"foo"}}')
    assert not is_allowed(only.matcher(False), '{"format":{}')


def test_special_tokens_are_not_text(compilers: dict[str, GrammarCompiler]) -> None:
    matcher = compilers["byte-level"].submit(Grammar("json_schema", '{"const": "<|im_end|>"}')).result().matcher(True)
    tokens, _ = walk(matcher, BYTES, 0)
    assert text_of(BYTES, tokens) == '"<|im_end|>"'
    assert not set(tokens[:-1]) & BYTES.special_ids


def test_a_token_that_is_not_allowed_is_an_error_for_good(compilers: dict[str, GrammarCompiler]) -> None:
    matcher = compilers["byte-level"].submit(Grammar("regex", "[ab]{9}")).result().matcher(jump=True)
    with pytest.raises(EngineError, match="cannot be kept to"):
        matcher.accept(BYTES.encode("x")[0])
    with pytest.raises(EngineError):
        matcher.mask()


def chain(count: int) -> dict[str, Any]:
    defs = {f"r{i}": {"items": {"$ref": f"#/$defs/r{i + 1}"}} for i in range(count)}
    return {"$ref": "#/$defs/r0", "$defs": {**defs, f"r{count}": {}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def rules(count: int, text: str) -> str:
    return "start: r0\n" + "\n".join(f"r{i}: {text.format(i + 1)}" for i in range(count)) + f'\nr{count}: "a"'


BOMBS: list[tuple[GrammarKind, Any, str]] = [
    ("json_schema", nested(70), "nested"),
    ("json_schema", {"allOf": [{"allOf": [{"type": "string"}] * 60}] * 100}, "10000 values"),
    ("json_schema", chain(1500), "ref"),
    ("json_schema", {"properties": {f"p{i}": {} for i in range(1001)}}, "properties"),
    ("json_schema", {"enum": ["x" * 200_000]}, "characters"),
    ("json_schema", {"multipleOf": 1_000_003}, "multipleOf"),
    ("json_schema", {"multipleOf": 0.123457}, "multipleOf"),
    ("json_schema", {"allOf": [{"type": "integer", "multipleOf": p} for p in (997, 991)]}, "multipleOf"),
    ("json_schema", {"$ref": "#"}, "ref leads back"),
    ("json_schema", {"allOf": [{"$ref": "#"}, {"type": "string"}]}, "ref leads back"),
    ("json_schema", {"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"anyOf": [{"$ref": "#/$defs/x%7E1y"}]}}}, "back"),
    ("json_schema", {"minProperties": 2, "required": ["a"]}, "minProperties"),
    ("json_schema", {"type": "number", "exclusiveMinimum": 10, "maximum": 10.75}, "exclusiveMinimum"),
    ("json_schema", {"allOf": [{"exclusiveMaximum": 0}, {"type": "number", "minimum": -0.5}]}, "exclusiveMaximum"),
    ("json_schema", {"items": [{}], "contains": {"prefixItems": [{}]}}, "prefixItems"),
    ("json_schema", {"enum": []}, "enum"),
    ("json_schema", {"const": 1e20}, r"1e\+20"),
    ("json_schema", '{"minimum": NaN}', "nan"),
    ("json_schema", {"not": {"type": "string"}}, '"not"'),
    ("json_schema", {"not": {}, "x-guidance": {"lenient": True}}, '"not"'),
    ("json_schema", {"$ref": "https://example.org/schema"}, "example.org"),
    ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ("json_schema", False, "false"),
    ("regex", "(" * 50_000 + "a" + ")" * 50_000, "nested"),
    ("regex", "(a)\\1", "backreferences"),
    ("regex", "[", "regex"),
    ("ebnf", "root ::= (", "Expected"),
    ("ebnf", "root ::= " + '"a" ' * 50_000, "characters"),
    ("lark", rules(2000, "r{}"), "2000 are|rules"),
    ("lark", rules(60, "r{0} r{0}").upper().replace("START", "start"), "too big"),
    ("lark", "start: nothing", "nothing"),
    ("ebnf", 'start: "a" json\njson: %json {"minProperties": 2}', "minProperties"),
    ("lark", 'start: %json {"not": {}}', '"not"'),
    ("lark", 'start: %json {"x-guidance": {"lenient": true}, "not": {}}', "x-guidance"),
    ("choice", [], "1 to"),
    ("choice", [f"{i}" for i in range(6000)], "1 to"),
]


@pytest.mark.parametrize(("kind", "value", "complaint"), BOMBS, ids=[f"{i}-{b[0]}" for i, b in enumerate(BOMBS)])
def test_what_is_too_much_or_cannot_be_done_is_refused_in_words(
    compilers: dict[str, GrammarCompiler], kind: GrammarKind, value: Any, complaint: str
) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    before = time.monotonic()
    with pytest.raises(RequestError, match=complaint) as caught:
        compilers["byte-level"].submit(Grammar(kind, text, "the_field")).result(30)
    assert time.monotonic() - before < 5
    assert caught.value.param == "the_field"
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


HEAVY: list[tuple[GrammarKind, Any]] = [
    ("regex", "(.*a.*b|.*c){50}.*x.{50}"),
    ("regex", "(a|b)*a(a|b){200}"),
    ("regex", "((((a{100}){100}){100}){100}){100}"),
    ("regex", "(x+x+)+y"),
    ("json_schema", chain(900)),
    ("json_schema", nested(30)),
    ("json_schema", {"properties": {f"p{i}": {"type": "string"} for i in range(900)}}),
    ("json_schema", {"enum": [f"value {i}" for i in range(5000)]}),
    ("json_schema", {"allOf": [{"type": "integer", "multipleOf": p} for p in (7, 11, 13)]}),
    ("json_schema", {"allOf": [{"type": "string", "pattern": f"{c}.{{{i}}}e"} for i, c in enumerate("tao", 5)]}),
    ("json_schema", {"type": "array", "minItems": 10**6}),
    ("regex", "(?:a)" * 2000),
    ("ebnf", "root ::= r0\n" + "".join(f'r{i} ::= r{i + 1} | "y"\n' for i in range(900)) + 'r900 ::= "a"'),
    ("json_schema", {"type": "string", "minLength": 10**6}),
    ("lark", rules(900, "r{}")),
    ("lark", rules(40, "r{0} r{0}")),
    ("lark", 'start: s\ns: s s | "a" | "ab" | ""'),
]


@pytest.mark.parametrize(("kind", "value"), HEAVY, ids=[f"{i}-{b[0]}" for i, b in enumerate(HEAVY)])
def test_what_is_heavy_ends_one_way_or_another_and_soon(
    compilers: dict[str, GrammarCompiler], kind: GrammarKind, value: Any
) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    slowest = 0.0
    before = time.monotonic()
    try:
        matcher = compilers["byte-level"].submit(Grammar(kind, text)).result(30).matcher(jump=True)
        slowest = time.monotonic() - before
        rng = random.Random(0)
        for _ in range(100):
            before = time.monotonic()
            token = rng.choice(allowed_tokens(matcher.mask(), BYTES.vocab_size))
            if token in {*BYTES.eos_token_ids, *matcher.accept(token)}:
                break
            slowest = max(slowest, time.monotonic() - before)
    except (RequestError, EngineError):
        pass
    assert slowest < 2


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/a"}]}], "$defs": {"a": {"type": "string"}}},
        {"minProperties": 1, "required": ["a"], "properties": {"a": {}}},
        {"minProperties": 1, "additionalProperties": False, "properties": {"a": {}, "b": {}}},
        {"properties": {"a": {"exclusiveMinimum": 0}, "b": {"type": "number", "maximum": 1}}},
        {"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.75},
        {"type": "integer", "exclusiveMinimum": 0, "maximum": 1.5},
        {"items": [{}, {}]},
        {"prefixItems": [{}, {}], "items": False},
        {"multipleOf": 0.0005},
        True,
    ],
)
def test_what_looks_like_it_and_can_be_done_is_not_refused(compilers: dict[str, GrammarCompiler], schema: Any) -> None:
    compilers["byte-level"].submit(Grammar("json_schema", json.dumps(schema))).result()


def test_compiled_once_and_kept_for_a_while() -> None:
    compiler = GrammarCompiler(BYTES)
    first = compiler.submit(Grammar("regex", "a+", "one"))
    assert compiler.submit(Grammar("regex", "a+", "another")) is first
    futures = [compiler.submit(Grammar("regex", f"a{{{i}}}")) for i in range(20)]
    assert all(f.result() for f in futures)
    for i in range(MAX_CACHED):
        compiler.submit(Grammar("regex", f"b{{{i}}}")).result()
    assert compiler.submit(Grammar("regex", "a+")) is not first
    with pytest.raises(RequestError):
        compiler.submit(Grammar("regex", "[")).result()
    with pytest.raises(RequestError, match="regex"):  # not the cached future, whose traceback grows
        compiler.submit(Grammar("regex", "[")).result()
    compiler.close()


def test_tokenizers_without_bytes_or_end_are_refused() -> None:
    for tokenizer, word in ((Tokenizer(samples.word_piece()), "spell"), (Tokenizer(samples.byte_level()), "ends")):
        with pytest.raises(RequestError, match=word):
            GrammarCompiler(tokenizer).submit(Grammar("json_object")).result()


def test_a_grammar_may_have_parts_of_every_kind(compilers: dict[str, GrammarCompiler]) -> None:
    kinds = [Grammar("json_schema", '{"enum": [1]}'), Grammar("regex", "[0-9]x"), Grammar("choice", '["a.b"]')]
    parts = (*kinds, Grammar("ebnf", 'root ::= "he"'), Grammar("json_object"))
    grammar = Grammar("lark", 'start: "<" @part_0 @part_1 @part_2 @part_3 ">"', "whole", parts)
    compiled = compilers["byte-level"].submit(grammar).result()
    for seed in range(5):
        assert re.fullmatch(r"<1[0-9]xa\.bhe>", text_of(BYTES, walk(compiled.matcher(jump=True), BYTES, seed)[0]))


def test_the_part_that_is_to_blame_is_named(compilers: dict[str, GrammarCompiler]) -> None:
    good, bad = Grammar("json_schema", "{}", "good"), Grammar("json_schema", '{"not": {}}', "bad")
    for parts, param in (((good, bad), "bad"), ((good, good), "whole")):
        with pytest.raises(RequestError) as caught:
            compilers["byte-level"].submit(Grammar("lark", "start: @part_0 @part_2 @part_1", "whole", parts)).result()
        assert caught.value.param == param
    large = Grammar("json_schema", json.dumps({"const": "x" * 100_000}))
    with pytest.raises(RequestError, match="are the limit"):
        compilers["byte-level"].submit(Grammar("lark", "start: @part_0 @part_1", None, (large, large))).result()


def engine(num_pages: int, num_seqs: int) -> EngineCore:
    executor = FakeExecutor(num_pages=num_pages, page_size=4, max_model_len=64, vocab_size=BYTES.vocab_size)
    config = SchedulerConfig(num_seqs, num_seqs + 3, 64, 4, num_pages)
    return EngineCore(executor, config, BYTES, BYTES.eos_token_ids)


def test_scheduling_does_not_change_what_a_grammar_makes_of_a_sequence(compilers: dict[str, GrammarCompiler]) -> None:
    """With pages for hardly more than one of them: sequences are preempted between tokens that are forced."""
    grammars = [grammar for grammar, _ in CASES] + [Grammar("json_object"), Grammar("regex", "(hello ){1,8}"), None]
    rng = random.Random(0)
    asked = {
        f"r{i}": (rng.choices(range(200), k=rng.randrange(1, 12)), rng.choice(grammars), rng.choice([1, 1, 2]))
        for i in range(40)
    }

    def add(core: EngineCore, name: str) -> None:
        prompt, grammar, n = asked[name]
        params = SamplingParams(seed=int(name[1:]), n=n, max_tokens=40, grammar=grammar)
        compiled = None if grammar is None else compilers["byte-level"].submit(grammar).result()
        core.add_request(name, prompt, params, compiled)

    together = engine(num_pages=18, num_seqs=6)
    for name in asked:
        add(together, name)
    answers = drain(together)
    assert together.stats().num_preemptions > 5
    for name in asked:
        alone = engine(num_pages=64, num_seqs=2)
        add(alone, name)
        assert answers[name] == drain(alone)[name]
