"""Checkpoints for benchmarks: random weights of a real model's shape, in our format and, for llama.cpp, as GGUF.

Made once and kept in llmserve's cache. Speed and memory depend on the shape alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llmserve.artifact import checkpoint_fingerprint, obtain
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint

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
    causes = {"model": f"random-{shape}", "config": config, "seed": 0, "tokens": "spelled out"}

    def make(directory: Path) -> None:
        write_random_checkpoint(directory, config)
        spell_out(directory / "tokenizer.json")

    return obtain("checkpoints", causes, make)


def spell_out(tokenizer: Path) -> None:
    """Gives each token that is no complete text by itself a text of its own, single bytes excepted.

    A random model says such tokens as often as any, and then a server has nothing to stream: what would be measured is
    when a character happens to be complete.
    """
    from tokenizers import decoders

    decode = decoders.ByteLevel().decode
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocab: dict[str, int] = content["model"]["vocab"]
    spelled = {token: token for token in vocab}
    for token, i in vocab.items():
        if len(token) > 1 and "\ufffd" in decode([token]):
            text = f"\u0120{i}"
            while text in vocab:
                text += "_"
            spelled[token] = text
    content["model"]["vocab"] = {spelled[token]: i for token, i in vocab.items()}
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in content["model"]["merges"])
    content["model"]["merges"] = [
        [left, right] for left, right in pairs if all(spelled[t] == t for t in (left, right, left + right))
    ]
    tokenizer.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


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
