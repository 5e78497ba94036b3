"""A real server on a real socket, over an engine whose model is a fake: what the API's tests talk to."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI
from tokenizers import AddedToken

from llmserve.api.app import create_app
from llmserve.api.base.state import ServedModel, Serving
from llmserve.config import ServerConfig
from llmserve.engine import AsyncEngine, EngineCore, Pooled, SampledToken, SchedulerConfig, TokenLogprob
from llmserve.engine.grammar.compiler import GrammarCompiler
from llmserve.engine.plan.scheduler import SchedulerOutput
from llmserve.engine.plan.sequence import Sequence
from llmserve.errors import EngineError
from llmserve.text.chat_template import ChatTemplate
from llmserve.text.tokenizer import Tokenizer

from ..fakes import FakeExecutor
from ..text import samples, templates

MODEL = "org/tiny"
EOS = "<|end|>"
CONTEXT = 512
WORDS = functools.cache(samples.byte_level)


@dataclass
class Executor(FakeExecutor):
    """The fake, at a chosen pace, with log-probabilities for requests that want them.

    `script` says what the model answers, from the text of its prompt; without one its tokens are noise.
    """

    num_pages: int = 512
    page_size: int = 4
    max_model_len: int = CONTEXT
    vocab_size: int = 267
    step_seconds: float = 0.0
    script: Callable[[str], str] | None = None

    def execute(self, plan: SchedulerOutput) -> Mapping[int, SampledToken | Pooled | EngineError]:
        time.sleep(self.step_seconds)
        sampled = dict(super().execute(plan))
        for item in plan.scheduled:
            wanted, token = item.sequence.request.params.logprobs, sampled.get(item.sequence.seq_id)
            if wanted is not None and isinstance(token, SampledToken):
                top = tuple((i, -1.0 - i) for i in range(wanted))
                logprobs = TokenLogprob(token.token_id, -0.5, top)
                sampled[item.sequence.seq_id] = token._replace(logprob=logprobs)
        return sampled

    def choose(self, state: int, sequence: Sequence, allowed: Items[int] | None) -> int:
        """The script's next token; where a grammar has led elsewhere or does not allow it, noise."""
        if self.script is not None:
            words = WORDS()
            prompt = words.decode(sequence.request.prompt_ids, skip_special_tokens=False)
            answer = words.encode(self.script(prompt), add_special_tokens=False).ids
            said = sequence.num_generated_tokens
            end: int = words.token_to_id(EOS)
            token = answer[said] if said < len(answer) else end
            if allowed is None or token in allowed:
                return token
        return super().choose(state, sequence, allowed)


@dataclass
class Running:
    """A server that is up."""

    url: str
    engine: AsyncEngine
    tokenizer: Tokenizer
    template: ChatTemplate
    executor: Executor
    http: httpx.Client

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def async_openai(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        options = {"json": body} | options if body is not None else options
        return self.http.post(path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def wait_until_idle(self, seconds: float = 5.0) -> None:
        """Every sequence has gone and every page is free."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            stats = self.engine.stats()
            if not stats.num_running and not stats.num_waiting and stats.num_available_pages == stats.num_pages:
                return
            time.sleep(0.01)
        raise AssertionError(f"the engine is not idle: {self.engine.stats()}")


def build(
    executor: Executor,
    template: str | None = templates.CHATML,
    limits: Mapping[str, Any] | None = None,
    defaults: Mapping[str, float] | None = None,
    markers: Items[str] = (),
    **settings: Any,
) -> tuple[FastAPI, ServerConfig, Serving]:
    """An app over fakes. `limits` are the scheduler's, `settings` the server's, `markers` more special tokens."""
    words = samples.byte_level()
    words.add_special_tokens([AddedToken(marker, special=True) for marker in markers])
    tokenizer = Tokenizer(words, special_tokens={"eos_token": EOS, "bos_token": "<|begin|>"})
    chat_template = ChatTemplate(template, tokenizer.special_tokens)

    def core() -> EngineCore:
        config = SchedulerConfig(
            **{
                "max_num_seqs": 16,
                "max_num_batched_tokens": 128,
                "max_model_len": executor.max_model_len,
                "page_size": executor.page_size,
                "num_pages": executor.num_pages,
                **(limits or {}),
            }
        )
        return EngineCore(executor, config, tokenizer, tokenizer.eos_token_ids)

    engine = AsyncEngine(core, GrammarCompiler(tokenizer))
    model = ServedModel(MODEL, executor.max_model_len, aliases=("tiny",), sampling_defaults=dict(defaults or {}))
    config = ServerConfig(**{"drain_seconds": 0.0, **settings})
    app = create_app(engine, tokenizer, chat_template, model, config)
    return app, config, app.state.serving


@contextmanager
def serve(*, executor: Executor | None = None, **options: Any) -> Iterator[Running]:
    """Run a server until the block ends. The options are those of `build`."""
    executor = executor or Executor()
    app, _, serving = build(executor, **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=20) as http:
            yield Running(url, serving.engine, serving.tokenizer, serving.chat_template, executor, http)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
