"""Rotary embedding in a GGUF file's metadata and tensors, as the keys of a Hugging Face config.json.

llama.cpp has the context extensions as keys (linear, yarn), as the divisors of all frequencies (Llama 3's, whose own
parameters are found again from them) and as two lists of divisors with a factor on the tables (Phi-3's longrope).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import CheckpointError
from .architectures import Architecture
from .file import GGUFFile
from .namespace import Namespace

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
Table = dict[str, Any]


def read_rotary(file: GGUFFile, own: Namespace, row: Architecture, config: Mapping[str, Any]) -> Table:
    """Config keys: base, share of a head that turns, and scaling. {} for a model without rotary embedding."""
    if row.rotary is None:
        return {}
    head_dim = config["head_dim"]
    theta, dim = own.number("rope.freq_base", 10000.0), own.size("rope.dimension_count", head_dim)
    own.expect("rope.dimension_count_swa", dim)
    if dim > head_dim or dim % 2 or (dim != head_dim and row.partial is None):
        own.refuse("rope.dimension_count", f"must be {head_dim}, all of a head")
    share: Table = {} if row.partial is None else {row.partial: _share(dim, head_dim)}
    scaling = _scaling(file, own, row, config, theta, dim)
    if row.rotary == "two":
        local = own.number("rope.freq_base_swa", theta if row.local is None else row.local)
        tables = {
            "full_attention": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        }
        return {"rope_parameters": tables, **share}
    own.expect("rope.freq_base_swa", theta)
    if row.rotary == "nested":
        return {"rope_parameters": {"rope_theta": theta, **(scaling or {})}, **share}
    if scaling and scaling["rope_type"] == "longrope":  # Phi-3's config has it beside the table, where it wins
        share["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return {"rope_theta": theta, **share} | ({"rope_scaling": scaling} if scaling else {})


def _share(dim: int, head_dim: int) -> float:
    """dim / head_dim, such that head_dim times it, cut to a whole number, is dim."""
    share = dim / head_dim
    return share if int(head_dim * share) == dim else math.nextafter(share, 1.0)


def _original(own: Namespace, config: Mapping[str, Any]) -> int:
    return own.size("rope.scaling.original_context_length", config["max_position_embeddings"])


def _scaling(
    file: GGUFFile, own: Namespace, row: Architecture, config: Mapping[str, Any], theta: float, dim: int
) -> Table | None:
    """The scaling in Hugging Face's words, None for none."""
    own.expect("rope.scaling.alpha", 0.0)
    # llama.cpp: without a type, a factor is linear; its old name is scale_linear.
    kind = own.take("rope.scaling.type", "linear")
    factor = own.number("rope.scaling.factor", own.number("rope.scale_linear", 0.0)) or 1.0
    on_tables = own.number("rope.scaling.attn_factor", 1.0)
    log_multiplier = own.number("rope.scaling.yarn_log_multiplier", 0.0)
    temperature = own.number("attention.temperature_scale", 0.0) if row.rotary == "nested" else 0.0
    if kind == "linear" and factor == 1.0:
        kind = "none"
    kinds = ("none", "linear", "yarn", "longrope")
    if kind not in kinds:
        own.refuse("rope.scaling.type", f"must be one of {', '.join(kinds)}")
    if LONG in file.tensors or kind == "longrope":
        return _longrope(file, own, config, dim, on_tables)
    if FREQUENCIES in file.tensors:
        divisors = _vector(file, FREQUENCIES, dim // 2)
        if kind != "none" and (divisors != 1).any():
            own.refuse("rope.scaling.type", f"must be none where there is {FREQUENCIES}")
        if kind == "none":
            return _llama3(divisors, theta, dim, config["max_position_embeddings"])
    if kind == "yarn":
        scaling = _yarn(own, config, factor, on_tables, log_multiplier)
        if temperature:
            own.expect("attention.temperature_length", scaling["original_max_position_embeddings"])
            scaling["llama_4_scaling_beta"] = temperature
        return scaling
    if on_tables != 1.0 or temperature:
        own.refuse("rope.scaling.attn_factor" if on_tables != 1.0 else "rope.scaling.type", "is read with yarn only")
    return {"rope_type": "linear", "factor": factor} if kind == "linear" else None


def _yarn(own: Namespace, config: Mapping[str, Any], factor: float, on_tables: float, log_multiplier: float) -> Table:
    own.expect("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    scaling: Table = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": _original(own, config)}
    for name in ("beta_fast", "beta_slow"):
        if own.has(f"rope.scaling.yarn_{name}"):
            scaling[name] = own.number(f"rope.scaling.yarn_{name}")
    if log_multiplier:
        scaling |= {"mscale": 1.0, "mscale_all_dim": log_multiplier}
    given = own.number("rope.scaling.yarn_attn_factor", 0.0)
    if given or on_tables != 1.0:
        scaling["attention_factor"] = (
            given or _magnitude(factor, 1.0) / _magnitude(factor, log_multiplier)
        ) * on_tables
    return scaling


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(file: GGUFFile, own: Namespace, config: Mapping[str, Any], dim: int, on_tables: float) -> Table:
    long, short = (_vector(file, name, dim // 2) for name in (LONG, SHORT))
    return {
        "rope_type": "longrope",
        "long_factor": _digits(long),
        "short_factor": _digits(short),
        "attention_factor": on_tables,
        "original_max_position_embeddings": _original(own, config),
    }


def _vector(file: GGUFFile, name: str, length: int) -> npt.NDArray[np.float32]:
    tensor = file.tensors.get(name)
    if tensor is None:
        raise CheckpointError(f"{file.path} has no tensor {name}, which its rope scaling needs.")
    if tensor.shape != (length,):
        raise CheckpointError(f"{file.path}: {name} is {list(tensor.shape)}, not half of what turns, [{length}].")
    values: npt.NDArray[np.float32] = tensor.type.read(file.read(tensor, 0, 1), 1)[0]
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise CheckpointError(f"{file.path}: {name} must hold positive numbers.")
    return values


def _digits(values: npt.NDArray[np.float32]) -> list[float]:
    return [float(str(value)) for value in values]


def _llama3(divisors: npt.NDArray[np.float32], theta: float, dim: int, longest: int) -> Table | None:
    """Llama 3's scaling. The file has only the divisor of each frequency: 1 for short wavelengths, the factor for long
    ones, and between them a number that follows from the original context length, which is searched for here. Other
    divisors become longrope, whose two lists may be the same."""
    if (divisors == 1).all():
        return None
    factor = float(str(divisors.max()))
    wavelength = 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)
    for original in (1 << power for power in range(5, 24)):
        smooth = np.clip((original / wavelength - 1) / 3, 0, 1)  # low_freq_factor 1, high_freq_factor 4
        if np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
            found = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", "factor": factor, **found}
    lists = {"long_factor": _digits(divisors), "short_factor": _digits(divisors)}
    return {
        "rope_type": "longrope",
        **lists,
        "attention_factor": 1.0,
        "original_max_position_embeddings": longest,
    }
