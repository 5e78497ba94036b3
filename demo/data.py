"""The data of training and examination, the same bytes each time.

    python -m demo.data --out build/demo

Conversations come from `families.py`; running text from the sources of Python's standard library as they lie on this
machine (PSF licence), so the bytes are those of one version of Python, which manifest.json names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmserve.text.chat_template import ChatTemplate

from .families import FAMILIES, held_out_item, training_conversations
from .items import Item

HERE = Path(__file__).parent
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")
# Digits one by one: sums are learned by place. The rest is what byte-level tokenizers of today do.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB_SIZE = 2048
MAX_LENGTH = 1024
TEXT_ROWS = ((256, 0.6), (512, 0.3), (1024, 0.1))  # lengths of rows of running text, and how much of it comes in each
_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "site-packages",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
}


def standard_library() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(name, source) of the standard library's modules in ASCII: to train on, and one in twenty to examine with."""
    root = Path(sysconfig.get_paths()["stdlib"])
    kept: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        names += [(Path(folder) / file).relative_to(root).as_posix() for file in files if file.endswith(".py")]
    for name in sorted(names, key=lambda name: name.split("/")):
        if name.startswith("_sysconfigdata"):  # differs from machine to machine
            continue
        file = root / name
        text = file.read_bytes()
        if text.isascii() and len(text) > 500:
            out = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 20 == 0
            kept[out].append((name, text.decode().replace("\r\n", "\n")))
    return kept


@cache
def template() -> ChatTemplate:
    return ChatTemplate((HERE / "chat_template.jinja").read_text("utf-8"))


def rendered(chat: ChatTemplate, item: Item) -> str:
    return chat.render([dict(m) for m in item.messages], tools=list(item.tools) or None, add_generation_prompt=False)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of VOCAB_SIZE entries, the marks of the chat format last."""
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL) - len(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries instead of {VOCAB_SIZE}")
    return tokenizer


def side_files(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """tokenizer_config.json and generation_config.json, as Hugging Face has them."""
    end, _, turn_end = (tokenizer.token_to_id(mark) for mark in SPECIAL)
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_LENGTH,
            "clean_up_tokenization_spaces": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": (HERE / "chat_template.jinja").read_text("utf-8"),
        },
        "generation_config.json": {
            "eos_token_id": [turn_end, end],
            "pad_token_id": end,
            "do_sample": True,
            "temperature": 0.2,
        },
    }


class TokenRows:
    """Rows of token ids with a mark on each token that is to be learned, one behind the other in flat arrays."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []
        self.marks: list[np.ndarray] = []

    def add(self, ids: Sequence[int], marks: np.ndarray) -> None:
        self.ids.append(np.array(ids, np.uint16))
        self.marks.append(marks.astype(np.uint8))

    def save(self, file: Path) -> None:
        ends = np.cumsum([len(row) for row in self.ids])
        file.parent.mkdir(parents=True, exist_ok=True)
        for name, array in (("ids", np.concatenate(self.ids)), ("marks", np.concatenate(self.marks)), ("ends", ends)):
            np.save(file.with_suffix(f".{name}.npy"), array)


def answer_marks(ids: np.ndarray, opening: Sequence[int], closing: int) -> np.ndarray:
    """1 on each token of an assistant's turn, from behind `opening` to `closing`, which is part of it."""
    marks, width = np.zeros(len(ids), np.uint8), len(opening)
    starts = [i for i in np.flatnonzero(ids == opening[0]) if list(ids[i : i + width]) == list(opening)]
    ends = np.flatnonzero(ids == closing)
    for start in starts:
        end = ends[np.searchsorted(ends, start)]
        marks[start + width : end + 1] = 1
    return marks


def chat_rows(rows: TokenRows, tokenizer: Tokenizer, items: Iterable[Item]) -> None:
    """Conversations, tokenized in batches; what is longer than the context is left out."""
    chat, batch = template(), 2048
    opening = tokenizer.encode("<|im_start|>assistant\n").ids
    closing = tokenizer.token_to_id("<|im_end|>")
    for texts in _batches((rendered(chat, item) for item in items), batch):
        for encoding in tokenizer.encode_batch_fast(texts):
            ids = np.array(encoding.ids)
            if len(ids) <= MAX_LENGTH:
                rows.add(encoding.ids, answer_marks(ids, opening, closing))


