"""The limits that the scheduler keeps. Pure data, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """The limits of one engine.

    Attributes:
        max_num_seqs: sequences running at once.
        max_num_batched_tokens: tokens computed in one step; longer prompts are computed in chunks.
        max_model_len: tokens in a sequence, prompt included. What the pages can hold bounds it too.
        page_size, num_pages: the KV cache.
        prefix_caching: reuse the pages of prompts that begin alike.
        max_waiting: sequences that may wait, beside those that may run, before new requests are refused.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int
    num_pages: int
    prefix_caching: bool = True
    max_waiting: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "page_size", "num_pages"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting must not be negative, got {self.max_waiting}.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running sequence decodes a token in each step."
            )
