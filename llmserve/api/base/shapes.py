"""Bodies of answers, for the OpenAPI document.

Most answers are written without these classes, piece by piece or from a fold of the stream; tests hold them to the
shapes that are declared here. Parts whose inside is the client's own, or the model's, are left open.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

_EVENT = {
    "type": "object",
    "description": "One server-sent event. Its data is JSON, or [DONE] at the end.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer whole, or, if `stream` is true, as server-sent events.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}
"""For endpoints whose answer may be a stream of events, beside its whole shape."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


# --- errors


class ErrorBody(_Shape):
    message: str
    type: str
    param: str | None
    code: str | int | None


class Error(_Shape):
    """An error as OpenAI's clients read it."""

    error: ErrorBody


class AnthropicErrorBody(_Shape):
    type: str
    message: str


class AnthropicError(_Shape):
    """An error as Anthropic's clients read it."""

    type: Literal["error"]
    error: AnthropicErrorBody


# --- chat and completions


class PromptTokensDetails(_Shape):
    cached_tokens: int


class CompletionTokensDetails(_Shape):
    reasoning_tokens: int


class Usage(_Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Likelihood(_Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLikelihood(Likelihood):
    top_logprobs: list[Likelihood]


class ChatLogprobs(_Shape):
    content: list[TokenLikelihood]
    refusal: None


class CalledFunction(_Shape):
    name: str
    arguments: str


class ToolCall(_Shape):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(_Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(_Shape):
    index: int
    token_ids: list[int] | None = None
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None


class _Completion(_Shape):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Completion):
    prompt_token_ids: list[int] | None = None
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(_Shape):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Shape):
    index: int
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None


class TextCompletion(_Completion):
    object: Literal["text_completion"]
    choices: list[TextChoice]


# --- embeddings, tokens


class Embedding(_Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Shape):
    prompt_tokens: int
    total_tokens: int


class Embeddings(_Shape):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(_Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Shape):
    prompt: str


# --- models, probes


class ModelCard(_Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    root: str
    max_model_len: int
    context_length: int


class ModelCards(_Shape):
    object: Literal["list"]
    data: list[ModelCard]
    first_id: str
    last_id: str
    has_more: bool


class Health(_Shape):
    status: Literal["ok"]


class Load(_Shape):
    server_load: int
    running: int
    waiting: int
    kv_cache_usage: float


class Version(_Shape):
    version: str


# --- responses


class ResponseInputDetails(_Shape):
    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(_Shape):
    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: CompletionTokensDetails
    total_tokens: int


class ResponseObject(_Shape):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    completed_at: int | None
    background: bool
    error: None
    incomplete_details: dict[str, str] | None
    instructions: Any
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, Any]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage
    user: Any


class ResponseItems(_Shape):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseDeleted(_Shape):
    id: str
    object: Literal["response"]
    deleted: bool


class InputTokens(_Shape):
    object: Literal["response.input_tokens"]
    input_tokens: int


# --- messages


class TextBlock(_Shape):
    type: Literal["text"]
    text: str


class ThinkingBlock(_Shape):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(_Shape):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(_Shape):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class AnthropicMessage(_Shape):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class CountedTokens(_Shape):
    input_tokens: int
