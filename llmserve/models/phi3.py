"""Phi-3, 3.5, 4 and 4-mini (Abdin et al. 2024): Llama with q, k, v and gate, up fused in the checkpoint already;
heads may turn in part, and by longrope."""

from __future__ import annotations

from ..errors import UnsupportedError
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, RopeConfig, equal_layers, head_dimension
from .llama import TINY as LLAMA_TINY


def _rope(keys: ConfigKeys) -> RopeConfig:
    """`yarn` is what early checkpoints call longrope, and a length at the top level counts more than one inside."""
    scaling = keys.table("rope_scaling") or keys.table("rope_parameters")
    if "yarn" in (scaling.get("rope_type"), scaling.get("type")):
        scaling |= {"rope_type": "longrope"}
    rope = RopeConfig.read(
        ConfigKeys({**keys.raw, "rope_scaling": scaling, "rope_parameters": None}, keys.source), head_dimension(keys)
    )
    if rope.kind not in ("default", "longrope"):
        raise UnsupportedError(f"{keys.source}: rope type {rope.kind!r} is none of phi3's: default and longrope are.")
    return rope


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(rms_norm_eps=1e-5, max_position_embeddings=4096, original_max_position_embeddings=4096)
    return DecoderConfig.read(keys, partial_rotary=True, family="phi3", rope=(_rope(keys),), layers=equal_layers(keys))


Model = CausalLM
WEIGHTS = ()
TINY = {
    **LLAMA_TINY,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_attention_heads": 4,
    "sliding_window": 60,
    "original_max_position_embeddings": 512,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "factor": 8.0,
        "short_factor": [1.0 + 0.125 * i for i in range(24)],
        "long_factor": [2.0 + 0.5 * i for i in range(24)],
    },
    "pad_token_id": 0,
}
