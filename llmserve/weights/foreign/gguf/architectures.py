"""The table of GGUF architectures: their names in Hugging Face's library, and the changes that llama.cpp made.

A row is data. Names of tensors are those of gguf-py and of `transformers`; keys, defaults and row orders follow
llama.cpp's converter and loaders. config.py and views.py read the rows, and know no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Config = Mapping[str, Any]
REQUIRED: Any = object()


@dataclass(frozen=True)
class Key:
    """A metadata key behind a key of config.json. `default` is llama.cpp's: a value, None to leave the key out,
    REQUIRED, or a function of the config so far. An int is 1 or more, a float is finite."""

    name: str
    kind: type = float
    default: Any = REQUIRED


@dataclass(frozen=True)
class Window:
    """Sliding attention. `pattern`: every so many layers are full where the file says no other; None: all layers slide.
    `default`: the window where the file has none; None for full attention."""

    pattern: int | None = None
    default: int | None = None


@dataclass(frozen=True)
class Architecture:
    """A row.

    Attributes:
        model_type, architecture: Hugging Face's names.
        layer, top: part of the file → part of the checkpoint, below `prefix` and for the whole model.
        keys: config key → metadata key, beside those that all have.
        fixed: config values that the architecture implies.
        derived: config key → its value, by the config so far and the names of the file's tensors.
        expected: metadata key → the only value that Hugging Face's model has; another is refused.
        ignored: metadata keys that say nothing here.
        biases: config key → the parts of which one tells by its bias (true or false).
        renamed: this family's names for the keys that all have.
        rotary: "one" table, "two" (of full and sliding layers), "nested" (all in rope_parameters), or None.
        partial: the config key for the part of a head that turns, None if all of it must.
        local: the base of the sliding layers' table where the file has none; None: that of the full layers.
        window: sliding attention, None if the architecture has none.
        rotated: rows of q and k lie as neighbours that turn together, and are put back.
        shift: what the file's norms have been added.
        grouped: rows of q, k and v that the file has apart lie by groups of heads in the checkpoint.
        transposed: parts that the checkpoint has as [in, out].
        per_head: parts of one row a head, of which the checkpoint has a tensor each.
        constants: tensors that the file has as metadata: part → key of a number a layer, and shape.
        variants: the row to take instead, if the file has this metadata key or tensor.
    """

    model_type: str
    architecture: str
    layer: Mapping[str, str]
    top: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model.layers"
    keys: Mapping[str, Key] = field(default_factory=dict)
    fixed: Config = field(default_factory=dict)
    derived: Mapping[str, Callable[[Config, frozenset[str]], Any]] = field(default_factory=dict)
    expected: Config = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    rotary: str | None = "one"
    partial: str | None = None
    local: float | None = None
    window: Window | None = None
    rotated: bool = False
    shift: float = 0.0
    grouped: bool = False
    transposed: frozenset[str] = frozenset()
    per_head: frozenset[str] = frozenset()
    constants: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    variants: Mapping[str, Architecture] = field(default_factory=dict)


# --- names of tensors

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {f"attn_{a}": f"self_attn.{a}_proj" for a in "qkv"} | {"attn_output": "self_attn.o_proj"}
_QK_NORM = {f"attn_{a}_norm": f"self_attn.{a}_norm" for a in "qk"}
_UP_DOWN = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_MLP = {"ffn_gate": "mlp.gate_proj"} | _UP_DOWN
_BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_LLAMA = _BEFORE | _ATTENTION | _MLP
_FUSED_MLP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
_SANDWICH = _LLAMA | _AFTER | {"ffn_norm": "pre_feedforward_layernorm"}

# --- keys, and what is told by tensors

_RMS = {"rms_norm_eps": Key("attention.layer_norm_rms_epsilon")}


def _layer_norm(key: str) -> dict[str, Key]:
    return {key: Key("attention.layer_norm_epsilon")}


_QKV_BIAS = ("attn_q", "attn_qkv")
_BIASES = {"attention_bias": _QKV_BIAS}
_ALL_BIASES = _BIASES | {"mlp_bias": ("ffn_up",)}
_SILU = {"hidden_act": "silu"}
_RELU2 = {"hidden_act": "relu2"}
_GELU = {"hidden_act": "gelu_pytorch_tanh"}


def _gemma_scalar(layers: int) -> Callable[[Config, frozenset[str]], int]:
    """Gemma's largest model, told by its number of layers, scales scores by hidden_size / heads, others by a head."""

    def scalar(config: Config, _: frozenset[str]) -> int:
        largest = config["num_hidden_layers"] == layers
        return int(config["hidden_size"] // config["num_attention_heads"] if largest else config["head_dim"])

    return scalar


def _llama(model_type: str, architecture: str, **changes: Any) -> Architecture:
    """Llama's shape: RMS norms before, SiLU, one rotary table."""
    row = Architecture(model_type, architecture, _LLAMA, _TOP, keys=_RMS, fixed=_SILU, biases=_BIASES)
    return replace(row, **changes)


_GEMMA = Architecture(*("gemma", "GemmaForCausalLM", _LLAMA, _TOP), keys=_RMS, fixed=_GELU, biases=_BIASES, shift=1.0)
_GEMMA2 = replace(
    _GEMMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    layer=_SANDWICH,
    fixed={"hidden_activation": "gelu_pytorch_tanh"},
    keys=_RMS
    | {
        "attn_logit_softcapping": Key("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": Key("final_logit_softcapping", default=30.0),
    },
    derived={"query_pre_attn_scalar": _gemma_scalar(46)},
    window=Window(2, 4096),
)
_GEMMA3 = replace(
    _GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    layer=_SANDWICH | _QK_NORM,
    keys=_RMS | {"final_logit_softcapping": Key("final_logit_softcapping", default=None)},
    derived={"query_pre_attn_scalar": _gemma_scalar(62)},
    window=Window(6),
    rotary="two",
    local=10000.0,
)
_OLMO2 = _llama("olmo2", "Olmo2ForCausalLM", layer=_ATTENTION | _MLP | _AFTER | _QK_NORM)
_OLMO3 = replace(_OLMO2, model_type="olmo3", architecture="Olmo3ForCausalLM", window=Window(4), rotary="two")
_MISTRAL = _llama("mistral", "MistralForCausalLM", rotated=True, biases={}, fixed=_SILU | {"sliding_window": None})
_MINISTRAL3 = replace(_MISTRAL, model_type="ministral3", architecture="Ministral3ForCausalLM", rotary="nested")
_GLM = _llama(
    *("glm", "GlmForCausalLM"),
    layer=_BEFORE | _ATTENTION | _FUSED_MLP,
    partial="partial_rotary_factor",
)
_COHERE = _llama(
    *("cohere", "CohereForCausalLM"),
    layer={"attn_norm": "input_layernorm"} | _ATTENTION | _MLP | _QK_NORM,
    keys=_layer_norm("layer_norm_eps") | {"logit_scale": Key("logit_scale")},
    derived={"use_qk_norm": lambda config, names: "blk.0.attn_q_norm.weight" in names},
)
_FALCON = Architecture(
    *("falcon", "FalconForCausalLM"),
    layer={
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attention.query_key_value",
        "attn_output": "self_attention.dense",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    },
    top={"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"},
    prefix="transformer.h",
    keys=_layer_norm("layer_norm_epsilon"),
    fixed={"activation": "gelu", "alibi": False, "parallel_attn": True},
    derived={
        "multi_query": lambda config, names: config["num_kv_heads"] == 1,
        "new_decoder_architecture": lambda config, names: config["num_kv_heads"] != 1,
        "num_ln_in_parallel_attn": lambda config, names: (
            None if config["num_kv_heads"] == 1 else 2 if "blk.0.attn_norm_2.weight" in names else 1
        ),
    },
    biases={"bias": ("attn_qkv",)},
    renamed={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size", "head_dim": ""},
    grouped=True,
)

# general.architecture → row
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _llama("llama", "LlamaForCausalLM", rotated=True, biases=_ALL_BIASES),
    "qwen2": _llama("qwen2", "Qwen2ForCausalLM", biases={}, fixed=_SILU | {"use_sliding_window": False}),
    "qwen3": _llama("qwen3", "Qwen3ForCausalLM", layer=_LLAMA | _QK_NORM, fixed=_SILU | {"use_sliding_window": False}),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "phi3": _llama(
        *("phi3", "Phi3ForCausalLM"),
        layer=_BEFORE | _FUSED_MLP | {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"},
        keys=_RMS | {"original_max_position_embeddings": Key("rope.scaling.original_context_length", int, None)},
        biases={},
        partial="partial_rotary_factor",
        window=Window(),
    ),
    "granite": _llama(
        *("granite", "GraniteForCausalLM"),
        keys=_RMS
        | {
            "logits_scaling": Key("logit_scale"),
            "residual_multiplier": Key("residual_scale", default=1.0),
            "embedding_multiplier": Key("embedding_scale", default=1.0),
            "attention_multiplier": Key("attention.scale", default=lambda config: config["head_dim"] ** -0.5),
        },
        expected={"rope.scaling.finetuned": True},  # false: without positions
        biases=_ALL_BIASES,
        rotated=True,
    ),
    "smollm3": _llama(
        *("smollm3", "SmolLM3ForCausalLM"),
        fixed=_SILU | {"no_rope_layer_interval": 4, "use_sliding_window": False},
        derived={
            "no_rope_layers": lambda config, names: [int((i + 1) % 4 != 0) for i in range(config["num_hidden_layers"])]
        },
        biases=_ALL_BIASES,
        rotated=True,
    ),
    "olmo": _llama(
        *("olmo", "OlmoForCausalLM"),
        layer=_ATTENTION | _MLP,
        keys={"clip_qkv": Key("attention.clamp_kqv", default=None)},
        expected={"attention.layer_norm_epsilon": 1e-5},
        rotated=True,
    ),
    "olmo2": replace(_OLMO2, variants={"attention.sliding_window": _OLMO3}),
    "glm4": replace(
        _GLM,
        model_type="glm4",
        architecture="Glm4ForCausalLM",
        layer=dict(_GLM.layer)
        | {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"},
    ),
    "chatglm": _GLM,
    "command-r": _COHERE,
    "cohere2": replace(_COHERE, model_type="cohere2", architecture="Cohere2ForCausalLM", derived={}, window=Window(4)),
    "mistral3": replace(_MISTRAL, variants={"attention.temperature_scale": _MINISTRAL3}),
    "exaone": _llama("llama", "LlamaForCausalLM"),
    "exaone4": _llama(
        "exaone4", "Exaone4ForCausalLM", layer=_ATTENTION | _MLP | _AFTER | _QK_NORM, biases={}, window=Window(4)
    ),
    "seed_oss": _llama(
        *("seed_oss", "SeedOssForCausalLM"),
        layer={"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"} | _ATTENTION | _MLP,
        biases=_ALL_BIASES | {"attention_out_bias": ("attn_output",)},
    ),
    "ernie4_5": _llama("ernie4_5", "Ernie4_5ForCausalLM", biases={"use_bias": _QKV_BIAS}),
    "starcoder2": _llama(
        *("starcoder2", "Starcoder2ForCausalLM"),
        layer=_BEFORE | _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        keys=_layer_norm("norm_epsilon"),
        fixed=_GELU | {"sliding_window": None},
        biases={"use_bias": _QKV_BIAS},
    ),
    "nemotron": _llama(
        *("nemotron", "NemotronForCausalLM"),
        layer=_BEFORE | _ATTENTION | _UP_DOWN,
        keys=_layer_norm("norm_eps"),
        fixed=_RELU2,
        biases=_ALL_BIASES,
        partial="partial_rotary_factor",
        shift=1.0,
    ),
    "apertus": _llama(
        *("apertus", "ApertusForCausalLM"),
        layer={"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}
        | (_ATTENTION | _QK_NORM | _UP_DOWN),
        fixed={"hidden_act": "xielu"},
        constants={
            "mlp.act_fn.alpha_p": ("xielu.alpha_p", (1,)),
            "mlp.act_fn.alpha_n": ("xielu.alpha_n", (1,)),
            "mlp.act_fn.beta": ("xielu.beta", ()),
            "mlp.act_fn.eps": ("xielu.eps", ()),
        },
    ),
    "hunyuan-dense": _llama(
        *("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
        layer=_LLAMA | {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    ),
    "arcee": _llama(
        *("arcee", "ArceeForCausalLM"),
        layer=_BEFORE | _ATTENTION | _UP_DOWN,
        fixed=_RELU2,
        biases=_ALL_BIASES,
        rotated=True,
    ),
    "internlm2": _llama("llama", "LlamaForCausalLM", rotated=True),
    "stablelm": _llama(
        *("stablelm", "StableLmForCausalLM"),
        layer=_LLAMA | {f"attn_{a}_norm": f"self_attn.{a}_layernorm.norms" for a in "qk"},
        keys=_layer_norm("layer_norm_eps"),
        derived={
            "use_parallel_residual": lambda config, names: "blk.0.ffn_norm.weight" not in names,
            "qk_layernorm": lambda config, names: "blk.0.attn_q_norm.weight" in names,
        },
        ignored=frozenset(("use_parallel_residual",)),  # the norms tell it better
        biases={"use_qkv_bias": _QKV_BIAS},
        partial="partial_rotary_factor",
        per_head=frozenset(("attn_q_norm", "attn_k_norm")),
    ),
    "phi2": _llama(
        *("phi", "PhiForCausalLM"),
        layer={"attn_norm": "input_layernorm", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
        | (_ATTENTION | {"attn_output": "self_attn.dense"}),
        top=_TOP | {"output_norm": "model.final_layernorm"},
        keys=_layer_norm("layer_norm_eps"),
        fixed={"hidden_act": "gelu_new", "qk_layernorm": False},
        biases={},
        partial="partial_rotary_factor",
    ),
    "gpt2": Architecture(
        *("gpt2", "GPT2LMHeadModel"),
        layer={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        prefix="transformer.h",
        keys=_layer_norm("layer_norm_epsilon"),
        fixed={"activation_function": "gelu_new"},
        renamed={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "num_key_value_heads": "",
            "head_dim": "",
        },
        rotary=None,
        transposed=frozenset(("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    ),
    "gptneox": Architecture(
        *("gpt_neox", "GPTNeoXForCausalLM"),
        layer=_BEFORE
        | {
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        top={"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        prefix="gpt_neox.layers",
        keys=_layer_norm("layer_norm_eps") | {"use_parallel_residual": Key("use_parallel_residual", bool, True)},
        fixed={"hidden_act": "gelu"},
        biases={"attention_bias": ("attn_qkv",)},
        renamed={"num_key_value_heads": "", "head_dim": "", "rope_theta": "rotary_emb_base"},
        partial="rotary_pct",
        grouped=True,
    ),
    "falcon": replace(
        _FALCON,
        variants={
            "blk.0.attn_norm_2.weight": replace(
                _FALCON, layer=dict(_FALCON.layer) | {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
            )
        },
    ),
}
