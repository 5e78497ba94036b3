"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer turns neither queries nor keys."""

from __future__ import annotations

from ..errors import ConfigError
from .base import CausalLM
from .config import MAX_LAYERS, ConfigKeys, DecoderConfig, LayerKind, RopeConfig, head_dimension, layer_types
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def _turning(keys: ConfigKeys) -> list[bool]:
    """For each layer whether it has rotary embeddings, which is what 1 in `no_rope_layers` means."""
    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    said = keys.raw.get("no_rope_layers")
    if said is None:
        interval = keys.integer("no_rope_layer_interval", 4)
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if not isinstance(said, list) or len(said) < layers or any(turns not in (0, 1) for turns in said):
        raise ConfigError(f"{keys.source}: 'no_rope_layers' must be a list of 0 or 1 for each of {layers} layers.")
    return [bool(turns) for turns in said[:layers]]


def _layers(keys: ConfigKeys) -> tuple[LayerKind, ...]:
    """Where windows are in use, the layers that do not turn have one, unless `layer_types` says otherwise."""
    turning, slides = _turning(keys), keys.flag("use_sliding_window", False) and keys.has("sliding_window")
    window = keys.integer("sliding_window") if slides else 0
    whole = layer_types(keys, lambda layer: turning[layer])
    return tuple(
        LayerKind(0 if full else window, 0 if turns else None) for full, turns in zip(whole, turning, strict=True)
    )


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(num_key_value_heads=4).filled(tie_word_embeddings=True, max_position_embeddings=32768)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(
        keys,
        family="smollm3",
        rope=(RopeConfig.read(keys, head_dimension(keys), theta=2e6),),
        layers=_layers(keys),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=keys.flag("mlp_bias", False),
    )


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_key_value_heads": 4,
    "attention_bias": True,
    "mlp_bias": True,
    "no_rope_layers": [1, 0],
    "use_sliding_window": True,
    "sliding_window": 24,
    "pretraining_tp": 2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
