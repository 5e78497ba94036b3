"""Checkpoints of random weights in Hugging Face's format: what tests and benchmarks run on.

They have a real byte-level BPE tokenizer with ChatML markers, and every byte follows from the config and the seed.
Weights are scaled so that activations stay near 1 and logits differ; the text that comes out is noise all the same.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .container import SafetensorsWriter, TensorSpec
from .convert import FLOATS
from .read import INDEX, SINGLE

TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

Shapes = Mapping[str, tuple[int, ...]]
_DTYPES = {"float32": FLOATS["f32"], "float16": FLOATS["f16"], "bfloat16": FLOATS["bf16"]}
_BLOCK = 1 << 20


def write_random_checkpoint(
    out_dir: str | Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16",
    tokenizer: Literal["tiny"] | None = "tiny",
    shards: int = 1,
    shapes: Shapes | None = None,
) -> Path:
    """Writes config.json, generation_config.json, weights and tokenizer for an HF `config` into `out_dir`; returns it.

    `shapes` gives tensor names and shapes for families that `tensor_shapes` does not know. With a tokenizer the
    config's special token ids are the tokenizer's. Tensors depend on their name and the seed, not on `shards`.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    config = {**config, "torch_dtype": dtype}
    if tokenizer:
        from .tiny_tokenizer import write_tokenizer

        ids = write_tokenizer(out, config["vocab_size"], config.get("max_position_embeddings", 2048))
        config |= ids
        _write_json(out / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.8})
    _write_json(out / "config.json", config)
    specs = [TensorSpec(name, _DTYPES[dtype], shape) for name, shape in (shapes or tensor_shapes(config)).items()]
    _write_weights(out, specs, seed, shards, damping=(2 * config["num_hidden_layers"]) ** -0.5)
    return out


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a llama, mistral, qwen2 or qwen3 checkpoint with this config."""
    family, h, f = config["model_type"], config["hidden_size"], config["intermediate_size"]
    if family not in ("llama", "mistral", "qwen2", "qwen3"):
        raise ValueError(f"no tensor shapes for model_type {family}")
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or h // heads
    q, kv = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], h)}

    def linear(name: str, n: int, k: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (n, k)
        if bias:
            shapes[f"{name}.bias"] = (n,)

    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (h,)
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            linear(f"{layer}.self_attn.{name}_proj", n, h, bias=family == "qwen2" or attention_bias)
        if family == "qwen3":
            shapes[f"{layer}.self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (head_dim,)
        linear(f"{layer}.self_attn.o_proj", h, q, bias=attention_bias)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (h,)
        linear(f"{layer}.mlp.gate_proj", f, h, bias=mlp_bias)
        linear(f"{layer}.mlp.up_proj", f, h, bias=mlp_bias)
        linear(f"{layer}.mlp.down_proj", h, f, bias=mlp_bias)
    shapes["model.norm.weight"] = (h,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (config["vocab_size"], h)
    return shapes


def _write_weights(out: Path, specs: list[TensorSpec], seed: int, shards: int, damping: float) -> None:
    files = _assign(specs, shards)
    for file, group in groupby(specs, lambda spec: files[spec.name]):
        members = list(group)
        with SafetensorsWriter(out / file, members, {"format": "pt"}) as writer:
            for spec in members:
                for first, rows in _random_rows(spec, seed, damping):
                    writer.write(spec.name, rows, first)
    if shards > 1:
        total = sum(spec.nbytes for spec in specs)
        _write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _assign(specs: list[TensorSpec], shards: int) -> dict[str, str]:
    """Tensor name → file name, cutting the list into runs of about equal bytes."""
    if shards == 1:
        return {spec.name: SINGLE for spec in specs}
    total, done, files = sum(spec.nbytes for spec in specs), 0, {}
    for spec in specs:
        files[spec.name] = f"model-{min(done * shards // total, shards - 1) + 1:05}-of-{shards:05}.safetensors"
        done += spec.nbytes
    return files


def _random_rows(spec: TensorSpec, seed: int, damping: float) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Blocks of rows: norms about 1, biases small, matrices of 1/√K, less where layers add to the residual stream."""
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(spec.name.encode())]))
    rows, width = spec.rows
    mean, deviation = 0.0, width**-0.5
    if len(spec.shape) == 1:
        mean, deviation = (1.0, 0.1) if spec.name.endswith("norm.weight") else (0.0, 0.1)
    elif spec.name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation *= damping
    step = max(1, _BLOCK // width)
    for first in range(0, rows, step):
        block = rng.standard_normal((min(step, rows - first), width), dtype=np.float32)
        yield first, (np.float32(mean) + block * np.float32(deviation)).astype(spec.dtype)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
