"""MLC's weight directories: mlc-chat-config.json, tensor-cache.json (older: ndarray-cache.json), params_shard_*.bin.

The cache is TVM's own container: a list of shards, each with its tensors' names, shapes, dtypes and places. MLC's names
are Hugging Face's but for the fused matrices, which are ours: qkv_proj (Qwen: c_attn) and gate_up_proj. A matrix in
q4f16_1 is `q_weight` uint32 and `q_scale`, as our int4 lies; in q3f16_1 as our int3x40. `mlc_writer.py` writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError, UnsupportedError
from ...quant.group import INT3_X40, INT4, GroupFormat, unpack
from ...quant.takeover import Grid
from ..container import TensorInfo
from ..source import Packed, Source, copy_companions, write_json

CONFIG = "mlc-chat-config.json"
CACHES = ("tensor-cache.json", "ndarray-cache.json")
# `quantization` → how its matrices are packed, None for floats. Of q4f16_2, embedding and head are floats.
QUANTIZATIONS: dict[str, GroupFormat | None] = {
    "q4f16_1": INT4,
    "q4f32_1": INT4,
    "q4bf16_1": INT4,
    "q4f16_2": INT4,
    "q3f16_1": INT3_X40,
    "q0f16": None,
    "q0f32": None,
    "q0bf16": None,
}
# Family → MLC's name of what is qkv_proj here.
QKV = {"llama": "qkv_proj", "mistral": "qkv_proj", "qwen2": "c_attn", "qwen3": "c_attn"}
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), **{n: np.dtype(n) for n in ("float16", "float32", "uint32")}}
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class _ShardTensor(TensorInfo):
    """A tensor in a shard; `half` if float32 is kept as the upper halves of its words."""

    half: bool = False

    @property
    def stored(self) -> np.dtype[Any]:
        return np.dtype(ml_dtypes.bfloat16) if self.half else self.dtype


@dataclass(frozen=True)
class _Part:
    """A tensor by its Hugging Face name: rows [first, first + rows) of MLC's tensor `stem`."""

    stem: str
    first: int
    rows: int


