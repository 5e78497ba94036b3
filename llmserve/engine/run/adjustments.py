"""Adjustments of a sequence's logits: its biases, penalties and bans, kept up with its tokens one by one.

They are sparse: the columns `ids` and `amounts` of `ChoiceArguments`. Grammar masks are not sparse, and not here.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from ..plan.sampling_params import SamplingParams
from ..plan.sequence import Sequence

_BIAS, _PENALTY, _LESS = range(3)


def adjusts(params: SamplingParams) -> bool:
    """Whether there is anything to keep up with."""
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.min_tokens > 0
        or bool(params.logit_bias)
        or bool(params.banned)
    )


class Adjustments:
    """Of one sequence, whose tokens only grow: a step costs what is new, not what has been said.

    Attributes:
        ends: ids that are banned before min_tokens.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: Collection[int]) -> None:
        self._params = params
        self._repeats = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        ends = [*(() if params.ignore_eos else eos_token_ids), *params.stop_token_ids] if params.min_tokens else []
        self.ends: list[int] = sorted(set(ends))
        self._places: dict[int, int] = {}  # of ids in the arrays
        self._counts: dict[int, int] = {}  # how often an id was generated
        self._seen = 0
        self._ids = np.empty(64, np.int32)
        self._amounts = np.empty((64, 3), np.float32)
        for token_id, bias in params.logit_bias.items():
            self._put(token_id, _BIAS, bias)
        self._end_places = [self._place(token_id) for token_id in self.ends]
        self._banned = [(list(before), self._place(last)) for *before, last in params.banned]
        self._banned_places: list[int] = []  # of those that would complete a banned sequence now

    def update(self, sequence: Sequence) -> None:
        """Take in the tokens that are new."""
        tokens, prompt = sequence.token_ids, sequence.num_prompt_tokens
        if self._params.repetition_penalty != 1.0:
            for token_id in dict.fromkeys(tokens[self._seen :]):
                self._put(token_id, _PENALTY, self._params.repetition_penalty)
        if self._repeats:
            for token_id in tokens[max(self._seen, prompt) :]:
                self._counts[token_id] = count = self._counts.get(token_id, 0) + 1
                # As float32, like the logits that it is taken from.
                less = self._params.presence_penalty + self._params.frequency_penalty * np.float32(count)
                self._put(token_id, _LESS, less)
        self._seen = len(tokens)
        generated = len(tokens) - prompt
        self._banned_places = [
            place
            for before, place in self._banned
            if len(before) <= generated and tokens[len(tokens) - len(before) :] == before
        ]

    def __len__(self) -> int:
        return len(self._places)

    def write(self, ids: npt.NDArray[np.int32], amounts: npt.NDArray[np.float32], banned: bool) -> None:
        """Fill arrays of this length; with the ends banned, or not."""
        ids[:], amounts[:] = self._ids[: len(self)], self._amounts[: len(self)]
        amounts[self._banned_places, _LESS] = np.inf
        if banned:
            amounts[self._end_places, _LESS] = np.inf

    def _put(self, token_id: int, column: int, value: float | np.float32) -> None:
        place = self._place(token_id)
        self._amounts[place, column] = value

    def _place(self, token_id: int) -> int:
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._amounts = np.concatenate([self._amounts, np.empty_like(self._amounts)])
            self._ids[place], self._amounts[place] = token_id, (0.0, 1.0, 0.0)
        return place
