"""Evaluation texts: what models are measured on, as token ids of a model's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..text.tokenizer import Tokenizer

_PACKAGED = Path(__file__).parents[1] / "data" / "text"
_MAX_BYTES = 32 << 20


@dataclass(frozen=True)
class EvaluationText:
    """A text that models are measured on, and its name in reports."""

    name: str
    content: str

    @classmethod
    def packaged(cls) -> EvaluationText:
        """The text that comes with llmserve."""
        return cls("the text that comes with llmserve", read(_PACKAGED / "evaluation.txt"))

    @classmethod
    def read(cls, file: Path) -> EvaluationText:
        """A file of the user's. Raises ConfigError when it cannot be read, or is empty."""
        return cls(file.name, read(file))

    def encode(self, checkpoint: Path) -> tuple[list[int], list[int]]:
        """(token ids, the token that the tokenizer puts before every text, as a list of one or none)."""
        tokenizer = Tokenizer.from_directory(checkpoint)
        prefix = [token for token in tokenizer.encode("") if token == tokenizer.bos_token_id]
        return tokenizer.encode(self.content, add_special_tokens=False), prefix


def read(file: Path) -> str:
    """A text file in UTF-8, of 32 MiB at most. Raises ConfigError."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MAX_BYTES + 1)
        content = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"The text {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text in UTF-8; save it as such.") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"The text {file} is larger than 32 MiB; cut a piece from it.")
    if not content.strip():
        raise ConfigError(f"The text {file} is empty.")
    return content
