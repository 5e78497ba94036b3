"""Routes whose bodies, where they are large, are read into their models beside the event loop.

FastAPI reads JSON and validates it in the loop, where a few megabytes of numbers would hold up every stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from .body import LARGE


class Route(APIRoute):
    """Hands FastAPI the model itself, which it takes as it is; small bodies are left to FastAPI."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model = self.body_field.field_info.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel), "bodies are models"

        async def handler(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive, model))

        return handler


class _Request(Request):
    def __init__(self, scope: Any, receive: Any, model: type[BaseModel]) -> None:
        super().__init__(scope, receive)
        self._model = model

    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE:
            return await super().json()
        return await asyncio.to_thread(_read, body, self._model)


def _read(body: bytes, model: type[BaseModel]) -> Any:
    """The body's model, or, if it is not valid, what it holds: FastAPI will find the mistake, and say it."""
    values = json.loads(body)
    try:
        return model.model_validate(values)
    except ValidationError:
        return values
