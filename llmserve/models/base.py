"""The exported entry points of every family, written once, and the look-up of a family by its name.

A family file defines `Config(keys) -> DecoderConfig`, `Model` (a CausalLM), `WEIGHTS` (how its checkpoint names become
ours) and `TINY` (a config.json for tests).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ..errors import ConfigError, UnsupportedError
from ..kernels import step as table
from ..kernels.base import AttentionShape, Batch, ChoiceArguments, active
from ..kernels.step import Argument
from ..weights.mapping import Rule
from . import __path__ as _models_path
from .config import ConfigKeys, DecoderConfig
from .layers import Decoder, DecoderLayer, PageFormat
from .parts import Linear, Matrix, Order, walk

_NOT_FAMILIES = {"base", "activations", "config", "layers", "parts", "rope"}
# Twins: architectures that differ from a family in name only.
ALIASES: Mapping[str, str] = {}
# Model types whose decoder is described by their `text_config` → its model type where that does not say.
WRAPPERS: Mapping[str, str] = {"gemma3": "gemma3_text", "mistral3": "mistral"}

_PACKED = {"param_mode": "packed", "effect_mode": "none"}
_PAGES = "pages"


@dataclass(frozen=True)
class Family:
    """The definitions of a family file."""

    name: str
    config: Callable[[ConfigKeys], DecoderConfig]
    model: type[CausalLM]
    weights: tuple[Rule, ...]
    tiny: Mapping[str, Any]


@dataclass(frozen=True)
class FloatParam:
    """A parameter that is no part of a weight matrix, and stays float32; made of `stacked` equal tensors."""

    shape: tuple[int, ...]
    order: Order | None
    stacked: int = 1


def entry(*arguments: Argument | str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An exported method that takes these arguments one by one, in this order, and gets them by name."""
    names = [argument if isinstance(argument, str) else argument.name for argument in arguments]

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        def exported(self: Any, *values: Any) -> Any:
            return method(self, **dict(zip(names, values, strict=True)))

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
        exported.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        exported.__doc__ = method.__doc__
        exported.arguments = arguments  # type: ignore[attr-defined]
        return exported

    return decorate


def batch_of(arrays: Mapping[str, Any], **others: Any) -> Batch:
    """The Batch among an entry point's arguments, of which `others` are under other names or stand in."""
    return Batch(**{f.name: arrays[f.name] if f.name in arrays else others[f.name] for f in fields(Batch)})


def choices_of(arrays: Mapping[str, Any]) -> ChoiceArguments:
    return ChoiceArguments(**{f.name: arrays[f.name] for f in fields(ChoiceArguments)})


