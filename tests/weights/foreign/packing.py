"""Writers of foreign checkpoints, each from its format's definition, one element at a time, with Python's integers.

A packer takes a matrix and returns the tensors of the file and the very weights that these stand for. They share no
code with the readers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from llmserve.compile.random_checkpoint import write_random_checkpoint
from llmserve.models.base import family as find

Tensors = dict[str, np.ndarray]
Packer = Callable[[np.ndarray], tuple[Tensors, np.ndarray]]


@dataclass
class Quantized:
    """q [N, K] and, by group, scale and zero [N, G]; w = (q - zero) * scale."""

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    groups: np.ndarray  # of each input

    @property
    def weights(self) -> np.ndarray:
        scale, zero = (a.astype(np.float64)[:, self.groups] for a in (self.scale, self.zero))
        exact = (self.q - zero) * scale
        rounded = exact.astype(np.float32)
        assert (rounded == exact).all() or self.scale.dtype == np.float32
        return rounded


def rounded(
    w: np.ndarray, bits: int, groups: np.ndarray, symmetric: bool, dtype: Any = np.float16, all_values: bool = True
) -> Quantized:
    """Min-max rounding in any groups; every group of the first row reaches both ends if `all_values`."""
    n, top = len(w), 2**bits - 1
    count = int(groups.max()) + 1
    q, scale, zero = np.zeros(w.shape, int), np.zeros((n, count), dtype), np.zeros((n, count), int)
    for g in range(count):
        mine = w[:, groups == g].astype(np.float64)
        low, high = np.minimum(mine.min(1), 0), np.maximum(mine.max(1), 0)
        step = np.maximum(-low, high) / (2 ** (bits - 1) - 0.5) if symmetric else (high - low) / top
        scale[:, g] = step.astype(dtype)
        step = scale[:, g].astype(np.float64)
        zero[:, g] = 2 ** (bits - 1) if symmetric else np.clip(np.rint(-low / step), 0, top)
        q[:, groups == g] = np.clip(np.rint(mine / step[:, None]) + zero[:, g, None], 0, top)
        if all_values:
            q[0, np.flatnonzero(groups == g)[0]], q[0, np.flatnonzero(groups == g)[-1]] = 0, top
    return Quantized(q, scale, zero, groups)


def stream(values: Any, bits: int) -> list[int]:
    """Integers one after another, lowest bits first, as int32 words."""
    number = 0
    for i, value in enumerate(values):
        assert 0 <= int(value) < 2**bits
        number |= int(value) << (i * bits)
    words = -(-len(values) * bits // 32)
    return [_signed(number >> (32 * i) & 0xFFFFFFFF) for i in range(words)]


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def grouping(k: int, size: int) -> np.ndarray:
    return np.zeros(k, int) if size == -1 else np.arange(k) // size


def gptq(
    bits: int = 4, size: int = 128, symmetric: bool = True, version: int = 1, order: str = "", g_idx: bool = True
) -> Packer:
    """`order`: "" as they come, "mixed" for groups of any inputs, "blocks" for groups of whole 32s out of order."""

    def pack(w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        n, k = w.shape
        groups = grouping(k, size)
        if order:
            unit = 32 if order == "blocks" else 1
            shuffled = np.random.default_rng(k).permutation(k // unit)
            groups = groups.reshape(-1, unit)[shuffled].reshape(-1)
        made = rounded(w, bits, groups, symmetric)
        if version == 1:  # the file cannot say 0
            made.zero = np.maximum(made.zero, 1)
        tensors = {
            "qweight": np.array([stream(made.q[o], bits) for o in range(n)], np.int32).T.copy(),
            "qzeros": np.array([stream(zeros - (version == 1), bits) for zeros in made.zero.T], np.int32),
            "scales": made.scale.T.copy(),
        }
        if g_idx:
            tensors["g_idx"] = groups.astype(np.int32)
        return tensors, made.weights

    return pack


def awq(size: int = 128, symmetric: bool = False) -> Packer:
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def words(values: np.ndarray) -> list[int]:
        packed = []
        for first in range(0, len(values), 8):
            word = sum(int(values[first + output]) << (4 * nibble) for nibble, output in enumerate(order))
            packed.append(_signed(word))
        return packed

    def pack(w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        made = rounded(w, 4, grouping(w.shape[1], size), symmetric)
        tensors = {
            "qweight": np.array([words(column) for column in made.q.T], np.int32),
            "qzeros": np.array([words(column) for column in made.zero.T], np.int32),
            "scales": made.scale.T.copy(),
        }
        return tensors, made.weights

    return pack


def pack_quantized(bits: int = 4, size: int = 128, symmetric: bool = True, dtype: Any = ml_dtypes.bfloat16) -> Packer:
    def pack(w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        made = rounded(w, bits, grouping(w.shape[1], size), symmetric, dtype)
        tensors = {
            "weight_packed": np.array([stream(row, bits) for row in made.q], np.int32),
            "weight_scale": made.scale,
            "weight_shape": np.array(w.shape, np.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = np.array([stream(z, bits) for z in made.zero.T], np.int32).T.copy()
        return tensors, made.weights

    return pack


def int_quantized(symmetric: bool = True) -> Packer:
    def pack(w: np.ndarray) -> tuple[Tensors, np.ndarray]:
        made = rounded(w, 8, grouping(w.shape[1], -1), symmetric)
        tensors = {"weight": (made.q - 128).astype(np.int8), "weight_scale": made.scale}
        if not symmetric:
            tensors["weight_zero_point"] = (made.zero - 128).astype(np.int8)
        return tensors, made.weights

    return pack


def write(
    out: Path,
    family: str,
    pack: Packer,
    settings: dict[str, Any] | None,
    only: Callable[[str], bool] = lambda name: True,
) -> tuple[Path, Path]:
    """(a random checkpoint of the family's TINY config with its linear layers packed, one of the same weights in
    float32)."""
    made = write_random_checkpoint(out / "quantized", dict(find(family).tiny), dtype="float16")
    twin = write_random_checkpoint(out / "twin", dict(find(family).tiny), dtype="float16")
    floats = load_file(made / "model.safetensors")
    tensors: Tensors = {}
    for name, w in floats.items():
        if name.endswith("_proj.weight") and only(name):
            packed, floats[name] = pack(w)
            tensors |= {name.removesuffix("weight") + part: array for part, array in packed.items()}
        else:
            tensors[name], floats[name] = w, w.astype(np.float32)
    save(tensors, made / "model.safetensors")
    save(floats, twin / "model.safetensors")
    config = json.loads((made / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (made / "config.json").write_text(json.dumps(config))
    return made, twin


def save(tensors: Tensors, file: Path) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file)