def text_rows(rows: TokenRows, tokenizer: Tokenizer, sources: Iterable[tuple[str, str]], seed: int) -> None:
    """Running text in rows of a few lengths; each begins with the mark that ends a text."""
    random, end = Random(f"{seed}/text"), tokenizer.token_to_id("<|endoftext|>")
    lengths = [length for length, _ in TEXT_ROWS]
    for _, source in sources:
        ids, at = tokenizer.encode(source).ids, 0
        while at < len(ids):
            length = random.choices(lengths, [share / size for size, share in TEXT_ROWS])[0] - 1
            piece = [end, *ids[at : at + length]]
            rows.add(piece, np.arange(len(piece)) > 0)
            at += length


def _batches(values: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for value in values:
        batch.append(value)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def held_out_lines(per_family: int, seed: int) -> Iterator[str]:
    """The examination: one JSON object a line, the last message of each is what is wanted."""
    for family in FAMILIES:
        random, seen = Random(f"{seed}/held-out/{family.name}"), set()
        for _ in range(per_family):
            for _ in range(200):  # a small family has fewer distinct items than are asked for
                item = held_out_item(family, random)
                text = json.dumps(list(item.messages))
                if text not in seen:
                    break
            seen.add(text)
            row = {"family": family.name, "messages": list(item.messages)}
            yield json.dumps(row | ({"tools": list(item.tools)} if item.tools else {}))


def make(
    out: Path, conversations: tuple[int, int], per_family: int, seed: int = 0, modules: int | None = None
) -> dict[str, Any]:
    """Writes everything below `out`; returns the manifest, with a digest of each file.

    `conversations` are counted for each part of the training; `modules` takes only so many of the library's.
    """
    out.mkdir(parents=True, exist_ok=True)
    train, held_out = (sources[:modules] for sources in standard_library())
    sample = [rendered(template(), item) for item in training_conversations(seed + 1, min(conversations[0], 20000))]
    # About as much of each, in characters.
    room, code = sum(map(len, sample)), []
    for _, text in Random(seed).sample(train, len(train)):
        code.append(text)
        if (room := room - len(text)) < 0:
            break
    tokenizer = train_tokenizer([*(piece for text in sample for piece in _unmarked(text)), *code])
    tokenizer.save(str(out / "tokenizer.json"))
    for name, value in side_files(tokenizer).items():
        (out / name).write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    chats, late, texts = TokenRows(), TokenRows(), TokenRows()
    chat_rows(chats, tokenizer, training_conversations(seed, conversations[0]))
    chats.save(out / "chats")
    chat_rows(late, tokenizer, training_conversations(f"{seed}/late", conversations[1], part=1))
    late.save(out / "late_chats")
    text_rows(texts, tokenizer, train, seed)
    texts.save(out / "texts")
    (out / "held_out.jsonl").write_text("".join(line + "\n" for line in held_out_lines(per_family, seed)), "utf-8")
    (out / "held_out_text.json").write_text(json.dumps(dict(held_out), indent=0) + "\n", "utf-8")
    manifest = {
        "seed": seed,
        "python": platform.python_version(),
        "conversations": [len(chats.ids), len(late.ids)],
        "chat_tokens": [int(sum(map(len, rows.ids))) for rows in (chats, late)],
        "text_rows": len(texts.ids),
        "text_tokens": int(sum(map(len, texts.ids))),
        "sha256": {
            f.name: hashlib.sha256(f.read_bytes()).hexdigest()
            for f in sorted(out.iterdir())
            if f.name != "manifest.json"
        },
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest


def _unmarked(text: str) -> list[str]:
    """A rendered conversation without its marks, which are tokens of their own."""
    for mark in (*SPECIAL, *MARKS):
        text = text.replace(mark, "\0")
    return [piece for piece in text.split("\0") if piece]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--conversations", type=int, nargs=2, default=(150_000, 120_000))
    parser.add_argument("--per-family", type=int, default=60, help="held-out items of each family")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    manifest = make(arguments.out, tuple(arguments.conversations), arguments.per_family, arguments.seed)
    print(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
