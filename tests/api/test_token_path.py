"""The path of each token to its client: chunks made in advance, the tally of gaps, and the watch over sends."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Histogram

from llmserve.api.base.chunks import ChunkReply
from llmserve.api.base.generation import Event, TokenUsage
from llmserve.api.base.protocol import ChatRequest, CompletionRequest
from llmserve.api.edge.metrics import Tally
from llmserve.api.edge.middleware import Sender
from llmserve.api.endpoints.chat import ChatReply
from llmserve.api.endpoints.completions import CompletionPrompt, TextReply
from llmserve.engine import SamplingParams, TokenLogprob
from llmserve.text.parsers.base import ReasoningPart, TextPart

from .server import Executor, build

ODD = ("\0", '"\0"', "a\n\nb\u2028", '\\u0000","delta":{', "ß€😀", "\ud83d", "%s{}", " ")


def chat() -> ChunkReply:
    body = ChatRequest.of({"model": 'named "\0" by a client', "messages": [{"role": "user", "content": "x"}]})
    return ChatReply(build(Executor())[2], body, 2)


def completion() -> ChunkReply:
    body = CompletionRequest(model='named "\0" by a client', prompt="x")
    return TextReply(build(Executor())[2], body, [CompletionPrompt([1]), CompletionPrompt([2])], SamplingParams())


@pytest.mark.parametrize("made", [chat, completion])
def test_words_are_written_as_they_would_be_at_length(made: Callable[[], ChunkReply]) -> None:
    reply, usage = made(), TokenUsage(1)
    for index, text in itertools.product((0, 1), ODD):
        event = Event(index, [TextPart(text)])
        assert event.plain_text == text
        written = reply.write(event, usage)
        [piece] = reply.pieces(event)
        assert written == reply._chunk(piece) and written.isascii()
        assert written.startswith(b"data: {") and written.endswith(b"}\n\n") and written.count(b"\n") == 2
        assert json.loads(written[6:])["choices"] == [piece] == [reply.text_choice(index, text)]


def test_events_with_more_than_words_are_not_taken_for_words() -> None:
    words, score = [TextPart("a")], (TokenLogprob(1, -0.5),)
    for event in (
        Event(0),
        Event(0, [TextPart("a"), TextPart("b")]),
        Event(0, [ReasoningPart("a")]),
        Event(0, words, logprobs=score),
        Event(0, words, prompt_logprobs=score),
        Event(0, words, finish_reason="stop"),
    ):
        assert event.plain_text is None, event
    last = chat().write(Event(0, words, finish_reason="length"), TokenUsage(1))
    chunks = [json.loads(chunk[6:])["choices"][0] for chunk in last.decode().split("\n\n")[:-1]]
    assert [chunk["delta"] for chunk in chunks] == [{"content": "a"}, {}]
    assert [chunk["finish_reason"] for chunk in chunks] == [None, "length"]


def test_a_tally_is_prometheus_histogram() -> None:
    bounds, draw = (0.001, 0.5, 1, 2.5), random.Random(3)
    registry, tally = CollectorRegistry(), Tally(bounds)
    histogram = Histogram("x", "x", buckets=bounds, registry=registry)
    for _ in range(200):
        value, times = draw.choice([*bounds, 0.0, draw.random(), 9.0]), draw.randrange(4)
        tally.add(value, times)
        for _ in range(times):
            histogram.observe(value)
    [family] = registry.collect()
    samples = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    for bound, count in tally.buckets():
        assert samples.pop(bound) == count
    assert samples["x_count"] == tally.buckets()[-1][1]
    assert samples["x_sum"] == pytest.approx(tally.sum)


def test_slow_sends_are_given_up_and_many_quick_ones_are_not() -> None:
    async def run() -> None:
        pauses = [0.03] * 20 + [5.0]

        async def send(message: object) -> None:
            await asyncio.sleep(pauses.pop(0))

        sender = Sender(send, 0.2)
        for _ in range(20):
            await sender.send({"type": "http.response.body"})
        assert not sender.failed
        with pytest.raises(OSError, match=r"nothing for 0\.2 seconds"):
            await sender.send({"type": "http.response.body"})
        assert sender.failed
        await asyncio.sleep(0)  # the task goes on, uncancelled

    asyncio.run(asyncio.wait_for(run(), 4))


def test_a_send_that_is_cancelled_by_others_says_so() -> None:
    async def run() -> None:
        async def send(message: object) -> None:
            await asyncio.sleep(5)

        sender = Sender(send, 1.0)
        task = asyncio.create_task(sender.send({"type": "http.response.body"}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not sender.failed
        sender.close()

    asyncio.run(asyncio.wait_for(run(), 4))
