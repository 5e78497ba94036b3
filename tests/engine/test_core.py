"""Requests in, outputs out: what a step says, and what is refused at the door."""

from __future__ import annotations

from collections.abc import Sequence as Items

import pytest

from llmserve.engine import ChoiceDelta, EngineCore, Grammar, RequestOutput, SamplingParams, SchedulerConfig, fold
from llmserve.engine.plan.sequence import Sequence
from llmserve.errors import ConfigError, ContextLengthError, EngineError, RequestError
from llmserve.text.tokenizer import Tokenizer
from tests.fakes import Collector, FakeExecutor, FakeGrammar, FakeMatcher, FakeTokenizer, drain, make_core, run_alone
from tests.text import samples


def greedy(**params: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, **params)


def test_a_request_alone() -> None:
    core = make_core()
    core.add_request("a", [1, 2, 3], greedy(max_tokens=5))
    outputs = []
    while core.has_work():
        outputs += core.step()
    assert [o.finished for o in outputs] == [False] * 4 + [True]
    assert all(len(o.deltas) == 1 and len(o.deltas[0].token_ids) == 1 for o in outputs)
    assert all((o.request_id, o.num_prompt_tokens) == ("a", 3) for o in outputs)
    whole = fold(outputs)
    expected = run_alone([1, 2, 3], greedy(max_tokens=5), max_model_len=64, vocab_size=64, eos_token_ids=frozenset())
    assert (whole.deltas[0].token_ids, whole.deltas[0].text) == (expected.token_ids, expected.text)
    assert whole.finished and whole.deltas[0].finish_reason == "length"
    assert core.step() == []


def test_a_stop_string_frees_the_pages_in_the_same_step() -> None:
    core, free = make_core(), 0
    core.add_request("a", [1, 2], greedy(max_tokens=30))
    text = drain(core)["a"][0].text
    stop = text[3:5]
    core.add_request("b", [1, 2], greedy(max_tokens=30, stop=(stop,)))
    told = Collector()
    while not told.finished.get("b"):
        told.take(core.step())
        free = core.stats().num_available_pages
    answer = told.answers()["b"][0]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.text == text[: text.index(stop)] and len(answer.token_ids) < 30
    assert free == 64 and not core.has_work()


def test_a_stop_string_in_the_last_token_is_a_stop() -> None:
    core = make_core()
    core.add_request("a", [1, 2], greedy(max_tokens=4))
    text = drain(core)["a"][0].text
    core.add_request("b", [1, 2], greedy(max_tokens=4, stop=(text[-1],), min_tokens=3))
    answer = drain(core)["b"][0]
    assert answer.finish_reason == "stop" and len(answer.token_ids) == 4
    assert core.stats().finished == {"stop": 1, "length": 1, "abort": 0, "error": 0}


def test_the_token_that_ends_it_is_a_token_and_no_text() -> None:
    core = make_core()
    core.add_request("a", [5, 6], greedy(max_tokens=3))
    plain = drain(core)["a"][0]
    core.add_request("b", [5, 6], greedy(max_tokens=3, stop_token_ids=plain.token_ids[2:]))
    answer = drain(core)["b"][0]
    assert answer.token_ids == plain.token_ids and answer.stop_reason == plain.token_ids[2]
    assert answer.text == FakeTokenizer().decode(plain.token_ids[:2], True)


def test_choices_of_one_request_come_in_one_output_the_first_first() -> None:
    core = make_core()
    core.add_request("a", [1, 2, 3, 4, 5, 6], SamplingParams(n=3, seed=1, max_tokens=4))
    first = core.step()
    assert [d.index for d in first[0].deltas] == [0]
    assert [d.index for d in core.step()[0].deltas] == [0, 1, 2]
    drain(core)
    assert core.stats().prefix_hits == 8


