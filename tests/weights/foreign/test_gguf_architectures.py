"""Every row of the table of GGUF architectures: a tiny model of `transformers`, written as llama.cpp's converter writes
it with the names of ggml's own package, comes back as `transformers` had it, tensors and settings.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve.errors import CheckpointError
from llmserve.quant.group import INT4
from llmserve.weights.foreign.gguf import ARCHITECTURES, GGUF

from ...skips import package
from .gguf_files import write

gguf = package("gguf", "GGUF files by other readers")
transformers = package("transformers", "GGUF files by other readers")
torch = package("torch", "GGUF files by other readers")
pytestmark = pytest.mark.reference

Type = gguf.GGMLQuantizationType
TINY = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "max_position_embeddings": 256}
HEAD = TINY | {"head_dim": 32}
FALCON = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e6}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
LLAMA3 |= {"original_max_position_embeddings": 64}
LONG = {"type": "longrope", "short_factor": [1.0 + i / 8 for i in range(6)], "long_factor": [2.0 + i for i in range(6)]}


def tables(full: dict[str, Any], local: float) -> dict[str, Any]:
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": local}}


# A row's name in the table, and what tells cases of it apart → model type and config of `transformers`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", HEAD),
    "llama, all biases, Llama 3's scaling": (
        "llama",
        HEAD | {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, yarn": ("llama", TINY | {"rope_parameters": YARN | {"beta_fast": 20.0, "beta_slow": 2.0}}),
    "llama, linear": ("llama", TINY | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "qwen2": ("qwen2", TINY),
    "qwen3": ("qwen3", HEAD),
    "gemma": ("gemma", HEAD),
    "gemma2": ("gemma2", HEAD | {"query_pre_attn_scalar": 32, "sliding_window": 16, "attn_logit_softcapping": 40.0}),
    "gemma3": (
        "gemma3_text",
        HEAD
        | {"query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 7, "final_logit_softcapping": 20.0}
        | {"rope_parameters": tables({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, 1e4)},
    ),
    "gemma3, the largest": (
        "gemma3_text",
        HEAD | {"query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 62},
    ),
    "phi3": ("phi3", TINY | {"sliding_window": 16}),
    "phi3, longrope": (
        "phi3",
        TINY | {"max_position_embeddings": 1024, "original_max_position_embeddings": 256, "rope_scaling": LONG}
        | {"partial_rotary_factor": 0.75},
    ),
    "granite": (
        "granite",
        TINY | {"embedding_multiplier": 12.0, "logits_scaling": 8.0} | {"residual_multiplier": 0.22}
        | {"attention_multiplier": 0.1},
    ),
    "smollm3": ("smollm3", TINY),
    "olmo": ("olmo", TINY | {"clip_qkv": 8.0}),
    "olmo2": ("olmo2", TINY),
    "olmo2, with windows": (
        "olmo3",
        TINY | {"sliding_window": 16, "rope_parameters": tables(YARN | {"rope_theta": 2e5}, 2e5)},
    ),
    "glm4": ("glm4", HEAD | {"partial_rotary_factor": 0.5}),
    "chatglm": ("glm", TINY | {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "command-r": ("cohere", TINY | {"use_qk_norm": True}),
    "cohere2": ("cohere2", TINY | {"sliding_window": 16}),
    "mistral3": ("mistral", HEAD | {"sliding_window": None}),
    "mistral3, with a temperature": (
        "ministral3",
        HEAD | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
    ),
    "exaone": ("llama", TINY),
    "exaone4": ("exaone4", TINY | {"sliding_window": 16}),
    "exaone4, all full": ("exaone4", TINY | {"sliding_window": None, "layer_types": ["full_attention"] * 5}),
    "seed_oss": ("seed_oss", HEAD | {"attention_out_bias": True}),
    "ernie4_5": ("ernie4_5", HEAD),
    "starcoder2": ("starcoder2", TINY),
    "nemotron": ("nemotron", TINY | {"partial_rotary_factor": 0.5}),
    "apertus": ("apertus", TINY | {"rope_parameters": LLAMA3 | {"rope_theta": 1.2e7}}),
    "hunyuan-dense": ("hunyuan_v1_dense", HEAD),
    "arcee": ("arcee", TINY),
    "internlm2": ("llama", TINY),
    "stablelm": ("stablelm", TINY | {"use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "stablelm, 12B": (
        "stablelm",
        TINY | {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
    ),
    "phi2": ("phi", TINY | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "gpt2": ("gpt2", {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96}),
    "gptneox": ("gpt_neox", {k: v for k, v in TINY.items() if k != "num_key_value_heads"} | {"rotary_pct": 0.5}),
    "falcon": ("falcon", FALCON | {"num_kv_heads": 1, "ffn_hidden_size": 96, "max_position_embeddings": 2048}),
    "falcon, 40B": (
        "falcon",
        FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "multi_query": False}
        | {"num_ln_in_parallel_attn": 2},
    ),
}  # fmt: skip

# What the converter writes: metadata key → the config keys that it looks for.
WRITTEN = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "use_parallel_residual": ("use_parallel_residual",),
    "vocab_size": ("vocab_size",),
}
ROTATED = {"llama", "granite", "smollm3", "olmo", "mistral3", "arcee", "internlm2"}
PLUS_ONE = {"gemma", "gemma2", "gemma3", "nemotron"}
# Settings that do not reach the numbers, or are the tokenizer's.
NOT_COMPARED = {"transformers_version", "dtype", "architectures", "use_cache", "initializer_range", "_name_or_path"}
NOT_COMPARED |= {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "eod_token_id",
    "id2label",
    "label2id",
    "head_dim",
    "type",
}
NOT_COMPARED |= {"attention_factor", "chunk_size_feed_forward"}


def metadata(name: str, config: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, keys in WRITTEN.items():
        value = next((config[k] for k in keys if config.get(k) is not None), None)
        if value is not None:
            found[key] = value
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    if full:
        found["rope.freq_base"] = float(full["rope_theta"])
        head_dim = found.get("attention.key_length", found["embedding_length"] // found["attention.head_count"])
        found["rope.dimension_count"] = int(head_dim * full.get("partial_rotary_factor", 1.0))
    if name == "gemma3":
        found["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
    kind = full.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": full["factor"]}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
        found |= {f"rope.scaling.yarn_{k}": full[k] for k in ("beta_fast", "beta_slow") if k in full}
    if kind == "longrope":
        original = config["original_max_position_embeddings"]
        factor = math.sqrt(1 + math.log(config["max_position_embeddings"] / original) / math.log(original))
        found |= {"rope.scaling.attn_factor": factor}
    if name == "phi3":
        found |= {"rope.scaling.original_context_length": config["original_max_position_embeddings"]}
        found.setdefault("attention.sliding_window", 0)
    if "llama_4_scaling_beta" in full:
        found |= {"rope.scaling.yarn_log_multiplier": full["mscale_all_dim"]}
        found |= {"attention.temperature_scale": full["llama_4_scaling_beta"]}
    if name in ("olmo2", "exaone4") and config.get("sliding_window"):
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
    if name == "olmo":
        found["attention.layer_norm_epsilon"] = 1e-5
    if name in ("command-r", "cohere2"):
        found["rope.scaling.type"] = "none"
    return found


def as_written(name: str, key: str, w: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """llama.cpp's form of a tensor of `transformers`."""
    heads = config.get("num_attention_heads", 4)
    kv = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    if name in ROTATED and key.split(".")[-2] in ("q_proj", "k_proj"):
        n = heads if ".q_proj" in key else kv
        return w.reshape(n, 2, len(w) // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    if name in PLUS_ONE and key.endswith("norm.weight"):
        return w + np.float32(1)
    if name == "gpt2" and w.ndim == 2 and key.split(".")[-2] in ("c_attn", "c_proj", "c_fc"):
        return w.T
    if "query_key_value" in key:
        groups, dim = (kv if name == "falcon" else heads), len(w) // (heads + 2 * (kv if name == "falcon" else heads))
        rows = w.reshape(groups, heads // groups + 2, dim, *w.shape[1:])
        return np.concatenate([part.reshape(-1, *w.shape[1:]) for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])
    return w


def tensors_of(
    name: str, state: dict[str, np.ndarray], config: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors of the file, metadata that some become), by the names of ggml's package."""
    code = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == name)
    names = gguf.get_tensor_name_map(code, 64)
    found: dict[str, np.ndarray] = {}
    numbers: dict[str, list[float]] = {}
    for key, w in state.items():
        stem, _, kind = key.rpartition(".")
        if ".act_fn." in key:
            numbers.setdefault(f"xielu.{kind}", []).append(float(w.reshape(-1)[0]))
            continue
        part, _, head = stem.rpartition(".")
        if part.endswith("layernorm.norms"):  # stacked
            own = names.get_name(f"{part.removesuffix('.norms')}.weight", try_suffixes=(".weight",))
            found[own] = w[None] if head == "0" else np.concatenate([found[own], w[None]])
            continue
        found[names.get_name(key, try_suffixes=(".weight", ".bias"))] = as_written(name, key, w, config)
    full = (config.get("rope_parameters") or {}).get("full_attention") or config.get("rope_parameters") or {}
    if full.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = llama3_divisors(full, config)
    for kind in ("long", "short") if "long_factor" in full else ():
        found[f"rope_factors_{kind}.weight"] = np.array(full[f"{kind}_factor"], np.float32)
    return found, numbers


def llama3_divisors(rope: dict[str, Any], config: dict[str, Any]) -> np.ndarray:
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    ratio = rope["original_max_position_embeddings"] / (2 * np.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim))
    smooth = np.clip((ratio - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def model(case: str) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """(row, config, state): random weights under the names of published checkpoints."""
    model_type, keys = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, pad_token_id=0, **json.loads(json.dumps(keys)))
    torch.manual_seed(len(case))
    made = transformers.AutoModelForCausalLM.from_config(config)
    state = {key: torch.randn_like(w).numpy() if w.ndim else w.numpy() for key, w in made.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    if model_type == "gpt_neox":
        state["embed_out.weight"] = state.pop("lm_head.weight")
    return case.split(",")[0], config.to_dict(), state


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in NOT_COMPARED:
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_every_row_has_a_case() -> None:
    assert {case.split(",")[0] for case in CASES} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_an_architecture_is_as_transformers_has_it(case: str, tmp_path: Path) -> None:
    name, config, state = model(case)
    tensors, numbers = tensors_of(name, state, config)
    source = GGUF(write(tmp_path / "x.gguf", name, metadata(name, config), tensors, **numbers))
    assert sorted(source.names()) == sorted(state)
    for key, w in state.items():
        shape = source.info(key).shape
        assert shape == w.shape, key
        rows = source.info(key).rows[0]
        np.testing.assert_allclose(source.read_rows(key, 0, rows).reshape(w.shape), w, rtol=0, atol=1e-6, err_msg=key)
        some = slice(rows // 3, rows // 2)
        expected = w.reshape(rows, -1)[some]
        np.testing.assert_allclose(source.read_rows(key, some.start, some.stop), expected, rtol=0, atol=1e-6)
    ours = flat(transformers.AutoConfig.for_model(**json.loads(json.dumps(source.config))).to_dict())
    theirs = flat(config)
    if theirs["model_type"] == "gpt2":
        ours.pop("n_ctx", None), theirs.pop("n_ctx", None)
    for key, value in theirs.items():
        if key.startswith(("attention_dropout", "hidden_dropout")) or key.endswith(("_pdrop", "_dropout")):
            continue
        near = isinstance(value, float | list) and not isinstance(value[0] if isinstance(value, list) else 0.0, str)
        assert ours.get(key) == (pytest.approx(value, rel=1e-6) if near else value), key
    if "long_factor" in (scaling := source.config.get("rope_scaling", {})):  # what the reference computes by itself
        assert scaling["attention_factor"] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(256)))


# --- the same in other layouts


@pytest.mark.parametrize("case", ["llama, all biases, Llama 3's scaling", "qwen2", "chatglm"])
def test_queries_keys_and_values_in_one_tensor(case: str, tmp_path: Path) -> None:
    """As `convert_hf_to_gguf.py --fuse-qkv` writes them, and ChatGLM's own checkpoints have them."""
    name, config, state = model(case)
    tensors, _ = tensors_of(name, state, config)
    for layer in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"blk.{layer}.attn_{a}.{kind}", None) for a in "qkv"]
            if parts[0] is not None:
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    source = GGUF(write(tmp_path / "x.gguf", name, metadata(name, config), tensors))
    assert sorted(source.names()) == sorted(state)
    for key in [key for key in state if "_proj" in key]:
        w = state[key]
        np.testing.assert_array_equal(source.read_rows(key, 0, len(w)).reshape(w.shape), w)
    assert source.config.get("attention_bias", True) is True
    tensors["blk.0.attn_qkv.weight"] = tensors["blk.0.attn_qkv.weight"][:-1]
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_qkv\.weight has \d+ rows, not"):
        GGUF(write(tmp_path / "y.gguf", name, metadata(name, config), tensors))


