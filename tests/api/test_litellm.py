"""litellm at the other end, with parameters that only other servers know."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ..skips import package
from .server import MODEL, Executor, Running, serve
from .test_tools import ANSWERS, CLOCK, WEATHER

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it looks for prices on the network when it is imported
litellm = package("litellm", "LiteLLM as a client")


def ask(server: Running, **options: Any) -> Any:
    return litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{server.url}/v1",
        api_key="none",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=300,
        **options,
    )


def test_unknown_parameters_are_tolerated() -> None:
    executor = Executor(script=lambda prompt: "Hello, world.", max_model_len=1024)
    with serve(executor=executor) as server:
        extra = {"mirostat": 2, "num_ctx": 4096, "some_new_thing": {"a": [1]}, "allowed_openai_params": ["mirostat"]}
        answer = ask(server, extra_body=extra, user="u", metadata={"a": "b"}, seed=1, top_k=5)
        assert answer.choices[0].message.content == "Hello, world." and answer.usage.completion_tokens > 0
        chunks = list(ask(server, stream=True, stream_options={"include_usage": True}, extra_body=extra))
        whole = litellm.stream_chunk_builder(chunks)
        assert whole.choices[0].message.content == "Hello, world."
        assert whole.usage.completion_tokens == answer.usage.completion_tokens


def test_tools_and_reasoning() -> None:
    text = f"<think>\nhm\n</think>\n{ANSWERS['hermes']}"
    with serve(executor=Executor(script=lambda prompt: text, max_model_len=1024)) as server:
        message = ask(server, tools=[WEATHER, CLOCK]).choices[0].message
        assert [call.function.name for call in message.tool_calls] == ["weather", "clock"]
        assert message.reasoning_content == "hm"
        whole = litellm.stream_chunk_builder(list(ask(server, tools=[WEATHER, CLOCK], stream=True)))
        calls = whole.choices[0].message.tool_calls
        assert [call.function.arguments for call in calls] == ['{"city": "Zürich"}', "{}"]
        assert whole.choices[0].finish_reason == "tool_calls"


def test_errors_keep_their_kind() -> None:
    with serve() as server, pytest.raises(litellm.BadRequestError, match="top_p"):
        ask(server, top_p=7)
