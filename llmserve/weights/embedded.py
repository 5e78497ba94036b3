"""The embedded model, for `serve` and `chat` without a model's name: a small trained checkpoint in the package."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

NAME = "llmserve-demo"
_PACKAGED = Path(__file__).parents[1] / "data" / NAME


def embedded_model() -> Path:
    """The checkpoint's directory, in Hugging Face's format.

    Raises:
        CheckpointError: the package was installed without its data.
    """
    if not (_PACKAGED / "config.json").is_file():
        raise CheckpointError(f"There is no model at {_PACKAGED}; install llmserve again, or name a model.")
    return _PACKAGED
