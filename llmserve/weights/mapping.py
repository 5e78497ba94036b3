"""Weight tables: which checkpoint tensors, stacked row upon row, make up which of our parameters.

A family lists only what differs from the Hugging Face names; every other parameter is the tensor of the same name.
Shapes are not looked at here (convert.py does), and nothing is left over or missing in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import count

from ..errors import CheckpointError

# Buffers that older checkpoints store although every implementation computes them.
IGNORED = ("*.rotary_emb.inv_freq", "*.rotary_emb.cos_cached", "*.rotary_emb.sin_cached", "*.self_attn.masked_bias")


@dataclass(frozen=True)
class Fuse:
    """One row of a weight table: the parameters that `target` matches are the rows of `sources`, in that order.

    A `{word}` in `target` matches one dotted part, as in "model.layers.{i}.mlp.gate_up_proj.{kind}", and stands for
    it in `sources`. A source may count over `{e}`, which `target` does not have: then all sources are repeated for
    e = 0, 1, 2 … as far as the checkpoint goes, which stacks experts. A single source is a renaming.
    """

    target: str
    sources: tuple[str, ...]

    def resolve(self, name: str, available: set[str]) -> tuple[str, ...] | None:
        """The checkpoint names behind parameter `name`, or None when this row is not about it."""
        parts = re.split(r"\{(\w+)\}", self.target)
        pattern = "".join(f"(?P<{part}>[^.]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        if not (match := re.fullmatch(pattern, name)):
            return None
        words = match.groupdict()
        if "e" in words or not any("{e}" in source for source in self.sources):
            return tuple(source.format(**words) for source in self.sources)
        return tuple(self._experts(words, available))

    def _experts(self, words: dict[str, str], available: set[str]) -> Iterator[str]:
        for e in count():
            names = [source.format(**words, e=e) for source in self.sources]
            if e and not available.intersection(names):
                return
            yield from names


@dataclass(frozen=True)
class MappedTensor:
    """A parameter and the checkpoint tensors whose rows it is made of."""

    name: str
    sources: tuple[str, ...]


def map_weights(
    params: Iterable[str], checkpoint: Iterable[str], rules: Sequence[Fuse] = (), ignore: Sequence[str] = ()
) -> list[MappedTensor]:
    """Finds the sources of every parameter name in `params`, in that order, among the names in `checkpoint`.

    `ignore` adds wildcard patterns to IGNORED ("lm_head.weight" for tied embeddings, "vision_tower.*").
    Raises CheckpointError when a parameter lacks a source, and when checkpoint tensors are neither used nor ignored.
    """
    available = set(checkpoint)
    mapped = [MappedTensor(name, _sources(name, rules, available)) for name in params]
    for tensor in mapped:
        if missing := [source for source in tensor.sources if source not in available]:
            purpose = "" if missing[0] == tensor.name else f", which {tensor.name} is made of"
            raise CheckpointError(f"The checkpoint has no tensor {missing[0]}{purpose}.")
    used = {source for tensor in mapped for source in tensor.sources}
    patterns = (*IGNORED, *ignore)
    left = sorted(name for name in available - used if not any(fnmatchcase(name, pattern) for pattern in patterns))
    if left:
        names = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise CheckpointError(f"The checkpoint holds tensors that this model has no place for: {names}.")
    return mapped


def _sources(name: str, rules: Sequence[Fuse], available: set[str]) -> tuple[str, ...]:
    return next((found for rule in rules if (found := rule.resolve(name, available))), (name,))
