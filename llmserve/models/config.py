"""The reader of a Hugging Face config.json: the settings of a decoder, each key checked, nothing guessed.

A key that llmserve does not know is harmless; a known key with a value that llmserve does not implement is refused by
name, because the model would answer wrongly. Pure Python: no tvm, no numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, UnsupportedError

# Rope type → the keys that it cannot do without.
ROPE_TYPES: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (),
    "longrope": (),
}
# Numbers among a rope's parameters → what they must be above.
_ROPE_NUMBERS = {
    **dict.fromkeys(("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"), 0.0),
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "alpha"), 0.0),
    **dict.fromkeys(("mscale", "mscale_all_dim"), -1.0),
}
_RENAMED_ROPE = {"su": "longrope"}  # in early checkpoints of Phi-3
# Names in config.json → ours. The last two are the reference's fast forms of the same function.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "relu2",
    "xielu": "xielu",
}
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  # of any dimension: above it, a number is a mistake and would only cost memory


class ConfigKeys:
    """Typed access to a config.json; every complaint names the file and the key."""

    def __init__(self, raw: Mapping[str, Any], source: str = "config.json") -> None:
        self.raw = raw
        self.source = source

    def has(self, name: str) -> bool:
        return self.raw.get(name) is not None

    def filled(self, **defaults: Any) -> ConfigKeys:
        """A copy with defaults for keys that are absent or null."""
        missing = {name: value for name, value in defaults.items() if not self.has(name)}
        return ConfigKeys({**self.raw, **missing}, self.source)

    def assumed(self, **defaults: Any) -> ConfigKeys:
        """A copy with defaults for keys that are absent; null, which for some keys means "none", stays."""
        return ConfigKeys({**defaults, **self.raw}, self.source)

    def renamed(self, **names: str) -> ConfigKeys:
        """A copy with keys under the names that most families use: `hidden_size="n_embd"` reads n_embd as it."""
        moved = {ours: self.raw[theirs] for ours, theirs in names.items() if self.has(theirs)}
        return ConfigKeys({**self.raw, **moved}, self.source)

    def _value(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{self.source} has no '{name}', which this model family needs.")
        return value

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{self.source}: '{name}' must be an integer from {low} to {high}, not {_shown(value)}.")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A finite number above `low`."""
        value = self._value(name, default)
        try:
            good = not isinstance(value, bool) and isinstance(value, (int, float)) and low < float(value) < math.inf
        except OverflowError:
            good = False
        if not good:
            kind = "a positive number" if low == 0.0 else f"a number above {low:g}"
            raise ConfigError(f"{self.source}: '{name}' must be {kind}, not {_shown(value)}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ConfigError(f"{self.source}: '{name}' must be true or false, not {_shown(value)}.")
        return value

    def expect(self, name: str, *supported: Any) -> None:
        """Refuses a value that is there and not among `supported`; null counts as absent."""
        value = self.raw.get(name)
        if value is not None and value not in supported:
            choices = ", ".join(map(repr, supported))
            raise UnsupportedError(f"{self.source}: '{name}' is {_shown(value)}; llmserve supports {choices}.")

    def activation(self, name: str = "hidden_act", default: str = "silu") -> str:
        """Our name of an activation."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise UnsupportedError(f"{self.source}: '{name}' is {_shown(value)}; llmserve supports {known}.")
        return ACTIVATIONS[value]

    def table(self, name: str) -> dict[str, Any]:
        """A nested object; {} if it is absent."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{self.source}: '{name}' must be an object, not {_shown(value)}.")
        return dict(value or {})


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class RopeConfig:
    """One rotary table; which of `parameters` are used depends on `kind` (see models/rope.py).

    `dim`: elements of each head that turn, 0 for all.
    """

    theta: float = 10000.0
    kind: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 0

    @property
    def stretches(self) -> bool:
        """Whether the table is made for whatever length is served, beyond the model's own positions too."""
        return self.kind == "dynamic" and "alpha" not in self.parameters

    @classmethod
    def read(
        cls,
        keys: ConfigKeys,
        head_dim: int,
        layers: str | None = None,
        theta: float = 10000.0,
        partial: float = 1.0,
    ) -> RopeConfig:
        """From any spelling: `rope_theta` + `rope_scaling`, `rope_parameters`, or `rope_parameters` by kind of layer,
        of which `layers` ("full_attention", "sliding_attention") is wanted. `theta` and `partial` are the family's own
        defaults."""
        nested, scaling = keys.table("rope_parameters"), keys.table("rope_scaling")
        if layers is not None and isinstance(nested.get(layers), Mapping):
            nested = dict(nested[layers])
        for name, value in (("rope_parameters", nested), ("rope_scaling", scaling)):
            if any(isinstance(v, Mapping) for v in value.values()):
                raise UnsupportedError(f"{keys.source}: '{name}' must be one flat table for all layers, not {value!r}.")
        merged = {name: value for name, value in {**nested, **scaling}.items() if value is not None}
        kind = merged.pop("rope_type", None) or merged.pop("type", None) or "default"
        merged.pop("type", None)
        kind = _RENAMED_ROPE.get(kind, kind) if isinstance(kind, str) else kind
        if not isinstance(kind, str) or kind not in ROPE_TYPES:
            known = ", ".join(ROPE_TYPES)
            raise UnsupportedError(f"{keys.source}: rope type {_shown(kind)} is not supported; {known} are.")
        inside = ConfigKeys(merged, f"{keys.source}: rope type {kind!r}")
        outside = keys.filled(rope_theta=theta, partial_rotary_factor=partial)
        base = (inside if inside.has("rope_theta") else outside).number("rope_theta")
        share = (inside if inside.has("partial_rotary_factor") else outside).number("partial_rotary_factor")
        dim = int(head_dim * share)
        if share > 1 or dim < 2 or dim % 2:
            raise UnsupportedError(
                f"{keys.source}: a partial_rotary_factor of {share:g} of {head_dim} is not supported."
            )
        merged = {k: v for k, v in merged.items() if k not in ("rope_theta", "partial_rotary_factor")}
        for name, low in _ROPE_NUMBERS.items():
            if name in merged or name in ROPE_TYPES[kind]:
                inside.number(name, low=low)
        if kind in ("llama3", "yarn", "longrope") and keys.has("original_max_position_embeddings"):
            merged["original_max_position_embeddings"] = keys.integer("original_max_position_embeddings")
        for name in ("short_factor", "long_factor") if kind == "longrope" else ():
            factors = merged.get(name)
            if not isinstance(factors, list) or len(factors) != dim // 2:
                raise ConfigError(f"{keys.source}: rope '{name}' must be a list of {dim // 2} numbers.")
            for factor in factors:
                ConfigKeys({name: factor}, keys.source).number(name)
        return cls(base, kind, merged, 0 if dim == head_dim else dim)


