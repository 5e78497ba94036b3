"""POST /v1/completions: text or tokens in, text out, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...engine import SamplingParams, TokenLogprob
from ...errors import RequestError
from ...text.infill import infill
from ...text.parsers.base import fold_parts
from ..base.chunks import Choice, ChunkReply
from ..base.generation import Answer, Event, respond
from ..base.logprobs import TextLogprobLists
from ..base.protocol import CompletionRequest
from ..base.shapes import STREAMED, TextCompletion
from ..base.state import Serving, ServingDep
from ..edge.route import Route
from ..edge.streaming import unless_gone

router = APIRouter(route_class=Route)


@dataclass(frozen=True)
class CompletionPrompt:
    """A prompt's tokens, the text to give back before its answers, and the tokens that end them beside the model's."""

    ids: list[int]
    echo: str = ""
    ends: tuple[int, ...] = ()


class TextReply(ChunkReply):
    """Plain text. With `echo`, a choice's text begins with its prompt's; and with `logprobs` that is scored like it."""

    prefix = "cmpl"
    object = chunk_object = "text_completion"

    def __init__(
        self, serving: Serving, body: CompletionRequest, prompts: Sequence[CompletionPrompt], params: SamplingParams
    ) -> None:
        choices = len(prompts) * params.n
        super().__init__(serving, body, choices)
        self._prompts, self._n = prompts, params.n
        self._is_scored = body.scores_prompt
        self._scores: dict[int, Sequence[TokenLogprob]] = {}  # by prompt
        self._logprobs = [TextLogprobLists(serving.tokenizer, params) for _ in range(choices)]
        self._echoed: set[int] = set()
        self.is_plain = self.is_plain and not self._is_scored

    def opening(self, index: int) -> Choice | None:
        echo = "" if self._is_scored else self._prompts[index // self._n].echo
        return self._with_prompt(_choice(index, echo)) if echo or self.wants_token_ids else None

    def text_choice(self, index: int, text: str) -> Choice:
        return _choice(index, text)

    def pieces(self, event: Event) -> list[Choice]:
        pieces = []
        if self._is_scored and not event.is_silent and event.choice not in self._echoed:
            pieces.append(_choice(event.choice, *self._echo(event.choice, event.prompt_logprobs)))
        if event.parts or event.logprobs or event.token_ids or event.is_silent:
            pieces.append(self._piece(event.choice, fold_parts(event.parts).text, event.logprobs))
        return pieces

    def ending(self, event: Event) -> Choice:
        return _ended(_choice(event.choice, ""), event)

    def choice(self, index: int, answer: Answer) -> Choice:
        echo, scores = self._prompts[index // self._n].echo, None
        if self._is_scored:
            echo, scores = self._echo(index, answer.prompt_logprobs)
        piece = self._piece(index, answer.output.text, answer.logprobs)
        logprobs = piece["logprobs"]
        if scores is not None:
            logprobs = {name: [*its, *(logprobs[name] if logprobs else ())] for name, its in scores.items()}
        return self._with_prompt(_ended(_choice(index, echo + piece["text"], logprobs), answer))

    def _with_prompt(self, choice: Choice) -> Choice:
        ids = self._prompts[choice["index"] // self._n].ids
        return {**choice, "prompt_token_ids": ids} if self.wants_token_ids else choice

    def _echo(self, index: int, scores: Sequence[TokenLogprob] | None) -> tuple[str, dict[str, Any]]:
        """A scored prompt's text and log-probabilities. Its first choice brings them, and all others follow that."""
        prompt = self._prompts[index // self._n]
        scores = self._scores.setdefault(index // self._n, scores or ())
        self._echoed.add(index)
        return prompt.echo, self._logprobs[index].echo(prompt.echo, prompt.ids, scores)

    def _piece(self, index: int, text: str, chosen: Sequence[TokenLogprob] | None) -> Choice:
        return _choice(index, text, self._logprobs[index].of(chosen) if chosen else None)


def _choice(index: int, text: str, logprobs: dict[str, Any] | None = None) -> Choice:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _ended(choice: Choice, news: Event | Answer) -> Choice:
    return {**choice, "finish_reason": news.finish_reason, "stop_reason": news.stop_reason}


def _prompt(serving: Serving, body: CompletionRequest, prompt: str | list[int]) -> CompletionPrompt:
    tokenizer, special = serving.tokenizer, body.add_special_tokens is not False
    if isinstance(prompt, list):
        serving.check_ids(prompt, "prompt")  # before they are decoded
        if body.truncate_prompt_tokens is None:
            serving.check_prompt(prompt, "prompt", answered=False)
    echo = "" if not body.echo else prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    if body.suffix:
        if body.truncate_prompt_tokens is not None:
            raise RequestError("With a suffix, a prompt cannot be truncated.", param="truncate_prompt_tokens")
        if isinstance(prompt, str):
            serving.check_length(prompt, "prompt")
        serving.check_length(body.suffix, "suffix")
        ids, ends = infill(tokenizer, prompt, body.suffix, add_special_tokens=special)
        return CompletionPrompt(ids, echo, ends)
    ids = serving.encode(prompt, "prompt", special) if isinstance(prompt, str) else prompt
    kept = serving.truncated(ids, body.truncate_prompt_tokens)
    return CompletionPrompt(kept, tokenizer.decode(kept) if body.echo and len(kept) < len(ids) else echo)


@router.post("/v1/completions", response_model=TextCompletion, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request, serving: ServingDep) -> Response:
    """How each prompt goes on, whole or streamed."""
    serving.check_model(body.model)
    body.check_supported()
    params = serving.with_banned(body.sampling(serving.model.sampling_defaults), body.bad_words)
    prompts = await unless_gone(
        request.receive, serving.each_in_thread(partial(_prompt, serving, body), body.prompts(), len)
    )
    for prompt in prompts:
        serving.check_prompt(prompt.ids, "prompt", answered=params.max_tokens != 0)
    params = replace(params, stop_token_ids=(*params.stop_token_ids, *prompts[0].ends))
    params = serving.limited([prompt.ids for prompt in prompts], params)  # before a choice is made of each
    reply = TextReply(serving, body, prompts, params)
    return await respond(request, serving, reply, [p.ids for p in prompts], params, stream=bool(body.stream))
