"""Arrays of a step, staged for the device: a plan as the rows of kernels.step.INDEX, its choices as those of CHOICE.

A batch that decodes on, token by token, differs from its last step in three numbers a sequence, and only these are
written. numpy on the host; no calls of compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...kernels import step
from ..plan.scheduler import ScheduledSequence
from ..plan.sequence import Sequence
from .choices import ChoiceArguments
from .device_memory import Spec, StagedArrays, Staging

Ints = npt.NDArray[np.int32]

INDICES = len(step.INDEX)
"""Arrays that say what to compute; those that say how to choose follow."""
_TABLES, _STARTS = step.index_of("page_values"), step.index_of("page_indptr")
ROWS = step.index_of("logit_rows")
_INPUTS = [step.index_of(name) for name in ("token_ids", "positions", "slots")]
_PAGES_TOGETHER = 64  # the arrays' lengths are multiples of these, so that few sets of staged arrays serve all steps
_TABLE_ROOM = 8  # tables begin so many entries apart or a multiple of it, and may grow until the next begins
_ADJUSTMENTS_TOGETHER = 256


@dataclass(slots=True)
class _Decode:
    """A step in which each of some sequences computed its last known token, as it lies in the staging buffer."""

    staged: StagedArrays
    sequences: list[Sequence]
    tables: list[list[int]]  # the very lists, which grow while their sequence runs and are replaced when it starts over
    last_pages: list[int]  # index in its table
    choices: ChoiceArguments
    inputs: tuple[memoryview, ...]  # token_ids, positions, slots: faster to write a number to than an array


class StepArrays:
    """Arrays of one step at a time. They are valid until the next."""

    def __init__(self, staging: Staging, page_size: int, query_tile: int) -> None:
        """`query_tile` as in `KernelSet.query_tile`."""
        self._staging, self._page_size, self._query_tile = staging, page_size, query_tile
        self._last: _Decode | None = None

    def of_plan(
        self, plan: Items[ScheduledSequence], rows: Ints | None, choices: ChoiceArguments | None = None
    ) -> StagedArrays:
        """On the device: the rows of step.INDEX, of which the wanted rows are the last of each sequence that samples
        unless `rows` says which; then those of `choices`."""
        staged = self._continued(plan, choices) if rows is None and choices is not None else None
        if staged is None:
            arrays, last = self._flattened(plan)
            wanted = last if rows is None else rows
            # Nobody samples in a pure prefill chunk; one row keeps the shapes non-empty, and its results are dropped.
            arrays.append(wanted if len(wanted) else [0])
            lengths = [len(array) for array in arrays]
            lengths[_TABLES] = _rounded_up(lengths[_TABLES], _PAGES_TOGETHER)
            specs = tuple([((length,), "int32") for length in lengths])
            staged = self._staging.arrays(specs + (_specs(choices) if choices is not None else ()))
            for array, values in zip(staged.arrays, arrays, strict=False):
                array[: len(values)] = values
            self._last = None
            if choices is not None:
                _write(staged.arrays[INDICES:], choices)
                if len(last) == len(plan) == lengths[0]:
                    sequences = [item.sequence for item in plan]
                    last_pages = [s.num_computed_tokens // self._page_size for s in sequences]
                    tables = [s.pages for s in sequences]
                    inputs = tuple(staged.arrays[i].data for i in _INPUTS)
                    self._last = _Decode(staged, sequences, tables, last_pages, choices, inputs)
        staged.send()
        return staged

    def of_choices(self, choices: ChoiceArguments) -> StagedArrays:
        """On the device: the arrays of `choices` alone."""
        self._last = None
        staged = self._staging.arrays(_specs(choices))
        _write(staged.arrays, choices)
        staged.send()
        return staged

    def _continued(self, plan: Items[ScheduledSequence], choices: ChoiceArguments) -> StagedArrays | None:
        """The last step's arrays, if this one only goes on by a token in each sequence; None if not."""
        last, size = self._last, self._page_size
        if last is None or [item.sequence for item in plan] != last.sequences:
            return None
        token_ids, positions, slots = last.inputs
        grown = []
        for row, item in enumerate(plan):
            sequence, table = item.sequence, last.tables[row]
            at = sequence.num_computed_tokens
            page = at // size
            if at + 1 != len(sequence.token_ids) or sequence.pages is not table:
                return None
            if page != last.last_pages[row]:
                if page % _TABLE_ROOM == _TABLE_ROOM - 1:  # no room for one more
                    return None
                grown.append(row)
            token_ids[row] = sequence.token_ids[at]
            positions[row] = at
            slots[row] = table[page] * size + at % size
        staged = last.staged
        arrays = staged.arrays
        if choices is not last.choices:
            if tuple((array.shape, str(array.dtype)) for array in arrays[INDICES:]) != _specs(choices):
                return None
            _write(arrays[INDICES:], choices)
            last.choices = choices
        else:  # the same arrays, with other random numbers
            arrays[INDICES][:] = choices.knobs
        for row in grown:
            page = last.last_pages[row] = positions[row] // size
            arrays[_TABLES][arrays[_STARTS][row] + page] = last.tables[row][page]
        return staged

    def _flattened(self, plan: Items[ScheduledSequence]) -> tuple[list[Any], list[int]]:
        """The step's index arrays, less the wanted rows; and the last row of each sequence that samples."""
        size, tile = self._page_size, self._query_tile
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tiles: list[tuple[int, int, int]] = []
        indptr, values, last = [0], [], []
        for index, item in enumerate(plan):
            sequence, count, row = item.sequence, item.num_tokens, len(token_ids)
            first = sequence.num_computed_tokens
            stop = first + count
            table = sequence.pages[: -(-stop // size)]
            values += table
            values += [0] * (_rounded_up(len(table) + 1, _TABLE_ROOM) - len(table))
            indptr.append(len(values))
            token_ids += sequence.token_ids[first:stop]
            positions += range(first, stop)
            slots += [table[at // size] * size + at % size for at in range(first, stop)]
            tiles += [(index, row + t, min(tile, count - t)) for t in range(0, count, tile)]
            if item.samples:
                last.append(row + count - 1)
        return [token_ids, positions, slots, *zip(*tiles, strict=True), indptr, values], last


def _specs(choices: ChoiceArguments) -> tuple[Spec, ...]:
    # One belongs to no row; where there are no more, a device knows that there is nothing to adjust.
    room = _rounded_up(len(choices.ids) - 1, _ADJUSTMENTS_TOGETHER) + 1
    masks, words = choices.masks.shape
    known = {"num_logits": len(choices.knobs), "num_adjustments": room, "num_masks": masks, "mask_words": words}
    return tuple((tuple(row.shape(known)), row.dtype) for row in step.CHOICE)


def _write(arrays: Items[npt.NDArray[Any]], choices: ChoiceArguments) -> None:
    """What lies beyond the adjustments belongs to no row."""
    knobs, limits, ids, amounts, masks = arrays
    knobs[:], limits[:], masks[:] = choices.knobs, choices.limits, choices.masks
    ids[: len(choices.ids)], amounts[: len(choices.ids)] = choices.ids, choices.amounts


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
