"""POST /v1/embeddings: a vector of unit length for each text, pooled from the model's last hidden states."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from ...engine import SamplingParams
from ...errors import RequestError
from ..base.generation import Updates, raise_if_failed
from ..base.protocol import Prompts, one_or_many
from ..base.shapes import Embeddings
from ..base.state import Serving, ServingDep
from ..base.turns import with_client_names
from ..edge.route import Route
from ..edge.streaming import AsciiJson, unless_gone

router = APIRouter(route_class=Route)

_MAX_QUEUED_INPUTS = 16  # inputs of one request in the engine's queue, so that a long list does not fill it


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings.

    `pooling` (not OpenAI's) takes the mean of the hidden states of all tokens, or the last token's. `dimensions` cuts
    vectors short and makes them of unit length again.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    truncate_prompt_tokens: int | None = None
    pooling: Literal["mean", "last"] | None = None
    add_special_tokens: bool | None = None


def _prompt_ids(serving: Serving, body: EmbeddingRequest, text: str | list[int]) -> list[int]:
    ids = serving.encode(text, "input", body.add_special_tokens is not False) if isinstance(text, str) else text
    return serving.truncated(ids, body.truncate_prompt_tokens, answered=False)


async def _vectors(serving: Serving, prompts: list[list[int]], params: SamplingParams) -> list[bytes]:
    vectors = [b""] * len(prompts)
    size = min(_MAX_QUEUED_INPUTS, serving.engine.capacity)
    for start in range(0, len(prompts), size):
        async for at, vector in _block(serving, prompts[start : start + size], params):
            vectors[start + at] = vector
    return vectors


async def _block(
    serving: Serving, prompts: list[list[int]], params: SamplingParams
) -> AsyncIterator[tuple[int, bytes]]:
    with closing(Updates(serving, prompts, params)) as updates:
        while updates.open_prompts:
            for prompt, output in await updates.next():
                [delta] = output.deltas
                raise_if_failed(delta)
                assert delta.vector is not None, "a prompt that is pooled ends with its vector"
                yield prompt, delta.vector


def _body(vectors: list[bytes], body: EmbeddingRequest, model: str, tokens: int) -> dict[str, Any]:
    def written(vector: bytes) -> str | list[float]:
        if body.dimensions is not None:
            vector = _shortened(vector, body.dimensions)
        if body.encoding_format == "base64":
            return base64.b64encode(vector).decode()
        floats: list[float] = np.frombuffer(vector, "<f4").tolist()
        return floats

    data = [{"object": "embedding", "index": i, "embedding": written(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _shortened(vector: bytes, dimensions: int) -> bytes:
    values = np.frombuffer(vector, "<f4")
    if not 1 <= dimensions <= len(values):
        raise RequestError(f"dimensions must be between 1 and {len(values)}, got {dimensions}.", param="dimensions")
    kept = values[:dimensions].astype(np.float64)
    return (kept / max(float(np.linalg.norm(kept)), 1e-12)).astype("<f4").tobytes()


@router.post("/v1/embeddings", response_model=Embeddings)
async def embeddings(body: EmbeddingRequest, request: Request, serving: ServingDep) -> Response:
    """A vector for each input."""
    serving.check_model(body.model)
    params = SamplingParams(pooling=body.pooling or "mean")
    inputs = one_or_many(body.input, "input")
    prompts = await unless_gone(
        request.receive, serving.each_in_thread(partial(_prompt_ids, serving, body), inputs, len)
    )
    for ids in prompts:
        serving.check_prompt(ids, "input", answered=False)
    with with_client_names({"prompt": "input"}):
        params = serving.limited(prompts, params)
    vectors = await unless_gone(request.receive, _vectors(serving, prompts, params))
    model, tokens = body.model or serving.model.id, sum(map(len, prompts))
    # Thousands of numbers take their time to be written out.
    return await serving.in_thread(lambda: AsciiJson(_body(vectors, body, model, tokens)))
