"""config.json of older and rarer families, as they are published and with as little in it as may be: read as the
reference reads it. And those of their layouts that no TINY has, computed.

The rows have the keys and spellings of released models, with fewer layers and a smaller vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llmserve import LLM
from llmserve.compile.random_checkpoint import tensor_shapes, write_random_checkpoint
from llmserve.errors import ConfigError, UnsupportedError
from llmserve.models import rope
from llmserve.models.base import family, read_family
from llmserve.models.config import ACTIVATIONS

from ..skips import package


def raw(kind: str, hidden: int, inner: int, heads: int, kv: int | None, **keys: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2, "vocab_size": 1024}
    if kv is not None:
        sizes["num_key_value_heads"] = kv
    return {"model_type": kind, **sizes, "num_attention_heads": heads, "pad_token_id": 0, **keys}


def falcon(hidden: int, heads: int, kv: int, **keys: Any) -> dict[str, Any]:
    row = raw("falcon", hidden, 0, heads, None, num_kv_heads=kv, alibi=False, bias=False, layer_norm_epsilon=1e-5)
    del row["intermediate_size"]
    return {**row, "parallel_attn": True, "apply_residual_connection_post_layernorm": False, **keys}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
ALPHA = {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
YARN = {"rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "beta_slow": 1.0}
GPT2 = {"model_type": "gpt2", "n_layer": 2, "vocab_size": 1025, "n_ctx": 1024, "n_positions": 1024}

PUBLISHED = {
    "olmo-1b": raw(
        *("olmo", 2048, 8192, 16, 16),
        hidden_act="silu",
        clip_qkv=None,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    ),
    "olmo-7b-0424": raw(*("olmo", 4096, 11008, 32, 32), clip_qkv=8.0, max_position_embeddings=4096),
    "glm-4-9b-chat": raw(
        *("glm", 4096, 13696, 32, 2),
        head_dim=128,
        attention_bias=True,
        partial_rotary_factor=0.5,
        rope_theta=10000.0,
        rms_norm_eps=1.5625e-7,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    ),
    "command-r-v01": raw(
        *("cohere", 8192, 22528, 64, 64),
        hidden_act="silu",
        layer_norm_eps=1e-5,
        logit_scale=0.0625,
        rope_theta=8000000.0,
        max_position_embeddings=8192,
        attention_bias=False,
    ),
    "command-r-plus": raw(
        *("cohere", 12288, 33792, 96, 8),
        use_qk_norm=True,
        logit_scale=0.8333333333333334,
        rope_theta=75000000.0,
    ),
    "starcoder2-3b": raw(
        *("starcoder2", 3072, 12288, 24, 2),
        norm_type="layer_norm",
        norm_epsilon=1e-5,
        mlp_type="default",
        use_bias=True,
        hidden_act="gelu_pytorch_tanh",
        sliding_window=4096,
        rope_theta=999999.4420358813,
        max_position_embeddings=16384,
        residual_dropout=0.1,
        embedding_dropout=0.1,
    ),
    "minitron-4b": raw(
        *("nemotron", 3072, 9216, 24, 8),
        head_dim=128,
        hidden_act="relu2",
        norm_eps=1e-5,
        partial_rotary_factor=0.5,
        attention_bias=False,
        mlp_bias=False,
        rope_theta=10000.0,
    ),
    "apertus-8b": raw(
        *("apertus", 4096, 21504, 32, 8),
        hidden_act="xielu",
        qk_norm=True,
        post_norm=False,
        mlp_bias=False,
        attention_bias=False,
        rope_scaling=LLAMA3,
        rope_theta=12000000,
        rms_norm_eps=1e-5,
        max_position_embeddings=65536,
    ),
    "hunyuan-7b": raw(
        *("hunyuan_v1_dense", 4096, 14336, 32, 8),
        head_dim=128,
        attention_head_dim=128,
        use_qk_norm=True,
        use_cla=False,
        mlp_bias=False,
        rope_scaling={**ALPHA, "type": "dynamic"},
        rope_theta=10000.0,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        use_rotary_pos_emb=True,
    ),
    "internlm3-8b": raw(
        *("internlm3", 4096, 10240, 32, 2),
        qkv_bias=False,
        bias=False,
        head_dim=128,
        rope_theta=50000000,
        rms_norm_eps=1e-5,
        rope_scaling={"factor": 6.0, "rope_type": "dynamic"},
        max_position_embeddings=32768,
    ),
    "afm-4.5b": raw(
        *("arcee", 2560, 18432, 20, 4),
        head_dim=128,
        hidden_act="relu2",
        rope_scaling=YARN,
        rope_theta=10000.0,
        max_position_embeddings=65536,
        mlp_bias=False,
        attention_bias=False,
        rms_norm_eps=1e-5,
    ),
    "stablelm-3b-4e1t": raw(
        *("stablelm", 2560, 6912, 32, 32),
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.25,
        use_qkv_bias=False,
        rope_theta=10000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    ),
    "stablelm-2-12b": raw(
        *("stablelm", 5120, 13824, 32, 8),
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.25,
        use_qkv_bias=False,
        qk_layernorm=True,
        use_parallel_residual=True,
    ),
    "helium-1-2b": raw(
        *("helium", 2560, 7040, 20, 20),
        head_dim=128,
        rms_norm_eps=1e-8,
        rope_theta=100000.0,
        max_position_embeddings=4096,
    ),
    "phi-2": raw(
        *("phi", 2560, 10240, 32, 32),
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.4,
        qk_layernorm=False,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings=False,
    ),
    "gpt2": {
        **GPT2,
        "n_embd": 768,
        "n_head": 12,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "summary_type": "cls_index",
        "task_specific_params": {},
        "resid_pdrop": 0.1,
    },
    "cerebras-gpt-111m": {
        **GPT2,
        "n_embd": 768,
        "n_head": 12,
        "n_inner": 3072,
        "n_positions": 2048,
        "activation_function": "gelu",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    },
    "pythia-2.8b": raw(
        *("gpt_neox", 2560, 10240, 32, None),
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        rotary_pct=0.25,
        rotary_emb_base=10000,
        max_position_embeddings=2048,
        use_parallel_residual=True,
        tie_word_embeddings=False,
    ),
    "gpt-neox-japanese-like": raw(
        *("gpt_neox", 2560, 10240, 32, None),
        rotary_pct=1.0,
        rotary_emb_base=5000,
        use_parallel_residual=False,
        is_decoder=False,
        rope_scaling={"type": "linear", "factor": 2.0},
    ),
    "falcon-7b": falcon(4544, 71, 71, multi_query=True, new_decoder_architecture=False),
    "falcon-40b": falcon(8192, 128, 8, multi_query=True, new_decoder_architecture=True),
    "falcon2-11b": falcon(
        *(4096, 32, 8),
        new_decoder_architecture=True,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=16384,
        activation="gelu",
        rope_theta=500042,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),
}
# Nothing but sizes: all else is the class's default.
BARE: dict[str, dict[str, Any]] = {
    f"bare {kind}": raw(kind, 2560, 512, 20, None) for kind in sorted({row["model_type"] for row in PUBLISHED.values()})
}
BARE["bare gpt2"] = {**GPT2, "n_embd": 512, "n_head": 8}
BARE["bare nemotron"]["num_key_value_heads"] = 4  # the same
BARE["bare stablelm"]["num_attention_heads"] = 32
BARE["bare hunyuan_v1_dense"]["head_dim"] = 128  # without it, the reference has none
del BARE["bare falcon"]["intermediate_size"]


@pytest.mark.reference
@pytest.mark.parametrize("name", [*PUBLISHED, *BARE])
def test_configs_are_read_as_the_reference_reads_them(name):
    """Every tensor's name and shape, the rotary table, the scalars."""
    torch = package("torch", "torch as a reference")
    transformers = package("transformers", "transformers as a reference")
    row = {**PUBLISHED, **BARE}[name]
    _, ours = read_family(row)
    theirs = transformers.AutoConfig.for_model(**row)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    tied = {"lm_head.weight"} if theirs.tie_word_embeddings else set()
    shapes = {n: tuple(p.shape) for n, p in model.state_dict().items() if n not in tied}
    assert tensor_shapes(row) == shapes
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.logit_scale == getattr(theirs, "logit_scale", 1.0)
    activation = [getattr(theirs, key, None) for key in ("hidden_act", "activation", "activation_function")]
    assert ours.activation == ACTIVATIONS[next(filter(None, activation))]
    if "parallel" in ours.extra:
        assert ours.extra["parallel"] == theirs.use_parallel_residual
    inner = getattr(model, model.base_model_prefix)
    norms = [module for module_name, module in inner.named_children() if "norm" in module_name or module_name == "ln_f"]
    assert ours.norm_eps == next(
        (getattr(norms[-1], key) for key in ("eps", "variance_epsilon") if hasattr(norms[-1], key)), 1e-5
    )
    attention = next(
        module
        for module_name, module in (inner.layers if hasattr(inner, "layers") else inner.h)[0].named_children()
        if module_name.endswith(("attn", "attention"))
    )
    scale = next(getattr(attention, key) for key in ("scaling", "inv_norm_factor") if hasattr(attention, key))
    assert math.isclose(ours.attention_scale or ours.head_dim**-0.5, scale)
    window = getattr(theirs, "sliding_window", None) or 0
    assert {kind.window for kind in ours.layers} == {window}
    if hasattr(inner, "rotary_emb"):
        table = type(inner.rotary_emb)(theirs)
        [(own, factor)] = rope.inverse_frequencies(ours, 1024)
        expected = table.inv_freq.numpy()
        np.testing.assert_allclose(own[: len(expected)], expected, rtol=1e-5)
        assert not own[len(expected) :].any() and math.isclose(factor, table.attention_scaling, rel_tol=1e-6)
    else:
        assert not ours.rope


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        ("falcon-7b", {"alibi": True}, "alibi"),
        ("falcon-40b", {"parallel_attn": False}, "parallel_attn"),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("internlm3-8b", {"qkv_bias": True}, "qkv_bias.*bias.*both"),
        ("helium-1-2b", {"head_dim": 64}, "head_dim must be hidden_size"),
        ("apertus-8b", {"hidden_act": "silu"}, "hidden_act"),
        ("apertus-8b", {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor"),
        ("hunyuan-7b", {"use_cla": True}, "use_cla"),
        ("hunyuan-7b", {"rope_scaling": {**ALPHA, "type": "dynamic", "alpha": "wide"}}, "alpha.*positive"),
        ("phi-2", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("olmo-1b", {"clip_qkv": -1.0}, "clip_qkv.*positive"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(name, change, complaint):
    with pytest.raises((ConfigError, UnsupportedError), match=complaint):
        read_family({**PUBLISHED[name], **change})


LAYOUTS = {
    "falcon, one key for all queries": (
        *("falcon", {"new_decoder_architecture": False, "hidden_size": 224, "num_attention_heads": 7, "bias": True}),
        lambda name: name,
    ),
    "falcon, a key for each query, MLP after attention": (
        *(
            "falcon",
            {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "num_kv_heads": 8},
        ),
        lambda name: name,
    ),
    "gpt_neox, MLP after attention, the released name of its head": (
        *("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
        lambda name: name.replace("lm_head", "embed_out"),
    ),
    "gpt2, the released names, an odd vocabulary": (
        *("gpt2", {"vocab_size": 515, "n_inner": 352}),
        lambda name: name.removeprefix("transformer."),
    ),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", LAYOUTS)
def test_other_layouts_equal_transformers(name, tmp_path):
    """What test_families.py does for TINY, to the same bound; the buffers that old checkpoints hold are left unread."""
    torch = package("torch", "torch as a reference")
    transformers = package("transformers", "transformers as a reference")
    from safetensors.numpy import load_file, save_file

    kind, change, renamed = LAYOUTS[name]
    config = {**family(kind).tiny, **change, ("n_layer" if kind == "gpt2" else "num_hidden_layers"): 1}
    write_random_checkpoint(tmp_path, config, dtype="float32")
    tensors = {renamed(n): t for n, t in load_file(tmp_path / "model.safetensors").items()}
    mask = {"gpt2": "h.0.attn.bias", "gpt_neox": "gpt_neox.layers.0.attention.bias"}.get(kind)
    if mask:
        tensors[mask] = np.tril(np.ones((1, 1, 64, 64), bool))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = [int(i) for i in np.random.default_rng(0).integers(0, config["vocab_size"], 60)]
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    logits = LLM(tmp_path, quant="f32", kv_cache_memory="16MiB", max_num_seqs=16).logits(ids)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
