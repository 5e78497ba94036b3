"""Errors in OpenAI's shape: one table from exceptions to bodies, for every way in which a request can fail.

A body is `{"error": {"message", "type", "param", "code"}}`, encoded once; the clients' libraries show nothing of any
other shape. Within a stream the same object is sent as an event. Under /v1/messages it is written as Anthropic's
clients read it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...errors import EngineError, LLMServeError, NotReadyError, QueueFullError, RequestError
from .record import current
from .streaming import AsciiJson, ClientGoneError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1  # the clients double it from try to try

_HTTP_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_VALUE_TYPES = frozenset({"str", "int", "float", "bool", "dict", "list", "none"})


def describe(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """An error's HTTP status, body and headers."""
    if isinstance(error, RequestError):
        headers = {"retry-after": str(RETRY_SECONDS)} if isinstance(error, (QueueFullError, NotReadyError)) else {}
        return error.status, _body(str(error), error.type, error.param, error.code), headers
    if isinstance(error, RequestValidationError):
        message, param = _first_mistake(error)
        return 400, _body(message, "invalid_request_error", param), {}
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code)
        kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
        return error.status_code, _body(str(error.detail), kind, code=code), dict(error.headers or {})
    if isinstance(error, EngineError):
        body = _body(str(error), "service_unavailable", code="engine_unavailable")
        return 503, body, {"retry-after": str(RETRY_SECONDS)}
    if isinstance(error, LLMServeError):
        return 500, _body(str(error), "server_error"), {}
    body = _body("The server has met an error of its own; its log says more.", "server_error")
    return 500, body, {"connection": "close"}  # the server will, and a next request would be lost


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The same in Anthropic's shape."""
    status, body, headers = describe(error)
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return status, {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}, headers


def wants_anthropic(path: str) -> bool:
    """Whether the clients of this path read Anthropic's shapes."""
    return path.startswith("/v1/messages")


def refusal(path: str, error: Exception) -> Response:
    """An error as the clients of this path read it."""
    shape = anthropic_error if wants_anthropic(path) else describe
    status, body, headers = shape(error)
    if (record := current.get()) is not None:
        record.reason = body["error"]["message"]
    return AsciiJson(body, status, headers)


def _body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _first_mistake(error: RequestValidationError) -> tuple[str, str | None]:
    """The first mistake that pydantic found, as a sentence and the path of the field."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "")
        return f"The request's body is not valid JSON: {detail} at character {first['loc'][-1]}.", None
    path = ""
    for step in first["loc"][1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step in _VALUE_TYPES or not step.isidentifier():  # a branch of a union, not a field
            break
        else:
            path += f".{step}" if path else step
    if not path:
        return "The request's body must be a JSON object, sent as application/json.", None
    if first["type"] == "missing":
        return f"The field {path} is required.", path
    field = path.partition("[")[0].partition(".")[0]
    complaints = [e["msg"] for e in error.errors() if e["loc"][1:2] == (field,)]
    message = " or ".join(dict.fromkeys(c.removeprefix("Value error, ") for c in complaints[:3]))
    return f"{path}: {message}.", path


async def _respond(request: Request, error: Exception) -> Response:
    status, body, _ = describe(error)
    log = logger.error if status >= 500 else logger.debug
    log("%s %s: %d %s", request.method, request.url.path, status, body["error"]["message"])
    return refusal(request.url.path, error)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for a client that has gone


def install(app: FastAPI) -> None:
    """Make every error of the app come out in OpenAI's shape."""
    handlers: Mapping[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        ClientGoneError: _client_gone,
        LLMServeError: _respond,
        RequestValidationError: _respond,
        HTTPException: _respond,
        Exception: _respond,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]
