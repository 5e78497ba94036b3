"""One GGUF file as a model: its metadata becomes config.json and tokenizer, its tensors get Hugging Face's names.

Architectures llama (Mistral's 7B included), qwen2 and qwen3. llama.cpp keeps the rows of llama's queries and keys in an
order in which neighbours rotate together; here they are put back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import CheckpointError, UnsupportedError
from ....quant.takeover import Grid
from ...container import TensorInfo
from ...source import Packed, Source, write_json
from .file import GGUFFile, GGUFTensor
from .tokenizer import special_ids, tokenizer_files

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_FREQUENCIES = "rope_freqs.weight"


class GGUF(Source):
    kind = "gguf"

    def __init__(self, path: Path) -> None:
        """Reads metadata and table. Raises CheckpointError for a broken file, UnsupportedError for another model."""
        self.path = self.config_file = path
        self.file = GGUFFile.open(path)
        self._tensors = {_renamed(name): tensor for name, tensor in self.file.tensors.items() if name != _FREQUENCIES}
        self.config = _config(self.file)
        self._heads: dict[str, int] = {}
        if self.config["model_type"] == "llama":
            self._heads = {"q_proj": self.config["num_attention_heads"], "k_proj": self.config["num_key_value_heads"]}

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensor(name)
        return TensorInfo(name, np.dtype(np.float32), tensor.shape, self.path, tensor.offset)

    def nbytes(self, name: str) -> int:
        tensor = self._tensor(name)
        return tensor.rows * tensor.row_bytes

    def packed(self, name: str) -> Packed | None:
        tensor = self._tensor(name)
        if tensor.type.suits is None:
            return None
        reason = "" if tensor.type.grid else f"{tensor.type.name} is no grid of whole zero points and float16 scales"
        return Packed(tensor.type.suits, self.nbytes(name), reason)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        tensor = self._tensor(name)
        if len(tensor.shape) == 1:  # a row of the file, and as many rows of one value here
            values = tensor.type.read(self.file.read(tensor, 0, 1), 1)[0]
            return np.asarray(values[self._order(name, start, stop)].reshape(-1, 1))
        first, last, order = self._span(name, start, stop)
        return tensor.type.read(self.file.read(tensor, first, last), last - first)[order]

    def read_grid(self, name: str, start: int, stop: int) -> Grid:
        tensor = self._tensor(name)
        first, last, order = self._span(name, start, stop)
        grid = tensor.type.read_grid(self.file.read(tensor, first, last), last - first)
        return Grid(grid.u[order], grid.scale[order], grid.zero[order], grid.bits)

    def write_companions(self, out: Path) -> None:
        for name, content in tokenizer_files(self.file.metadata, self.path).items():
            write_json(out / name, content)

    def _tensor(self, name: str) -> GGUFTensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor {name}.")
        return self._tensors[name]

    def _order(self, name: str, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The file's rows that are rows [start, stop): halves of a head that rotate together lie alternately there."""
        rows = np.arange(start, stop)
        heads = self._heads.get(name.split(".")[-2])
        if heads is None:
            return rows
        tensor = self._tensor(name)
        total = tensor.shape[0]
        half = total // heads // 2
        head, row = np.divmod(rows, 2 * half)
        return np.asarray(head * 2 * half + 2 * (row % half) + row // half)

    def _span(self, name: str, start: int, stop: int) -> tuple[int, int, npt.NDArray[np.int64]]:
        """A run of the file's rows, and which of it are rows [start, stop)."""
        order = self._order(name, start, stop)
        first, last = int(order.min()), int(order.max()) + 1
        return first, last, order - first


def _renamed(name: str) -> str:
    """Hugging Face's name of a tensor; one that has none keeps its own, and is complained of when it is not used."""
    if match := _LAYER_NAME.fullmatch(name):
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{_LAYER[part]}.{kind}" if part in _LAYER else name
    stem, _, kind = name.rpartition(".")
    return f"{_TOP[stem]}.{kind}" if stem in _TOP else name


def _config(file: GGUFFile) -> dict[str, Any]:
    """The keys of config.json. What is known and not supported is refused; what is checked elsewhere is passed on."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"{file.path} holds a model of architecture {architecture!r}; {', '.join(ARCHITECTURES)} are read."
        )
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedError(
            f"{file.path} is one of several parts of a model; join them with `llama-gguf-split --merge` first."
        )
    own = {key.removeprefix(f"{architecture}."): value for key, value in file.metadata.items()}
    if own.get("expert_count"):
        raise UnsupportedError(f"{file.path} holds a mixture of experts, which is not supported.")
    needed = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length")
    for key in needed:
        if type(own.get(key)) is not int or not 1 <= own[key] < 1 << 31:
            raise CheckpointError(
                f"{file.path}: {architecture}.{key} must be a positive number, not {own.get(key)!r:.40}."
            )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix token_embd.weight.")
    heads, hidden = own["attention.head_count"], own["embedding_length"]
    head_dim = own.get("attention.key_length") or hidden // heads
    if own.get("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{file.path}: values of another length than keys are not supported.")
    if own.get("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedError(f"{file.path}: a rotation of a part of each head is not supported.")
    config: dict[str, Any] = {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture] + "ForCausalLM"],
        "model_type": architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": _short(own.get("attention.layer_norm_rms_epsilon", 1e-5)),
        "rope_theta": _short(own.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        **special_ids(file.metadata),
    }
    if architecture == "qwen2":
        del config["attention_bias"]  # it always has them
    if window := own.get("attention.sliding_window"):
        raise UnsupportedError(f"{file.path}: a sliding window ({window}) is not read from GGUF files.")
    if scaling := _rope_scaling(file, own, config):
        config["rope_scaling"] = scaling
    return config


def _short(value: Any) -> Any:
    """A float32 with the digits that it was written with: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope_scaling(file: GGUFFile, own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = own.get("rope.scaling.type", "none")
    if _FREQUENCIES in file.tensors:
        tensor = file.tensors[_FREQUENCIES]
        if tensor.shape != (config["head_dim"] // 2,):
            raise CheckpointError(f"{file.path}: {_FREQUENCIES} is {list(tensor.shape)}, not half a head's length.")
        return _llama3(file, tensor.type.read(file.read(tensor, 0, 1), 1)[0], config)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(f"{file.path}: rope scaling {kind!r} is not read from GGUF files; linear and yarn are.")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _short(own.get("rope.scaling.factor", 1.0))}
    if original := own.get("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3(file: GGUFFile, divisors: npt.NDArray[np.float32], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Llama 3's scaling, of which the file has only what each frequency is divided by: 1 for short wavelengths, the
    factor for long ones, and between them what follows from the original context length, which is looked for here."""
    factor = _short(float(divisors.max()))
    if (divisors == 1).all():
        return None
    theta, dim = config["rope_theta"], config["head_dim"]
    wavelength = 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)
    for original in (1 << power for power in range(5, 24)):
        smooth = np.clip((original / wavelength - 1) / 3, 0, 1)  # low_freq_factor 1, high_freq_factor 4
        expected = 1 / ((1 - smooth) / factor + smooth)
        if np.allclose(divisors, expected, rtol=1e-3):
            found = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", "factor": factor, **found}
    raise UnsupportedError(f"{file.path}: {_FREQUENCIES} scales positions in a way that is not known (Llama 3's is).")
