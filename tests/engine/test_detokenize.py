"""Text comes out in order, whole characters at a time, and ends where a stop string begins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.detokenize import Detokenizer
from tests.fakes import FakeTokenizer


class Pieces:
    """A text stream whose token i is the i-th of some strings."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def step(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return self.rest


def run(pieces: list[str], stops: list[str], rest: str = "", min_tokens: int = 0) -> tuple[list[str], str | None]:
    """What each push shows, and the flush at the end; and the stop string."""
    words = Detokenizer(Pieces(pieces, rest), stops, min_tokens)
    shown = []
    for i in range(len(pieces)):
        shown.append(words.push(i))
        if words.stop is not None:
            break
    return [*shown, words.flush()], words.stop


def test_without_stop_strings_text_passes_through() -> None:
    assert run(["a", "", "b"], [], "!") == (["a", "", "b", "!"], None)


def test_a_possible_beginning_is_held_back_until_it_is_known() -> None:
    assert run(["x</", "s", "t"], ["</s>"]) == (["x", "", "</st", ""], None)
    assert run(["x</", "s", ">y"], ["</s>"]) == (["x", "", "", ""], "</s>")


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert run(["x</", "s"], ["</s>"]) == (["x", "", "</s"], None)


def test_the_stop_string_that_completes_first_wins_then_the_longest() -> None:
    assert run(["abcd"], ["abcd", "bc"]) == (["a", ""], "bc")
    assert run(["abc"], ["bc", "abc"]) == (["", ""], "abc")


def test_overlapping_beginnings() -> None:
    assert run(["a", "a", "b"], ["ab"]) == (["", "a", "", ""], "ab")
    assert run(["aab", "aac"], ["aabaac"]) == (["", "", ""], "aabaac")


def test_a_stop_string_may_end_in_the_rest() -> None:
    assert run(["a"], ["ab"], rest="b") == (["", ""], "ab")


def test_stop_strings_within_the_first_tokens_are_text() -> None:
    assert run(["x", "x", "x"], ["x"], min_tokens=2) == (["x", "x", "", ""], "x")
    assert run(["a", "b", "c"], ["ab"], min_tokens=1) == (["a", "b", "c", ""], None)


def test_characters_split_over_tokens() -> None:
    tokenizer = FakeTokenizer()
    words = Detokenizer(tokenizer.stream(True), ["é"])
    assert [words.push(0), words.push(7), words.push(8)] == ["a", "", ""] and words.stop == "é"
    words = Detokenizer(tokenizer.stream(True), ["x"])
    assert words.push(7) == "" and words.flush() == "\ufffd"


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first prefix of the text that ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stops if text[:end].endswith(s)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


letters = st.text("ab<", max_size=4)


@given(
    st.lists(letters, max_size=12), st.lists(st.text("ab<", min_size=1, max_size=5), max_size=4, unique=True), letters
)
def test_however_text_falls_into_tokens_it_ends_the_same(pieces: list[str], stops: list[str], rest: str) -> None:
    shown, stop = run(pieces, stops, rest)
    assert ("".join(shown), stop) == oracle("".join(pieces) + rest, stops)


@given(st.lists(letters, max_size=12), st.lists(st.text("ab<", min_size=1, max_size=5), min_size=1, max_size=4))
def test_nothing_is_held_back_without_need(pieces: list[str], stops: list[str]) -> None:
    words = Detokenizer(Pieces(pieces), stops)
    seen = told = ""
    for i, piece in enumerate(pieces):
        seen += piece
        told += words.push(i)
        if words.stop is not None:
            return
        held = seen[len(told) :]
        assert seen == told + held
        assert not held or any(s.startswith(held) and s != held for s in stops)
