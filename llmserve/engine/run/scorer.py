"""The scorer: log-probabilities of a prompt's tokens from hidden states, also of a prompt in several chunks. numpy.

The buffer of logits has a row for each running sequence, and a prompt has more tokens than that: so hidden states go
through the model's head a few at a time. The last of them gives the first token of the answer, as it does elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from ...errors import EngineError
from ..plan.outputs import SampledToken, Scored, TokenLogprob
from ..plan.scheduler import Sampled, ScheduledSequence
from .sampler import Sampler, logprob

Head = Callable[[npt.NDArray[np.floating]], npt.NDArray[np.float32]]
"""Hidden states [R, hidden] → logits float32 [R, vocab], valid until the next call."""


class Scorer:
    """Holds the scores of prompts that have been begun, by seq_id."""

    def __init__(self, head: Head, max_rows: int, sampler: Sampler) -> None:
        """`head` takes `max_rows` rows at once."""
        self._head, self._max_rows, self._sampler = head, max_rows, sampler
        self._scores: dict[int, list[TokenLogprob]] = {}

    def score(self, plan: Items[ScheduledSequence], hidden: npt.NDArray[np.floating]) -> Mapping[int, Sampled]:
        """The results of the prompts that end in this plan; `hidden` has a row for each of its tokens."""
        results: dict[int, Sampled] = {}
        start = 0
        for item in plan:
            states = hidden[start : start + item.num_tokens]
            start += item.num_tokens
            if not item.sequence.num_computed_tokens:  # a new prompt, or one that was preempted and starts over
                self._scores[item.sequence.seq_id] = []
            last = self._read(item, states)
            if item.samples:
                results[item.sequence.seq_id] = self._end(item, last)
        return results

    def forget(self, seq_ids: Collection[int]) -> None:
        """Drop the scores of sequences that have ended."""
        for seq_id in seq_ids:
            self._scores.pop(seq_id, None)

    def _read(self, item: ScheduledSequence, states: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Score the tokens that follow those of this chunk; the logits of its last token."""
        sequence = item.sequence
        scores, count = self._scores[sequence.seq_id], sequence.request.params.prompt_logprobs or 0
        following = sequence.token_ids[sequence.num_computed_tokens + 1 :][: item.num_tokens]
        for start in range(0, len(states), self._max_rows):
            logits = self._head(states[start : start + self._max_rows])
            scores += map(lambda row, token: logprob(row, token, count), logits, following[start:])
        last: npt.NDArray[np.float32] = logits[-1:].copy()
        return last

    def _end(self, item: ScheduledSequence, last: npt.NDArray[np.float32]) -> Sampled:
        sequence = item.sequence
        scores = tuple(self._scores.pop(sequence.seq_id))
        if not np.isfinite([score.logprob for score in scores]).all():
            return EngineError("The model's logits for the prompt are not finite.")
        if sequence.request.params.max_tokens == 0:
            return Scored(scores)
        (result,) = self._sampler.sample(last, [sequence])
        return result._replace(prompt_logprobs=scores) if isinstance(result, SampledToken) else result
