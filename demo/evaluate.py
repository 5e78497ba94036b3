"""The examination of a model on held-out data: exact match per family, and perplexity on running text.

    python -m demo.evaluate --data build/demo --checkpoint DIR          through transformers
    python -m demo.evaluate --data build/demo --url http://127.0.0.1:8000/v1   any server that speaks OpenAI's API

An answer counts if it is the wanted one to the letter (calls: the same function with equal arguments). Greedy.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Answer = tuple[str, list[tuple[str, Any]]]
"""The text of an answer, and the calls in it: function and arguments."""

MAX_TOKENS = 160
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
_WINDOW = 512  # tokens of a text that are scored together, each after all before it


def wanted(row: Row) -> Answer:
    message = row["messages"][-1]
    calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", ())]
    return message["content"] or "", calls


def parsed(text: str) -> Answer:
    """An answer as the model writes it, its calls between marks."""
    calls = []
    for body in _CALL.findall(text):
        try:
            call = json.loads(body)
            calls.append((call["name"], call["arguments"]))
        except (ValueError, KeyError, TypeError):
            return text, []
    return _CALL.sub("", text).strip() if calls else text, calls


def through_transformers(checkpoint: Path) -> tuple[Callable[[Row], Answer], Callable[[str], tuple[float, int]]]:
    """Answers, and (sum of negative log-probabilities, tokens) of texts, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def answer(row: Row) -> Answer:
        messages = [dict(m) for m in row["messages"][:-1]]
        ids = tokenizer.apply_chat_template(
            messages, tools=row.get("tools"), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=MAX_TOKENS, do_sample=False, temperature=None)
        return parsed(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    @torch.no_grad()
    def score(text: str) -> tuple[float, int]:
        ids, total, count = tokenizer(text).input_ids, 0.0, 0
        for at in range(0, len(ids), _WINDOW):
            window = torch.tensor([[tokenizer.pad_token_id, *ids[at : at + _WINDOW]]])
            logits = model(window[:, :-1]).logits.log_softmax(-1)
            total -= float(logits.gather(-1, window[:, 1:, None]).sum())
            count += window.shape[1] - 1
        return total, count

    return answer, score


def through_server(
    url: str, model: str | None, key: str
) -> tuple[Callable[[Row], Answer], Callable[[str], tuple[float, int]]]:
    """The same through chat completions, and through completions that echo a prompt with its log-probabilities."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key=key)
    name = model or client.models.list().data[0].id

    def answer(row: Row) -> Answer:
        more = {"tools": row["tools"]} if row.get("tools") else {}
        reply = client.chat.completions.create(
            model=name, messages=row["messages"][:-1], temperature=0, max_tokens=MAX_TOKENS, **more
        )
        message = reply.choices[0].message
        calls = [(c.function.name, _arguments(c.function.arguments)) for c in message.tool_calls or ()]
        return message.content or "", calls

    def score(text: str) -> tuple[float, int]:
        total, count = 0.0, 0
        for piece in _pieces(text):
            reply = client.completions.create(
                model=name, prompt="<|endoftext|>" + piece, echo=True, logprobs=0, max_tokens=1, temperature=0
            )
            values = (reply.choices[0].logprobs.token_logprobs or [])[1:-1]  # without the mark, and the new token
            total -= sum(v for v in values if v is not None)
            count += len(values)
        return total, count

    return answer, score


def _arguments(text: str) -> Any:
    """A call's arguments; as they are, where the model has not written JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pieces(text: str, size: int = 1200) -> Iterable[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def exact_match(
    rows: list[Row], answer: Callable[[Row], Answer], show: int = 0, workers: int = 1
) -> dict[str, tuple[int, int]]:
    """(right, all) by family; prints the first `show` mistakes of each. `workers` ask at the same time."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    shown: dict[str, int] = defaultdict(int)
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(answer, rows))
    for row, got in zip(rows, answers, strict=True):
        want = wanted(row)
        right = got == want
        counts[row["family"]][0] += right
        counts[row["family"]][1] += 1
        if not right and shown[row["family"]] < show:
            shown[row["family"]] += 1
            print(f"  {row['family']}: {row['messages'][-2]['content']!r}\n    wanted {want}\n    got    {got}")
    return {family: (right, total) for family, (right, total) in counts.items()}


def perplexity(texts: Mapping[str, str], score: Callable[[str], tuple[float, int]], limit: int) -> tuple[float, int]:
    """exp of the mean negative log-probability per token over the first `limit` characters of each text; the tokens."""
    total, count = 0.0, 0
    for text in texts.values():
        loss, tokens = score(text[:limit])
        total, count = total + loss, count + tokens
    return math.exp(total / count), count


def table(counts: Mapping[str, tuple[int, int]]) -> str:
    lines = ["| family | exact match |", "|---|---|"]
    lines += [f"| {family} | {right} of {total} ({right / total:.0%}) |" for family, (right, total) in counts.items()]
    right, total = (sum(column) for column in zip(*counts.values(), strict=True))
    return "\n".join([*lines, f"| **all** | **{right} of {total} ({right / total:.1%})** |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--checkpoint", type=Path)
    where.add_argument("--url")
    parser.add_argument("--model", help="its name on the server; the first one, if not given")
    parser.add_argument("--key", default="none", help="the server's API key")
    parser.add_argument("--per-family", type=int, help="so many items of each family instead of all")
    parser.add_argument("--text-limit", type=int, default=4000, help="characters of each held-out file")
    parser.add_argument("--show", type=int, default=0, help="so many mistakes of each family")
    arguments = parser.parse_args()
    if arguments.checkpoint:
        answer, score = through_transformers(arguments.checkpoint)
    else:
        answer, score = through_server(arguments.url, arguments.model, arguments.key)
    rows = [json.loads(line) for line in (arguments.data / "held_out.jsonl").read_text("utf-8").splitlines()]
    if arguments.per_family:
        families = groupby(rows, lambda row: row["family"])
        rows = [row for _, its in families for row in islice(its, arguments.per_family)]
    print(table(exact_match(rows, answer, arguments.show, 1 if arguments.checkpoint else 8)))
    texts = json.loads((arguments.data / "held_out_text.json").read_text("utf-8"))
    value, tokens = perplexity(texts, score, arguments.text_limit)
    print(f"\nPerplexity on held-out source text: {value:.2f} per token ({tokens} tokens)")


if __name__ == "__main__":
    main()
