"""The model and its server: /v1/models, /health, /version, /load."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter

from ... import __version__
from ...errors import EngineError
from ..base.shapes import Health, Load, ModelCard, ModelCards, Version
from ..base.state import Serving, ServingDep

router = APIRouter()


def _card(serving: Serving, name: str) -> dict[str, Any]:
    model = serving.model
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        # What Anthropic's clients read of it.
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(model.created, timezone.utc).isoformat().replace("+00:00", "Z"),
        "root": model.id,
        "max_model_len": model.max_model_len,
        "context_length": model.max_model_len,
    }


@router.get("/v1/models", response_model=ModelCards)
async def models(serving: ServingDep) -> dict[str, Any]:
    """The model under each of its names."""
    names = (serving.model.id, *serving.model.aliases)
    ends = {"first_id": names[0], "last_id": names[-1], "has_more": False}
    return {"object": "list", "data": [_card(serving, name) for name in names], **ends}


@router.get("/v1/models/{name:path}", response_model=ModelCard)
async def model(name: str, serving: ServingDep) -> dict[str, Any]:
    """One model; names may hold slashes."""
    serving.check_model(name)
    return _card(serving, name)


@router.get("/health", response_model=Health)
async def health(serving: ServingDep) -> dict[str, str]:
    """200 while requests can be served, 503 otherwise."""
    if not serving.engine.is_alive:
        raise EngineError(serving.engine.dead_reason or "The engine is not running.")
    return {"status": "ok"}


@router.get("/load", response_model=Load)
async def load(serving: ServingDep) -> dict[str, float]:
    """How busy the engine is: sequences, and the share of the KV cache that they hold; 1 is all."""
    stats = serving.engine.stats()
    return {
        "server_load": stats.num_running + stats.num_waiting,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "kv_cache_usage": stats.kv_cache_usage,
    }


@router.get("/version", response_model=Version)
async def version() -> dict[str, str]:
    return {"version": __version__}
