"""The model that `serve` and `chat` take when none is named: the one that comes with the package.

Until a trained one does, a small checkpoint of random weights stands in, made on the spot; it answers with noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .random_checkpoint import TINY_DEMO, write_random_checkpoint

NAME = "llmserve-demo"
_PACKAGED = Path(__file__).parents[1] / "data" / NAME

Obtain = Callable[[str, Mapping[str, Any], Callable[[Path], None]], Path]
"""compile.artifact.obtain, handed in because weights do not import compile."""


def is_random() -> bool:
    """Whether the stand-in is served; whoever serves it should say so."""
    return not _PACKAGED.is_dir()


def embedded_model(obtain: Obtain) -> Path:
    """The checkpoint's directory."""
    if not is_random():
        return _PACKAGED
    causes = {"model": NAME, "config": TINY_DEMO, "seed": 0}
    return obtain("checkpoints", causes, lambda directory: _write(directory))


def _write(directory: Path) -> None:
    write_random_checkpoint(directory, TINY_DEMO)