class CausalLM(nn.Module):
    """Embedding, layers, norm and head. The engine calls `next`, `step`, `hidden`, `head` and `sample`.

    `LAYER` and `DECODER` are for a family to replace.
    """

    LAYER: type[DecoderLayer] = DecoderLayer
    DECODER: type[Decoder] = Decoder

    def __init__(self, config: DecoderConfig, pages: PageFormat) -> None:
        self.config = config
        self.model = self.DECODER(config, pages, self.LAYER)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.vocab_size, config.hidden_size, config.head_bias)

    @property
    def attention_shape(self) -> AttentionShape:
        """That of the first layer; layers differ in windows and rotary tables only."""
        shape: AttentionShape = self.model.layers[0].self_attn.shape
        return shape

    @property
    def head_name(self) -> str:
        """The name of the matrix that hidden states are multiplied with for logits."""
        return "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"

    @property
    def head_matrix(self) -> Linear:
        head: Linear = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        """The weight matrices by name, whose storage a quantization scheme decides."""
        return ((name, module) for name, module in walk(self) if isinstance(module, Matrix))

    def floats(self) -> Iterator[tuple[str, FloatParam]]:
        """The parameters of norms and tables by name."""
        for name, module in walk(self):
            if not isinstance(module, Matrix):
                for kind, value in vars(module).items():
                    if isinstance(value, nn.Parameter):
                        shape = tuple(int(n) for n in value.shape)
                        order, stacked = getattr(module, "order", None), getattr(module, "stacked", 1)
                        yield f"{name}.{kind}", FloatParam(shape, order, stacked)

    @entry(*table.INDEX, *table.ROTARY, table.LOGITS, _PAGES)
    def step(self, logits: Tensor, pages: list[Tensor], **arrays: Tensor) -> Tensor:
        """One engine step: logits of the wanted rows, written and returned; pages, one tensor a layer, written too."""
        return self._logits(batch_of(arrays), logits, pages)

    def _logits(self, batch: Batch, logits: Tensor, pages: list[Tensor]) -> Tensor:
        branch, residual = self.model(batch, pages)
        logits, _ = self.head_matrix.normed(branch, residual, self.model.norm, logits)
        return self.finish(logits)

    def finish(self, logits: Tensor) -> Tensor:
        """Scale and softcap of the head's product; in place."""
        scale, cap = self.config.logit_scale, self.config.logit_softcap
        return logits if scale == 1.0 and not cap else active().cap_logits(logits, scale, cap)

    @entry(*table.INDEX, *table.CHOICE, *table.ROTARY, table.LOGITS, table.CHOSEN, _PAGES)
    def next(self, logits: Tensor, chosen: Tensor, pages: list[Tensor], **arrays: Tensor) -> Tensor:
        """`step` and `sample` in one call: most of what an engine does."""
        return active().sample(self._logits(batch_of(arrays), logits, pages), choices_of(arrays), chosen)

    @entry(*table.INDEX[:-1], Argument("rows", ("num_rows",)), *table.ROTARY, _PAGES)
    def hidden(self, rows: Tensor, pages: list[Tensor], **arrays: Tensor) -> Tensor:
        """A step without the head: the normed hidden states [R, hidden] of `rows`, of which there may be as many as
        tokens."""
        return self.model.norm(*self.model(batch_of(arrays, logit_rows=rows), pages))

    @entry(Argument("hidden", ("num_logits", "hidden_size"), "compute_dtype"), table.LOGITS)
    def head(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Normed hidden states [R, hidden] → logits float32 [R, vocab], written and returned."""
        return self.finish(self.head_matrix(hidden, logits))

    @entry(table.LOGITS, *table.CHOICE, table.CHOSEN)
    def sample(self, logits: Tensor, chosen: Tensor, **arrays: Tensor) -> Tensor:
        """A token for each row of logits; chosen int32 [R, 2] as in `KernelSet.sample`, written and returned."""
        return active().sample(logits, choices_of(arrays), chosen)

    def spec(self) -> nn.spec.ModuleSpec:
        """Shapes and dtypes of the entry points' arguments; sizes in words are symbolic."""
        shape = self.attention_shape
        page = nn.spec.Tensor(list(active().page_tensor(shape, "num_pages")), shape.page_dtype)
        pages = {_PAGES: [page for _ in range(self.config.num_layers)]}
        packed = dict.fromkeys(("next", "step", "hidden", "head"), _PACKED)
        modes = {**packed, "sample": {"param_mode": "none", "effect_mode": "none"}}
        return spec_of(self, {name: {**pages, "$": dict(mode)} for name, mode in modes.items()}, self.config)


def spec_of(module: nn.Module, entries: Mapping[str, Mapping[str, Any]], config: DecoderConfig) -> nn.spec.ModuleSpec:
    """The spec of a module's entry points, with what each has beside the rows of its table."""
    known = {
        "vocab_size": config.vocab_size,
        "mask_words": -(-config.vocab_size // 32),
        "hidden_size": config.hidden_size,
        "rotary_width": max(1, len(config.rope)) * config.head_dim // 2,
    }

    def tensor(argument: Argument) -> nn.spec.Tensor:
        dtype = active().compute_dtype if argument.dtype == "compute_dtype" else argument.dtype
        return nn.spec.Tensor(argument.shape(known), dtype)

    whole = {}
    for name, more in entries.items():
        rows = [a for a in getattr(type(module), name).arguments if isinstance(a, Argument)]
        whole[name] = {**{row.name: tensor(row) for row in rows}, **more}
    return nn.spec.ModuleSpec.from_raw(whole, module)


def families() -> list[str]:
    """The model types that have a file here, and their aliases."""
    files = (m.name for m in iter_modules(_models_path))
    return sorted({name for name in files if name not in _NOT_FAMILIES} | set(ALIASES))


def family(model_type: str) -> Family:
    """The family of a config.json's `model_type`. Raises UnsupportedError with what is supported."""
    supported = families()
    if model_type not in supported:
        close = difflib.get_close_matches(str(model_type), supported, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnsupportedError(
            f"Models of type {model_type!r} are not supported{hint}; supported are {', '.join(supported)}."
        )
    module = import_module(f".{ALIASES.get(model_type, model_type)}", __package__)
    return Family(model_type, module.Config, module.Model, tuple(module.WEIGHTS), module.TINY)


def read_family(raw: Mapping[str, Any], source: str = "config.json") -> tuple[Family, DecoderConfig]:
    """Family and checked config of a checkpoint's config.json, or of the text model inside it."""
    raw, source = text_config(raw, source)
    if not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{source} has no 'model_type', so its family is unknown.")
    found = family(raw["model_type"])
    return found, found.config(ConfigKeys(raw, source))


def text_config(raw: Mapping[str, Any], source: str = "config.json") -> tuple[Mapping[str, Any], str]:
    """The config of the decoder: that of a multimodal model's text part, else the whole. Of what both levels say, the
    outer `tie_word_embeddings` counts, as in the reference."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in WRAPPERS:
        return raw, source
    inner = raw.get("text_config")
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{source}: a {kind} model needs an object 'text_config', not {inner!r}.")
    outer = {name: raw[name] for name in ("tie_word_embeddings", "quantization_config") if raw.get(name) is not None}
    return {"model_type": WRAPPERS[kind], **inner, **outer}, f"{source}, text_config"
