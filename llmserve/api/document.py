"""The OpenAPI document: what the endpoints declare, and the errors that all of them have in common."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from .base import shapes
from .edge.errors import wants_anthropic

_ALWAYS = {
    500: "The server has met an error of its own.",
    503: "The engine is not there, or the server is shutting down.",
}
_OF_BODIES = {
    400: "What was asked cannot be done; the message says why.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The queue is full.",
}
_OF_PATHS = {404: "There is no such thing."}
_OF_KEYS = {401: "The API key is missing or wrong."}
_TEMPLATE = "#/components/schemas/{model}"


def install(app: FastAPI, *, keys: bool) -> None:
    """Have the app describe itself; `keys` says whether it asks for one."""
    describe_paths = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(describe_paths(), keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any], keys: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, of which none is ever sent
        schemas.pop(unused, None)
    errors = models_json_schema(
        [(shapes.Error, "serialization"), (shapes.AnthropicError, "serialization")], ref_template=_TEMPLATE
    )
    schemas.update(errors[1]["$defs"])
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, words in _errors(operation, keys).items():
                operation["responses"][str(status)] = _error(path, status, words)
    return document


def _errors(operation: dict[str, Any], keys: bool) -> dict[int, str]:
    its = dict(_ALWAYS)
    if "requestBody" in operation:
        its |= _OF_BODIES
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        its |= _OF_PATHS
    return dict(sorted((its | (_OF_KEYS if keys else {})).items()))


def _error(path: str, status: int, words: str) -> dict[str, Any]:
    shape = shapes.AnthropicError if wants_anthropic(path) else shapes.Error
    response: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}. {words}",
        "content": {"application/json": {"schema": {"$ref": _TEMPLATE.format(model=shape.__name__)}}},
    }
    if status in (429, 503):
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
        }
    return response
