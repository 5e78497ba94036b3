"""The exported entry points of every family, written once, and how a family is found by its name.

A family file defines `Config(keys) -> DecoderConfig`, `Model` (a CausalLM), `WEIGHTS` (how its checkpoint names fuse)
and `TINY` (a config.json for tests).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ..errors import ConfigError, UnsupportedError
from ..kernels.base import AttentionShape, Batch, Choices, active
from . import __path__ as _models_path
from .config import DecoderConfig, Keys
from .layers import Decoder, Linear, Matrix, PageFormat, RMSNorm, walk

_NOT_FAMILIES = {"base", "config", "layers", "rope"}
# Twins: architectures that differ from a family in name only.
ALIASES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Family:
    """What a family file defines."""

    name: str
    config: Callable[[Keys], DecoderConfig]
    model: type[CausalLM]
    weights: tuple[Any, ...]
    tiny: Mapping[str, Any]


class CausalLM(nn.Module):
    """Embedding, layers, norm and head. The engine calls `next`, `step`, `hidden`, `head` and `sample`."""

    def __init__(self, config: DecoderConfig, pages: PageFormat) -> None:
        self.config = config
        self.model = Decoder(config, pages)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.vocab_size, config.hidden_size)

    @property
    def attention_shape(self) -> AttentionShape:
        """That of the first layer; layers differ in their windows only."""
        shape: AttentionShape = self.model.layers[0].self_attn.shape
        return shape

    @property
    def head_matrix(self) -> Linear:
        """What hidden states are multiplied with for logits."""
        head: Linear = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        """The weight matrices by name: what a quantization scheme decides about."""
        return ((name, module) for name, module in walk(self) if isinstance(module, Matrix))

    def norms(self) -> Iterator[tuple[str, RMSNorm]]:
        return ((name, module) for name, module in walk(self) if isinstance(module, RMSNorm))

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        tile_seq: Tensor,
        tile_row: Tensor,
        tile_rows: Tensor,
        page_indptr: Tensor,
        page_values: Tensor,
        logit_rows: Tensor,
        cos: Tensor,
        sin: Tensor,
        logits: Tensor,
        pages: list[Tensor],
    ) -> Tensor:
        """One engine step. Arguments: `kernels.base.Batch`; logits float32 [R, vocab], written and returned; pages, one
        tensor a layer, written in place."""
        batch = Batch(
            token_ids, positions, slots, tile_seq, tile_row, tile_rows, page_indptr, page_values, logit_rows, cos, sin
        )
        return self._logits(batch, logits, pages)

    def _logits(self, batch: Batch, logits: Tensor, pages: list[Tensor]) -> Tensor:
        branch, residual = self.model(batch, pages)
        logits, _ = self.head_matrix.normed(branch, residual, self.model.norm, logits)
        return logits

    def next(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        tile_seq: Tensor,
        tile_row: Tensor,
        tile_rows: Tensor,
        page_indptr: Tensor,
        page_values: Tensor,
        logit_rows: Tensor,
        knobs: Tensor,
        limits: Tensor,
        ids: Tensor,
        amounts: Tensor,
        masks: Tensor,
        cos: Tensor,
        sin: Tensor,
        logits: Tensor,
        chosen: Tensor,
        pages: list[Tensor],
    ) -> Tensor:
        """`step` and `sample` in one call: most of what an engine does."""
        batch = Batch(
            token_ids, positions, slots, tile_seq, tile_row, tile_rows, page_indptr, page_values, logit_rows, cos, sin
        )
        choices = Choices(knobs, limits, ids, amounts, masks)
        return active().sample(self._logits(batch, logits, pages), choices, chosen)

    def hidden(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        tile_seq: Tensor,
        tile_row: Tensor,
        tile_rows: Tensor,
        page_indptr: Tensor,
        page_values: Tensor,
        rows: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: list[Tensor],
    ) -> Tensor:
        """A step without the head: the normed hidden states [R, hidden] of `rows`, of which there may be as many as
        tokens. Arguments otherwise as in `step`."""
        batch = Batch(
            token_ids, positions, slots, tile_seq, tile_row, tile_rows, page_indptr, page_values, rows, cos, sin
        )
        return self.model.norm(*self.model(batch, pages))

    def head(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Normed hidden states [R, hidden] → logits float32 [R, vocab], written and returned."""
        return self.head_matrix(hidden, logits)

    def sample(
        self,
        logits: Tensor,
        knobs: Tensor,
        limits: Tensor,
        ids: Tensor,
        amounts: Tensor,
        masks: Tensor,
        chosen: Tensor,
    ) -> Tensor:
        """A token for each row of logits; arguments as in `kernels.base.Choices`; chosen int32 [R, 2] as in
        `KernelSet.sample`, written and returned."""
        return active().sample(logits, Choices(knobs, limits, ids, amounts, masks), chosen)

    def spec(self) -> nn.spec.ModuleSpec:
        """Shapes and dtypes of the entry points' arguments; sizes in words are symbolic."""
        config = self.config

        def int32(size: str) -> nn.spec.Tensor:
            return nn.spec.Tensor([size], "int32")

        attention = self.attention_shape
        page_shape = active().page_tensor(attention, "num_pages")
        packed = {"param_mode": "packed", "effect_mode": "none"}
        step = {
            **{name: int32("num_tokens") for name in ("token_ids", "positions", "slots")},
            **{name: int32("num_tiles") for name in ("tile_seq", "tile_row", "tile_rows")},
            "page_indptr": int32("num_indptr"),
            "page_values": int32("num_page_values"),
            "logit_rows": int32("num_logits"),
            **{name: nn.spec.Tensor(["table", config.head_dim // 2], "float32") for name in ("cos", "sin")},
            "logits": nn.spec.Tensor(["num_logits", config.vocab_size], "float32"),
            "pages": [nn.spec.Tensor(list(page_shape), attention.page_dtype) for _ in range(config.num_layers)],
            "$": packed,
        }
        # In the order of the methods' arguments.
        hidden = {
            "rows" if name == "logit_rows" else name: int32("num_rows") if name == "logit_rows" else spec
            for name, spec in step.items()
            if name != "logits"
        }
        head = {
            "hidden": nn.spec.Tensor(["num_logits", config.hidden_size], active().compute_dtype),
            "logits": step["logits"],
            "$": packed,
        }
        sample = {
            "logits": step["logits"],
            "knobs": nn.spec.Tensor(["num_logits", 4], "float32"),
            "limits": nn.spec.Tensor(["num_logits", 4], "int32"),
            "ids": int32("num_adjustments"),
            "amounts": nn.spec.Tensor(["num_adjustments", 3], "float32"),
            "masks": nn.spec.Tensor(["num_masks", -(-config.vocab_size // 32)], "int32"),
            "chosen": nn.spec.Tensor(["num_logits", 2], "int32"),
            "$": {"param_mode": "none", "effect_mode": "none"},
        }
        names = list(inspect.signature(self.next).parameters)
        both = {**{name: {**sample, **step}[name] for name in names}, "$": packed}
        entries = {"next": both, "step": step, "hidden": hidden, "head": head, "sample": sample}
        return nn.spec.ModuleSpec.from_raw(entries, self)


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
    """Family and checked config of a checkpoint's config.json."""
    if not isinstance(raw.get("model_type"), str):
        raise ConfigError(f"{source} has no 'model_type', so its family is unknown.")
    found = family(raw["model_type"])
    return found, found.config(Keys(raw, source))
