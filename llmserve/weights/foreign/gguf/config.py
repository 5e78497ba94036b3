"""A GGUF file's metadata as a Hugging Face config.json, by a row of the table of architectures.

Each key of the architecture's namespace is read, or known to change nothing, or refused by name: a model with half of
its settings answers, and wrongly. Defaults are those of llama.cpp, which leaves out what is usual there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ....errors import CheckpointError, UnsupportedError
from .architectures import ARCHITECTURES, REQUIRED, Architecture, Key
from .file import GGUFFile
from .namespace import LIMIT, Namespace
from .rotary import read_rotary

_MAX_LAYERS = 4096
_BLOCKS = 2  # ggml's version of the block types
# Keys that change nothing, or say again what the tensors say.
_HARMLESS = frozenset(
    (
        *("vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length"),
        *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),  # of the other kind of norm
    )
)
# Keys that say that all is as usual; another value is refused.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0, 1),
    "expert_used_count": (0, 1),
    "attention.causal": (True,),
    "nextn_predict_layers": (0,),
    "rope.dimension_sections": ([0, 0, 0, 0],),
    "tensor_data_layout": ("Meta AI original pth", "jploski"),
}
POOLINGS = {0: None, 1: "mean", 3: "lasttoken"}


def read_config(file: GGUFFile) -> tuple[Architecture, dict[str, Any]]:
    """The row of the table, and the keys of config.json.

    Raises UnsupportedError for another architecture and for settings that are not known, CheckpointError for a file
    that lacks what every model has.
    """
    own, row = _row(file)
    config: dict[str, Any] = {"architectures": [row.architecture], "model_type": row.model_type}
    config |= dict(row.fixed) | _sizes(file, own)
    names = frozenset(file.tensors)
    for name, key in row.keys.items():
        if (value := _value(own, key, config)) is not None:
            config[name] = value
    for name, parts in row.biases.items():
        config[name] = any(f"blk.0.{part}.bias" in names for part in parts)
    config |= _windows(own, row, config["num_hidden_layers"])
    config |= read_rotary(file, own, row, config)
    renamed = {row.renamed.get(name, name): value for name, value in config.items()}
    config = {name: value for name, value in renamed.items() if name}
    config |= {name: derive(config, names) for name, derive in row.derived.items()}
    own.take("pooling_type")
    pooling(file)
    _refuse_others(own, row)
    return row, config


def pooling(file: GGUFFile) -> str | None:
    """The pooling of a text's token vectors: "mean", "lasttoken", or None where the file does not say."""
    key = f"{file.metadata.get('general.architecture')}.pooling_type"
    kind = file.metadata.get(key, 0)
    if kind not in POOLINGS:
        raise UnsupportedError(
            f"{file.path}: {key} is {kind!r:.20}; the mean (1) and the last token's vector (3) are known."
        )
    return POOLINGS[kind]


def _row(file: GGUFFile) -> tuple[Namespace, Architecture]:
    name = file.metadata.get("general.architecture")
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(f"{file.path} holds no model but a part or companion of one ({kind!r:.40}).")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        close = difflib.get_close_matches(str(name), ARCHITECTURES, 1)
        hint = f" (is {close[0]!r} meant?)" if close else ""
        raise UnsupportedError(
            f"{file.path} holds a model of architecture {name!r:.60}{hint}; {', '.join(ARCHITECTURES)} are read."
        )
    version = file.metadata.get("general.quantization_version", _BLOCKS)
    if version != _BLOCKS:
        raise UnsupportedError(
            f"{file.path}: its blocks are of version {version!r:.20}; those of version {_BLOCKS} are read."
        )
    own, row = Namespace(file, name), ARCHITECTURES[name]
    if own.take("expert_count", 0) not in _USUAL["expert_count"]:
        raise UnsupportedError(f"{file.path} holds a mixture of experts, which is not supported for {name}.")
    for sign, variant in row.variants.items():
        if own.has(sign) or sign in file.tensors:
            return own, variant
    return own, row


def _sizes(file: GGUFFile, own: Namespace) -> dict[str, Any]:
    """The keys that all families have."""
    embedding = file.tensors.get("token_embd.weight")
    hidden, layers, heads = own.size("embedding_length"), own.size("block_count"), own.size("attention.head_count")
    if layers > _MAX_LAYERS:
        own.complain("block_count", f"at most {_MAX_LAYERS}")
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": own.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": own.size("attention.head_count_kv", heads),
        "max_position_embeddings": own.size("context_length"),
    }
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix token_embd.weight.")
    head_dim = own.size("attention.key_length", max(hidden // heads, 1))
    for name in ("value_length", "key_length_swa", "value_length_swa"):
        own.expect(f"attention.{name}", head_dim)
    tied = "output.weight" not in file.tensors
    return {"vocab_size": embedding.shape[0], **sizes, "head_dim": head_dim, "tie_word_embeddings": tied}


def _value(own: Namespace, key: Key, config: Mapping[str, Any]) -> Any:
    default = key.default(config) if callable(key.default) else key.default
    if default is not REQUIRED and not own.has(key.name):
        own.take(key.name)
        return default
    if key.kind is bool:
        return own.flag(key.name, False)
    return own.size(key.name) if key.kind is int else own.number(key.name)


def _windows(own: Namespace, row: Architecture, layers: int) -> dict[str, Any]:
    if row.window is None:
        return {}
    window = own.take("attention.sliding_window", row.window.default)
    if window is not None and (type(window) is not int or not 0 <= window < LIMIT):
        own.complain("attention.sliding_window", "a number of tokens")
    if row.window.pattern is None:
        return {"sliding_window": window or None}
    pattern = own.take("attention.sliding_window_pattern", row.window.pattern)
    if type(pattern) is int and 0 <= pattern < LIMIT:
        slides = [pattern == 0 or (i + 1) % pattern != 0 for i in range(layers)]
    elif isinstance(pattern, list) and len(pattern) >= layers and all(p in (0, 1) for p in pattern):
        slides = [bool(p) for p in pattern[:layers]]
    else:
        own.complain("attention.sliding_window_pattern", f"a number, or true or false for each of {layers} layers")
    kinds = ["sliding_attention" if slide and window else "full_attention" for slide in slides]
    return {"sliding_window": window or None, "layer_types": kinds}


def _refuse_others(own: Namespace, row: Architecture) -> None:
    for name, values in _USUAL.items():
        own.expect(name, *values)
    for name, value in row.expected.items():
        own.expect(name, value)
    for name in own.values:
        if name not in own.read and name not in _HARMLESS and name not in row.ignored:
            own.refuse(name, f"is not known for {own.name}, and may change the answers")
