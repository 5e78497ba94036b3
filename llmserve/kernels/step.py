"""The table of a step's arguments: name, sizes, dtype and order, stated once.

The models' entry points, the layer programs of calibration and the engine's staging arrays are all made from these
rows. Data only: no tvm, no numpy. Sizes in words are symbolic unless whoever reads the row knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Argument:
    """One array of a step. `sizes` are numbers, or words for what differs by call or by model."""

    name: str
    sizes: tuple[str | int, ...]
    dtype: str = "int32"

    def shape(self, known: Mapping[str, int]) -> list[Any]:
        """The sizes, with words replaced by numbers where `known` has them."""
        return [known.get(size, size) if isinstance(size, str) else size for size in self.sizes]


INDEX = (
    # Flattened tokens of all sequences; slot = page * page_size + offset in the page.
    Argument("token_ids", ("num_tokens",)),
    Argument("positions", ("num_tokens",)),
    Argument("slots", ("num_tokens",)),
    # Runs of consecutive rows of one sequence: which sequence, its first row, how many rows (`KernelSet.query_tile`).
    Argument("tile_seq", ("num_tiles",)),
    Argument("tile_row", ("num_tiles",)),
    Argument("tile_rows", ("num_tiles",)),
    # The page tables, each with room behind its pages, and where they begin; how many pages a table has follows from
    # its sequence's last position.
    Argument("page_indptr", ("num_indptr",)),
    Argument("page_values", ("num_page_values",)),
    # The rows whose logits (or hidden states) are wanted.
    Argument("logit_rows", ("num_logits",)),
)
"""The tokens of a step, their pages, and the rows whose logits are wanted."""

ROTARY = (
    Argument("cos", ("table", "rotary_width"), "float32"),
    Argument("sin", ("table", "rotary_width"), "float32"),
)
"""The rotary tables of all kinds of layers, side by side: row = position, rotary_width = tables * head_dim / 2."""

CHOICE = (
    Argument("knobs", ("num_logits", 4), "float32"),
    Argument("limits", ("num_logits", 4)),
    Argument("ids", ("num_adjustments",)),
    Argument("amounts", ("num_adjustments", 3), "float32"),
    Argument("masks", ("num_masks", "mask_words")),
)
"""The arguments of sampling: `kernels.base.ChoiceArguments`."""

LOGITS = Argument("logits", ("num_logits", "vocab_size"), "float32")
CHOSEN = Argument("chosen", ("num_logits", 2))
"""Outputs, written in place."""


def index_of(name: str, table: tuple[Argument, ...] = INDEX) -> int:
    """The place of an argument in its table."""
    return next(i for i, argument in enumerate(table) if argument.name == name)
