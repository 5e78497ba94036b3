"""Model formats other than floats in safetensors: their recognition, and the sources that read them.

One file a format. Each reads a tensor or a block of rows at a time, and executes nothing of the model's files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedError
from ..source import PlainSource, Source
from . import mlc
from .awq import AWQ
from .compressed_tensors import CompressedTensors
from .gguf import GGUF, whole
from .gptq import GPTQ

Opener = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], Source]

# `quant_method` → (source, the file of its own in which older checkpoints have what config.json says today).
_METHODS: dict[str, tuple[Opener, str | None]] = {
    "gptq": (GPTQ, "quantize_config.json"),
    "awq": (AWQ, "quant_config.json"),
    "compressed-tensors": (CompressedTensors, None),
}


def open_source(path: Path) -> Source:
    """The source for a model's directory or file, told by what is in it; no tensor data is read.

    Raises CheckpointError for files that are missing or broken, UnsupportedError for a quantization that is not read.
    """
    if path.is_file():
        return GGUF(path)
    if (path / mlc.CONFIG).is_file() and any((path / name).is_file() for name in mlc.CACHES):
        return mlc.MLC(path)
    config = _read_object(path / "config.json")
    if config is None and (files := whole(sorted(path.glob("*.gguf")))):
        if len(files) > 1:
            raise CheckpointError(f"{path} holds {len(files)} GGUF files; name one, such as {files[0]}.")
        return GGUF(files[0])
    if config is None:
        raise CheckpointError(f"{path} has no config.json: it is not a Hugging Face checkpoint.")
    method, settings = _quantization(path, config)
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "compression_config")}
    if method is None:
        return PlainSource(path, plain)
    if method not in _METHODS:
        known = sorted(_METHODS)
        close = difflib.get_close_matches(method, known, 1)
        hint = f" (is {close[0]!r} meant?)" if close else ""
        raise UnsupportedError(
            f"{path / 'config.json'}: weights quantized by {method!r}{hint} are not read; {', '.join(known)} are, and "
            "GGUF files and MLC's directories; or take the unquantized checkpoint."
        )
    return _METHODS[method][0](path, plain, settings)


def _quantization(path: Path, config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """(method, settings), or (None, {}) for a checkpoint of floats."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings is not None:
        if not isinstance(settings, dict):
            raise CheckpointError(
                f"{path / 'config.json'}: 'quantization_config' must be an object, not {settings!r:.60}."
            )
        default = "compressed-tensors" if "quantization_config" not in config else None
        method = settings.get("quant_method", default)
        return (method if isinstance(method, str) else str(method)), settings
    for method, (_, file) in _METHODS.items():
        if file and (old := _read_object(path / file)) is not None:
            return method, old
    return None, {}


def _read_object(file: Path) -> dict[str, Any] | None:
    """A JSON object, None where there is no such file. Raises CheckpointError."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}.")
    return value
