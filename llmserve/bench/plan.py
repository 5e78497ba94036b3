"""The plan of an engine's measurements, ours or a peer's, and the record of one measurement. Numbers only.

Apart from engine.py so that a peer's process does not carry our runtime in its memory.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFILL = (128, 512)
BATCHES = (1, 4, 8)
CONTEXT = 128
LONG_CONTEXT = 4096
STEPS = 24


@dataclass(frozen=True)
class Timing:
    """Steps of the engine: seconds in all, the part of them inside the compiled call, tokens computed or made."""

    steps: int
    tokens: int
    seconds: float
    compiled: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def host_ms(self) -> float:
        """Milliseconds per step spent on scheduling, index arrays, sampling and text."""
        return (self.seconds - self.compiled) / self.steps * 1e3
