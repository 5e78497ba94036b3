"""Expected logits of a checkpoint, by `transformers` in float32, in a process of its own, without TVM.

python -m benchmarks.gpu.expected CHECKPOINT OUTPUT.npz GREEDY PROMPT [PROMPT ...]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmserve.errors import LLMServeError


def transformers_logits(checkpoint: Path, prompts: Sequence[int], greedy: int) -> dict[str, np.ndarray]:
    """For random prompts of those lengths and `greedy` tokens after each: `ids0` int64 [T], `logits0` float32
    [T, vocab], `ids1` …, `prompts`, and `texts`, their number. Raises LLMServeError with the process's words."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "expected.npz"
        command = [sys.executable, "-m", "benchmarks.gpu.expected", str(checkpoint), str(output), str(greedy)]
        done = subprocess.run([*command, *map(str, prompts)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            words = (done.stderr.strip() or "no words").splitlines()[-1]
            raise LLMServeError(f"transformers did not compute {checkpoint} (is the extra test installed?): {words}")
        with np.load(output) as found:
            return dict(found)


def main(checkpoint: str, output: str, greedy: int, prompts: list[int]) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    vocabulary = model.config.vocab_size
    found: dict[str, np.ndarray] = {"prompts": np.array(prompts), "texts": np.array(len(prompts))}
    for i, length in enumerate(prompts):
        ids = torch.tensor([np.random.default_rng(i).integers(0, vocabulary - 16, length).tolist()])
        with torch.no_grad():
            text = model.generate(ids, max_new_tokens=greedy, do_sample=False, eos_token_id=None, pad_token_id=0)
            logits = model(text).logits[0]
        found |= {f"ids{i}": text[0].numpy(), f"logits{i}": logits.numpy()}
    np.savez(output, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), list(map(int, sys.argv[4:])))
