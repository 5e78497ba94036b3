"""OLMo 3 (Ai2 2025): OLMo 2 with a window on three of four layers, whose rotary table is never stretched."""

from __future__ import annotations

from ..errors import UnsupportedError
from .config import ConfigKeys, DecoderConfig, RopeConfig, head_dimension, sliding_layers
from .llama import QKV_AND_GATE_UP
from .olmo2 import TINY as OLMO2_TINY
from .olmo2 import Model as Olmo2

_THETA = 500000.0


def _rope(keys: ConfigKeys) -> tuple[RopeConfig, RopeConfig]:
    """(of full layers, of sliding layers). `rope_theta` and `rope_scaling` at the top level are of full layers only."""
    nested, dim = keys.table("rope_parameters"), head_dimension(keys)
    if nested and not nested.keys() & {"full_attention", "sliding_attention"}:
        raise UnsupportedError(
            f"{keys.source}: 'rope_parameters' must name full_attention and sliding_attention, not {nested!r}."
        )

    def read(layers: str, outer: ConfigKeys) -> RopeConfig:
        inner = ConfigKeys(nested, keys.source).table(layers) | outer.table("rope_scaling")
        return RopeConfig.read(ConfigKeys({**outer.raw, "rope_parameters": inner}, keys.source), dim, theta=_THETA)

    full = read("full_attention", keys)
    # With a table for each kind of layer, the reference always rounds yarn's range.
    ConfigKeys(full.parameters, keys.source).expect("truncate", True)
    sliding = {name: value for name, value in keys.raw.items() if name not in ("rope_theta", "rope_scaling")}
    return full, read("sliding_attention", ConfigKeys(sliding, keys.source))


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(rms_norm_eps=1e-5).assumed(sliding_window=4096)
    bias = keys.flag("attention_bias", False)
    layers = sliding_layers(keys, lambda layer: (layer + 1) % 4 == 0, ropes=(0, 1))
    return DecoderConfig.read(keys, family="olmo3", rope=_rope(keys), layers=layers, qkv_bias=bias, o_bias=bias)


Model = Olmo2
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **OLMO2_TINY,
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 24,
    "rope_theta": 1000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.3,
    },
}
