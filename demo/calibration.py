"""The calibration text: conversations of demo/'s families, and llmserve's own prose and code.

    python -m demo.calibration --out llmserve/data/text/calibration.jsonl

All of it is our own, and nothing of it is in an examination: conversations are of keys that are trained on, from a seed
of their own, and running text there is the standard library's.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from .families import training_conversations

ROOT = Path(__file__).parents[1]
CONVERSATIONS = 160
PIECE, PIECES = 1600, 60
_TEXTS = ("README.md", "CONTRIBUTING.md", "demo/README.md", "llmserve/**/*.py", "tests/**/*.py")


def conversations(count: int, seed: str) -> Iterator[dict[str, Any]]:
    for item in training_conversations(seed, count):
        yield {"messages": list(item.messages), **({"tools": list(item.tools)} if item.tools else {})}


def pieces(count: int, seed: str) -> Iterator[dict[str, Any]]:
    """Runs of whole paragraphs, each from a place of its own; code and prose by half."""
    files = sorted({file for pattern in _TEXTS for file in ROOT.glob(pattern)})
    random = Random(seed)
    for number in range(count):
        kind = (".md", ".py")[number % 2]
        file = random.choice([file for file in files if file.suffix == kind])
        paragraphs = re.split(r"(?<=\n)\n+", file.read_text("utf-8"))
        start, text = random.randrange(len(paragraphs)), ""
        while len(text) < PIECE and start < len(paragraphs):
            text += paragraphs[start] + "\n"
            start += 1
        yield {"text": text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "llmserve" / "data" / "text" / "calibration.jsonl")
    parser.add_argument("--seed", default="calibration")
    arguments = parser.parse_args()
    rows = [*conversations(CONVERSATIONS, arguments.seed), *pieces(PIECES, arguments.seed)]
    Random(arguments.seed).shuffle(rows)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print(f"{len(rows)} texts, {arguments.out.stat().st_size:,} bytes in {arguments.out}")


if __name__ == "__main__":
    main()
