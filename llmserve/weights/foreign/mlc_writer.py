"""The writer of MLC's weight directories from a converted model; `foreign/mlc.py`, TVM and mlc_llm read them.

Shards of 32 MiB hold the tensors one after another; tensor-cache.json gives their places, and mlc-chat-config.json the
model's settings. Matrices keep every bit. Norms and biases get the dtype that the quantization's name has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UnsupportedError
from ...quant.group import INT3_X40, INT4, GroupFormat, pack, unpack
from ..load import load_params
from ..source import copy_companions, write_json
from .mlc import CACHES, CONFIG, QKV, QUANTIZATIONS, inputs

SHARD_BYTES = 32 << 20
# (storage, whether activations are float32) → MLC's name.
_NAMES: dict[tuple[GroupFormat | str, bool], str] = {
    (INT4, False): "q4f16_1",
    (INT4, True): "q4f32_1",
    (INT3_X40, False): "q3f16_1",
    ("float16", False): "q0f16",
    ("float32", True): "q0f32",
}
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
# Messages as ChatML, and as they are where a model's chat template is not that.
_CHATML = {"roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"}, "seps": ["<|im_end|>\n"]}
_CHATML |= {"role_content_sep": "\n", "role_empty_sep": "\n", "stop_str": ["<|im_end|>"]}
_CHATML |= {"system_template": "<|im_start|>system\n{system_message}<|im_end|>\n"}
_PLAIN = {"roles": {"user": "", "assistant": ""}, "seps": [""], "role_content_sep": "", "role_empty_sep": ""}


def quantization_name(storage: GroupFormat | str, wide: bool, mixed: bool) -> str:
    """MLC's name for a storage with float32 (`wide`) or float16 scales. Raises UnsupportedError where it has none."""
    if mixed or (storage, wide) not in _NAMES:
        kind = "several formats at once" if mixed else storage.name if isinstance(storage, GroupFormat) else storage
        raise UnsupportedError(
            f"MLC has no weights in {kind}; there are --quant q4f16_1, q4f32_1, q3f16_1, f16 and f32 for it."
        )
    return _NAMES[storage, wide]


def write(weights: Path, config: Mapping[str, Any], quantization: str, out: Path) -> int:
    """Fills the directory `out` from a converted directory; returns the bytes of weights written.

    Raises UnsupportedError for a family that MLC's names are not known of.
    """
    family = config["model_type"]
    if family not in QKV:
        raise UnsupportedError(f"MLC's names for {family!r} are not known; those of {', '.join(QKV)} are.")
    model = _model_config(config)
    shards = _Shards(out)
    parameters = 0
    for name, array in load_params(weights).items():
        shards.add(name.replace(".qkv_proj.", f".{QKV[family]}."), _tensor(name, array, quantization, model))
        parameters += _count(name, array, quantization)
    nbytes = shards.finish(parameters)
    copy_companions(weights, out)
    write_json(out / CONFIG, _chat_config(weights, model, quantization))
    return nbytes


def _tensor(name: str, array: npt.NDArray[Any], quantization: str, model: Mapping[str, Any]) -> npt.NDArray[Any]:
    """A tensor as MLC has it. In the padding of a row's last group stored values are 0 there; here weights are 0."""
    fmt = QUANTIZATIONS[quantization]
    if fmt is None or not name.endswith(".q_weight"):
        return array.astype(np.float32 if "f32" in quantization else np.float16, copy=False)
    k = inputs(name, model)
    if (used := k % fmt.group_size) == 0:
        return array
    last = unpack(array[:, -fmt.words_per_group :], fmt, fmt.group_size)
    last[:, used:] = 0
    return np.concatenate([array[:, : -fmt.words_per_group], pack(last, fmt)], axis=1)


def _count(name: str, array: npt.NDArray[Any], quantization: str) -> int:
    """Parameters that a tensor stands for, those that fill up a last group included."""
    if name.endswith(".q_scale"):
        return 0
    bits = int(quantization[1])
    return array.size * (32 // bits) if name.endswith(".q_weight") else array.size


class _Shards:
    """Tensors put one after another into files of at most SHARD_BYTES; a larger one has a file to itself."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.records: list[dict[str, Any]] = []
        self.total = 0
        self._parts: list[npt.NDArray[np.uint8]] = []
        self._entries: list[dict[str, Any]] = []
        self._size = 0

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        if self._size and self._size + array.nbytes > SHARD_BYTES:
            self._flush()
        entry = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "format": "raw"}
        self._entries.append({**entry, "nbytes": array.nbytes, "byteOffset": self._size})
        self._parts.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        self._size += array.nbytes

    def finish(self, parameters: int) -> int:
        """Writes the cache; returns the bytes of all shards."""
        self._flush()
        bits = 8 * self.total / max(1, parameters)
        metadata = {"ParamSize": sum(len(shard["records"]) for shard in self.records), "ParamBytes": float(self.total)}
        write_json(self.out / CACHES[0], {"metadata": {**metadata, "BitsPerParam": bits}, "records": self.records})
        return self.total

    def _flush(self) -> None:
        if not self._entries:
            return
        file, digest = self.out / f"params_shard_{len(self.records)}.bin", hashlib.md5(usedforsecurity=False)
        with file.open("wb") as opened:
            for part in self._parts:
                opened.write(part.data)
                digest.update(part.data)
        shard = {"dataPath": file.name, "format": "raw-shard", "nbytes": self._size, "records": self._entries}
        self.records.append({**shard, "md5sum": digest.hexdigest()})
        self.total += self._size
        self._parts, self._entries, self._size = [], [], 0


def _model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`model_config`: Hugging Face's keys, and MLC's own beside them."""
    context, heads = config.get("max_position_embeddings", 2048), config["num_attention_heads"]
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10000.0
    default = 128 if config["model_type"] == "qwen3" else config["hidden_size"] // heads
    return {
        **config,
        "position_embedding_base": theta,
        "rope_theta": theta,
        "head_dim": config.get("head_dim") or default,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "context_window_size": -1 if window else context,
        "sliding_window_size": window or -1,
        "prefill_chunk_size": min(context, 2048),
        "attention_sink_size": 4 if window else -1,
        "tensor_parallel_shards": 1,
        "max_batch_size": 128,
    }


def _chat_config(weights: Path, model: Mapping[str, Any], quantization: str) -> dict[str, Any]:
    """mlc-chat-config.json."""
    sizes = ("context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size")
    ids = {key: model[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if model.get(key) is not None}
    return {
        "version": "0.1.0",
        "model_type": model["model_type"],
        "quantization": quantization,
        "model_config": dict(model),
        **{key: model[key] for key in ("vocab_size", *sizes, "tensor_parallel_shards")},
        "tokenizer_files": [name for name in _TOKENIZER_FILES if (weights / name).exists()],
        "conv_template": _conversation(weights, ids.get("eos_token_id")),
        **ids,
    }


def _conversation(weights: Path, eos: Any) -> dict[str, Any]:
    """`conv_template`: the chat format in MLC's own terms, as MLC has no Jinja."""
    files = (weights / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    chatml = any("<|im_start|>" in file.read_text("utf-8", "replace") for file in files if file.exists())
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    templates = {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"}
    common = {"name": "chatml" if chatml else "LM", "role_templates": templates, "stop_token_ids": ends}
    return {"system_template": "{system_message}", **common, **(_CHATML if chatml else _PLAIN)}
