"""Conversations, from whichever endpoint: a chat becomes a prompt, sampling parameters, and the parser of its answer.

Endpoints translate their bodies into a `ChatRequest` and answer it by `answer_chat`, which makes a `Conversation` of
it, has `prepare` render and tokenize that, and hands the result to `generation.respond`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response

from ...engine import SamplingParams
from ...errors import RequestError
from ...text.parsers.base import OutputParser
from ...text.parsers.reasoning import ReasoningParser, Tags
from ..edge.streaming import unless_gone
from .answer_grammar import Thought, answer_grammar
from .generation import ParserFactory, Reply, respond
from .protocol import ChatRequest
from .state import Serving
from .tools import Tools


@dataclass(frozen=True, slots=True)
class Conversation:
    """The input of a chat template. `variables` are further names for it, such as `enable_thinking`."""

    messages: Sequence[Mapping[str, Any]]
    tools: Tools = field(default_factory=Tools)
    documents: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @property
    def asks_for_thought(self) -> bool:
        """Whether the request says that the model is to think first; a template has its own default."""
        effort = self.variables.get("reasoning_effort")
        return self.variables.get("enable_thinking") is True or effort not in (None, "none")

    def prompt(self, serving: Serving, param: str = "messages") -> tuple[str, list[int]]:
        """The prompt as text and as tokens. Takes time with long ones; raises RequestError."""
        template, tools = serving.chat_template, self.tools.offered
        if tools and template.available and not template.takes_tools:
            raise RequestError(
                "This model's chat template does not take tools, so the model would not know of them.",
                param="tools",
                code="unsupported_parameter",
            )
        text = template.render(
            self.messages,
            tools=tools,
            documents=self.documents,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=self.variables,
        )
        return text, serving.encode(text, param, add_special_tokens=False)  # the template writes its own


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A conversation, ready to be answered: the prompt's tokens, and what reads the answer."""

    ids: list[int]
    params: SamplingParams
    parser: ParserFactory


async def prepare(
    request: Request,
    serving: Serving,
    conversation: Conversation,
    params: SamplingParams,
    param: str = "messages",
    truncate: int | None = None,
) -> PreparedChat:
    """Render and tokenize, beside the event loop. `param` is what the messages are called in errors, `truncate` how
    many of the prompt's last tokens are kept (`Serving.truncated`).

    Raises RequestError for what the template, the context or the tools' format does not allow.
    """
    prompt, ids = await unless_gone(request.receive, serving.in_thread(lambda: conversation.prompt(serving, param)))
    ids = serving.truncated(ids, truncate)
    serving.check_prompt(ids, param)
    tools, tags = conversation.tools, serving.reasoning_tags
    shown: list[str] = []
    parser: ParserFactory = OutputParser
    if tools.mode != "none":
        form = serving.tool_call_format
        parser = partial(form.parser, frozenset(f.name for f in tools.functions), parallel=tools.parallel)
        shown += form.markers
    thought: Thought = "none"
    if tags is not None:
        answers = conversation.add_generation_prompt and not conversation.continue_final_message
        if answers and prompt.rstrip().endswith(tags.start):
            thought = "begun"
        elif answers and conversation.asks_for_thought and not prompt.rstrip().endswith(tags.end):
            thought = "possible"
        parser = partial(_reasoning, tags, parser, thought == "begun")
        shown += [tags.start, tags.end]
    special = serving.tokenizer.special_among(shown)
    grammar = answer_grammar(serving, tools, thought, params.grammar)
    return PreparedChat(ids, replace(params, shown_token_ids=special, grammar=grammar), parser)


def conversation_of(body: ChatRequest) -> Conversation:
    """A chat's body as the template takes it. Raises RequestError for tools that cannot be offered, and for both a new
    message and the last one's continuation."""
    if body.add_generation_prompt and body.continue_final_message:
        raise RequestError(
            "add_generation_prompt begins a new message and continue_final_message goes on with the last; send one.",
            param="continue_final_message",
        )
    return Conversation(
        [message.model_dump(exclude_unset=True) for message in body.messages],
        Tools.of(body.tools, body.tool_choice, body.parallel_tool_calls),
        body.documents,
        body.template_variables(),
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
    )


def prompt_ids(serving: Serving, body: ChatRequest, param: str = "messages") -> list[int]:
    """The tokens of a chat's prompt, whose messages the client calls `param`. Takes time with long ones."""
    return conversation_of(body).prompt(serving, param)[1]


async def answer_chat(
    body: ChatRequest, request: Request, serving: Serving, reply: Reply, param: str = "messages"
) -> Response:
    """Generate a chat's next message and have `reply` write it down: the one way for every endpoint that chats.

    `param` is what the endpoint's clients call the messages.
    """
    body.check_supported()
    params = serving.with_banned(body.sampling(serving.model.sampling_defaults), body.bad_words)
    chat = await prepare(request, serving, conversation_of(body), params, param, body.truncate_prompt_tokens)
    return await respond(request, serving, reply, [chat.ids], chat.params, stream=bool(body.stream), parser=chat.parser)


def _reasoning(tags: Tags, rest: ParserFactory, opened: bool) -> OutputParser:
    return ReasoningParser(tags, rest(), opened=opened)
