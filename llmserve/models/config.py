"""Reading a Hugging Face config.json: what a decoder needs to know, each key checked, nothing guessed.

A key that llmserve does not know is harmless; a known key with a value that llmserve does not implement is refused by
name, because the model would answer wrongly. Pure Python: no tvm, no numpy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, UnsupportedError

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


class Keys:
    """Typed access to a config.json; every complaint names the file and the key."""

    def __init__(self, raw: Mapping[str, Any], source: str = "config.json") -> None:
        self.raw = raw
        self.source = source

    def has(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, low: int = 1) -> int:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self.source} has no '{name}', which this model family needs.")
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{self.source}: '{name}' must be an integer of at least {low}, not {value!r}.")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self.source} has no '{name}', which this model family needs.")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ConfigError(f"{self.source}: '{name}' must be a positive number, not {value!r}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.source}: '{name}' must be true or false, not {value!r}.")
        return value

    def expect(self, name: str, *supported: Any) -> None:
        """Refuse a value that is there and not among `supported`; null counts as absent."""
        value = self.raw.get(name)
        if value is not None and value not in supported:
            choices = ", ".join(map(repr, supported))
            raise UnsupportedError(f"{self.source}: '{name}' is {value!r}; llmserve supports {choices}.")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding parameters; which of `parameters` are used depends on `kind` (see models/rope.py)."""

    theta: float = 10000.0
    kind: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, keys: Keys) -> RopeConfig:
        """From either spelling: `rope_theta` + `rope_scaling`, or `rope_parameters`."""
        nested = keys.raw.get("rope_parameters") or {}
        scaling = keys.raw.get("rope_scaling") or {}
        for name, value in (("rope_parameters", nested), ("rope_scaling", scaling)):
            if not isinstance(value, Mapping) or any(isinstance(v, Mapping) for v in value.values()):
                raise UnsupportedError(f"{keys.source}: '{name}' must be one flat table for all layers, not {value!r}.")
        merged = {**scaling, **nested}
        kind = merged.pop("rope_type", None) or merged.pop("type", None) or "default"
        merged.pop("type", None)
        if kind not in ROPE_TYPES:
            raise UnsupportedError(f"{keys.source}: rope type {kind!r} is not supported; {', '.join(ROPE_TYPES)} are.")
        theta = Keys({"rope_theta": merged.pop("rope_theta", None) or keys.raw.get("rope_theta")}, keys.source)
        if merged.get("partial_rotary_factor", keys.raw.get("partial_rotary_factor") or 1.0) != 1.0:
            raise UnsupportedError(f"{keys.source}: a partial_rotary_factor other than 1.0 is not supported.")
        merged.pop("partial_rotary_factor", None)
        needed = {
            "linear": ("factor",),
            "dynamic": ("factor",),
            "yarn": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        }
        for name in needed.get(kind, ()):
            Keys(merged, f"{keys.source}: rope type {kind!r}").number(name)
        return cls(theta.number("rope_theta", 10000.0), kind, merged)


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer. `window` holds each layer's sliding window, 0 for full attention."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: tuple[int, ...] = ()

    @classmethod
    def read(cls, keys: Keys, **family: Any) -> DecoderConfig:
        """The keys that all families share; `family` sets what a family fixes or reads itself."""
        keys.expect("hidden_act", "silu", "swish")
        if keys.has("quantization_config"):
            raise UnsupportedError(
                f"{keys.source}: 'quantization_config' says that the weights are quantized already; "
                "take the unquantized checkpoint, which llmserve quantizes itself."
            )
        keys.expect("pretraining_tp", 1)
        heads = keys.integer("num_attention_heads")
        kv_heads = keys.integer("num_key_value_heads", heads)
        hidden = keys.integer("hidden_size")
        layers = keys.integer("num_hidden_layers")
        if heads % kv_heads:
            raise ConfigError(
                f"{keys.source}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})."
            )
        if not keys.has("head_dim") and hidden % heads:
            raise ConfigError(
                f"{keys.source}: hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}), "
                "and there is no head_dim."
            )
        head_dim = keys.integer("head_dim", hidden // heads)
        for name, value, unit in (("head_dim", head_dim, 16), ("hidden_size", hidden, 8)):
            if value % unit:
                raise UnsupportedError(f"{keys.source}: {name} must be a multiple of {unit}, not {value}.")
        intermediate = keys.integer("intermediate_size")
        if intermediate % 8:
            raise UnsupportedError(f"{keys.source}: intermediate_size must be a multiple of 8, not {intermediate}.")
        return cls(
            vocab_size=keys.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
            max_position_embeddings=keys.integer("max_position_embeddings", 2048),
            rope=RopeConfig.read(keys),
            **{"tie_word_embeddings": keys.flag("tie_word_embeddings", False), "window": (0,) * layers, **family},
        )


def read_config(directory: Path) -> dict[str, Any]:
    """A checkpoint's config.json as a dict. Raises CheckpointError when it is missing or not JSON."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no config.json: it is not a Hugging Face checkpoint.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(raw).__name__}.")
    return raw


def layer_windows(keys: Keys, window: int, windowed: Any) -> tuple[int, ...]:
    """Each layer's window: `layer_types` where the config has them, else `windowed(layer)` decides."""
    layers = keys.integer("num_hidden_layers")
    kinds = keys.raw.get("layer_types")
    if kinds is None:
        return tuple(window if windowed(i) else 0 for i in range(layers))
    known = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise UnsupportedError(
            f"{keys.source}: 'layer_types' must name full_attention or sliding_attention for each of {layers} layers."
        )
    return tuple(known[k] for k in kinds)
