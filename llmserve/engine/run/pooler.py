"""The pooler: one vector of unit length per prompt from hidden states, also of a prompt in several chunks. numpy.

A mean is summed here from chunk to chunk, in float64, so that how a prompt was cut shows in no digit that float32 has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from ...errors import EngineError
from ..plan.outputs import Pooled
from ..plan.scheduler import Sampled, ScheduledSequence


def wanted_rows(plan: Items[ScheduledSequence]) -> npt.NDArray[np.int32]:
    """Of the step's flattened tokens, those whose hidden states `pool` needs: every one, or the last of a prompt."""
    rows: list[int] = []
    end = 0
    for item in plan:
        end += item.num_tokens
        rows += range(end - _num_rows(item), end)
    return np.array(rows, np.int32)


def _num_rows(item: ScheduledSequence) -> int:
    return item.num_tokens if item.sequence.request.params.needs_every_position else int(item.samples)


class Pooler:
    """Holds the sums of prompts that have been begun, by seq_id."""

    def __init__(self) -> None:
        self._sums: dict[int, npt.NDArray[np.float64]] = {}

    def pool(self, plan: Items[ScheduledSequence], hidden: npt.NDArray[np.floating]) -> Mapping[int, Sampled]:
        """The vectors of the prompts that end in this plan; `hidden` are the rows of `wanted_rows`."""
        results: dict[int, Sampled] = {}
        start = 0
        for item in plan:
            sequence, rows = item.sequence, hidden[start : start + _num_rows(item)]
            start += len(rows)
            if not sequence.num_computed_tokens:  # a new prompt, or one that was preempted and starts over
                self._sums.pop(sequence.seq_id, None)
            if not len(rows):
                continue
            total = rows.sum(axis=0, dtype=np.float64) + self._sums.pop(sequence.seq_id, 0.0)
            if not item.samples:
                self._sums[sequence.seq_id] = total
                continue
            count = sequence.num_prompt_tokens if sequence.request.params.needs_every_position else 1
            mean = total / count
            length = float(np.linalg.norm(mean))
            if np.isfinite(length):
                results[sequence.seq_id] = Pooled((mean / max(length, 1e-12)).astype("<f4").tobytes())
            else:
                results[sequence.seq_id] = EngineError("The model's hidden states are not finite.")
        return results

    def forget(self, seq_ids: Collection[int]) -> None:
        """Drop the sums of sequences that have ended."""
        for seq_id in seq_ids:
            self._sums.pop(seq_id, None)
