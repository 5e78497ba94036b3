"""The calibration text: a file of the user's or the package's own, as sequences of tokens.

A text file is one text; a file of JSON lines has a text (`{"text": …}`) or a conversation (`{"messages": […]}`, with
`tools` if it has any) in each, and conversations go through the checkpoint's chat template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, ConfigError, RequestError
from ..text.chat_template import ChatTemplate
from ..text.tokenizer import Tokenizer

PACKAGED = Path(__file__).parents[1] / "data" / "text" / "calibration.jsonl"
LENGTH = 512
TOKENS = 16_384
MIN_TOKENS = 2_048
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Sequences:
    """Calibration sequences, and the facts that a manifest keeps of them.

    Attributes:
        ids: int32 [sequences, length].
        file, sha256: where the text came from, and a digest of it.
    """

    ids: npt.NDArray[np.int32]
    file: str
    sha256: str

    @property
    def causes(self) -> dict[str, Any]:
        count, length = self.ids.shape
        tokens = hashlib.sha256(np.ascontiguousarray(self.ids, "<i4").tobytes()).hexdigest()[:16]
        return {"file": self.file, "sha256": self.sha256, "sequences": count, "length": length, "tokens": tokens}


def read(file: Path | None, checkpoint: Path, vocab_size: int, max_length: int) -> Sequences:
    """At most TOKENS tokens of `file` (None: the package's own) by the checkpoint's tokenizer, in sequences of LENGTH
    or of `max_length`, if that is less; if there are more, sequences from all over the text.

    Raises ConfigError when the file cannot be read or is too short, CheckpointError for a tokenizer that does not fit.
    """
    path = file or PACKAGED
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The calibration data {path} cannot be read ({error.strerror}).") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"The calibration data {path} has {len(raw):,} bytes, and {_MAX_BYTES:,} are the limit.")
    tokenizer = Tokenizer.from_directory(checkpoint)
    ids = [token for text in _texts(path, raw, checkpoint, tokenizer) for token in text]
    if ids and max(ids) >= vocab_size:
        raise CheckpointError(f"{checkpoint} has a tokenizer with ids up to {max(ids)} for {vocab_size} embeddings.")
    length = min(LENGTH, max_length)
    # Sequences begin as texts do: what follows would not be what the model sees in use.
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    width = length - len(begin)
    count = len(ids) // width
    if count * length < MIN_TOKENS:
        raise ConfigError(
            f"The calibration data {path} has {len(ids):,} tokens, and at least {MIN_TOKENS:,} are needed; "
            "add more text, or leave --calibration-data out for the text that comes with llmserve."
        )
    chosen = np.linspace(0, count - 1, min(count, max(1, TOKENS // length))).astype(int)
    rows = [begin + ids[at * width : (at + 1) * width] for at in chosen]
    return Sequences(np.array(rows, np.int32), path.name, hashlib.sha256(raw).hexdigest()[:16])


def _texts(path: Path, raw: bytes, checkpoint: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The tokens of each text, one after another."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"The calibration data {path} is not UTF-8 text: {error}.") from error
    if path.suffix != ".jsonl":
        yield tokenizer.encode(text)
        return
    template = ChatTemplate.from_directory(checkpoint, tokenizer.special_tokens)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if isinstance(row.get("text"), str):
                yield tokenizer.encode(row["text"])
                continue
            messages = [dict(message) for message in row["messages"]]
            try:
                chat = template.render(messages, tools=row.get("tools"), add_generation_prompt=False)
                yield tokenizer.encode(chat, add_special_tokens=False)
            except RequestError:
                if template.available and path != PACKAGED:
                    raise
                # A base model, or one that knows no tools: it is calibrated on what was said.
                yield tokenizer.encode("\n\n".join(str(message.get("content") or "") for message in messages))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RequestError) as error:
            raise ConfigError(
                f'Line {number} of {path} is no calibration text; each must be {{"text": "…"}} or {{"messages": […]}} '
                f"that the model's chat template takes: {error}."
            ) from error
