"""Weight tables: the checkpoint tensors that make up each of our parameters, and the changes to their numbers.

A family lists only what differs from the Hugging Face names; every other parameter is the tensor of the same name.
Shapes are checked in convert.py, not here. A tensor that is left over or missing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count

from ..errors import CheckpointError

# Buffers that older checkpoints store although every implementation computes them.
IGNORED = (
    *("*.rotary_emb.inv_freq", "*.rotary_emb.cos_cached", "*.rotary_emb.sin_cached"),
    *("*.self_attn.masked_bias", "*.attn.bias", "*.attn.masked_bias", "*.attention.bias", "*.attention.masked_bias"),
)
# What belongs to other parts of a model than its decoder, and is left unread.
OTHER_PARTS = (
    *("vision_tower.*", "model.vision_tower.*", "vision_model.*", "visual.*", "model.visual.*"),
    *("audio_tower.*", "model.audio_tower.*", "*embed_vision.*", "*embed_audio.*"),
    *("multi_modal_projector.*", "model.multi_modal_projector.*", "mtp.*", "model.mtp.*"),
)
# Beginnings of names, ours first, then how checkpoints spell them: of text models inside others, and without a prefix.
_SPELLINGS = (
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("lm_head.", "embed_out."),
    ("model.", ""),
    ("transformer.", ""),
    ("gpt_neox.", ""),
)


@dataclass(frozen=True)
class Fuse:
    """One row of a weight table: the parameters that `target` matches are the rows of `sources`, in that order.

    A `{word}` in `target` matches one dotted part, as in "model.layers.{i}.mlp.gate_up_proj.{kind}", and stands for
    it in `sources`. A source may count over `{e}`, which `target` does not have: then all sources are repeated for
    e = 0, 1, 2 … as far as the checkpoint goes, which stacks experts. A single source is a renaming.
    """

    target: str
    sources: tuple[str, ...]

    def resolve(self, name: str, available: set[str], least: int = 1) -> tuple[str, ...] | None:
        """The checkpoint names behind parameter `name`, or None when this row is not about it. `least`: how often they
        are repeated for `{e}` if no more are available."""
        parts = re.split(r"\{(\w+)\}", self.target)
        pattern = "".join(f"(?P<{part}>[^.]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        if not (match := re.fullmatch(pattern, name)):
            return None
        words = match.groupdict()
        if "e" in words or not any("{e}" in source for source in self.sources):
            return tuple(source.format(**words) for source in self.sources)
        return tuple(self._experts(words, available, least))

    def _experts(self, words: dict[str, str], available: set[str], least: int) -> Iterator[str]:
        for e in count():
            names = [source.format(**words, e=e) for source in self.sources]
            if e >= least and not available.intersection(names):
                return
            yield from names


@dataclass(frozen=True)
class Add:
    """One row of a weight table: `amount` is added to the parameters that the wildcard `target` matches, as for norms
    whose weights are stored less one."""

    target: str
    amount: float


@dataclass(frozen=True)
class Transpose:
    """One row of a weight table: the tensors of the parameters that the wildcard `target` matches are stored [in,
    out]."""

    target: str


Rule = Fuse | Add | Transpose


@dataclass(frozen=True)
class MappedTensor:
    """A parameter, the checkpoint tensors whose rows it is made of, and what becomes of their numbers."""

    name: str
    sources: tuple[str, ...]
    added: float = 0.0
    transposed: bool = False


def map_weights(
    params: Iterable[str], checkpoint: Iterable[str], rules: Sequence[Rule] = (), ignore: Sequence[str] = ()
) -> list[MappedTensor]:
    """Finds the sources of every parameter name in `params`, in that order, among the names in `checkpoint`.

    `ignore` adds wildcard patterns to IGNORED and OTHER_PARTS ("lm_head.weight" for tied embeddings).
    Raises CheckpointError when a parameter lacks a source, and when checkpoint tensors are neither used nor ignored.
    """
    available = set(checkpoint)
    mapped = [_mapped(name, rules, available) for name in params]
    for tensor in mapped:
        if missing := [source for source in tensor.sources if source not in available]:
            purpose = "" if missing[0] == tensor.name else f", which {tensor.name} is made of"
            raise CheckpointError(f"The checkpoint has no tensor {missing[0]}{purpose}.")
    used = {source for tensor in mapped for source in tensor.sources}
    patterns = (*IGNORED, *OTHER_PARTS, *(found_name(pattern, available) for pattern in ignore))
    left = sorted(name for name in available - used if not any(fnmatchcase(name, pattern) for pattern in patterns))
    if left:
        names = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise CheckpointError(f"The checkpoint holds tensors that this model has no place for: {names}.")
    return mapped


def found_name(name: str, available: Collection[str]) -> str:
    """How a checkpoint spells a tensor's name; the name itself if the tensor is not there under any."""
    if name in available:
        return name
    spelled = (theirs + name[len(ours) :] for ours, theirs in _SPELLINGS if name.startswith(ours))
    return next((other for other in spelled if other in available), name)


def other_parts(checkpoint: Iterable[str]) -> list[str]:
    """The parts of a model beside its decoder that a checkpoint holds, by the first word of their tensors' names."""
    found = (name for name in checkpoint if any(fnmatchcase(name, pattern) for pattern in OTHER_PARTS))
    return sorted({name.removeprefix("model.").split(".")[0] for name in found})


def source_names(name: str, rules: Sequence[Rule], stacked: int = 1) -> MappedTensor:
    """The sources of one parameter as the rules have them, without a checkpoint to look into; `stacked` of them where
    a row counts over `{e}`."""
    return _mapped(name, rules, set(), stacked)


def _mapped(name: str, rules: Sequence[Rule], available: set[str], least: int = 1) -> MappedTensor:
    fused = (rule.resolve(name, available, least) for rule in rules if isinstance(rule, Fuse))
    sources = next((found for found in fused if found), (name,))
    amounts = (r.amount for r in rules if isinstance(r, Add) and fnmatchcase(name, r.target))
    transposed = any(isinstance(r, Transpose) and fnmatchcase(name, r.target) for r in rules)
    spelled = tuple(found_name(source, available) for source in sources)
    return MappedTensor(name, spelled, next(amounts, 0.0), transposed)
