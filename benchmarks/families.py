"""The table of model families in docs/families.md: what each is, and how near its logits are to those of transformers.

Random checkpoints of each TINY config, 100 tokens in float32 and 12 texts of 5 in 4 bits, as tests/test_families.py
has them; the 4-bit reference rounds as the kernels do (tests/reference.py).
"""

from __future__ import annotations

import argparse
import inspect
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llmserve import LLM
from llmserve.compile.build import Build
from llmserve.compile.random_checkpoint import write_random_checkpoint
from llmserve.models.base import families, family
from tests import reference

BEGIN, END = "<!-- families -->", "<!-- /families -->"
HEAD = "| `model_type` | models | lines | float32 | 4 bits |\n|---|---|---|---|---|\n"


def row(name: str, directory: Path) -> str:
    """One line of the table; measures."""
    module = import_module(f"llmserve.models.{name}")
    what = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    lines = len(inspect.getsource(module).splitlines())
    found = family(name)
    checkpoint = write_random_checkpoint(directory / name, dict(found.tiny), dtype="float32")
    vocab = found.tiny["vocab_size"]
    ids = [[int(i) for i in np.random.default_rng(seed).integers(0, vocab, count)] for seed, count in TEXTS]
    off = []
    for quant in ("f32", "q4"):
        build = Build(str(checkpoint), quant=quant)
        model = reference.load(reference.checkpoint_of_stored(build, directory / f"{name}-{quant}"))
        texts = ids[:1] if quant == "f32" else ids[1:]
        expected = reference.rounded_logits(model, build.scheme.storage, build.scheme.page_dtype, texts)
        llm = LLM(checkpoint, quant=quant, kv_cache_memory="16MiB", max_num_seqs=16)
        errors = [np.abs(llm.logits(t) - e).max() / np.abs(e).max() for t, e in zip(texts, expected, strict=True)]
        off.append(float(np.median(errors)))
    return f"| `{name}` | {what} | {lines} | {off[0]:.1e} | {off[1]:.1e} |"


TEXTS = ((0, 100), *((seed, 5) for seed in range(12)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, default=Path("docs/families.md"), help="the document with the table")
    document = parser.parse_args().write
    rows = []
    with TemporaryDirectory() as directory:
        for name in families():
            rows.append(row(name, Path(directory)))
            print(rows[-1], file=sys.stderr, flush=True)
    text = document.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    document.write_text(f"{before}\n{HEAD}{chr(10).join(rows)}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
