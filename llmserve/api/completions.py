"""POST /v1/completions: text or tokens in, text out, with no chat template between."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine import TokenLogprob
from ..text.parsers.base import fold_parts
from .chunks import Choice, ChunkReply
from .generation import Answer, Event, respond
from .logprobs import text_logprobs
from .protocol import CompletionRequest
from .state import Serving, ServingDep
from .streaming import unless_gone

router = APIRouter()


class TextReply(ChunkReply):
    """Plain text. With `echo`, a choice's text begins with its prompt's."""

    prefix = "cmpl"
    object = chunk_object = "text_completion"

    def __init__(self, serving: Serving, body: CompletionRequest, prompts: int, n: int, echoes: list[str]) -> None:
        super().__init__(serving, body.model, prompts * n, body.include_usage)
        self._n, self._echoes = n, echoes
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> Choice | None:
        echo = self._echo(index)
        return self._choice(index, echo) if echo else None

    def pieces(self, event: Event) -> list[Choice]:
        if event.finish_reason is not None and not event.parts and not event.logprobs:
            return []
        return [self._choice(event.choice, fold_parts(event.parts).text, event.logprobs)]

    def ending(self, event: Event) -> Choice:
        choice = self._choice(event.choice, "")
        return {**choice, "finish_reason": event.finish_reason, "stop_reason": event.stop_reason}

    def choice(self, index: int, answer: Answer) -> Choice:
        choice = self._choice(index, self._echo(index) + answer.output.text, answer.logprobs)
        return {**choice, "finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._n] if self._echoes else ""

    def _choice(self, index: int, text: str, chosen: Sequence[TokenLogprob] | None = None) -> Choice:
        logprobs = None
        if chosen:
            offset = self._offsets.get(index, 0)
            logprobs = text_logprobs(self.tokenizer, chosen, offset)
            self._offsets[index] = offset + sum(len(token) for token in logprobs["tokens"]) if logprobs else offset
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _prompt_ids(serving: Serving, body: CompletionRequest) -> tuple[list[list[int]], list[str]]:
    """Every prompt's tokens, and its text if that is to be echoed."""
    prompts, tokenizer = body.prompts(), serving.tokenizer
    special = body.add_special_tokens is not False
    ids = [tokenizer.encode(p, special) if isinstance(p, str) else p for p in prompts]
    echoes = [p if isinstance(p, str) else tokenizer.decode(p) for p in prompts] if body.echo else []
    return ids, echoes


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, serving: ServingDep) -> Response:
    """How each prompt goes on, whole or streamed."""
    serving.check_model(body.model)
    body.check_supported()
    params = body.sampling(serving.model.sampling_defaults)
    prompts, echoes = await unless_gone(request.receive, serving.in_thread(lambda: _prompt_ids(serving, body)))
    for ids in prompts:
        serving.check_prompt(ids, "prompt")
    reply = TextReply(serving, body, len(prompts), params.n, echoes)
    return await respond(request, serving, reply, prompts, params, stream=bool(body.stream))
