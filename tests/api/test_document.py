"""The served OpenAPI document, and schemathesis over it: no status 5xx, and no body but those that are declared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .server import MODEL, Running, serve

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
EXAMPLES = 25
USER = [{"role": "user", "content": "Hi"}]
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
# Bodies that are answered, each with variations; what is drawn is put over and under them.
ANSWERED: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "/v1/chat/completions": (
        {"messages": USER},
        (
            {"n": 2, "logprobs": True, "top_logprobs": 2},
            {"stream": True, "stream_options": {"include_usage": True}},
            {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required"},
            {"response_format": {"type": "json_object"}},
        ),
    ),
    "/v1/completions": (
        {"prompt": "Hi"},
        (
            {"n": 2, "logprobs": 2},
            {"prompt": ["a", "b"], "stream": True},
            {"echo": True, "logprobs": 1, "max_tokens": 0},
            {"prompt": [[1, 2], [3]], "stop": ["a"], "echo": True},
        ),
    ),
    "/v1/responses": (
        {"input": "Hi"},
        (
            {"stream": True},
            {"input": [{"role": "user", "content": "Hi"}], "instructions": "Be brief", "metadata": {"a": "b"}},
            {"tools": [{"type": "function", **FUNCTION}], "tool_choice": "required", "store": False},
        ),
    ),
    "/v1/responses/input_tokens": ({"input": "Hi"}, ()),
    "/v1/messages": (
        {"messages": USER, "max_tokens": 3},
        (
            {"stream": True, "system": "Be brief"},
            {"tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}], "tool_choice": {"type": "any"}},
            {"stop_sequences": ["a"], "model": "claude-x"},
        ),
    ),
    "/v1/messages/count_tokens": ({"messages": USER}, ()),
    "/v1/embeddings": ({"input": ["a", "b"]}, ({"encoding_format": "base64"}, {"dimensions": 2, "pooling": "last"})),
    "/tokenize": ({"prompt": "Hi"}, ({"return_token_strs": True}, {"prompt": None, "messages": USER})),
    "/detokenize": ({"tokens": [1, 2]}, ()),
}


@pytest.fixture(scope="module")
def described() -> Iterator[Running]:
    with serve(max_n=4, max_output_tokens=16) as running:
        yield running


@pytest.fixture(scope="module")
def document(described: Running) -> dict[str, Any]:
    found: dict[str, Any] = described.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def operations(described: Running) -> list[Any]:
    return [result.ok() for result in openapi.from_url(f"{described.url}/openapi.json").get_all_operations()]


def ask(case: Any) -> Any:
    """Send a case and hold its answer to the document."""
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    return response


def test_answers_have_their_shapes(operations: list[Any]) -> None:
    by_label = {operation.label: operation for operation in operations}
    stored = None
    for path, (body, variations) in ANSWERED.items():
        for variation in ({}, *variations):
            case = by_label[f"POST {path}"].Case(body={**body, **variation}, media_type="application/json")
            response = ask(case)
            assert response.status_code == 200, (path, variation, response.text)
            if path == "/v1/responses" and not variation:
                stored = json.loads(response.text)["id"]
    for label in ("GET /v1/responses/{response_id}", "GET /v1/responses/{response_id}/input_items"):
        assert ask(by_label[label].Case(path_parameters={"response_id": stored})).status_code == 200
    for status in (200, 404):
        case = by_label["DELETE /v1/responses/{response_id}"].Case(path_parameters={"response_id": stored})
        assert ask(case).status_code == status
    for label in ("GET /v1/models", "GET /health", "GET /load", "GET /version"):
        assert ask(by_label[label].Case()).status_code == 200
    assert ask(by_label["GET /v1/models/{name}"].Case(path_parameters={"name": "tiny"})).status_code == 200


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_fault_of_ours_and_no_undeclared_body(
    described: Running, operations: list[Any], mode: GenerationMode
) -> None:
    """Whatever fits the document, and what does not, over bodies that would be answered, and without them."""
    statuses: set[int]

    def check(case: Any, over: str) -> None:
        if isinstance(case.body, dict) and over != "nothing":
            working = {"max_tokens": 2, **ANSWERED[case.path][0]}
            case.body = {**working, **case.body} if over == "some" else {**case.body, **working, "model": MODEL}
        statuses.add(ask(case).status_code)

    for operation in operations:
        statuses = set()
        run = settings(
            max_examples=EXAMPLES if operation.path in ANSWERED else EXAMPLES // 5,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        cases, over = operation.as_strategy(generation_mode=mode), st.sampled_from(["nothing", "some", "working"])
        try:
            run(given(case=cases, over=over)(check))()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE and operation.path not in ANSWERED  # nothing in it can be wrong
        assert 400 in statuses or operation.path not in ANSWERED, operation.label
    described.wait_until_idle()


def test_every_answer_has_a_shape(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            its_shape = responses["200"]["content"]["application/json"]["schema"]
            assert its_shape.keys() == {"$ref"}, f"{method} {path} needs a response_model from api/base/shapes.py"
            assert "422" not in responses and {"500", "503"} <= responses.keys()
            assert ("requestBody" in operation) <= ({"400", "413", "429"} <= responses.keys())
            for status, response in responses.items():
                if status != "200":
                    error = response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                    assert error == ("AnthropicError" if path.startswith("/v1/messages") else "Error")
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]


def test_shapes_are_closed(document: dict[str, Any]) -> None:
    """A shape that allowed anything would find nothing."""
    schemas = document["components"]["schemas"]
    reached = re.findall(
        r'"#/components/schemas/([^"]+)"', json.dumps([o for p in document["paths"].values() for o in p.values()])
    )
    for name in set(reached):
        if not name.endswith("Request"):
            assert schemas[name]["additionalProperties"] is False, name


def test_keys_are_declared() -> None:
    with serve(api_keys=["k"]) as server:
        document = server.get("/openapi.json", headers={"x-api-key": "k"}).json()
    assert document["security"] and document["components"]["securitySchemes"]
    assert all("401" in o["responses"] for p in document["paths"].values() for o in p.values())
