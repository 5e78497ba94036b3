"""POST /tokenize and /detokenize: the tokens of a text or a chat, and back. Their shapes are vLLM's."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from ...errors import RequestError
from ..base.conversation import prompt_ids
from ..base.protocol import ChatRequest, Items, Message, Messages
from ..base.shapes import Detokenized, Tokens
from ..base.state import Serving, ServingDep
from ..edge.route import Route
from ..edge.streaming import unless_gone

router = APIRouter(route_class=Route)


class TokenizeRequest(BaseModel):
    """The body of POST /tokenize: a `prompt`, or `messages` with what else a chat's prompt depends on."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: Messages[Message] | None = None
    tools: Items[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """The body of POST /detokenize."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    tokens: Items[int]


_MAX_TOKENS = 1 << 16  # that are spelt at once, or as many as the context has


def _ids(serving: Serving, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (not body.messages):
        raise RequestError("Send either a prompt, or at least one message.", param="prompt")
    if body.prompt is not None:
        return serving.encode(body.prompt, "prompt", body.add_special_tokens is not False)
    fields = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")
    return prompt_ids(serving, ChatRequest(**{name: getattr(body, name) for name in fields}))


def _tokens(serving: Serving, body: TokenizeRequest) -> tuple[list[int], list[str] | None]:
    ids = _ids(serving, body)
    return ids, [serving.tokenizer.token(token_id) for token_id in ids] if body.return_token_strs else None


@router.post("/tokenize", response_model=Tokens)
async def tokenize(body: TokenizeRequest, request: Request, serving: ServingDep) -> dict[str, Any]:
    """Token ids of a prompt, or of a chat as the model's template writes it."""
    serving.check_model(body.model)
    ids, strings = await unless_gone(request.receive, serving.in_thread(lambda: _tokens(serving, body)))
    return {"count": len(ids), "max_model_len": serving.model.max_model_len, "tokens": ids, "token_strs": strings}


@router.post("/detokenize", response_model=Detokenized)
async def detokenize(body: DetokenizeRequest, request: Request, serving: ServingDep) -> dict[str, str]:
    """The text of token ids, special tokens included."""
    serving.check_model(body.model)
    most = max(_MAX_TOKENS, serving.model.max_model_len)
    if len(body.tokens) > most:
        raise RequestError(f"tokens must hold at most {most} token ids, not {len(body.tokens)}.", param="tokens")
    serving.check_ids(body.tokens, "tokens")
    decode = serving.tokenizer.decode
    text = await unless_gone(request.receive, serving.in_thread(lambda: decode(body.tokens, skip_special_tokens=False)))
    return {"prompt": text}