@pytest.mark.parametrize("kinds", [("Q4_0", "Q4_0", "Q4_0"), ("Q4_0", "Q4_0", "Q8_0")])
def test_what_the_file_has_apart_is_stacked(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """Phi-3 with q, k and v in tensors of their own: a grid if they are of one type."""
    name, config, state = model("phi3")
    tensors, _ = tensors_of(name, state, config)
    types = {f"attn_{a}": Type[kind] for a, kind in zip("qkv", kinds, strict=True)}
    for layer in range(config["num_hidden_layers"]):
        fused = tensors.pop(f"blk.{layer}.attn_qkv.weight")
        tensors |= {f"blk.{layer}.attn_{a}.weight": w for a, w in zip("qkv", np.split(fused, (64, 96)), strict=True)}
    source = GGUF(write(tmp_path / "x.gguf", name, metadata(name, config), tensors, types))
    key = "model.layers.3.self_attn.qkv_proj.weight"
    packed = source.packed(key)
    parts = [
        gguf.quants.dequantize(gguf.quants.quantize(tensors[f"blk.3.attn_{a}.weight"], kind), kind)
        for a, kind in zip("qkv", types.values(), strict=True)
    ]
    np.testing.assert_array_equal(source.read_rows(key, 50, 120), np.concatenate(parts)[50:120])
    assert packed is not None
    if len(set(kinds)) == 1:
        assert packed.exact and packed.format is INT4 and packed.nbytes == 128 * 2 * 18
        np.testing.assert_array_equal(source.read_grid(key, 50, 120).dequantize(), np.concatenate(parts)[50:120])
    else:
        assert packed.reason == "its parts are Q4_0 and Q8_0"
    del tensors["blk.3.attn_v.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor blk\.3\.attn_v\.weight"):
        GGUF(write(tmp_path / "y.gguf", name, metadata(name, config), tensors))


def test_a_grid_is_taken_over_in_any_order(tmp_path: Path) -> None:
    for case, key in (
        ("llama", "model.layers.1.self_attn.k_proj"),
        ("falcon, 40B", "transformer.h.1.self_attention.query_key_value"),
    ):
        name, config, state = model(case)
        tensors, _ = tensors_of(name, state, config)
        source = GGUF(
            write(
                tmp_path / f"{name}.gguf",
                name,
                metadata(name, config),
                tensors,
                dict.fromkeys(("attn_k", "attn_qkv"), Type.Q8_0),
            )
        )
        rows = source.info(f"{key}.weight").rows[0]
        grid, floats = source.read_grid(f"{key}.weight", 5, rows), source.read_rows(f"{key}.weight", 5, rows)
        np.testing.assert_array_equal(grid.dequantize(), floats)
        assert np.abs(floats - state[f"{key}.weight"][5:]).max() < 0.03
    name, config, state = model("gpt2")
    tensors, _ = tensors_of(name, state, config)
    source = GGUF(write(tmp_path / "gpt2.gguf", name, metadata(name, config), tensors, {"attn_qkv": Type.Q8_0}))
    packed = source.packed("transformer.h.0.attn.c_attn.weight")
    assert packed is not None and packed.reason == "the file has its transpose"