def test_abort_answers_at_once_with_what_was_held_back() -> None:
    core = make_core()
    core.add_request("a", [1, 2], greedy())
    text = "".join(d.text for _ in range(6) for o in core.step() for d in o.deltas)
    core.abort("a")
    core.add_request("b", [1, 2], greedy(stop=(text + "never",), n=2))
    for _ in range(6):
        core.step()
    output = core.abort("b")
    assert output is not None and output.finished
    assert [(d.index, d.finish_reason, d.token_ids) for d in output.deltas] == [(0, "abort", ()), (1, "abort", ())]
    assert output.deltas[0].text == text
    assert core.abort("b") is None
    stats = core.stats()
    assert stats.num_available_pages == stats.num_pages and stats.finished["abort"] == 3 and not core.has_work()


def test_unusable_logits_end_one_request_and_not_the_engine() -> None:
    core = make_core(FakeExecutor(nan_at=6))
    core.add_request("sick", [1, 2, 3], greedy(max_tokens=9))
    core.add_request("sound", [1, 2, 3, 4, 5, 6, 7], greedy(max_tokens=9))
    outputs = []
    while core.has_work():
        outputs += core.step()
    last = [o for o in outputs if o.request_id == "sick"][-1]
    assert last.finished and last.deltas[0].finish_reason == "error" and "not finite" in (last.deltas[0].error or "")
    assert [o for o in outputs if o.request_id == "sound"][-1].deltas[0].finish_reason == "length"
    stats = core.stats()
    assert stats.finished["error"] == 1 and stats.num_available_pages == stats.num_pages


@pytest.mark.parametrize(
    ("prompt", "params", "error", "words"),
    [
        ([], {}, RequestError, "empty"),
        ([1, 64], {}, RequestError, "vocabulary of 64"),
        ([-1], {}, RequestError, "vocabulary"),
        ([1], {"logit_bias": {64: 1.0}}, RequestError, "logit_bias"),
        ([1], {"stop_token_ids": (-2,)}, RequestError, "stop_token_ids"),
        ([1] * 64, {}, ContextLengthError, "64 tokens.*64 tokens"),
    ],
)
def test_refusals_leave_nothing_behind(
    prompt: list[int], params: dict[str, object], error: type[RequestError], words: str
) -> None:
    core = make_core()
    with pytest.raises(error, match=words):
        core.add_request("a", prompt, greedy(**params))
    assert not core.has_work() and not core.scheduler.requests and not core._detokenizers
    assert core.stats().num_prompt_tokens == 0


def test_the_longest_prompt_that_is_taken_gets_one_token() -> None:
    core = make_core()
    core.add_request("a", [1] * 63, greedy(max_tokens=10))
    answer = drain(core)["a"][0]
    assert len(answer.token_ids) == 1 and answer.finish_reason == "length"


def test_limits_must_be_the_executors() -> None:
    config = SchedulerConfig(
        max_num_seqs=1, max_num_batched_tokens=8, max_model_len=64, page_size=4, num_pages=64, prefix_caching=True
    )
    for executor in (FakeExecutor(num_pages=63), FakeExecutor(page_size=8), FakeExecutor(max_model_len=63)):
        with pytest.raises(ConfigError):
            EngineCore(executor, config, FakeTokenizer())


def test_without_a_tokenizer_there_are_tokens_and_no_text() -> None:
    config = SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=8, max_model_len=64, page_size=4, num_pages=64)
    core = EngineCore(FakeExecutor(), config, None)
    with pytest.raises(RequestError, match="tokenizer"):
        core.add_request("a", [1], greedy(stop=("a",)))
    core.add_request("a", [1], greedy(max_tokens=3))
    answer = drain(core)["a"][0]
    assert len(answer.token_ids) == 3 and answer.text == ""


