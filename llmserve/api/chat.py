"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine import ChoiceDelta
from .generation import Choice, Reply, respond
from .logprobs import chat_logprobs
from .protocol import ChatRequest
from .state import Serving, ServingDep
from .streaming import unless_gone

router = APIRouter()


class ChatReply(Reply):
    """Messages and their deltas. The role stands in a choice's first delta, the finish reason beside its empty last."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> Choice:
        return self._choice(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, delta: ChoiceDelta) -> Choice:
        logprobs = chat_logprobs(self.tokenizer, delta.logprobs)
        return self._choice(index, {"content": delta.text} if delta.text or logprobs else {}, logprobs)

    def ending(self, index: int, delta: ChoiceDelta) -> Choice:
        choice = self._choice(index, {})
        return {**choice, "finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def whole(self, index: int, delta: ChoiceDelta) -> Choice:
        return {
            "index": index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": chat_logprobs(self.tokenizer, delta.logprobs),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    @staticmethod
    def _choice(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> Choice:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _prompt_ids(serving: Serving, body: ChatRequest) -> list[int]:
    text = serving.chat_template.render(
        [message.model_dump(exclude_unset=True) for message in body.messages],
        tools=body.tools,
        documents=body.documents,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=body.template_variables(),
    )
    return serving.tokenizer.encode(text, add_special_tokens=False)  # the template writes its own


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request, serving: ServingDep) -> Response:
    """A chat's next message, whole or streamed."""
    serving.check_model(body.model)
    body.check_supported()
    params = body.sampling(serving.model.sampling_defaults)
    ids = await unless_gone(request.receive, serving.in_thread(lambda: _prompt_ids(serving, body)))
    serving.check_prompt(ids, "messages")
    reply = ChatReply(serving, body.model)
    return await respond(
        request, serving, reply, [ids], params, stream=bool(body.stream), include_usage=body.include_usage
    )
