"""Metadata keys of one architecture, each checked where it is read, and remembered as read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ....errors import CheckpointError, UnsupportedError
from .architectures import REQUIRED
from .file import GGUFFile

LIMIT = 1 << 31  # of any number that counts something


class Namespace:
    """The keys of one architecture. The keys that were read are recorded; complaints name file and key."""

    def __init__(self, file: GGUFFile, name: str) -> None:
        self.file, self.name = file, name
        prefix = f"{name}."
        self.values = {key.removeprefix(prefix): v for key, v in file.metadata.items() if key.startswith(prefix)}
        self.read: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        return name in self.values

    def size(self, name: str, default: Any = REQUIRED) -> int:
        """A positive number; one a layer counts if all are the same."""
        value = self.take(name, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        elif isinstance(value, list):
            raise UnsupportedError(
                f"{self.file.path}: {self.name}.{name} differs between layers, which is not supported."
            )
        if type(value) is not int or not 1 <= value < LIMIT:
            self.complain(name, "a positive number")
        return int(value)

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """A finite number, with the digits that it was written with: 1e-05 and not 9.999999747378752e-06."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.complain(name, "a number")
        return short(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.complain(name, "true or false")
        return bool(value)

    def expect(self, name: str, *values: Any) -> None:
        """Refuses a value that is there and not among these."""
        value = self.take(name)
        value = short(value) if isinstance(value, float) else value
        if value is not None and value not in values:
            self.refuse(name, f"must be {' or '.join(map(str, values))}")

    def complain(self, name: str, wanted: str) -> None:
        raise CheckpointError(
            f"{self.file.path}: {self.name}.{name} must be {wanted}, not {self.values.get(name)!r:.40}."
        )

    def refuse(self, name: str, why: str) -> None:
        raise UnsupportedError(f"{self.file.path}: {self.name}.{name} is {self.values.get(name)!r:.40}; it {why}.")


def short(value: float) -> float:
    """A float32 with as few digits as it takes."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
