"""Stand-ins for the model and the tokenizer that make the engine's bookkeeping observable.

`FakeExecutor` stores what a real KV cache would depend on, slot by slot, and reads every context back through the page
tables; its next token is a hash of what it read. `run_alone` says, without any engine, what a request must give.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llmserve.engine import EngineCore, Pooled, SampledToken, SamplingParams, SchedulerConfig, Scored, TokenLogprob
from llmserve.engine.plan.grammar_spec import CompiledGrammar
from llmserve.engine.plan.scheduler import SchedulerOutput
from llmserve.engine.plan.sequence import Sequence as EngineSequence
from llmserve.errors import EngineError

_MASK = 2**61 - 1


def _mix(state: int, value: int) -> int:
    return ((state ^ (value + 0x9E3779B9)) * 0x2545F4914F6CDD1D + 0x1234567) & _MASK


def next_token(
    state: int, seed: int, params: SamplingParams, vocab_size: int, allowed: Sequence[int] | None = None
) -> int:
    """The token after a context whose prefix hash is `state`, of those that a grammar allows if there is one."""
    drawn = _mix(state, 0 if params.greedy else seed & _MASK) >> 17
    return drawn % vocab_size if allowed is None else allowed[drawn % len(allowed)]


def allowed_tokens(mask: bytes, vocab_size: int) -> list[int]:
    """The token ids whose bits are set."""
    return [i for i in range(min(vocab_size, 8 * len(mask))) if mask[i // 8] >> i % 8 & 1]


def pooled(token_ids: Sequence[int]) -> bytes:
    """The vector of these tokens: where each of the ids modulo 8 lies, their mean, and of unit length."""
    counts = [sum(token % 8 == i for token in token_ids) for i in range(8)]
    length = sum(count**2 for count in counts) ** 0.5
    return struct.pack("<8f", *(count / length for count in counts))


def score(state: int | None, token: int) -> TokenLogprob:
    """The log-probability of a token after a context whose prefix hash is `state`."""
    assert state is not None
    return TokenLogprob(token, -(_mix(state, token) % 1000) / 100)


def scores_of(prompt_ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    """What scoring a prompt must give: an entry for each token but the first."""
    state, scores = _mix(0, prompt_ids[0]), []
    for token in prompt_ids[1:]:
        scores.append(score(state, token))
        state = _mix(state, token)
    return tuple(scores)


@dataclass
class FakeExecutor:
    """An `Executor` whose page slots hold the hash of all tokens up to theirs, as keys and values do.

    `nan_after` makes the logits of contexts of that length unusable; `die_after` kills the engine at that step.
    """

    num_pages: int = 64
    page_size: int = 4
    max_model_len: int = 64
    vocab_size: int = 64
    nan_at: int | None = None
    die_after: int | None = None
    steps: int = 0
    closed: bool = False
    max_tokens_seen: int = 0
    num_forced: int = 0

    def __post_init__(self) -> None:
        self.slots: list[int | None] = [None] * (self.num_pages * self.page_size)
        self.sums: dict[int, list[int]] = {}  # of prompts that are pooled, as far as they have come
        self.scores: dict[int, list[TokenLogprob]] = {}  # of prompts that are scored

    def execute(self, plan: SchedulerOutput) -> Mapping[int, SampledToken | Pooled | EngineError]:
        self.steps += 1
        if self.die_after is not None and self.steps > self.die_after:
            raise RuntimeError("the device fell off the bus")
        assert plan.scheduled, "an empty plan must not be executed"
        self.max_tokens_seen = max(self.max_tokens_seen, sum(s.num_tokens for s in plan.scheduled))
        size, slots = self.page_size, self.slots
        written: set[int] = set()
        result: dict[int, SampledToken | Pooled | EngineError] = {}
        for item in plan.scheduled:
            sequence = item.sequence
            start, end = sequence.num_computed_tokens, sequence.num_computed_tokens + item.num_tokens
            assert item.num_tokens >= 1 and end <= len(sequence.token_ids)
            assert len(sequence.pages) * size >= end, "no page for a scheduled token"
            state = 0
            for position in range(end):
                state = _mix(state, sequence.token_ids[position])
                slot = sequence.pages[position // size] * size + position % size
                if position >= start:
                    assert slot not in written, "two sequences write to one slot"
                    written.add(slot)
                    slots[slot] = state
                assert slots[slot] == state, f"position {position} of sequence {sequence.seq_id} reads another's memory"
            params = sequence.request.params
            if params.pooling is not None:
                read = self.sums[sequence.seq_id] = [] if start == 0 else self.sums.get(sequence.seq_id, [])
                read += sequence.token_ids[start:end] if params.needs_every_position else ()
            if sequence.is_scoring:
                scores = self.scores[sequence.seq_id] = [] if start == 0 else self.scores[sequence.seq_id]
                scores += (
                    score(slots[sequence.pages[p // size] * size + p % size], sequence.token_ids[p + 1])
                    for p in range(start, min(end, len(sequence.token_ids) - 1))
                )
            if end == len(sequence.token_ids):
                if end == self.nan_at:
                    result[sequence.seq_id] = EngineError("the logits are not finite")
                elif params.pooling is not None:
                    result[sequence.seq_id] = Pooled(pooled(self.sums.pop(sequence.seq_id) or [sequence.token_ids[-1]]))
                elif sequence.is_scoring and params.max_tokens == 0:
                    result[sequence.seq_id] = Scored(tuple(self.scores.pop(sequence.seq_id)))
                else:
                    scored = tuple(self.scores.pop(sequence.seq_id)) if sequence.is_scoring else None
                    token = self.sample(state, sequence)
                    if isinstance(token, SampledToken):
                        token = token._replace(prompt_logprobs=scored)
                    result[sequence.seq_id] = token
        return result

    def sample(self, state: int, sequence: EngineSequence) -> SampledToken | EngineError:
        """The next token of a sequence, and those that its grammar forces after it."""
        matcher = sequence.matcher
        try:
            allowed = None if matcher is None else allowed_tokens(matcher.mask(), self.vocab_size)
            token = self.choose(state, sequence, allowed)
            forced = () if matcher is None else matcher.accept(token)
            self.num_forced += len(forced)
            return SampledToken(token, forced=forced)
        except EngineError as error:
            return error

    def choose(self, state: int, sequence: EngineSequence, allowed: Sequence[int] | None) -> int:
        """What the model and the draw come to; `allowed` is what a grammar leaves."""
        return next_token(state, sequence.seed, sequence.request.params, self.vocab_size, allowed)

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class FakeGrammar:
    """A `CompiledGrammar` that allows some tokens after each text, forces a few now and then, and ends in `end`."""

    vocab_size: int
    end: int | None
    salt: int

    def matcher(self, jump: bool) -> FakeMatcher:
        return FakeMatcher(self, jump)


class FakeMatcher:
    def __init__(self, grammar: FakeGrammar, jump: bool) -> None:
        self._grammar, self._jump = grammar, jump
        self._state = grammar.salt
        self._pending = self._forced()

    def mask(self) -> bytes:
        size = self._grammar.vocab_size
        allowed = [i for i in range(size) if _mix(self._state, i) >> 20 & 3 == 0] or [self._state % size]
        bits = sum(1 << i for i in self._pending[:1] or allowed)
        return bits.to_bytes(size // 8 + 1, "little")

    def accept(self, token_id: int) -> tuple[int, ...]:
        assert self.mask()[token_id // 8] >> token_id % 8 & 1, "the grammar does not allow this token"
        if self._pending:
            self._pending = self._pending[1:]
        else:
            self._state = _mix(self._state, token_id)
            self._pending = self._forced()
        if not self._jump:
            return ()
        forced, self._pending = self._pending, ()
        return forced

    def _forced(self) -> tuple[int, ...]:
        draw = self._state >> 30
        forced = [_mix(self._state, i) % self._grammar.vocab_size for i in range(draw % 6 if draw % 2 == 0 else 0)]
        for token in forced:
            self._state = _mix(self._state, token)
        if draw % 13 == 0 and self._grammar.end is not None:
            forced.append(self._grammar.end)
        return tuple(forced)


class FakeStream:
    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.spell(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class FakeTokenizer:
    """Tokens are a few letters of a small alphabet, or half a character, so that stop strings and borders occur."""

    _PIECES = (b"a", b"b", b"c", b"ab", b"bc", b"ca", b"abc", b"\xc3", b"\xa9", "é".encode(), b" ", b"")

    def spell(self, token_id: int) -> bytes:
        return self._PIECES[token_id % len(self._PIECES)]

    def stream(self, skip_special_tokens: bool, *, shown: Collection[int] = (), continues: bool = True) -> FakeStream:
        return FakeStream(self)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return b"".join(map(self.spell, ids)).decode("utf-8", "replace")


@dataclass(frozen=True)
class Answer:
    """What one choice comes to."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None
    stop_reason: str | int | None


