"""The accuracy of whole models against float32 logits and greedy tokens of `transformers`.

Three texts are computed in every way that the engine has: as prompts that are prefilled together, token by token, and
in chunks beside other sequences' tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .device import put
from .model import DeviceModel, Run

# Of the largest logit. float32: the order of sums, a tenth of it in practice. float16: activations are rounded to 11
# bits several times in each layer; a few such errors are seen to add up in models of six layers.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
ROWS = 64  # logit rows that the libraries are compiled for
CHUNKS = (41, 1, 7, 40)


def check(directory: Path, dtype: str, device: Any) -> tuple[bool, str, dict[str, Any]]:
    """Whether a model is right, in a few words, with the largest error of each way."""
    params, expected = np.load(directory / "params.npz"), np.load(directory / "expected.npz")

    def parameter(name: str, shape: Any, dtype: str) -> Any:
        return put(widened(params[name]).astype(dtype), device)

    model = DeviceModel(directory / dtype, device, parameter)
    model.set_rope(expected["cos"], expected["sin"])
    texts = [_ReferenceText(expected[f"ids{i}"], expected[f"logits{i}"]) for i in range(int(expected["texts"]))]
    prompts = [int(n) for n in expected["prompts"]]
    size = model.interface["page_size"]
    order = np.random.default_rng(5).permutation(2 * sum(len(t.ids) // size + 1 for t in texts)).tolist()
    model.make_pages(len(order), lambda shape, dtype: put(np.zeros(shape, dtype), device))

    def tables() -> list[list[int]]:
        return [[order.pop() for _ in range(len(t.ids) // size + 1)] for t in texts]

    errors: dict[str, list[float]] = {"prefill": [], "decode": [], "chunks": []}
    wrong = 0

    def compare(way: str, found: np.ndarray, where: list[tuple[int, int]]) -> None:
        nonlocal wrong
        for row, (text, at) in zip(found, where, strict=True):
            right = texts[text].logits[at]
            limit = TOLERANCE[dtype] * np.abs(right).max()
            error = np.abs(row - right).max() / np.abs(right).max()
            errors[way].append(float(error) if np.isfinite(row).all() else np.inf)
            second, first = np.sort(right)[-2:]
            # Two tokens nearer to each other than the tolerance may change places; no others.
            wrong += bool(row.argmax() != right.argmax() and first - second > 2 * limit)

    own = tables()
    runs = [(0, t.ids[:n], table) for t, n, table in zip(texts, prompts, own, strict=True)]
    where = [
        (i, at) for i, n in enumerate(prompts) for at in np.linspace(0, n - 1, min(n, ROWS // len(texts)), dtype=int)
    ]
    starts = np.cumsum([0, *prompts])
    compare("prefill", model.logits(runs, [int(starts[i] + at) for i, at in where]), where)

    for step in range(min(len(t.ids) - n for t, n in zip(texts, prompts, strict=True))):
        runs = [(n + step, [t.ids[n + step]], table) for t, n, table in zip(texts, prompts, own, strict=True)]
        compare("decode", model.logits(runs), [(i, n + step) for i, n in enumerate(prompts)])

    own, done, chunk = tables(), [0] * len(texts), 0
    while any(d < len(t.ids) for d, t in zip(done, texts, strict=True)):
        together: list[Run] = []
        where = []
        for i, text in enumerate(texts):
            count = min(CHUNKS[(chunk + i) % len(CHUNKS)], len(text.ids) - done[i])
            if count:
                together.append((done[i], text.ids[done[i] : done[i] + count], own[i]))
                done[i] += count
                where.append((i, done[i] - 1))
        compare("chunks", model.logits(together), where)
        chunk += 1

    worst = {way: max(found) for way, found in errors.items()}
    count = sum(map(len, errors.values()))
    fine = max(worst.values()) <= TOLERANCE[dtype] and not wrong
    words = ", ".join(f"{way} {error:.1e}" for way, error in worst.items())
    return (
        fine,
        f"{words} of {TOLERANCE[dtype]:.0e} allowed; {wrong} of {count} greedy tokens wrong",
        {**worst, "tolerance": TOLERANCE[dtype], "wrong_tokens": wrong, "rows": count},
    )


def widened(array: np.ndarray) -> np.ndarray:
    """Floats, of the upper halves of their words, where those are what was stored."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


class _ReferenceText:
    def __init__(self, ids: np.ndarray, logits: np.ndarray) -> None:
        self.ids: list[int] = ids.tolist()
        self.logits = logits
