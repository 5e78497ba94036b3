"""Random JSON schemas against a model of random logits: every answer validates, or the request was refused.

Closing characters become likelier from token to token, so that most answers come to an end.
`LLMSERVE_TEST_SCHEMAS=20000` runs more of them than the thousand of every day.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from tests.api.random_logits import RandomLogits
from tests.api.server import MODEL, Running, serve
from tests.schemas import Generator, Schema, keywords

COUNT = int(os.environ.get("LLMSERVE_TEST_SCHEMAS", "1000"))
# A schema that contradicts itself has no one keyword at fault, and neither has one that is too deep.
CONTRADICTIONS = ("no text fits", "Unsatisfiable", "nested more than", "out of bounds")


@pytest.fixture(scope="module")
def noise() -> Iterator[Running]:
    with serve(executor=RandomLogits(max_model_len=512), limits={"max_num_seqs": 16}) as running:
        yield running


def ask(server: Running, seed: int) -> tuple[str, str]:
    """What became of the schema of this number, in a word; and more words, if it is wrong."""
    schema = Generator(seed).schema()
    style = seed % 3
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 400, "seed": seed, "stream": style == 1}
    asked = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": style == 0}}
    if style == 2:
        body |= {"prompt": "Hi", "guided_json": schema, "logprobs": 0 if seed % 2 else None}
    else:
        body |= {"messages": [{"role": "user", "content": "Hi"}], "response_format": asked}
    response = server.post("/v1/completions" if style == 2 else "/v1/chat/completions", body)
    if response.status_code == 400:
        message: str = response.json()["error"]["message"]
        if any(word and word in message for word in keywords(schema)):
            return "refused by name", ""
        return ("contradiction", "") if any(word in message for word in CONTRADICTIONS) else ("unnamed", message)
    if response.status_code != 200:
        return f"status {response.status_code}", response.text
    text, reason = _read(response.text, style)
    if reason != "stop":
        return str(reason), text
    try:
        dialect = jsonschema.Draft7Validator if _lists_items(schema) else jsonschema.Draft202012Validator
        dialect(schema, format_checker=dialect.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return "wrong", f"{text!r} does not fit {json.dumps(schema)}: {error}"
    return "validates", ""


def _read(answer: str, style: int) -> tuple[str, str | None]:
    if style == 1:
        lines = [line[6:] for line in answer.splitlines() if line.startswith("data: {")]
        if any("error" in json.loads(line) for line in lines):
            return answer, "error in the stream"
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        return "".join(c["delta"].get("content") or "" for c in choices), choices[-1]["finish_reason"]
    (choice,) = json.loads(answer)["choices"]
    return choice["text"] if style == 2 else choice["message"]["content"], choice["finish_reason"]


def _lists_items(schema: Schema) -> bool:
    """Whether this is of a draft of JSON Schema in which items may be a list."""
    if isinstance(schema, dict):
        return isinstance(schema.get("items"), list) or any(map(_lists_items, schema.values()))
    return isinstance(schema, list) and any(map(_lists_items, schema))


@pytest.mark.timeout(3600)
def test_every_answer_validates_or_the_schema_was_refused(noise: Running) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda seed: (seed, *ask(noise, seed)), range(COUNT)))
    seen = Counter(word for _, word, _ in results)
    print(dict(seen))
    expected = ("validates", "length", "refused by name", "contradiction")
    wrong = [f"{seed}: {word}: {more[:500]}" for seed, word, more in results if word not in expected]
    assert not wrong, "\n".join(wrong[:10])
    assert seen["validates"] > 0.6 * COUNT
    assert seen["refused by name"] > 0.1 * COUNT
    assert seen["length"] < 0.05 * COUNT
    noise.wait_until_idle()
