"""The table of model families in docs/families.md: what each is, and how near its logits are to those of transformers.

A random checkpoint of each family's TINY config, 100 tokens, in float32, as tests/test_families.py has it.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from llmserve import LLM
from llmserve.compile.random_checkpoint import write_random_checkpoint
from llmserve.models.base import families, family
from tests import reference

BEGIN, END = "<!-- families -->", "<!-- /families -->"
HEAD = "| `model_type` | models | lines | off |\n|---|---|---|---|\n"


def row(name: str, directory: Path) -> str:
    """One line of the table; measures."""
    module = import_module(f"llmserve.models.{name}")
    what = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    lines = len(inspect.getsource(module).splitlines())
    found = family(name)
    checkpoint = write_random_checkpoint(directory / name, dict(found.tiny), dtype="float32")
    ids = [int(i) for i in np.random.default_rng(0).integers(0, found.tiny["vocab_size"], TOKENS)]
    with torch.no_grad():
        expected = reference.load(checkpoint)(torch.tensor([ids])).logits[0].numpy()
    found_logits = LLM(checkpoint, quant="f32", kv_cache_memory="16MiB", max_num_seqs=16).logits(ids)
    off = np.abs(found_logits - expected).max() / np.abs(expected).max()
    return f"| `{name}` | {what} | {lines} | {off:.1e} |"


TOKENS = 100


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
