"""Rotary embedding tables (Su et al. 2021) with the context extensions that checkpoints use.

Computed once on the host, in float32 as the models were trained. Formulas: linear, Chen et al. 2023; dynamic NTK, as in
the Hugging Face models; yarn, Peng et al. 2023; longrope, Ding et al. 2024; llama3, the Llama 3.1 release.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import DecoderConfig, RopeConfig

Array = npt.NDArray[np.float32]
Frequencies = tuple[Array, float]
"""(inverse frequencies float32 [head_dim / 2], factor on cos and sin). Pairs that do not turn have frequency 0; where a
head turns in part, they are left out of the factor."""


def tables(config: DecoderConfig, length: int) -> tuple[Array, Array]:
    """(cos, sin), float32 [length, tables * head_dim / 2], for positions 0 … length - 1; the tables side by side."""
    return tables_of(inverse_frequencies(config, length), length)


def tables_of(frequencies: list[Frequencies], length: int) -> tuple[Array, Array]:
    """The same from the result of `inverse_frequencies`."""
    cos, sin = [], []
    for own, factor in frequencies:
        angles = np.arange(length, dtype=np.float32)[:, None] * own[None, :]
        scale = np.where(own > 0, np.float32(factor), np.float32(1))
        cos.append(np.cos(angles) * scale)
        sin.append(np.sin(angles) * scale)
    return np.concatenate(cos, 1), np.concatenate(sin, 1)


def inverse_frequencies(config: DecoderConfig, length: int) -> list[Frequencies]:
    """Those of each of the config's tables, or of one that turns nothing if it has none.

    `length`, the longest context served, matters to `dynamic` and `longrope` only: what they depend on is fixed for
    that length instead of changing as a sequence grows, so that cached keys stay valid.
    """
    found = []
    for rope in config.rope:
        dim = rope.dim or config.head_dim
        own, factor = _frequencies(rope, dim, config.max_position_embeddings, length)
        padded = np.zeros(config.head_dim // 2, np.float32)
        padded[: dim // 2] = own
        found.append((padded, factor))
    return found or [(np.zeros(config.head_dim // 2, np.float32), 1.0)]


def natural_context(config: DecoderConfig) -> int:
    """The longest context that is served unless more is asked for: that of `longrope`'s short factors, else the
    model's. Beyond it all positions turn by the long factors, which answers short texts worse."""
    short = [int(r.parameters.get("original_max_position_embeddings", 0)) for r in config.rope if r.kind == "longrope"]
    return min([config.max_position_embeddings, *filter(None, short)])


def pairing(head_dim: int, rotary_dim: int, interleaved: bool) -> npt.NDArray[np.int64]:
    """Where a head's elements come from, so that rotating pairs (i, i + head_dim / 2) is the model's own rotation.

    The model turns the first `rotary_dim` elements, as pairs (i, i + rotary_dim / 2), or (2i, 2i + 1) if `interleaved`.
    Queries and keys that are both put into this order have the same products as before; the pairs that do not turn come
    last in either half and have frequency 0.
    """
    half = rotary_dim // 2
    turned = np.arange(rotary_dim)
    first, second = (turned[0::2], turned[1::2]) if interleaved else (turned[:half], turned[half:])
    rest = np.arange(rotary_dim, head_dim)
    middle = len(rest) // 2
    return np.concatenate([first, rest[:middle], second, rest[middle:]])


def _frequencies(rope: RopeConfig, dim: int, longest: int, length: int) -> Frequencies:
    p = rope.parameters
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = _powers(rope.theta, exponents)
    original = int(p.get("original_max_position_embeddings") or longest)
    factor = float(p.get("factor") or longest / original)
    if rope.kind == "default":
        return plain, 1.0
    if rope.kind == "linear":
        return (plain / np.float32(factor)).astype(np.float32), 1.0
    if rope.kind == "dynamic":
        if "alpha" in p:  # Hunyuan's: fixed for all lengths
            return _powers(rope.theta * float(p["alpha"]) ** (dim / (dim - 2)), exponents), 1.0
        stretch = factor * max(length, longest) / longest - (factor - 1)
        return _powers(rope.theta * stretch ** (dim / (dim - 2)), exponents), 1.0
    if rope.kind == "llama3":
        low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
        wavelength = 2 * math.pi / plain
        smooth = (original / wavelength - low) / (high - low)
        blended = (1 - smooth) * plain / factor + smooth * plain
        far, near = wavelength > original / low, wavelength < original / high
        return np.where(far, plain / factor, np.where(near, plain, blended)).astype(np.float32), 1.0
    if rope.kind == "longrope":
        return _longrope(p, exponents, rope.theta, original, longest, length)
    return _yarn(rope, plain, dim, factor, original)


def _powers(theta: float, exponents: Array) -> Array:
    return (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)


def _longrope(p: Any, exponents: Array, theta: float, original: int, longest: int, length: int) -> Frequencies:
    stretch = np.asarray(p["long_factor"] if length > original else p["short_factor"], np.float32)
    frequencies = (1.0 / (stretch * np.power(np.float32(theta), exponents))).astype(np.float32)
    factor = float(p.get("factor") or longest / original)
    if p.get("attention_factor") is not None:
        return frequencies, float(p["attention_factor"])
    return frequencies, 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn(rope: RopeConfig, plain: Array, dim: int, factor: float, original: int) -> Frequencies:
    p = rope.parameters

    def attention(scale: float, mscale: float) -> float:
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    mscale, mscale_all = p.get("mscale"), p.get("mscale_all_dim")
    if p.get("attention_factor") is not None:
        attention_factor = float(p["attention_factor"])
    elif mscale and mscale_all:
        attention_factor = attention(factor, mscale) / attention(factor, mscale_all)
    else:
        attention_factor = attention(factor, 1.0)

    def dimension(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(float(p.get("beta_fast") or 32)), dimension(float(p.get("beta_slow") or 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    interpolated = plain / np.float32(factor)
    return (interpolated * ramp + plain * (1 - ramp)).astype(np.float32), attention_factor
