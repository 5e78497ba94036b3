"""The process that does the work of run.py: items by name, one line of JSON for the beginning and the end of each.

A kernel may crash or hang it, and after a GPU error a process cannot go on: then it ends, and run.py starts another for
the remaining items. Its packages come from the prepared folder, numpy alone from the machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = tuple[bool, str, dict[str, Any]]


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def main(path: str, names: list[str]) -> int:
    sys.path[0] = str(Path(path) / "lib")  # instead of this file's directory
    # TVM imports PyTorch where it is installed, and may then want a compiler for what ties them together.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from benchmarks.gpu.device import Folder, NoDevice

    folder = Folder(Path(path))
    try:
        device = folder.device()
    except NoDevice as error:
        say(missing=str(error))
        return 0
    if not names:
        say(device=folder.describe(device))
        return 0
    items = Items(folder, device)
    for name in names:
        say(begin=name)
        try:
            fine, detail, figures = items.run(name)
        except Exception as error:  # whatever it is, it is this item's result
            lines = str(error).strip().splitlines() or [""]
            say(end=name, ok=False, detail=f"{type(error).__name__}: {lines[-1]}"[:500], figures={})
            return 1
        say(end=name, ok=fine, detail=detail, figures=figures)
    return 0


class Items:
    """The runner of items by name; the first word of a name is its kind."""

    def __init__(self, folder: Any, device: Any) -> None:
        self.folder, self.device = folder, device
        self._loaded: dict[Path, Any] = {}
        self._shapes: dict[str, Any] = {}

    def run(self, name: str) -> Result:
        kind, _, rest = name.partition(" ")
        kinds: dict[str, Callable[[str], Result]] = {
            "kernel": self._kernel,
            "model": self._model,
            "speed": self._speed,
            "shape": self._shape,
        }
        return kinds[kind](rest)

    def _function(self, name: str) -> Any:
        from benchmarks.gpu.device import load

        path = self.folder.path / "kernels" / self._case(name)["library"]
        if path not in self._loaded:
            self._loaded[path] = load(path)
        return self._loaded[path][name]

    def _case(self, name: str) -> dict[str, Any]:
        cases: list[dict[str, Any]] = self.folder.manifest["cases"]
        return next(case for case in cases if case["name"] == name)

    def _kernel(self, name: str) -> Result:
        from benchmarks.gpu.device import kernel
        from benchmarks.gpu.oracles import CHECKS

        case = self._case(name)
        worst = CHECKS[case["kernel"]](case, kernel(self._function(name), self.device))
        return worst <= 1, f"largest error {worst:.3g} of what is allowed", {"worst": worst}

    def _model(self, name: str) -> Result:
        from benchmarks.gpu import accuracy

        model, dtype = name.split()
        return accuracy.check(self.folder.path / "models" / model, dtype, self.device)

    def _speed(self, name: str) -> Result:
        from benchmarks.gpu import speed

        small = self.folder.manifest["small"]
        if name == "bandwidth":
            figures = speed.bandwidth(self._function, self.device, small)
        else:
            figures = speed.linear(self._function(name), self._case(name), self.device, small)
        return True, "", figures

    def _shape(self, name: str) -> Result:
        from benchmarks.gpu import speed

        quant, way, *numbers = name.split()
        if quant not in self._shapes:
            directory = self.folder.path / "shapes" / quant
            self._shapes[quant] = speed.TimedModel(directory, self.device, self.folder.manifest["shapes"][quant])
        shape = self._shapes[quant]
        return True, "", getattr(shape, way)(*map(int, numbers))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], json.loads(sys.argv[2])))
