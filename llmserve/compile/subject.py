"""The subject of conversion, calibration and measurement: a checkpoint, its family, and the CPU that works on it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__, artifact
from ..kernels.base import KernelSet, using
from ..models.base import CausalLM, Family
from ..models.config import DecoderConfig
from ..models.layers import PageFormat
from ..models.parts import Order
from ..quant.group import Storage
from ..quant.scheme import Scheme
from ..weights.convert import ConversionPlan, ParamPlan
from ..weights.mapping import found_name, map_weights, source_names
from ..weights.source import Source, same_rows, write_json


@dataclass(frozen=True)
class Subject:
    """A checkpoint with its family, its config and the CPU's kernels.

    Attributes:
        label: its name in listings.
        source: its tensors, tokenizer and other files.
        raw_config: its config.json.
        kernels, target, device: of the CPU that works on it.
    """

    label: str
    source: Source
    raw_config: Mapping[str, Any]
    family: Family
    config: DecoderConfig
    kernels: KernelSet
    target: Mapping[str, Any]
    device: str

    @property
    def causes(self) -> dict[str, Any]:
        """The causes of anything that is made from the checkpoint's tensors or tokenizer."""
        return {
            "checkpoint": artifact.checkpoint_fingerprint(self.source.path),
            "config": self.raw_config,
            "sources": artifact.source_hash("quant", "weights", "models"),
            "version": __version__,
        }

    @property
    def tokenizer_directory(self) -> Path:
        """A directory with config.json, tokenizer and chat template: the checkpoint's own, or one in the cache."""
        if self.source.has_tokenizer_files:
            return self.source.path
        return artifact.obtain("words", {**self.causes, "model": self.label}, self.write_tokenizer_files)

    def write_tokenizer_files(self, directory: Path) -> None:
        write_json(directory / "config.json", self.raw_config)
        self.source.write_companions(directory)

    @cached_property
    def unbound_model(self) -> CausalLM:
        """The module before its matrices have a storage: names and shapes."""
        with using(self.kernels):
            return self.family.model(self.config, PageFormat())

    def plan(self, scheme: Scheme) -> ConversionPlan:
        """Every parameter with its sources; matrices in the scheme's storage, all else in float32."""
        wanted: dict[str, tuple[tuple[int, ...], Storage, Order | None]] = {}
        for name, matrix in self.unbound_model.matrices():
            storage = scheme.storage_of(name)
            wanted[f"{name}.weight"] = ((matrix.out_features, matrix.in_features), storage, matrix.order)
            if matrix.has_bias:
                wanted[f"{name}.bias"] = ((matrix.out_features,), "float32", matrix.order)
        for name, param in self.unbound_model.floats():
            wanted[name] = (param.shape, "float32", param.order)
        ignore = ("lm_head.weight",) if self.config.tie_word_embeddings else ()
        mapped = map_weights(wanted, self.source.names(), self.family.weights, (*ignore, *self.source.ignorable()))
        stored = scheme.stored
        params = []
        for m in mapped:
            shape, storage, order = wanted[m.name]
            params.append(ParamPlan(m.name, shape, m.sources, storage, m.added, m.transposed, order))
        return ConversionPlan(
            tuple(params), {"format": "llmserve", **stored, "overrides": json.dumps(stored["overrides"])}
        )


def tied_as_stored(
    config: DecoderConfig, family: Family, stored: Source | Collection[str]
) -> tuple[DecoderConfig, list[str]]:
    """(the config with `tie_word_embeddings` as the weights have it, notes for the user).

    A head that is missing is the embedding, and one that differs from the embedding is a head, whatever config.json
    says. `stored`: a checkpoint, or the names of converted parameters.
    """
    if not isinstance(stored, Source):
        return replace(config, tie_word_embeddings=not any(name.startswith("lm_head.") for name in stored)), []
    names = set(stored.names())
    head, embedding = (
        found_name(source_names(f"{name}.weight", family.weights).sources[0], names)
        for name in ("lm_head", "model.embed_tokens")
    )
    if head not in names and not config.tie_word_embeddings:
        note = f"The checkpoint has no {head}; its embedding serves as the head."
        return replace(config, tie_word_embeddings=True), [note]
    apart = config.tie_word_embeddings and head in names and embedding in names and not stored.kind
    if apart and not same_rows(stored, head, embedding):
        note = f"{head} differs from the embedding that config.json ties it to, and is used."
        return replace(config, tie_word_embeddings=False), [note]
    return config, []
