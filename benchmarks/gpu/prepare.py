"""The preparation of `make gpu` on a machine without a GPU: everything that it runs, compiled into one folder to carry.

    python -m benchmarks.gpu.prepare --device cuda --arch sm_90

The folder, build/gpu/<device>-<arch>, runs on a bare machine: Linux on x86-64, a Python with numpy, the GPU's driver;
no network, no compiler. `--only` makes some of its parts anew; the others stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmserve import __version__, toolchain
from llmserve.config import EngineConfig
from llmserve.errors import LLMServeError
from llmserve.platforms import Platform, find

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
MOST_BYTES = 60 << 20
PARTS = ("kernels", "models", "shapes", "runtime")
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_LLAMA = {**LLAMA_8B, **SMALL, "num_key_value_heads": 2, "vocab_size": 1024}
PROMPTS, GREEDY = (100, 37, 5), 24  # tokens of the prompts that models are checked with, and tokens that follow


class Preparation:
    def __init__(self, platform: Platform, arch: str, folder: Path, small: bool, pythons: list[str]) -> None:
        self.platform, self.arch, self.folder, self.small, self.pythons = platform, arch, folder, small, pythons

    def make(self, part: str) -> None:
        """One part; what it adds to the manifest is kept beside it, so that parts can be made at different times."""
        began = time.perf_counter()
        for stale in (self.folder / "manifest.json", self._record(part)):
            stale.unlink(missing_ok=True)
        makers: dict[str, Callable[[], dict[str, Any]]] = {
            "kernels": self._kernels,
            "models": self._models,
            "shapes": self._shapes,
            "runtime": self._runtime,
        }
        facts = makers[part]()
        self._record(part).parent.mkdir(parents=True, exist_ok=True)
        self._record(part).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)

    def _record(self, part: str) -> Path:
        return self.folder.parent / f".{self.folder.name}" / f"{part}.json"

    def finish(self) -> None:
        """Write the manifest, without which the folder counts for nothing. Raises LLMServeError if it is too large."""
        missing = [part for part in PARTS if not self._record(part).exists()]
        if missing:
            print(f"Still to be made: {', '.join(missing)}.")
            return
        manifest: dict[str, Any] = {
            "device": self.platform.name,
            "arch": self.arch,
            "small": self.small,
            "version": __version__,
            "made": time.strftime("%Y-%m-%d %H:%M"),
        }
        for part in PARTS:
            manifest |= json.loads(self._record(part).read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise LLMServeError(f"{self.folder} has {size >> 20} MiB, more than {MOST_BYTES >> 20}.")
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        print(f"{self.folder} is ready, {size >> 20} MiB; on the GPU's machine: python3 {_start(self.folder)}")

    def _fresh(self, name: str) -> Path:
        directory = self.folder / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def _kernels(self) -> dict[str, Any]:
        from .cases import cases, timed
        from .kernels import compiled_cases

        directory = self._fresh("kernels")
        listed = [*cases(), *timed(self.small)]
        made = compiled_cases(listed, self.platform, self.arch, directory)
        for library in sorted(directory.glob("*.so")):
            self._check_machine_code(library)
        return {"cases": made}

    def _models(self) -> dict[str, Any]:
        """The package's own model and a random one of each family, in both dtypes, their parameters stored once."""
        from llmserve.compile.random_checkpoint import write_random_checkpoint
        from llmserve.models.base import families, family

        directory, checkpoints = self._fresh("models"), self.folder.parent / "checkpoints"
        sources: dict[str, Path | None] = {"embedded": None}
        for name in families():
            sources[name] = checkpoints / name
            shutil.rmtree(checkpoints / name, ignore_errors=True)
            # In bfloat16: short to store, and float16 holds it but for what is far too small to matter.
            write_random_checkpoint(checkpoints / name, dict(family(name).tiny), dtype="bfloat16")
        for name, source in sources.items():
            self._model(directory / name, source)
        return {"models": list(sources), "dtypes": list(self._dtypes())}

    def _dtypes(self) -> tuple[str, ...]:
        return ("float16", "float32") if self.platform.gpu(self.arch).float16 else ("float32",)

    def _model(self, directory: Path, source: Path | None) -> None:
        from llmserve.compile.build import Build
        from llmserve.models.rope import tables
        from llmserve.weights.load import load_params

        from .expected import transformers_logits

        for dtype in self._dtypes():
            quant = {"float16": "f16", "float32": "f32"}[dtype]
            build = Build(
                None if source is None else str(source),
                quant=quant,
                device=self.platform.name,
                arch=self.arch,
                engine=EngineConfig(max_num_batched_tokens=256, max_num_seqs=64),
            )
            self._library(build, directory / dtype)
            if dtype == "float32":
                stored = {name: _narrowed(array) for name, array in load_params(build.params()).items()}
                np.savez_compressed(directory / "params.npz", **stored)  # type: ignore[arg-type]
        cos, sin = tables(build.config, sum(PROMPTS[:1]) + GREEDY)
        found = transformers_logits(build.directory, PROMPTS, GREEDY)
        np.savez_compressed(directory / "expected.npz", cos=cos, sin=sin, **found)  # type: ignore[arg-type]

    def _library(self, build: Any, directory: Path) -> None:
        """A compiled model's library, its interface, and the shapes of its parameters."""
        from llmserve.compile.compiled import INTERFACE_FILE, LIBRARY_FILE

        directory.mkdir(parents=True)
        made = build.library()
        for name in (LIBRARY_FILE, INTERFACE_FILE):
            shutil.copyfile(made / name, directory / name)
        self._check_machine_code(directory / LIBRARY_FILE)
        specs = [(name, [int(n) for n in p.shape], str(p.dtype)) for name, p in build.model.named_parameters()]
        (directory / "parameters.json").write_text(json.dumps(specs), encoding="utf-8")

    def _shapes(self) -> dict[str, Any]:
        """The shape of Llama-3-8B (or a small one), whose weights are made on the device."""
        from llmserve.compile.build import Build

        directory = self._fresh("shapes")
        config = SMALL_LLAMA if self.small else LLAMA_8B
        source = self.folder.parent / ("small-llama" if self.small else "llama-3-8b-shape")
        source.mkdir(parents=True, exist_ok=True)
        (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tokens, sequences = (128, 8) if self.small else (2048, 64)
        engine = EngineConfig(max_num_batched_tokens=tokens, max_num_seqs=sequences)
        facts = {}
        for quant in ("q4", "q3"):
            common = {"quant": quant, "device": self.platform.name, "arch": self.arch}
            build = Build(str(source), **common, engine=engine)
            self._library(build, directory / quant)
            facts[quant] = {**_facts(build), "items": _items(self.small), "longest": 128 if self.small else 4096}
        return {"shapes": facts}

    def _runtime(self) -> dict[str, Any]:
        from .bundle import collect

        self.folder.mkdir(parents=True, exist_ok=True)
        loaded = collect(self.folder, self.platform.name, self.pythons, self.folder.parent / "wheels")
        start = self.folder / "run.py"
        start.write_text(
            '"""Checks and measures this machine\'s GPU with what is in this folder; see docs/gpus.md."""\n\n'
            "import runpy\nimport sys\nfrom pathlib import Path\n\n"
            "here = Path(__file__).resolve().parent\n"
            'sys.argv = [__file__, "--folder", str(here), *sys.argv[1:]]\n'
            'runpy.run_path(str(here / "lib" / "benchmarks" / "gpu" / "run.py"), run_name="__main__")\n',
            encoding="utf-8",
        )
        return {**loaded, "pythons": self.pythons}

    def _check_machine_code(self, library: Path) -> None:
        if self.platform.name == "cuda" and not cubins(library.read_bytes()):
            raise LLMServeError(f"{library} holds no machine code for a GPU, only source.")


def cubins(data: bytes) -> list[bytes]:
    """The ELF images for NVIDIA's GPUs that lie in a library, each to the end of the data."""
    found, at = [], data.find(b"\x7fELF")
    while at >= 0:
        if int.from_bytes(data[at + 18 : at + 20], "little") == 190:  # the machine's number: EM_CUDA
            found.append(data[at:])
        at = data.find(b"\x7fELF", at + 4)
    return found


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Floats in float16, or as the upper halves of their words (bfloat16, as uint16), where that loses nothing."""
    if array.dtype != np.float32:
        return array
    narrow, words = array.astype(np.float16), np.ascontiguousarray(array).view(np.uint32)
    if np.array_equal(narrow.astype(np.float32), array):
        return narrow
    return array if (words & 0xFFFF).any() else (words >> 16).astype(np.uint16)


def _facts(build: Any) -> dict[str, Any]:
    """The numbers behind a step's time: bytes that it reads, and weights that each token is multiplied with."""
    sizes = {
        name: int(np.prod(p.shape)) * np.dtype(str(p.dtype)).itemsize for name, p in build.model.named_parameters()
    }
    matrices = {name: m.out_features * m.in_features for name, m in build.model.matrices()}
    head = "model.embed_tokens" if build.config.tie_word_embeddings else "lm_head"
    looked_up = "" if build.config.tie_word_embeddings else "model.embed_tokens."
    config = build.config
    return {
        "weight_bytes": sum(n for name, n in sizes.items() if not (looked_up and name.startswith(looked_up))),
        "kv_bytes": config.num_layers * config.num_kv_heads * config.head_dim * 2 * 2,
        "linear_size": sum(n for name, n in matrices.items() if name not in (head, "model.embed_tokens")),
        "head_size": matrices[head],
    }


def _items(small: bool) -> list[str]:
    """In the order of their use, should time run out."""
    if small:
        return ["decode 1 16", "decode 4 128", "prefill 64"]
    decodes = [f"decode {batch} {context}" for context in (128, 4096) for batch in (1, 8, 64)]
    return [decodes[0], "prefill 2048", *decodes[1:]]


def _start(folder: Path) -> Path:
    path = folder / "run.py"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default) or webgpu")
    parser.add_argument("--arch", help="the family of GPUs, as `llmserve compile --arch` takes it")
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a device that is a CPU in truth")
    parser.add_argument(
        "--python", nargs="+", help="Pythons that the folder serves (cuda: 3.10 to 3.12, else this one)"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to make")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "gpu", help="where folders are made")
    options = parser.parse_args()
    toolchain.without_torch()
    try:
        platform = find(options.device)
        from llmserve.compile.host import gpu_arch

        arch = gpu_arch(platform, options.arch)
        if arch is None:
            raise LLMServeError(f"{platform.name} is no GPU; name one with --device.")
        folder = options.out / f"{platform.name}-{arch}{'-small' if options.small else ''}"
        # A folder for CUDA is meant to be carried; others are mostly tried where they were made.
        own = ".".join(map(str, sys.version_info[:2]))
        pythons = options.python or (["3.10", "3.11", "3.12"] if platform.name == "cuda" else [own])
        preparation = Preparation(platform, arch, folder, options.small, pythons)
        for part in options.only:
            preparation.make(part)
        preparation.finish()
    except (LLMServeError, RuntimeError) as error:
        print(f"Nothing was prepared: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