def run_alone(
    prompt_ids: Sequence[int],
    params: SamplingParams,
    index: int = 0,
    *,
    max_model_len: int,
    vocab_size: int,
    eos_token_ids: frozenset[int],
    grammar: CompiledGrammar | None = None,
) -> Answer:
    """What a choice must come to, whatever else the engine does; written the slow and obvious way."""
    tokenizer = FakeTokenizer()
    state = 0
    for token in prompt_ids:
        state = _mix(state, token)
    generated: list[int] = []
    limit = max_model_len - len(prompt_ids)
    if params.max_tokens is not None:
        limit = min(limit, params.max_tokens)
    if params.max_tokens == 0:
        return Answer((), "", "length", None)
    matcher = None if grammar is None else grammar.matcher(jump=False)
    while True:
        allowed = None if matcher is None else allowed_tokens(matcher.mask(), vocab_size)
        token = next_token(state, (params.seed or 0) + index, params, vocab_size, allowed)
        if matcher is not None:
            assert matcher.accept(token) == ()
        state = _mix(state, token)
        generated.append(token)
        counts = len(generated) > params.min_tokens
        before = tokenizer.decode(generated[:-1], True)
        if token in eos_token_ids and (grammar is not None or (counts and not params.ignore_eos)):
            return Answer(tuple(generated), before, "stop", None)
        if counts and token in params.stop_token_ids:
            return Answer(tuple(generated), before, "stop", token)
        done = len(generated) >= limit
        stream = tokenizer.stream(True)
        text = "".join(map(stream.step, generated)) + (stream.flush() if done else "")
        guarded = tokenizer.stream(True)
        skip = len("".join(map(guarded.step, generated[: params.min_tokens])))
        found = [(at + len(s), at, s) for s in params.stop if (at := text.find(s, skip)) >= 0]
        if found:
            _, at, stop = min(found)
            return Answer(tuple(generated), text[:at], "stop", stop)
        if done:
            return Answer(tuple(generated), text, "length", None)