def test_stats_count() -> None:
    core = make_core(max_num_seqs=1)
    core.add_request("a", [1, 2, 3, 4, 5], greedy(max_tokens=2))
    core.add_request("b", [1, 2, 3, 4, 6], greedy(max_tokens=2))
    core.step()
    stats = core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_available_pages) == (1, 1, 62)
    drain(core)
    stats = core.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (10, 4)
    assert (stats.prefix_queries, stats.prefix_hits) == (10, 4)
    assert stats.finished["length"] == 2


def test_folding_a_stream_gives_the_whole() -> None:
    def output(*deltas: ChoiceDelta, finished: bool = False) -> RequestOutput:
        return RequestOutput("a", deltas, 3, 0, finished)

    whole = fold(
        [
            output(ChoiceDelta(0, (1,), "x")),
            output(ChoiceDelta(0, (2,), "y"), ChoiceDelta(1, (5,), "p", finish_reason="length")),
            output(ChoiceDelta(0, (3,), "", finish_reason="stop", stop_reason="z"), finished=True),
        ]
    )
    assert whole == output(
        ChoiceDelta(0, (1, 2, 3), "xy", finish_reason="stop", stop_reason="z"),
        ChoiceDelta(1, (5,), "p", finish_reason="length"),
        finished=True,
    )


class Saying(FakeExecutor):
    """A model that says one token, again and again."""

    token = 0

    def choose(self, state: int, sequence: Sequence, allowed: Items[int] | None) -> int:
        return self.token


def test_a_text_goes_on_from_its_prompt() -> None:
    """Some tokenizers drop the space before a text's first word; what was generated is not a text's beginning."""
    tokenizer = Tokenizer(samples.sentencepiece())
    executor = Saying(vocab_size=tokenizer.vocab_size)
    (executor.token,) = tokenizer.encode("hello", add_special_tokens=False)
    config = SchedulerConfig(4, 16, executor.max_model_len, executor.page_size, executor.num_pages)
    core = EngineCore(executor, config, tokenizer)
    core.add_request("a", [5], greedy(max_tokens=2))
    assert drain(core)["a"][0].text == " hello hello"


def test_a_grammar_that_was_not_compiled_is_refused() -> None:
    core = make_core()
    with pytest.raises(RequestError, match="grammars") as caught:
        core.add_request("a", [1], greedy(grammar=Grammar("regex", "a", "guided_regex")))
    assert caught.value.param == "guided_regex"
    assert not core.has_work()


def test_what_a_grammar_forces_comes_in_one_step_and_counts_as_tokens() -> None:
    # One that begins with several tokens of which there is no choice.
    grammars = (FakeGrammar(64, None, salt << 31) for salt in range(99))
    forces = next(grammar for grammar in grammars if len(grammar.matcher(True)._pending) > 3)
    core = make_core()
    core.add_request("a", [1, 2], greedy(max_tokens=3, grammar=Grammar("lark", "")), forces)
    (output,) = core.step()
    assert output.finished
    assert len(output.deltas[0].token_ids) == 3, "and no more than were asked for"
    assert core.stats().num_generated_tokens == 3


class Failing(FakeMatcher):
    """A matcher that cannot go on after some tokens, as one whose grammar has become too complex."""

    left = 3

    def accept(self, token_id: int) -> tuple[int, ...]:
        self.left -= 1
        if not self.left:
            raise EngineError("the grammar cannot be kept to")
        return super().accept(token_id)


def test_a_grammar_that_fails_ends_its_own_sequence_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGrammar, "matcher", lambda self, jump: Failing(self, False))
    core = make_core()
    core.add_request("a", [1, 2], greedy(max_tokens=9, n=2, grammar=Grammar("lark", "")), FakeGrammar(64, None, 1))
    core.add_request("b", [1, 2], greedy(max_tokens=9))
    answers = drain(core)
    assert [(a.finish_reason, len(a.token_ids)) for a in answers["a"].values()] == [("error", 2)] * 2
    assert answers["b"][0].finish_reason == "length"
    core.scheduler.check_integrity()
    assert core.stats().num_available_pages == core.stats().num_pages
