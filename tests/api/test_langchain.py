"""langchain-openai at the other end: messages and their chunks, bound tools, structured output, usage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from ..skips import package
from .server import MODEL, Executor, Running, serve
from .test_tools import ANSWERS, CLOCK, WEATHER

langchain_openai = package("langchain_openai", "LangChain as a client")


class City(BaseModel, extra="forbid"):
    """A city."""

    name: str
    size: int


def chat(server: Running, max_tokens: int = 300, **options: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        base_url=f"{server.url}/v1", api_key="none", model=MODEL, max_retries=0, max_tokens=max_tokens, **options
    )


def saying(text: str) -> Executor:
    return Executor(script=lambda prompt: text, max_model_len=2048)


def test_messages_and_chunks() -> None:
    with serve(executor=saying("Hello, world.")) as server:
        model = chat(server, stream_usage=True)
        whole = model.invoke([("system", "s"), ("human", "Hi")])
        assert whole.content == "Hello, world." and whole.usage_metadata["output_tokens"] > 0
        chunks = list(model.stream("Hi"))
        folded = chunks[0]
        for chunk in chunks[1:]:
            folded = folded + chunk
        assert folded.content == whole.content and len(chunks) > 3
        assert folded.response_metadata["finish_reason"] == "stop"
        assert folded.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
        assert asyncio.run(model.ainvoke("Hi")).content == whole.content


def test_bound_tools() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        model = chat(server).bind_tools([WEATHER, CLOCK])
        expected = [("weather", {"city": "Zürich"}), ("clock", {})]
        whole = model.invoke("Hi")
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == expected
        assert not whole.invalid_tool_calls
        folded: Any = None
        for chunk in model.stream("Hi"):
            folded = chunk if folded is None else folded + chunk
        assert [(call["name"], call["args"]) for call in folded.tool_calls] == expected
        assert folded.content == "See." and folded.response_metadata["finish_reason"] == "tool_calls"
        second = model.invoke(
            [
                ("human", "Hi"),
                whole,
                *({"role": "tool", "tool_call_id": c["id"], "content": "12"} for c in whole.tool_calls),
            ]
        )
        assert second.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(method: str) -> None:
    """From a model whose tokens are noise, so that nothing but the enforcing makes it so."""
    text = '{"name": "Zürich", "size": 4}'
    executor = saying(text) if method == "json_mode" else Executor(max_model_len=2048, script=lambda prompt: text)
    with serve(executor=executor) as server:
        city = chat(server, 1500).with_structured_output(City, method=method).invoke("Hi")
        assert isinstance(city, City)
