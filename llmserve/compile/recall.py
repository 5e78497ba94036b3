"""Notes of earlier builds, by request: a start that finds its note here needs no compiler.

Without a note, finding the cached artifacts takes all of TVM, whose import is most of a start's time, because the
kernels' names and sizes are in the keys. A note is believed if nothing has changed that the result depends on
(checkpoint, machine, TVM, our own sources) and the artifacts that it names are whole; else the build runs. Imports no
TVM. For CPUs only: the facts about a GPU come from its driver, through TVM.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, artifact
from ..config import EngineConfig
from ..errors import ArtifactError, ConfigError
from ..models import rope
from ..platforms import Platform, find
from ..toolchain import tvm_version
from ..weights import embedded, hub
from .compiled import LIBRARY_FILE, CompiledModel, Interface

# What anything in a note depends on: the sources that make artifacts, those that name them, and the texts that weights
# are calibrated on.
_SOURCES = ("artifact.py", "backends", "compile", "data/text", "kernels", "models", "platforms.py", "quant", "weights")
# What Linux tells of a processor, as far as the choice of kernels depends on it; the latter half is ARM's and RISC-V's.
_PROCESSOR = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features", "isa", "uarch"),
)


@dataclass(frozen=True)
class Limits:
    """The sizes of a compiled library: `max_num_batched_tokens` tokens in a step, `max_num_seqs` logit rows."""

    max_num_batched_tokens: int
    max_num_seqs: int = 64
    page_size: int = 16

    @classmethod
    def of(cls, config: EngineConfig, platform: Platform) -> Limits:
        tokens = config.max_num_batched_tokens or max(platform.step_tokens, config.max_num_seqs)
        return cls(tokens, config.max_num_seqs, config.page_size)


class BuildRequest:
    """The request of a build, as far as its result depends on it.

    Attributes:
        name: how the model was asked for.
        directory: the checkpoint's, or a GGUF file.
    """

    def __init__(
        self,
        model: str | None,
        *,
        quant: str | None = None,
        device: str | None = None,
        arch: str | None = None,
        engine: EngineConfig | None = None,
        calibrate: str | None = None,
        calibration_data: str | Path | None = None,
        bits: float | None = None,
    ) -> None:
        """Resolves the model, downloading it if it is a Hub id; None is the package's own.

        Raises CheckpointError, ConfigError or UnsupportedError, each naming what is wrong.
        """
        if model is not None and not model.strip():
            raise ConfigError("The model's name is empty; leave it out for the model that comes with llmserve.")
        self.name = model or embedded.NAME
        self.platform = find(device)
        self.limits = Limits.of(engine or EngineConfig(), self.platform)
        self.directory = embedded.embedded_model() if model is None else hub.resolve(model)
        self.calibration_data = None if calibration_data is None else Path(calibration_data)
        self._choices = {"quant": quant, "arch": arch, "calibrate": calibrate, "bits": bits}

    def _note(self, max_model_len: int | None) -> tuple[Path, dict[str, Any]] | None:
        """(the file of a note about this request, the causes that it would have); None if there can be no note."""
        processor = _processor() if self.platform.kernels == "cpu" else None
        if processor is None:
            return None
        asked = {
            "name": self.name,
            "directory": str(self.directory.absolute()),
            "platform": self.platform.name,
            "limits": vars(self.limits),
            "calibration_data": str(self.calibration_data),
            "max_model_len": max_model_len,
            **self._choices,
        }
        return artifact.cache_root() / "notes" / f"{artifact.cache_key(asked)}.json", {
            **asked,
            **self._facts,
            "processor": processor,
        }

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """The causes beside the request: checkpoint, texts, sources, versions."""
        manifest, text = self.directory / artifact.MANIFEST, self.calibration_data
        return {
            "checkpoint": artifact.checkpoint_fingerprint(self.directory),
            "manifest": artifact.identity(self.directory) if manifest.is_file() else None,
            "text": artifact.checkpoint_fingerprint(text) if text is not None and text.is_file() else None,
            "sources": artifact.source_hash(*_SOURCES),
            "tvm": tvm_version(),
            "version": __version__,
        }


@dataclass(frozen=True)
class RecalledBuild:
    """The result of an earlier build, from its note.

    Attributes:
        label: what clients and listings call the model.
        tokenizer_directory: directory with config.json, tokenizer and chat template.
    """

    label: str
    tokenizer_directory: Path
    compiled: CompiledModel

    def run(self, max_model_len: int | None = None) -> CompiledModel:
        """As a build's; `max_model_len` is what was asked of `recall`."""
        return self.compiled


def recall(request: BuildRequest, max_model_len: int | None) -> RecalledBuild | None:
    """The result of an earlier build of this request, if all of it is still there."""
    try:
        place = request._note(max_model_len)
        if place is None:
            return None
        note = json.loads(place[0].read_text(encoding="utf-8"))
        if note["causes"] != json.loads(json.dumps(place[1])):
            return None
        directories = {kind: Path(path) for kind, path in note["artifacts"].items()}
        for kind, directory in directories.items():
            artifact.causes_of(directory, kind)
        library, params = directories["library"], directories["params"]
        if not (library / LIBRARY_FILE).exists():
            return None
        frequencies = [(np.array(own, np.float32), float(factor)) for own, factor in note["rope"]]
        cos, sin = rope.tables_of(frequencies, note["max_model_len"])
        return RecalledBuild(
            label=note["label"],
            tokenizer_directory=Path(note["words"]),
            compiled=CompiledModel(
                name=request.name,
                source=Path(note["source"]),
                library=library,
                params=params,
                interface=Interface.read(library),
                scheme=note["scheme"],
                platform=note["platform"],
                max_model_len=note["max_model_len"],
                cos=cos,
                sin=sin,
                notes=tuple(note["notes"]),
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactError):
        return None


def remember(
    request: BuildRequest,
    max_model_len: int | None,
    compiled: CompiledModel,
    *,
    label: str,
    tokenizer_directory: Path,
    frequencies: list[rope.Frequencies],
    notes: Sequence[str],
) -> None:
    """Writes a note of a build's result.

    `frequencies` are `rope.inverse_frequencies`, from which the tables are made again, `notes` what every start is to
    say. A cache that cannot be written costs the next start a second, no more.
    """
    try:
        place = request._note(max_model_len)
    except OSError:  # the checkpoint has gone meanwhile
        return
    if place is None:
        return
    path, causes = place
    artifacts = {"library": compiled.library, "params": compiled.params, "weights": compiled.source}
    if tokenizer_directory.parent == artifact.cache_root() / "words":  # else they are the checkpoint's own
        artifacts["words"] = tokenizer_directory
    note = {
        "causes": causes,
        "label": label,
        "words": str(tokenizer_directory.absolute()),
        "source": str(compiled.source.absolute()),
        "artifacts": {kind: str(directory.absolute()) for kind, directory in artifacts.items()},
        "scheme": compiled.scheme,
        "platform": compiled.platform,
        "max_model_len": compiled.max_model_len,
        "rope": [[[float(x) for x in own], float(factor)] for own, factor in frequencies],
        "notes": list(notes),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _processor() -> str | None:
    """A hash of what Linux tells of this machine's processors; None elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    pairs = {(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)}
    told = sorted(pair for pair in pairs if pair[0] in _PROCESSOR)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16] if told else None
