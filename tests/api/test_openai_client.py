"""Answers that would break the OpenAI library, tested with the library itself at the other end of a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from .server import CONTEXT, MODEL, Executor, Running, serve

HI: list[Any] = [{"role": "user", "content": "Hi"}]
PLAIN: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 8, "temperature": 0, "seed": 1}
NO_EOS: dict[str, Any] = {"ignore_eos": True, "skip_special_tokens": False}


def events(server: Running, path: str = "/v1/chat/completions", **body: Any) -> list[dict[str, Any]]:
    """A stream's events as they are on the wire, checked to end with [DONE]."""
    text = server.post(path, {**PLAIN, **NO_EOS, "stream": True, **body}).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_whole_answer(server: Running) -> None:
    answer = server.openai().chat.completions.create(**PLAIN, extra_body=NO_EOS)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert answer.system_fingerprint and answer.system_fingerprint.startswith("llmserve-")
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content
    usage = answer.usage
    assert usage and usage.completion_tokens == 8
    assert usage.prompt_tokens == len(server.tokenizer.encode(server.template.render(HI), add_special_tokens=False))
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens is not None
    assert usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens == 0


def test_streamed_and_whole_are_the_same(server: Running) -> None:
    client = server.openai()
    for seed in range(5):
        options = {**PLAIN, "seed": seed, "temperature": 1, "n": 3, "max_tokens": 20}
        whole = client.chat.completions.create(**options)
        texts, reasons = [""] * 3, [""] * 3
        for chunk in client.chat.completions.create(**options, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == [choice.message.content for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]


def test_the_librarys_own_accumulation(server: Running) -> None:
    whole = server.openai().chat.completions.create(**PLAIN, n=2, extra_body=NO_EOS)
    with server.openai().chat.completions.stream(**PLAIN, n=2, extra_body=NO_EOS) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot  # the final one is refused to texts that ran out of tokens
    assert [c.message.content for c in final.choices] == [c.message.content for c in whole.choices]
    assert [c.message.role for c in final.choices] == ["assistant", "assistant"]  # and not assistantassistant


def test_async_client(server: Running) -> None:
    async def main() -> None:
        client = server.async_openai()
        whole = await client.chat.completions.create(**PLAIN)
        stream = await client.chat.completions.create(**PLAIN, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == whole.choices[0].message.content

    asyncio.run(main())


def test_chunks_on_the_wire(server: Running) -> None:
    chunks = events(server, n=2)
    assert [c["choices"][0]["index"] for c in chunks[:2]] == [0, 1]  # choice 0 first
    assert all(c["object"] == "chat.completion.chunk" and len(c["choices"]) == 1 for c in chunks)
    assert len({c["id"] for c in chunks}) == 1
    for index in range(2):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in choice["delta"] for choice in own[1:])
        assert (own[-1]["delta"], own[-1]["finish_reason"]) == ({}, "length")
        assert all(choice["finish_reason"] is None for choice in own[:-1])
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_comes_last_and_only_when_asked_for(server: Running) -> None:
    chunks = events(server, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 8
    assert server.post("/v1/chat/completions", {**PLAIN, "stream_options": {"include_usage": True}}).status_code == 200


def test_cached_tokens_are_reported(server: Running) -> None:
    options = {**PLAIN, "messages": [{"role": "user", "content": "the same long beginning" * 3}]}
    server.openai().chat.completions.create(**options)
    usage = server.openai().chat.completions.create(**options).usage
    assert usage and usage.prompt_tokens_details and (usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_an_error_in_mid_stream_reaches_the_client() -> None:
    executor = Executor(nan_at=40, step_seconds=0.02)
    with serve(executor=executor) as server:
        prompt = [5] * 36
        with pytest.raises(openai.APIError, match="not finite"):
            list(server.openai().completions.create(model=MODEL, prompt=prompt, stream=True, extra_body=NO_EOS))
        with pytest.raises(openai.InternalServerError, match="not finite"):
            server.openai().completions.create(model=MODEL, prompt=prompt, extra_body=NO_EOS)
        chunks = events(server, "/v1/completions", prompt=prompt)
        assert chunks[-1]["error"].keys() == {"message", "type", "param", "code"}
        assert server.openai().chat.completions.create(**{**PLAIN, "max_tokens": 1})  # others are served


def test_an_engine_that_dies_says_so_to_all() -> None:
    with serve(executor=Executor(die_after=5)) as server:
        with pytest.raises(openai.APIError, match="fell off the bus"):
            list(server.openai().chat.completions.create(**PLAIN, stream=True, extra_body=NO_EOS))
        with pytest.raises(openai.InternalServerError) as caught:
            server.openai().chat.completions.create(**PLAIN)
        assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]
        assert server.get("/health").status_code == 503


def test_a_silent_stream_shows_that_it_lives() -> None:
    with serve(executor=Executor(step_seconds=0.15), keep_alive_seconds=0.05) as server:
        chunks = events(server, max_tokens=2)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chunks[1]["choices"][0]["delta"] == {} and chunks[1]["choices"][0]["finish_reason"] is None
        with server.openai().chat.completions.stream(**PLAIN) as stream:
            assert list(stream)
            assert stream.current_completion_snapshot.choices[0].finish_reason in ("stop", "length")
        assert {c["choices"][0]["text"] for c in events(server, "/v1/completions", prompt="a", max_tokens=2)} >= {""}


def test_a_full_queue_is_a_429_that_is_retried() -> None:
    limits = {"max_num_seqs": 1, "max_waiting": 0}
    with serve(executor=Executor(step_seconds=0.02), limits=limits) as server:

        async def main() -> None:
            client = server.async_openai()
            options = {**PLAIN, "max_tokens": 20, "extra_body": NO_EOS}
            first = asyncio.create_task(client.chat.completions.create(**options))
            await asyncio.sleep(0.2)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**options)
            assert caught.value.response.headers["retry-after"] == "1"
            await client.with_options(max_retries=3).chat.completions.create(**options)
            await first

        asyncio.run(main())


def test_stop_strings(server: Running) -> None:
    client = server.openai()
    text = client.chat.completions.create(**{**PLAIN, "max_tokens": 40}, extra_body=NO_EOS).choices[0].message.content
    assert text
    stop = text[10:12]
    for value in (stop, [stop, "never"]):
        choice = client.chat.completions.create(**{**PLAIN, "max_tokens": 40}, stop=value, extra_body=NO_EOS).choices[0]
        assert (choice.message.content, choice.finish_reason) == (text[: text.find(stop)], "stop")


def test_logprobs_of_a_chat(server: Running) -> None:
    whole = server.openai().chat.completions.create(**PLAIN, logprobs=True, top_logprobs=2, extra_body=NO_EOS)
    logprobs = whole.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content) == 8
    spelt = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert spelt.decode("utf-8", "replace") == whole.choices[0].message.content
    assert all(token.logprob == -0.5 and len(token.top_logprobs) == 2 for token in logprobs.content)
    streamed = []
    for chunk in server.openai().chat.completions.create(
        **PLAIN, logprobs=True, top_logprobs=2, stream=True, extra_body=NO_EOS
    ):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == logprobs.content


