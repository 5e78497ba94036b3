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
from .choices import Choices
from .device_memory import Layout, Spec, Staging

Ints = npt.NDArray[np.int32]

INDICES = len(step.INDEX)
"""Arrays that say what to compute; those that say how to choose follow."""
_TABLES, _STARTS = step.index_of("page_values"), step.index_of("page_indptr")
ROWS = step.index_of("logit_rows")
_NEWS = [step.index_of(name) for name in ("token_ids", "positions", "slots")]
_PAGES_TOGETHER = 64  # the arrays' lengths are multiples of these, so that few layouts serve all steps
_TABLE_ROOM = 8  # tables begin so many entries apart or a multiple of it, and may grow until the next begins
_ADJUSTMENTS_TOGETHER = 256


@dataclass(slots=True)
class _Decode:
    """A step in which each of some sequences computed its last known token, as it lies in the staging buffer."""

    layout: Layout
    sequences: list[Sequence]
    tables: list[list[int]]  # the very lists, which grow while their sequence runs and are replaced when it starts over
    last_pages: list[int]  # index in its table
    choices: Choices
    news: tuple[memoryview, ...]  # token_ids, positions, slots: a number is written sooner there than in an array


class StepArrays:
    """Arrays of one step at a time. They are valid until the next."""

    def __init__(self, staging: Staging, page_size: int, query_tile: int) -> None:
        """`query_tile` as in `KernelSet.query_tile`."""
        self._staging, self._page_size, self._query_tile = staging, page_size, query_tile
        self._last: _Decode | None = None

    def of_plan(self, plan: Items[ScheduledSequence], rows: Ints | None, choices: Choices | None = None) -> Layout:
        """On the device: the rows of step.INDEX, of which the wanted rows are the last ones of who samples unless
        `rows` says which; then those of `choices`."""
        layout = self._decoded_on(plan, choices) if rows is None and choices is not None else None
        if layout is None:
            arrays, last = self._flattened(plan)
            wanted = last if rows is None else rows
            # Nobody samples in a pure prefill chunk; one row keeps the shapes non-empty, and its results are dropped.
            arrays.append(wanted if len(wanted) else [0])
            lengths = [len(array) for array in arrays]
            lengths[_TABLES] = _rounded_up(lengths[_TABLES], _PAGES_TOGETHER)
            specs = tuple([((length,), "int32") for length in lengths])
            layout = self._staging.layout(specs + (_specs(choices) if choices is not None else ()))
            for array, values in zip(layout.arrays, arrays, strict=False):
                array[: len(values)] = values
            self._last = None
            if choices is not None:
                _write(layout.arrays[INDICES:], choices)
                if len(last) == len(plan) == lengths[0]:
                    sequences = [item.sequence for item in plan]
                    last_pages = [s.num_computed_tokens // self._page_size for s in sequences]
                    tables = [s.pages for s in sequences]
                    news = tuple(layout.arrays[i].data for i in _NEWS)
                    self._last = _Decode(layout, sequences, tables, last_pages, choices, news)
        layout.send()
        return layout

    def of_choices(self, choices: Choices) -> Layout:
        """On the device: the arrays of `choices` alone."""
        self._last = None
        layout = self._staging.layout(_specs(choices))
        _write(layout.arrays, choices)
        layout.send()
        return layout

    def _decoded_on(self, plan: Items[ScheduledSequence], choices: Choices) -> Layout | None:
        """The last step's arrays, if this one only goes on by a token in each sequence; None if not."""
        last, size = self._last, self._page_size
        if last is None or [item.sequence for item in plan] != last.sequences:
            return None
        token_ids, positions, slots = last.news
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
        layout = last.layout
        arrays = layout.arrays
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
        return layout

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


def _specs(choices: Choices) -> tuple[Spec, ...]:
    # One is nobody's, and by there being no more a device can know that there is nothing to adjust.
    room = _rounded_up(len(choices.ids) - 1, _ADJUSTMENTS_TOGETHER) + 1
    masks, words = choices.masks.shape
    known = {"num_logits": len(choices.knobs), "num_adjustments": room, "num_masks": masks, "mask_words": words}
    return tuple((tuple(row.shape(known)), row.dtype) for row in step.CHOICE)


def _write(arrays: Items[npt.NDArray[Any]], choices: Choices) -> None:
    """What lies beyond the adjustments belongs to no row."""
    knobs, limits, ids, amounts, masks = arrays
    knobs[:], limits[:], masks[:] = choices.knobs, choices.limits, choices.masks
    ids[: len(choices.ids)], amounts[: len(choices.ids)] = choices.ids, choices.amounts


def _rounded_up(count: int, step: int) -> int:
    return -(-count // step) * step
