"""The data of the embedded model: the same bytes each time, and nothing that is examined occurs in training."""

from __future__ import annotations

import json
import re
from random import Random

import numpy as np
import pytest

from demo.data import answer_marks, held_out_lines, make, rendered, template
from demo.evaluate import parsed, table, wanted
from demo.families import FAMILIES, held_out_item, training_conversations, training_item
from demo.items import is_held_out

BY_NAME = {family.name: family for family in FAMILIES}


def test_the_same_bytes_each_time(tmp_path):
    first, second = (make(tmp_path / name, (60, 60), 2, modules=3) for name in ("a", "b"))
    assert first == second and len(first["sha256"]) > 8
    assert make(tmp_path / "c", (60, 60), 2, seed=1, modules=3)["sha256"] != first["sha256"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_items_are_sound_and_split(family):
    random = Random(1)
    trained = {training_item(family, random).key for _ in range(300)}
    examined = [held_out_item(family, random) for _ in range(30)]
    assert not any(is_held_out(family.name, key) for key in trained)
    assert all(is_held_out(family.name, item.key) for item in examined)
    for item in examined:
        roles = [m["role"] for m in item.messages]
        assert roles[-1] == "assistant" and "user" in roles
        assert item.answer.get("content") or item.answer.get("tool_calls")


def test_held_out_questions_do_not_occur_in_training():
    rows = [json.loads(line) for line in held_out_lines(12, 0)]
    assert len(rows) == 12 * len(FAMILIES)
    single = {r["messages"][0]["content"] for r in rows if len(r["messages"]) == 2 and not r.get("tools")}
    trained = {
        message["content"]
        for item in training_conversations(0, 3000)
        for message in item.messages
        if message["role"] == "user"
    }
    assert len(single) > 60 and not single & trained


def _sorted_from(question: str, answer: list[str]) -> bool:
    """Whether the answer has the question's numbers, or its words but for the words of the request, in order."""
    asked = re.findall(r"\w+", question)
    if not answer[0].isdigit():
        return answer == sorted(answer) and set(answer) <= set(asked)
    down = "descending" in asked or "small" in asked
    return answer == sorted((word for word in asked if word.isdigit()), key=int, reverse=down)


@pytest.mark.parametrize(
    "name, check",
    [
        ("sums", lambda q, a: eval(a.partition(" =")[0]) == int(a.rpartition(" ")[2])),
        ("sorting", lambda q, a: _sorted_from(q, a.split(", "))),
        ("reversing", lambda q, a: a.split(",")[0].replace("-", "") == a.rpartition(": ")[2][::-1]),
    ],
)
def test_answers_are_right(name, check):
    random = Random(2)
    for _ in range(200):
        item = BY_NAME[name].make(random)
        assert check(item.messages[0]["content"], item.answer["content"]), item


def test_marks_cover_the_answers_only():
    ids = np.array([1, 7, 8, 5, 5, 2, 1, 9, 8, 4, 2, 1, 7, 8, 6, 2])
    assert list(answer_marks(ids, (1, 7, 8), 2)) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_the_template_writes_what_the_examiner_reads():
    random = Random(3)
    calls = [i for i in (BY_NAME["tools"].make(random) for _ in range(60)) if i.answer.get("tool_calls")]
    assert calls
    for item in calls:
        text = rendered(template(), item)
        answer = text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")
        assert parsed(answer) == wanted({"messages": item.messages})


def test_the_examiner_counts():
    assert parsed("no call") == ("no call", [])
    assert parsed("<tool_call>\n{broken\n</tool_call>") == ("<tool_call>\n{broken\n</tool_call>", [])
    assert "| **all** | **3 of 4 (75.0%)** |" in table({"a": (2, 2), "b": (1, 2)})
