"""The HTTP application: routers, middleware and the engine's life, put together. No endpoint is defined here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..config import ServerConfig
from ..engine import AsyncEngine
from ..text.chat_template import ChatTemplate
from ..text.tokenizer import Tokenizer
from . import document
from .base.state import ServedModel, Serving
from .checks import api_keys
from .edge import errors, metrics
from .edge.body import BodyMiddleware
from .edge.gate import GateMiddleware
from .edge.logs import log_access
from .edge.middleware import ApiKeyMiddleware, HeadMiddleware, RecordMiddleware
from .edge.record import Record
from .edge.tracing import Tracing
from .endpoints import chat, completions, embeddings, messages, models, page, responses, tokenize


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
    tracing = Tracing(config.otlp_endpoint, model.id) if config.otlp_endpoint is not None else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()  # the server has waited for the open requests already, see `launch`
            serving.close()
            if tracing is not None:
                await tracing.close()

    def ended(record: Record, headers: Headers) -> None:
        log_access(record)
        serving.metrics.note(record)
        if tracing is not None:
            tracing.note(record, headers)

    middleware = [Middleware(RecordMiddleware, ended=ended, write_seconds=config.write_seconds)]
    if config.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(config.cors_origins),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    keys = api_keys(config)
    if keys:
        middleware.append(
            Middleware(
                ApiKeyMiddleware, keys=keys, open_paths={*config.open_paths, *(page.PATHS if config.page else ())}
            )
        )
    middleware.append(Middleware(GateMiddleware, gate=serving.gate))
    middleware.append(
        Middleware(
            BodyMiddleware,
            max_bytes=config.max_body_bytes,
            max_depth=config.max_json_depth,
            max_values=config.max_json_values,
            seconds=config.body_seconds,
        )
    )

    middleware.append(Middleware(HeadMiddleware))

    app = FastAPI(
        title="llmserve",
        version=__version__,
        lifespan=lifespan,
        middleware=middleware,
        redirect_slashes=False,
        strict_content_type=False,  # a body without a content type is read as JSON
    )
    app.state.serving = serving
    errors.install(app)
    for endpoints in (chat, completions, responses, messages, embeddings, tokenize, models, metrics):
        app.include_router(endpoints.router)
    if config.page:
        app.include_router(page.router)
    document.install(app, keys=bool(keys))
    return app
