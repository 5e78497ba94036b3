"""A llama-family checkpoint as a GGUF file, so that llama.cpp can run the very model that we run.

Every matrix is Q4_0, token embedding and output head included: as many bits as llmserve's q4 has. (llama-quantize
would keep the head in Q6_K, which is larger and slower.) Or every matrix is F16, for llama.cpp to quantize. Norms are
float32. For benchmarks; not a converter for all of GGUF.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from llmserve.errors import UnsupportedError
from llmserve.models.config import ConfigKeys
from llmserve.models.llama import Config
from llmserve.models.rope import inverse_frequencies
from llmserve.quant.group import as_float32
from llmserve.weights.read import Checkpoint

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(checkpoint: Path, file: Path, storage: Type = Type.Q4_0) -> None:
    """Convert; `storage` of matrices is Q4_0 or F16.

    Raises UnsupportedError for another family, CheckpointError for broken weights.
    """
    raw: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if raw["model_type"] != "llama":
        raise UnsupportedError(f"The comparison knows the llama family, not {raw['model_type']!r}.")
    config = Config(ConfigKeys(raw, str(checkpoint / "config.json")))
    (rope,) = config.rope
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(checkpoint.name)
    kinds = {Type.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0, Type.F16: gguf.LlamaFileType.MOSTLY_F16}
    writer.add_file_type(kinds[storage])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope.theta)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, checkpoint, raw)
    if rope.kind == "llama3":  # the divisor of each frequency, as llama.cpp wants it
        plain = rope.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        ((scaled, _),) = inverse_frequencies(config, config.max_position_embeddings)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    elif rope.kind != "default":
        raise UnsupportedError(f"The comparison knows no rope scaling of kind {rope.kind!r}.")
    source = Checkpoint.open(checkpoint)
    for name in source.names():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = as_float32(source.read(name))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = _interleaved(weight, config.num_heads if "q_proj" in name else config.num_kv_heads)
        if weight.ndim == 1:
            writer.add_tensor(renamed(name), weight)
        else:
            writer.add_tensor(renamed(name), gguf.quants.quantize(weight, storage), raw_dtype=storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def renamed(name: str) -> str:
    """llama.cpp's name of a tensor of a checkpoint."""
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from rotating halves (i with i + D/2) to rotating neighbours (2i with 2i + 1)."""
    n, k = weight.shape
    return weight.reshape(heads, 2, n // heads // 2, k).swapaxes(1, 2).reshape(n, k)


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Path, raw: dict[str, Any]) -> None:
    """The vocabulary, which llama.cpp insists on; the benchmark itself speaks token ids."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[unused{i}]" for i in range(raw["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer.get("added_tokens", ()):
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    eos = raw["eos_token_id"]
    if raw.get("bos_token_id") is not None:
        writer.add_bos_token_id(raw["bos_token_id"])
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