class MLC(Source):
    kind = "mlc"

    def __init__(self, path: Path) -> None:
        """Reads config and cache. Raises CheckpointError for what is broken, UnsupportedError for what is not read."""
        self.path, self.config_file = path, path / CONFIG
        chat = _object(self.config_file)
        quantization = chat.get("quantization")
        if quantization not in QUANTIZATIONS:
            raise UnsupportedError(
                f"{self.config_file}: weights in {quantization!r} are not read; {', '.join(QUANTIZATIONS)} are."
            )
        self.format = QUANTIZATIONS[quantization]
        self.config = _config(self.config_file, chat)
        cache = next((path / name for name in CACHES if (path / name).exists()), path / CACHES[0])
        self._stored = {info.name: info for info in _tensors(cache)}
        self._parts = dict(self._split())

    def _split(self) -> Iterator[tuple[str, _Part]]:
        head_dim = self.config["head_dim"]
        q, kv = (self.config[f"num_{name}_heads"] * head_dim for name in ("attention", "key_value"))
        fused = {
            QKV[self.config["model_type"]]: (("q_proj", q), ("k_proj", kv), ("v_proj", kv)),
            "gate_up_proj": tuple((name, self.config["intermediate_size"]) for name in ("gate_proj", "up_proj")),
        }
        for name, info in self._stored.items():
            stem, _, kind = name.rpartition(".")
            module, _, last = stem.rpartition(".")
            if kind == "q_scale":
                continue
            whole, kind = f"{stem}.{'weight' if kind == 'q_weight' else kind}", "weight" if kind == "q_weight" else kind
            total, first = info.shape[0] if info.shape else 0, 0
            for part, rows in fused.get(last, ()):
                yield f"{module}.{part}.{kind}", _Part(whole, first, rows)
                first += rows
            if last not in fused:
                yield whole, _Part(whole, 0, total)
            elif first != total:
                raise CheckpointError(
                    f"{info.file} contradicts {CONFIG}: {name} has {total} rows, and {first} are needed."
                )

    def names(self) -> list[str]:
        return list(self._parts)

    def info(self, name: str) -> TensorInfo:
        part = self._part(name)
        packed, info = self._packing(part)
        if packed is None:
            return TensorInfo(name, info.dtype, (part.rows, *info.shape[1:]), info.file, info.offset)
        return TensorInfo(name, np.dtype(np.float32), (part.rows, inputs(name, self.config)), info.file, info.offset)

    def packed(self, name: str) -> Packed | None:
        part = self._part(name)
        fmt, info = self._packing(part)
        if fmt is None:
            return None
        scale = self._scale(name, part, fmt)
        row = info.nbytes + scale.shape[1] * scale.stored.itemsize * scale.shape[0]
        return Packed(fmt, row * part.rows // max(1, info.shape[0]))

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        part = self._part(name)
        fmt, info = self._packing(part)
        if fmt is not None:
            return self.read_grid(name, start, stop).dequantize()
        rows = self._read(info, part.first + start, part.first + stop)
        return rows.astype(info.dtype, copy=False).reshape(stop - start, -1)

    def read_grid(self, name: str, start: int, stop: int) -> Grid:
        part = self._part(name)
        fmt, info = self._packing(part)
        assert fmt is not None, "packed() says so"
        rows = part.first + start, part.first + stop
        scale = self._read(self._scale(name, part, fmt), *rows)
        u = unpack(self._read(info, *rows), fmt, inputs(name, self.config))
        return Grid(u, scale, np.full(scale.shape, fmt.max_int, np.int16), fmt.bits, fmt.group_size)

    def write_companions(self, out: Path) -> None:
        copy_companions(self.path, out)
        chat = _object(self.config_file)
        keys = ("temperature", "top_p", "repetition_penalty")
        settings = {key: chat[key] for key in keys if isinstance(chat.get(key), int | float)}
        if settings and not (out / "generation_config.json").exists():
            write_json(out / "generation_config.json", settings)

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            raise CheckpointError(f"{self.path} has no tensor {name}.")
        return self._parts[name]

    def _packing(self, part: _Part) -> tuple[GroupFormat | None, _ShardTensor]:
        """(format, tensor with the words) of a packed matrix, (None, tensor) of floats."""
        base = part.stem.removesuffix(".weight")
        if (words := self._stored.get(f"{base}.q_weight")) is None:
            return None, self._stored[part.stem]
        if self.format is None:
            raise CheckpointError(f"{self.path} holds {words.name} although {CONFIG} says that it is not quantized.")
        return self.format, words

    def _scale(self, name: str, part: _Part, fmt: GroupFormat) -> _ShardTensor:
        """The scales of a packed matrix, once words and scales have been found to have the right shapes."""
        base, k = part.stem.removesuffix(".weight"), inputs(name, self.config)
        words, scale = self._stored[f"{base}.q_weight"], self._stored.get(f"{base}.q_scale")
        if scale is None:
            raise CheckpointError(f"{self.path} has no tensor {base}.q_scale.")
        rows = words.shape[0]
        for info, width, dtypes in ((words, fmt.words(k), "u"), (scale, fmt.groups(k), "fV")):
            if info.shape != (rows, width) or info.dtype.kind not in dtypes:
                raise CheckpointError(
                    f"{info.file} contradicts {CONFIG}: {info.name} is {info.dtype} {list(info.shape)} where "
                    f"{fmt.name} needs {[rows, width]}."
                )
        return scale

    def _read(self, info: _ShardTensor, start: int, stop: int) -> npt.NDArray[Any]:
        row = math.prod(info.shape[1:]) * info.stored.itemsize
        try:
            with info.file.open("rb") as file:
                file.seek(info.offset + start * row)
                data = file.read((stop - start) * row)
        except OSError as error:
            raise CheckpointError(f"{info.file} cannot be read ({error.strerror}).") from error
        if len(data) != (stop - start) * row:
            raise CheckpointError(f"{info.file} ended in the middle of {info.name}.")
        return np.frombuffer(data, info.stored).reshape(stop - start, *info.shape[1:])


def inputs(name: str, config: Mapping[str, Any]) -> int:
    """Inputs of a matrix, which the packed words do not tell."""
    last = name.split(".")[-2]
    if last == "o_proj":
        return int(config["num_attention_heads"] * config["head_dim"])
    return int(config["intermediate_size" if last == "down_proj" else "hidden_size"])


def _tensors(cache: Path) -> Iterator[_ShardTensor]:
    """The tensors that a cache lists, checked against its shards' sizes. Raises CheckpointError."""
    seen: set[str] = set()
    for shard in _list(cache, _object(cache)):
        file = cache.parent / _plain_name(cache, shard.get("dataPath"))
        try:
            size = file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read ({error.strerror}), though {cache.name} lists it.") from error
        if shard.get("format") != "raw-shard" or shard.get("nbytes") != size:
            raise CheckpointError(
                f"{file} has {size:,} bytes, and {cache.name} promises {shard.get('nbytes')!r:.20} "
                "(a download cut short?)."
            )
        for record in _list(cache, shard):
            info = _record(cache, file, record)
            if info.name in seen:
                raise CheckpointError(f"{cache} lists {info.name} twice.")
            if info.offset + math.prod(info.shape) * info.stored.itemsize > size:
                raise CheckpointError(f"{cache} places {info.name} beyond the end of {file.name}.")
            seen.add(info.name)
            yield info


def _record(cache: Path, file: Path, record: Mapping[str, Any]) -> _ShardTensor:
    try:
        name, dtype, encoding = record["name"], record["dtype"], record["format"]
        shape, offset = tuple(record["shape"]), record["byteOffset"]
        sound = isinstance(name, str) and all(type(x) is int and x >= 0 for x in (*shape, offset, record["nbytes"]))
    except (KeyError, TypeError):
        sound = False
    if not sound or not shape:
        raise CheckpointError(f"{cache} is corrupt: its entry {record!r:.60} names no tensor.")
    if dtype not in _DTYPES or encoding not in ("raw", "f32-to-bf16"):
        raise UnsupportedError(f"{cache}: {name} is {dtype} as {encoding!r}; {', '.join(_DTYPES)} are read.")
    info = _ShardTensor(name, _DTYPES[dtype], shape, file, offset, encoding == "f32-to-bf16" and dtype == "float32")
    if record["nbytes"] != math.prod(shape) * info.stored.itemsize:
        raise CheckpointError(
            f"{cache} gives {name} {record['nbytes']:,} bytes, which its shape {list(shape)} has not."
        )
    return info


def _config(file: Path, chat: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of config.json."""
    family, own = chat.get("model_type"), chat.get("model_config")
    if family not in QKV:
        raise UnsupportedError(f"{file}: models of type {family!r} are not read from MLC; {', '.join(QKV)} are.")
    if not isinstance(own, dict):
        raise CheckpointError(f"{file} has no `model_config`.")
    kwargs = own.get("kwargs") if isinstance(own.get("kwargs"), dict) else {}
    config = {**(kwargs or {}), **{key: value for key, value in own.items() if value is not None and key != "kwargs"}}
    for key in _SIZES:
        if type(config.get(key)) is not int or not 0 < config[key] < 1 << 31:
            raise CheckpointError(f"{file}: model_config.{key} must be a positive number, not {config.get(key)!r:.40}.")
    if config.get("tensor_parallel_shards", 1) != 1:
        raise UnsupportedError(f"{file}: weights for several devices are not read; convert them for one.")
    if config.get("position_embedding_base"):
        config["rope_theta"] = config["position_embedding_base"]
    window, context = config.pop("sliding_window_size", -1), config.get("context_window_size", -1)
    if family == "mistral":
        config["sliding_window"] = window if isinstance(window, int) and window > 0 else None
    if isinstance(context, int) and context > 0:
        config["max_position_embeddings"] = context
    config.setdefault("max_position_embeddings", 32768)
    if not config.get("num_key_value_heads"):
        config["num_key_value_heads"] = config["num_attention_heads"]
    if not config.get("head_dim"):
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    for key in ("num_key_value_heads", "head_dim"):
        if type(config[key]) is not int or not 0 < config[key] < 1 << 31:
            raise CheckpointError(f"{file}: model_config.{key} must be a positive number, not {config[key]!r:.40}.")
    ids = {key: chat[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if chat.get(key) is not None}
    return {**config, **ids, "model_type": family, "hidden_act": config.get("hidden_act", "silu")}


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(value).__name__}.")
    return value


def _list(cache: Path, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    records = value.get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise CheckpointError(f"{cache} is corrupt: it has no list of `records`.")
    return records


def _plain_name(cache: Path, name: Any) -> str:
    """A shard's file name, which must not lead out of the directory."""
    plain = isinstance(name, str) and PurePosixPath(name).name == name == PureWindowsPath(name).name
    if not plain or not name.endswith(".bin"):
        raise CheckpointError(f"{cache} names {name!r:.60}, which is no *.bin file of that directory.")
    return str(name)