def make_core(executor: FakeExecutor | None = None, *, eos: Sequence[int] = (), **limits: int | bool) -> EngineCore:
    """An engine over fakes. `limits` are SchedulerConfig's."""
    executor = executor or FakeExecutor()
    settings: dict[str, int | bool] = {"max_num_seqs": 4, "max_num_batched_tokens": 16} | limits
    config = SchedulerConfig(
        max_model_len=executor.max_model_len,
        page_size=executor.page_size,
        num_pages=executor.num_pages,
        **settings,  # type: ignore[arg-type]
    )
    return EngineCore(executor, config, FakeTokenizer(), eos)


def drain(core: EngineCore) -> dict[str, dict[int, Answer]]:
    """Step until nothing is left; what each choice of each request came to."""
    collected = Collector()
    while core.has_work():
        collected.take(core.step())
    return collected.answers()


class Collector:
    """Folds outputs into answers, and checks that the stream is well formed while at it."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[int, list]] = {}
        self.prompt_logprobs: dict[str, tuple[TokenLogprob, ...]] = {}
        self.finished: dict[str, bool] = {}

    def take(self, outputs) -> None:  # type: ignore[no-untyped-def]
        assert len({o.request_id for o in outputs}) == len(outputs), "two outputs of one request in one step"
        for output in outputs:
            assert not self.finished.get(output.request_id), "news of a finished request"
            self.finished[output.request_id] = output.finished
            choices = self._parts.setdefault(output.request_id, {})
            for delta in output.deltas:
                assert choices or delta.index == 0 or delta.finish_reason == "abort", "choice 0 must come first"
                deltas = choices.setdefault(delta.index, [])
                assert not deltas or deltas[-1].finish_reason is None, "news of a finished choice"
                if delta.prompt_logprobs is not None:
                    assert not deltas and delta.index == 0, "a prompt's scores come first, and once"
                    self.prompt_logprobs[output.request_id] = delta.prompt_logprobs
                deltas.append(delta)

    def answers(self) -> dict[str, dict[int, Answer]]:
        return {
            request_id: {
                index: Answer(
                    tuple(t for d in deltas for t in d.token_ids),
                    "".join(d.text for d in deltas),
                    deltas[-1].finish_reason,
                    deltas[-1].stop_reason,
                )
                for index, deltas in choices.items()
            }
            for request_id, choices in self._parts.items()
        }