def test_logprobs_of_a_completion(server: Running) -> None:
    answer = server.openai().completions.create(
        model=MODEL, prompt="he", max_tokens=8, logprobs=2, seed=1, extra_body=NO_EOS
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.tokens and logprobs.text_offset
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or []) == len(logprobs.top_logprobs or []) == 8
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)


def test_prompts_of_every_kind(server: Running) -> None:
    client, tokenizer = server.openai(), server.tokenizer
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "temperature": 0, "extra_body": NO_EOS}
    ids = tokenizer.encode("hello")

    def texts(prompt: Any, **more: Any) -> list[str]:
        answer = client.completions.create(prompt=prompt, **options, **more)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    (one,), (other,) = texts("hello"), texts("other")
    assert texts(ids) == texts([ids]) == [one]
    assert texts(["hello", "other"], n=2) == [one, one, other, other]
    assert texts([ids, ids], echo=True) == ["hello" + one] * 2
    streamed = ["", ""]
    for chunk in client.completions.create(prompt=["hello", "other"], stream=True, echo=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == ["hello" + one, "other" + other]


def test_a_completion_is_sixteen_tokens_unless_told_otherwise(server: Running) -> None:
    usage = server.openai().completions.create(model=MODEL, prompt="he", extra_body=NO_EOS).usage
    assert usage and usage.completion_tokens == 16


def test_an_answer_ends_where_the_context_ends(server: Running) -> None:
    answer = server.openai().completions.create(
        model=MODEL, prompt=[7] * (CONTEXT - 3), max_tokens=100, extra_body=NO_EOS
    )
    assert answer.usage and answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_models(server: Running) -> None:
    models = server.openai().models.list().data
    assert [model.id for model in models] == [MODEL, "tiny"]
    card = server.openai().models.retrieve(MODEL).model_dump()
    assert card["object"] == "model" and card["owned_by"] == "llmserve"
    assert card["max_model_len"] == card["context_length"] == CONTEXT
    with pytest.raises(openai.NotFoundError):
        server.openai().models.retrieve("other")


def test_the_checkpoints_sampling_defaults_hold_unless_overridden() -> None:
    with serve(defaults={"temperature": 0.0}) as server:
        client = server.openai()

        def text(**more: Any) -> str | None:
            options = {name: value for name, value in PLAIN.items() if name not in ("temperature", "seed")}
            return client.chat.completions.create(**options, **more, extra_body=NO_EOS).choices[0].message.content

        assert text(seed=1) == text(seed=2)
        assert text(seed=1, temperature=1) != text(seed=2, temperature=1)


def test_a_scripted_model_says_its_lines() -> None:
    """What the tests of other endpoints stand on."""
    with serve(executor=Executor(script=lambda prompt: "Yes." if "user\nHi<|im_end|>" in prompt else "No.")) as server:
        for said, expected in (("Hi", "Yes."), ("Ho", "No.")):
            message = {"role": "user", "content": said}
            answer = server.openai().chat.completions.create(model=MODEL, messages=[message])  # type: ignore[list-item]
            assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
