"""The main job as a user runs it: a `llmserve serve` process with a real compiled model, and the real OpenAI client."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

READY_SECONDS = 120


class Server:
    def __init__(self, model: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "llmserve", "serve", str(model), "--port", str(self.port), *options]
        # Not a pipe: one that nobody reads stops the server when it is full, after some hundred requests.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stderr=self._said, stdout=subprocess.DEVNULL, text=True)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None, self.said()
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.1)

    def metric(self, name: str, **labels: str) -> float:
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=5).read().decode()
        total = 0.0
        for found, given, value in re.findall(r"^(\S+?)(\{.*\})? (\S+)$", text, re.MULTILINE):
            if found == name and all(f'{k}="{v}"' in given for k, v in labels.items()):
                total += float(value)
        return total

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return self.said()

    def said(self) -> str:
        """What it has logged, once it has ended."""
        self._said.seek(0)
        return self._said.read()


@pytest.fixture(scope="module")
def server(checkpoint) -> Iterator[Server]:
    running = Server(checkpoint("qwen3"), "--quant", "q4", "--max-num-seqs", "32", "--kv-cache-memory", "32MiB")
    running.wait()
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


ASK = [{"role": "user", "content": "How are you?"}]


def test_streamed_and_whole_answers_agree(client):
    model = client.models.list().data[0].id
    whole = client.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=24)
    stream = client.chat.completions.create(
        model=model,
        messages=ASK,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == "length"


def test_every_endpoint_that_chats_says_the_same(server, client):
    """They are one path: the likeliest tokens of one prompt, written down in three ways."""
    model = client.models.list().data[0].id
    chat = client.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=24)
    response = client.responses.create(model=model, input=ASK, temperature=0, max_output_tokens=24)
    api = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    message = api.messages.create(model="claude-any", messages=ASK, max_tokens=24, extra_body={"temperature": 0})
    assert chat.choices[0].message.content == response.output_text == message.content[0].text
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens == response.usage.input_tokens
    assert api.messages.count_tokens(model="claude-any", messages=ASK).input_tokens == chat.usage.prompt_tokens


def test_embeddings_do_not_depend_on_their_company(client):
    """Nor on the prefix cache: the same text alone, among others, and after an answer that began with it."""
    model = client.models.list().data[0].id
    text = "one two three four five " * 8
    [alone] = client.embeddings.create(model=model, input=text).data
    assert len(alone.embedding) == 256 and math.isclose(sum(x * x for x in alone.embedding), 1.0, abs_tol=1e-5)
    client.completions.create(model=model, prompt=text, max_tokens=2)
    among = client.embeddings.create(model=model, input=["a", text, "b" * 300, text]).data
    for other in (among[1], among[3]):
        assert max(abs(a - b) for a, b in zip(alone.embedding, other.embedding, strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(alone.embedding, among[2].embedding, strict=True)) > 1e-2


def test_a_seed_reproduces_under_load(server, client):
    async def ask(many: int) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as a:
            calls = [
                a.completions.create(model="tiny-qwen3", prompt="Once", seed=i % 3, temperature=1.0, max_tokens=16)
                for i in range(many)
            ]
            return [r.choices[0].text for r in await asyncio.gather(*calls)]

    alone = [asyncio.run(ask(1))[0] for _ in range(2)]
    together = asyncio.run(ask(24))
    assert alone[0] == alone[1] == together[0]
    assert len(set(together)) == 3 and together[:3] * 8 == together


def test_a_prompt_is_scored_as_its_tokens_are_when_they_are_generated(client):
    """Whatever the prefix cache holds by then, and beside an answer as well as with none."""
    options = {"model": client.models.list().data[0].id, "temperature": 0, "logprobs": 2}
    prompt = list(range(300, 340))
    alone = client.completions.create(prompt=prompt, max_tokens=0, echo=True, **options).choices[0]
    answer = client.completions.create(prompt=prompt, max_tokens=8, **options).choices[0]
    both = client.completions.create(prompt=prompt, max_tokens=8, echo=True, **options).choices[0]
    assert both.text == alone.text + answer.text
    assert both.logprobs.token_logprobs[:40] == alone.logprobs.token_logprobs
    assert both.logprobs.tokens == alone.logprobs.tokens + answer.logprobs.tokens
    for i in (1, 2, 17, 39):
        forced = {str(prompt[i]): 100}  # which does not show in log-probabilities
        one = client.completions.create(prompt=prompt[:i], max_tokens=1, logit_bias=forced, **options).choices[0]
        assert one.logprobs.tokens == alone.logprobs.tokens[i : i + 1]
        assert math.isclose(one.logprobs.token_logprobs[0], alone.logprobs.token_logprobs[i], abs_tol=1e-3)


def test_structured_answers_beside_free_ones(server, client):
    """A grammar binds its own sequence; what runs beside it comes out as it does alone."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "degrees": {"type": "integer", "maximum": 60}},
        "required": ["city", "degrees"],
        "additionalProperties": False,
    }
    asked = {"type": "json_schema", "json_schema": {"name": "weather", "schema": schema, "strict": True}}

    async def ask(kinds: list[bool]) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as a:
            bound = {True: {"response_format": asked}, False: {}}
            calls = [
                a.chat.completions.create(model="tiny-qwen3", messages=ASK, seed=i, max_tokens=48, **bound[kind])
                for i, kind in enumerate(kinds)
            ]
            return [r.choices[0].message.content for r in await asyncio.gather(*calls)]

    alone = [asyncio.run(ask([False] * (i + 1)))[i] for i in range(4)]
    mixed = asyncio.run(ask([False, True] * 8))
    assert [mixed[0], mixed[2]] == [alone[0], alone[2]]
    for text in mixed[1::2]:
        assert text.startswith("{") and text[1:].lstrip().startswith('"city"')
        if text.endswith("}"):
            answer = json.loads(text)
            assert set(answer) == {"city", "degrees"} and answer["degrees"] <= 60
    assert any(text.endswith("}") for text in mixed[1::2])


