"""POST /v1/embeddings with OpenAI's client: shapes, encodings, refusals. tests/test_families.py has the numbers."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import openai
import pytest

from ..fakes import pooled
from .server import CONTEXT, EOS, MODEL, Executor, Running, serve
from .test_requests import error_of

PATH = "/v1/embeddings"


def vector_of(ids: list[int]) -> list[float]:
    return list(struct.unpack("<8f", pooled(ids)))


def test_the_openai_client_gets_vectors_in_order(server: Running) -> None:
    texts = ["hello", "world", "a longer text " * 20]
    for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        answer = server.openai().embeddings.create(model=MODEL, input=texts, **options)  # type: ignore[arg-type]
        ids = [server.tokenizer.encode(text) for text in texts]
        assert [item.index for item in answer.data] == [0, 1, 2] and answer.model == MODEL
        vectors: list[Any] = [item.embedding for item in answer.data]
        if options.get("encoding_format") == "base64":
            vectors = [struct.unpack("<8f", base64.b64decode(vector)) for vector in vectors]
        for vector, its in zip(vectors, ids, strict=True):
            np.testing.assert_allclose(vector, vector_of(its), atol=1e-7)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))


def test_one_text_and_token_ids(server: Running) -> None:
    ids = [5, 6, 7]
    for given, expected in (("hello", [server.tokenizer.encode("hello")]), (ids, [ids]), ([ids, [9]], [ids, [9]])):
        answer = server.openai().embeddings.create(model=MODEL, input=given)  # type: ignore[arg-type]
        np.testing.assert_allclose([d.embedding for d in answer.data], [vector_of(its) for its in expected], atol=1e-7)


def test_last_token_pooling(server: Running) -> None:
    answer = server.post(PATH, {"input": [5, 6, 7], "pooling": "last"}).json()
    np.testing.assert_allclose(answer["data"][0]["embedding"], vector_of([7]), atol=1e-7)


def test_a_known_prompt_is_pooled_whole(server: Running) -> None:
    """What the prefix cache holds of a prompt must not be missing from its mean."""
    ids = [i % 200 for i in range(300)]
    server.post("/v1/completions", {"prompt": ids, "max_tokens": 1})
    for _ in range(2):
        answer = server.post(PATH, {"input": ids}).json()
        np.testing.assert_allclose(answer["data"][0]["embedding"], vector_of(ids), atol=1e-7)
    server.wait_until_idle()


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_dimensions_cut_and_normalize(server: Running, encoding: Any) -> None:
    ids = list(range(3, 20))
    answer = server.openai().embeddings.create(model=MODEL, input=ids, dimensions=3, encoding_format=encoding)
    vector: Any = answer.data[0].embedding
    if encoding == "base64":
        vector = struct.unpack("<3f", base64.b64decode(vector))
    expected = np.array(vector_of(ids)[:3])
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "1 to 1024 prompts"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": ["a", ""]}, "input", "empty"),
        ({"input": [999]}, "input", "token ids outside"),
        ({"input": [-1]}, "input", "token ids outside"),
        ({"input": ["a"] * 1025}, "input", "1 to 1024 prompts"),
        ({"input": [1] * (CONTEXT + 1)}, "input", "maximum context length is 512 tokens, but the input came to 513."),
        ({"input": 5}, "input", "string"),
        ({}, "input", "required"),
        ({"input": "a", "dimensions": 0}, "dimensions", "between 1 and 8"),
        ({"input": "a", "dimensions": 9}, "dimensions", "between 1 and 8"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "float"),
        ({"input": "a", "pooling": "max"}, "pooling", "mean"),
    ],
)
def test_refusals(server: Running, fields: dict[str, Any], param: str, words: str) -> None:
    error = error_of(server.post(PATH, {"model": MODEL, **fields}))
    assert error["param"] == param and words in error["message"]


def test_another_model_is_not_found(server: Running) -> None:
    with pytest.raises(openai.NotFoundError):
        server.openai().embeddings.create(model="other", input="a")


def test_a_text_may_fill_the_context_and_unknown_fields_are_ignored(server: Running) -> None:
    answer = server.post(PATH, {"input": [1] * CONTEXT, "user": "u", "input_type": "query"})
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == CONTEXT


def test_a_list_longer_than_the_queue_is_served() -> None:
    with serve(limits={"max_waiting": 0, "max_num_seqs": 3}) as server:
        answer = server.openai().embeddings.create(model=MODEL, input=[[i] for i in range(200)])
        np.testing.assert_allclose([d.embedding for d in answer.data], [vector_of([i]) for i in range(200)], atol=1e-7)


def test_the_servers_own_limit_on_inputs() -> None:
    with serve(max_prompts=2) as server:
        error = error_of(server.post(PATH, {"input": ["a", "b", "c"]}))
        assert error["param"] == "input" and "at most 2 prompts" in error["message"]
        assert server.post(PATH, {"input": ["a", "b"]}).status_code == 200


def test_a_client_that_leaves_frees_its_pages() -> None:
    with serve(executor=Executor(step_seconds=0.05)) as server:
        with pytest.raises(openai.APITimeoutError):
            server.openai(timeout=0.3).embeddings.create(model=MODEL, input=[[1] * 500] * 64)
        server.wait_until_idle(2.0)


def test_a_failure_of_the_model_is_an_error() -> None:
    with serve(executor=Executor(nan_at=3)) as server:
        error = server.post(PATH, {"input": [[1], [1, 2, 3]]})
        assert error.status_code == 500 and "not finite" in error.json()["error"]["message"]
        assert server.post(PATH, {"input": EOS}).status_code == 200
