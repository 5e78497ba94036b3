"""The HTTP application: routers, middleware and the engine's life, put together. No endpoint lives here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..config import ServerConfig
from ..engine import AsyncEngine
from ..text.chat_template import ChatTemplate
from ..text.tokenizer import Tokenizer
from . import chat, completions, embeddings, errors, messages, metrics, models, tokenize
from .middleware import BearerKey, BodyLimit, RequestId
from .state import ServedModel, Serving


def create_app(
    engine: AsyncEngine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    model: ServedModel,
    config: ServerConfig,
) -> FastAPI:
    """An OpenAI-compatible app over one engine.

    The engine is started and stopped with the app, in the server's event loop; hand it over unstarted.
    """
    serving = Serving(engine, tokenizer, chat_template, model, config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()  # the server has waited for the open requests already, see `run`
            serving.close()

    middleware = [Middleware(RequestId)]
    if config.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["*"], allow_headers=["*"]
            )
        )
    if config.api_keys:
        middleware.append(Middleware(BearerKey, keys=config.api_keys))
    middleware.append(Middleware(BodyLimit, max_bytes=config.max_body_bytes))

    app = FastAPI(
        title="llmserve",
        version=__version__,
        lifespan=lifespan,
        middleware=middleware,
        strict_content_type=False,  # a body without a content type is read as JSON
    )
    app.state.serving = serving
    errors.install(app)
    for endpoints in (chat, completions, messages, embeddings, tokenize, models, metrics):
        app.include_router(endpoints.router)
    return app


def run(app: FastAPI, config: ServerConfig) -> None:
    """Serve until a signal comes; then open requests have `drain_seconds` to end before they are cut off."""
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_level=config.log_level,
        timeout_graceful_shutdown=round(config.drain_seconds),
    )