def test_the_prefix_cache_is_reported(client):
    model = client.models.list().data[0].id
    long = [{"role": "user", "content": "word " * 100}]
    usages = [client.chat.completions.create(model=model, messages=long, max_tokens=2).usage for _ in range(2)]
    assert usages[1].prompt_tokens_details.cached_tokens >= usages[1].prompt_tokens - 16 > 0


def test_64_streaming_clients_with_random_aborts(server):
    """No request is lost, no page leaks, and the metrics agree with what the clients saw.

    Who leaves has asked for a long answer: how many tokens come in one chunk is the server's to choose, and a short
    answer could be complete before its client has seen enough of it to leave."""

    def ended(**labels: str) -> float:
        return server.metric("llmserve:request_success_total", **labels)

    before, aborted_before = ended(), ended(finished_reason="abort")
    rng = random.Random(0)
    plans = [(rng.randrange(8, 48), rng.random() < 0.4, rng.randrange(1, 6)) for _ in range(64)]

    async def one(a: openai.AsyncOpenAI, number: int, tokens: int, leaves: bool, after: int) -> str | None:
        """Why its answer ended; None if it left before."""
        stream = await a.chat.completions.create(
            model="tiny-qwen3",
            messages=[{"role": "user", "content": f"{number} " * (number % 30 + 1)}],
            max_tokens=400 if leaves else tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        seen, reason = 0, "lost"
        async for chunk in stream:
            seen += 1
            if leaves and seen == after:
                await stream.close()
                return None
            if chunk.choices and chunk.choices[0].finish_reason:
                reason = chunk.choices[0].finish_reason
        return reason

    async def all_of_them() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as a:
            return await asyncio.gather(*(one(a, i, *plan) for i, plan in enumerate(plans)))

    reasons = asyncio.run(asyncio.wait_for(all_of_them(), 120))
    left = reasons.count(None)
    assert reasons.count("length") == 64 - left, reasons
    deadline, held = time.monotonic() + 10, ("llmserve:num_requests_running", "llmserve:num_requests_waiting")
    while any(map(server.metric, held)) or ended() - before < 64:  # the numbers may be a step apart
        assert time.monotonic() < deadline, "a sequence that its client left is still there, or is not counted"
        time.sleep(0.05)
    assert server.metric("llmserve:kv_cache_usage_perc") == 0.0
    assert ended() - before == 64
    assert 0 < ended(finished_reason="abort") - aborted_before <= left


def test_a_second_start_compiles_nothing_and_a_signal_ends_it(server, checkpoint):
    began = time.monotonic()
    again = Server(checkpoint("qwen3"), "--quant", "q4", "--max-num-seqs", "32", "--kv-cache-memory", "32MiB")
    again.wait()
    ready = time.monotonic() - began
    said = again.stop()
    assert again.process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Compiled" not in said and "Converted" not in said and "Traceback" not in said
    assert ready < READY_SECONDS


def test_mistakes_get_openai_errors_and_the_server_goes_on(server, client):
    def post(body: bytes) -> tuple[int, dict]:
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        try:
            return 200, json.load(urllib.request.urlopen(request, timeout=30))
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    cases = [
        (b"{", 400),
        (b'{"model": "tiny-qwen3", "messages": 3}', 400),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
        (b'{"model": "tiny-qwen3", "messages": []}', 400),
        (json.dumps({"model": "tiny-qwen3", "messages": [{"role": "user", "content": "long " * 5000}]}).encode(), 400),
    ]
    for body, status in cases:
        code, answer = post(body)
        assert (code, set(answer)) == (status, {"error"})
        assert set(answer["error"]) == {"message", "type", "param", "code"} and answer["error"]["message"]
    assert client.models.list().data[0].id == "tiny-qwen3"
    assert server.process.poll() is None and os.path.exists(f"/proc/{server.process.pid}")
