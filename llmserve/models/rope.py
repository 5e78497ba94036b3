"""Rotary embedding tables (Su et al. 2021) with the context extensions that checkpoints use.

Computed once on the host, in float32 as the models were trained. Formulas: linear, Chen et al. 2023; dynamic NTK, as in
the Hugging Face models; yarn, Peng et al. 2023; llama3, the Llama 3.1 release.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .config import DecoderConfig

Array = npt.NDArray[np.float32]


def tables(config: DecoderConfig, length: int) -> tuple[Array, Array]:
    """(cos, sin), float32 [length, head_dim / 2], for positions 0 … length - 1."""
    return tables_of(*inverse_frequencies(config, length), length)


def tables_of(frequencies: Array, factor: float, length: int) -> tuple[Array, Array]:
    """The same from what `inverse_frequencies` came to."""
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None, :]
    return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)


def inverse_frequencies(config: DecoderConfig, length: int) -> tuple[Array, float]:
    """(float32 [head_dim / 2], factor on the tables). `length`, the longest context served, matters to `dynamic` only:
    its base is fixed for that length instead of growing with each sequence, so that cached keys stay valid."""
    dim, rope, p = config.head_dim, config.rope, config.rope.parameters
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    plain = (1.0 / np.power(np.float32(rope.theta), exponents)).astype(np.float32)
    original = p.get("original_max_position_embeddings") or config.max_position_embeddings

    if rope.kind == "default":
        return plain, 1.0
    factor = float(p["factor"])
    if rope.kind == "linear":
        return (plain / np.float32(factor)).astype(np.float32), 1.0
    if rope.kind == "dynamic":
        longest = max(length, config.max_position_embeddings)
        stretch = factor * longest / config.max_position_embeddings - (factor - 1)
        theta = rope.theta * stretch ** (dim / (dim - 2))
        return (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32), 1.0
    if rope.kind == "llama3":
        low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
        wavelength = 2 * math.pi / plain
        smooth = (original / wavelength - low) / (high - low)
        blended = (1 - smooth) * plain / factor + smooth * plain
        far, near = wavelength > original / low, wavelength < original / high
        return np.where(far, plain / factor, np.where(near, plain, blended)).astype(np.float32), 1.0
    return _yarn(config, plain, exponents, factor, original)


def _yarn(config: DecoderConfig, plain: Array, exponents: Array, factor: float, original: int) -> tuple[Array, float]:
    p, dim, theta = config.rope.parameters, config.head_dim, config.rope.theta

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
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(float(p.get("beta_fast") or 32)), dimension(float(p.get("beta_slow") or 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    interpolated = plain / np.float32(factor)
    return (interpolated * ramp + plain * (1 - ramp)).astype(np.float32), attention_factor
