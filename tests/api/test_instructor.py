"""instructor at the other end: objects by strict schemas and by a call that must be made, and honest lengths.

The package wants an older openai than the other tests, and so is not in the test extra but in `clients`.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from ..skips import package
from .server import MODEL, Executor, serve

instructor = package("instructor", "instructor as a client", "make clients")


class City(BaseModel, extra="forbid"):  # noise would add properties without end
    name: str = Field(max_length=8)
    kind: Literal["town", "city"]
    size: int = Field(ge=0, le=99)


ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "response_model": City}


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA"])
def test_objects_out_of_noise(mode: str) -> None:
    with serve(executor=Executor(max_model_len=4096, num_pages=2048)) as server:
        client = instructor.from_openai(server.openai(), mode=getattr(instructor.Mode, mode))
        for seed in range(4):
            city = client.chat.completions.create(**ASK, seed=seed, max_tokens=1000, max_retries=0)
            assert isinstance(city, City) and len(city.name) <= 8 and 0 <= city.size <= 99


def test_an_answer_that_is_cut_off_is_told() -> None:
    from instructor.core.exceptions import IncompleteOutputException

    with serve() as server:
        client = instructor.from_openai(server.openai(), mode=instructor.Mode.JSON_SCHEMA)
        with pytest.raises(IncompleteOutputException):
            client.chat.completions.create(**ASK, max_tokens=3, max_retries=0)
