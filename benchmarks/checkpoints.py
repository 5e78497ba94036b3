"""The models that are measured: random weights of a real model's shape, in our format and, for llama.cpp, as GGUF.

Made once and kept in llmserve's cache. Speed and memory depend on the shape alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from llmserve.compile.artifact import checkpoint_fingerprint, obtain
from llmserve.weights.random_checkpoint import TINY_LLAMA, write_random_checkpoint

HERE = Path(__file__).parent
LLAMA_1B: dict[str, Any] = {
    **TINY_LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
# Long enough for the long context that is measured.
TINY: dict[str, Any] = {**TINY_LLAMA, "max_position_embeddings": 8192}
SHAPES = {"llama-1b": LLAMA_1B, "tiny": TINY}


def random_checkpoint(shape: str) -> Path:
    """The checkpoint of one of SHAPES."""
    config = SHAPES[shape]
    causes = {"model": f"random-{shape}", "config": config, "seed": 0}

    def make(directory: Path) -> None:
        write_random_checkpoint(directory, config)

    return obtain("checkpoints", causes, make)


def gguf_file(checkpoint: Path) -> Path:
    """The same weights for llama.cpp, see gguf_q4.py. Needs the package gguf."""
    from gguf_q4 import write

    writer = hashlib.sha256((HERE / "gguf_q4.py").read_bytes()).hexdigest()[:16]
    causes = {"model": checkpoint.name, "checkpoint": checkpoint_fingerprint(checkpoint), "writer": writer}

    def make(directory: Path) -> None:
        write(checkpoint, directory / "model.gguf")

    return obtain("gguf", causes, make) / "model.gguf"


def gguf_weight_bytes(file: Path) -> int:
    """Bytes of all weights: with a tied head, a decode step reads each of them once."""
    import gguf

    return int(sum(tensor.n_bytes for tensor in gguf.GGUFReader(file).tensors))
