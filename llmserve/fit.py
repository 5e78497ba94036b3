"""`llmserve fit`: the memory that a model takes in each scheme, and the context and sequences that the rest allows.

Arithmetic on config.json alone: nothing is converted, and of a model on the Hub no weights are downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import detect
from .config import EngineConfig
from .errors import UnsupportedError
from .machine import size
from .models.base import CausalLM, read_family
from .models.config import DecoderConfig
from .models.layers import PageFormat
from .platforms import Platform, find
from .quant.group import GroupFormat
from .quant.scheme import Scheme, choose
from .weights import embedded, hub
from .weights.foreign import open_source

QUANTS = ("q3", "q4", "q8", "none")
# Tokens of a usual request, of which a server holds many.
USUAL = 8192
# Interpreter, TVM and tokenizer: a process that has compiled the package's own model (3 MiB) and runs it has 319 MiB
# resident, one that found it in the cache 237; the web server takes some more.
PROCESS = 384 << 20


@dataclass(frozen=True)
class SchemeFit:
    """A scheme's figures, in bytes and tokens.

    Attributes:
        weights: all parameters as `convert` stores them.
        kv_per_token: keys and values of one token in all layers.
        context: tokens that one sequence may have at most, no more than the model has positions for; 0 if the weights
            do not fit.
        sequences: how many of `Fit.usual` tokens fit at once.
    """

    quant: str
    scheme: str
    weights: int
    kv_per_token: int
    context: int
    sequences: int


@dataclass(frozen=True)
class Fit:
    """The result for all schemes.

    `memory` bytes are there for weights, pages and `reserved` (process and intermediate results); `download` bytes
    would be fetched, None where that is not known or nothing is.
    """

    model: str
    platform: str
    device: str
    memory: int
    reserved: int
    positions: int
    usual: int
    download: int | None
    rows: tuple[SchemeFit, ...]
    command: str | None


def fit(model: str | None, device: str | None = None, memory: int | None = None) -> Fit:
    """Raises what reading the model's config raises, and UnsupportedError where no memory is known to count with."""
    platform = find(device)
    config, module, download = _read(model)
    name, room = _room(platform, memory)
    shape = module(config, PageFormat())
    page = EngineConfig().page_size
    usual = min(USUAL, config.max_position_embeddings)
    reserved = PROCESS + workspace(config, platform)
    rows = []
    for quant in QUANTS:
        scheme = choose(quant, platform.computes_in(quant))
        weights, per_token = weight_bytes(shape, scheme), kv_bytes(config, scheme)
        left = max(0, room - reserved - weights)
        pages = left // (per_token * page)
        longest = min(pages * page, config.max_position_embeddings)
        rows.append(SchemeFit(quant, scheme.name, weights, per_token, longest, pages // -(-usual // page)))
    command = _command(model, device, rows, usual)
    label = model or embedded.NAME
    return Fit(
        *(label, platform.name, name, room, reserved, config.max_position_embeddings, usual, download),
        tuple(rows),
        command,
    )


def _read(model: str | None) -> tuple[DecoderConfig, type[CausalLM], int | None]:
    """The model's config, its module's class, and the bytes that a download would take."""
    download = None
    if model is None or Path(model).expanduser().exists():
        path = embedded.embedded_model() if model is None else hub.resolve(model)
        raw: Mapping[str, Any] = open_source(path).config
    else:
        raw, download = hub.config_only(model)
        # Weights that are quantized already are taken over in one of our formats, of as many bits.
        raw = {key: value for key, value in raw.items() if key not in ("quantization_config", "compression_config")}
    family, config = read_family(raw, f"config.json of {model or embedded.NAME}")
    return config, family.model, download


def _room(platform: Platform, memory: int | None) -> tuple[str, int]:
    """(the device's name, bytes to count with)."""
    found = detect.usable(platform.name) or next(iter(detect.devices(platform.name)), None)
    name = found.name if found else f"no {platform.name} device here"
    if memory is None and found is not None:
        memory = found.free if found.free is not None else found.memory
    if memory is None:
        raise UnsupportedError(
            f"How much memory {platform.name} has on this machine is not known; say it with --memory, such as 24GiB."
        )
    return name, memory


def weight_bytes(model: CausalLM, scheme: Scheme) -> int:
    """Bytes of all parameters as a conversion stores them: matrices in their formats, biases and norms in float32."""
    total = 0
    for name, matrix in model.matrices():
        storage = scheme.storage_of(name)
        n, k = matrix.out_features, matrix.in_features
        total += storage.nbytes(n, k) if isinstance(storage, GroupFormat) else n * k * np.dtype(storage).itemsize
        total += 4 * n * matrix.has_bias
    return total + sum(4 * math.prod(param.shape) for _, param in model.floats())


def kv_bytes(config: DecoderConfig, scheme: Scheme) -> int:
    """Bytes of one token's keys and values over all layers. Layers with a window keep all of them too."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * np.dtype(scheme.page_dtype).itemsize


def workspace(config: DecoderConfig, platform: Platform) -> int:
    """Bytes of a step's intermediate results, in float32: per token what a layer holds at a time, and the logits."""
    engine = EngineConfig()
    tokens = engine.max_num_batched_tokens or max(platform.step_tokens, engine.max_num_seqs)
    heads = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return 4 * (tokens * (4 * config.hidden_size + 3 * config.intermediate_size + heads)) + (
        4 * engine.max_num_seqs * config.vocab_size * 2
    )


def _command(model: str | None, device: str | None, rows: list[SchemeFit], usual: int) -> str | None:
    """The command that serves it: in 4 bits, or in 3 where that gives it a usual context, or any at all."""
    by_name = {row.quant: row for row in rows}
    best = next(
        (by_name[q] for least in (usual, 512) for q in ("q4", "q3") if by_name[q].context >= min(least, usual)), None
    )
    if best is None:
        return None
    length = min(usual, best.context // 16 * 16)
    pages = -(-length // 16) * 16 * best.kv_per_token
    wanted = pages * max(1, min(best.sequences, EngineConfig().max_num_seqs))
    words = ["llmserve serve", *([model] if model else []), f"--quant {best.quant}"]
    words += [f"--device {device}"] if device not in (None, "auto") else []
    return " ".join([*words, f"--max-model-len {length}", f"--kv-cache-memory {-(-wanted >> 20)}MiB"])


def describe(found: Fit) -> str:
    """For people."""
    lines = [
        f"{found.model} on {found.platform} ({found.device})",
        f"{size(found.memory)} of memory, of which {size(found.reserved)} are for the process and a step's results; "
        f"the model has positions for {found.positions} tokens.",
    ]
    if found.download is not None:
        lines.append(f"Not downloaded yet: {size(found.download)}.")
    head = ("--quant", "weights", "a token's KV", "longest context", f"sequences of {found.usual}")
    lines += ["", "".join(f"{word:>{width}}" for word, width in zip(head, _WIDTHS, strict=True))]
    for row in found.rows:
        words = (
            row.quant,
            size(row.weights),
            size(row.kv_per_token),
            str(row.context or "-"),
            str(row.sequences or "-"),
        )
        lines.append("".join(f"{word:>{width}}" for word, width in zip(words, _WIDTHS, strict=True)))
    last = found.command or "It does not fit in 4 bits, nor in 3; take a smaller model, or a machine with more memory."
    return "\n".join([*lines, "", last])


_WIDTHS = (8, 12, 15, 18, 20)


def report(found: Fit) -> dict[str, Any]:
    """For programs: JSON values."""
    return asdict(found)