@dataclass(frozen=True)
class LayerKind:
    """The settings that differ between layers. Layers of one kind are computed by the same code.

    `window`: keys that a query sees, 0 for all. `rope`: which of the config's rotary tables, None for none.
    """

    window: int = 0
    rope: int | None = 0


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder-only transformer, and the scalars that families differ in.

    Attributes:
        layers: the kind of each layer.
        rope: the rotary tables that layers choose from.
        interleaved: rotation pairs neighbours (2i, 2i + 1) instead of (i, i + half).
        attention_scale: of scores; 0 is head_dim ** -0.5.
        embedding_scale, residual_scale, logit_scale: factors on embeddings, on each branch and on logits.
        attention_softcap, logit_softcap: x becomes cap · tanh(x / cap); 0 for none.
        extra: numbers that only the family's own file knows.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    rope: tuple[RopeConfig, ...]
    layers: tuple[LayerKind, ...]
    tie_word_embeddings: bool
    activation: str = "silu"
    interleaved: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, keys: ConfigKeys, *, partial_rotary: bool = False, **family: Any) -> DecoderConfig:
        """The keys that all families share; `family` sets what a family fixes or reads itself. Without
        `partial_rotary`, a rotation of a part of each head is refused."""
        if keys.has("quantization_config"):
            raise UnsupportedError(
                f"{keys.source}: 'quantization_config' says that the weights are quantized already; "
                "take the unquantized checkpoint, which llmserve quantizes itself."
            )
        keys.expect("is_decoder", True)
        heads = keys.integer("num_attention_heads")
        kv_heads = keys.integer("num_key_value_heads", heads)
        hidden = keys.integer("hidden_size")
        layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
        if heads % kv_heads:
            raise ConfigError(
                f"{keys.source}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})."
            )
        head_dim = head_dimension(keys)
        for name, value, unit in (("head_dim", head_dim, 16), ("hidden_size", hidden, 8)):
            if value % unit:
                raise UnsupportedError(f"{keys.source}: {name} must be a multiple of {unit}, not {value}.")
        intermediate = keys.integer("intermediate_size")
        if intermediate % 8:
            raise UnsupportedError(f"{keys.source}: intermediate_size must be a multiple of 8, not {intermediate}.")
        defaults: dict[str, Any] = {
            "tie_word_embeddings": keys.flag("tie_word_embeddings", False),
            "layers": (LayerKind(),) * layers,
        }
        if "rope" not in family:
            defaults["rope"] = (RopeConfig.read(keys, head_dim),)
        if "activation" not in family:
            defaults["activation"] = keys.activation()
        if "norm_eps" not in family:
            defaults["norm_eps"] = keys.number("rms_norm_eps", 1e-6)
        given = {**defaults, **family}
        if not partial_rotary and any(rope.dim for rope in given["rope"]):
            raise UnsupportedError(f"{keys.source}: this family has no partial_rotary_factor other than 1.")
        return cls(
            vocab_size=keys.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=keys.integer("max_position_embeddings", 2048),
            **given,
        )

    def one_layer(self, kind: LayerKind) -> DecoderConfig:
        """The config of the same model with a single layer of this kind."""
        return replace(self, num_layers=1, layers=(kind,))


