"""Random checkpoints in Hugging Face's format, for tests and benchmarks.

They have a real byte-level BPE tokenizer with ChatML markers, and every byte follows from the config and the seed.
Weights are scaled so that activations stay near 1 and logits differ; the text that comes out is noise all the same.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..kernels.base import using
from ..models.base import CausalLM, Family, read_family
from ..models.layers import PageFormat
from ..platforms import PLATFORMS
from ..weights.container import SafetensorsWriter, TensorSpec
from ..weights.convert import FLOATS
from ..weights.mapping import source_names
from ..weights.read import INDEX, SINGLE
from .host import kernel_set

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

    `shapes` gives tensor names and shapes in place of the family's. With a tokenizer the config's special token ids are
    the tokenizer's. Tensors depend on their name and the seed, not on `shards`.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    config = {**config, "torch_dtype": dtype}
    if tokenizer:
        from ..weights.tiny_tokenizer import write_tokenizer

        ids = write_tokenizer(out, config["vocab_size"], config.get("max_position_embeddings", 2048))
        config |= ids
        _write_json(out / "generation_config.json", {**ids, "do_sample": True, "temperature": 0.8})
    _write_json(out / "config.json", config)
    distributions = (
        {name: _Distribution(shape) for name, shape in shapes.items()} if shapes else tensor_distributions(config)
    )
    specs = [TensorSpec(name, FLOATS[dtype], distribution.shape) for name, distribution in distributions.items()]
    _write_weights(out, specs, distributions, seed, shards)
    return out


@dataclass(frozen=True)
class _Distribution:
    """A tensor's shape, and the normal distribution that its numbers are drawn from; a deviation of 0 is the
    default."""

    shape: tuple[int, ...]
    mean: float = 0.0
    deviation: float = 0.0


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors with this config, as the family's own modules say."""
    return {name: distribution.shape for name, distribution in tensor_distributions(config).items()}


def tensor_distributions(config: Mapping[str, Any]) -> dict[str, _Distribution]:
    """Names, shapes and distributions: norms about 1, biases small, matrices 1/√in, less where layers add to the
    residual sum, so that activations stay near 1."""
    family, model = _unbound_model(config)
    damping = (2 * model.config.num_layers) ** -0.5
    distributions: dict[str, _Distribution] = {}
    for name, matrix in model.matrices():
        mapped = source_names(f"{name}.weight", family.weights)
        adds = name.endswith(("o_proj", "down_proj"))
        whole = len(mapped.sources) != len(matrix.parts)  # stored in one tensor
        for source, rows in zip(mapped.sources, (matrix.out_features,) if whole else matrix.parts, strict=True):
            shape = (matrix.in_features, rows) if mapped.transposed else (rows, matrix.in_features)
            scale = damping if adds else 1 / model.config.embedding_scale if name == "model.embed_tokens" else 1.0
            distributions[source] = _Distribution(shape, 0.0, matrix.in_features**-0.5 * scale)
            if matrix.has_bias:
                distributions[source.removesuffix("weight") + "bias"] = _Distribution((rows,), 0.0, 0.1)
    for name, param in model.floats():
        mapped = source_names(name, family.weights, param.stacked)
        vector = name.endswith("norm.weight")
        own = param.shape if param.stacked == 1 else (param.shape[0] // param.stacked, *param.shape[1:])
        for source in mapped.sources:
            distributions[source] = _Distribution(own, (1.0 if vector else 0.0) - mapped.added, 0.1)
    return distributions


def _unbound_model(config: Mapping[str, Any]) -> tuple[Family, CausalLM]:
    family, read = read_family(config)
    with using(kernel_set(PLATFORMS["cpu"], None, "float32")[0]):
        return family, family.model(read, PageFormat())


def _write_weights(
    out: Path, specs: list[TensorSpec], distributions: Mapping[str, _Distribution], seed: int, shards: int
) -> None:
    files = _assign(specs, shards)
    for file, group in groupby(specs, lambda spec: files[spec.name]):
        members = list(group)
        with SafetensorsWriter(out / file, members, {"format": "pt"}) as writer:
            for spec in members:
                for first, rows in _random_rows(spec, distributions[spec.name], seed):
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


def _random_rows(spec: TensorSpec, distribution: _Distribution, seed: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Blocks of rows."""
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(spec.name.encode())]))
    rows, width = spec.rows
    mean, deviation = distribution.mean, distribution.deviation or width**-0.5
    step = max(1, _BLOCK // width)
    for first in range(0, rows, step):
        block = rng.standard_normal((min(step, rows - first), width), dtype=np.float32)
        yield first, (np.float32(mean) + block * np.float32(deviation)).astype(spec.dtype)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