def head_dimension(keys: ConfigKeys) -> int:
    """`head_dim`, or hidden_size divided by the number of heads."""
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    if not keys.has("head_dim") and hidden % heads:
        raise ConfigError(
            f"{keys.source}: hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}), "
            "and there is no head_dim."
        )
    return keys.integer("head_dim", hidden // heads)


def read_config(directory: Path) -> dict[str, Any]:
    """A checkpoint's config.json as a dict. Raises CheckpointError when it is missing, too deep or no JSON object."""
    path = directory / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no config.json: it is not a Hugging Face checkpoint.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(raw).__name__}.")
    return raw


def layer_types(keys: ConfigKeys, full: Callable[[int], bool]) -> list[bool]:
    """For each layer whether its attention is full: by `layer_types` where the config has it, else by `full(layer)`."""
    layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    kinds = keys.raw.get("layer_types")
    if kinds is None:
        return [full(i) for i in range(layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise UnsupportedError(
            f"{keys.source}: 'layer_types' must name full_attention or sliding_attention for each of {layers} layers."
        )
    return [kind == "full_attention" for kind in kinds]


def sliding_layers(
    keys: ConfigKeys,
    full: Callable[[int], bool],
    window: int | None = None,
    ropes: tuple[int | None, int | None] = (0, 0),
) -> tuple[LayerKind, ...]:
    """The layers' kinds where some slide over `sliding_window`. `ropes`: the rotary table of full and sliding
    layers."""
    kinds = layer_types(keys, full)
    if window is None:
        window = 0 if all(kinds) else keys.integer("sliding_window")
    return tuple(LayerKind(0, ropes[0]) if whole else LayerKind(window, ropes[1]) for whole in kinds)


def equal_layers(keys: ConfigKeys) -> tuple[LayerKind, ...]:
    """The layers' kinds where all slide over `sliding_window`, or none where it is null."""
    window = keys.integer("sliding_window") if keys.has("sliding_window") else 0
    return (LayerKind(window),) * keys.integer("num_hidden_layers", high=MAX_LAYERS)
