"""The training of the package's model on the data of `demo.data`, with a fixed recipe.

    python -m demo.train --data build/demo --out build/demo/run

Resumes where it was stopped. Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for the rest; the learning
rate warms up, stays, and falls in a straight line to nothing over the last part, so that a run can be made longer or
shorter from a checkpoint before that part. The result is a checkpoint in Hugging Face's format, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .model import Llama, Shape

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class Recipe:
    """What decides the outcome, beside the data.

    Attributes:
        steps: how many batches; `tokens` is the size of one, padding included.
        late_from: from this step on, conversations come from the second part of the data.
        text_shares: of batches that are running text and not conversations, before and after.
        matrix_rate, other_rate: the peak learning rates of Muon and AdamW.
        warmup, decay: the first steps and the last share of the steps, in which the rate rises and falls.
    """

    steps: int = 5200
    tokens: int = 4096
    late_from: int = 1750
    text_shares: tuple[float, float] = (0.15, 0.06)
    matrix_rate: float = 4e-3
    other_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: int = 100
    decay: float = 0.47
    seed: int = 0

    def rate(self, step: int) -> float:
        """The share of the peak learning rate at a step."""
        falling = self.steps * self.decay
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / falling))


class BatchSource:
    """Batches of rows of one kind and of similar length, in an order that the seed decides."""

    def __init__(self, stem: Path, tokens: int, seed: int) -> None:
        self.ids = np.load(stem.with_suffix(".ids.npy"), mmap_mode="r")
        self.marks = np.load(stem.with_suffix(".marks.npy"), mmap_mode="r")
        self.ends = np.load(stem.with_suffix(".ends.npy"))
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self.tokens, self.seed = tokens, seed
        self._batches: list[np.ndarray] = []
        self._epoch = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """ids and marks, [rows, length] each, padded with zeros; marks are 0 there."""
        if not self._batches:
            self._batches = self._epoch_batches()
            self._epoch += 1
        rows = self._batches.pop()
        length = -(-int((self.ends - self.starts)[rows].max()) // 16) * 16
        ids, marks = (np.zeros((len(rows), length), np.int64) for _ in range(2))
        for at, row in enumerate(rows):
            start, end = self.starts[row], self.ends[row]
            ids[at, : end - start] = self.ids[start:end]
            marks[at, : end - start] = self.marks[start:end]
        return torch.from_numpy(ids), torch.from_numpy(marks)

    def _epoch_batches(self) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, self._epoch])
        order, lengths = rng.permutation(len(self.ends)), self.ends - self.starts
        batches: list[np.ndarray] = []
        for pool in np.array_split(order, max(1, len(order) // 4096)):  # sorted only within a pool
            pool = pool[np.argsort(lengths[pool], kind="stable")][::-1]
            at = 0
            while at < len(pool):
                width = -(-int(lengths[pool[at]]) // 16) * 16
                rows = max(1, self.tokens // width)
                batches.append(pool[at : at + rows])
                at += rows
        return [batches[i] for i in rng.permutation(len(batches))]


def batches(data: Path, recipe: Recipe, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The recipe's batches from step `first` on."""
    names = ("chats", "late_chats", "texts")
    early, late, texts = (BatchSource(data / name, recipe.tokens, recipe.seed) for name in names)
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        is_late = step >= recipe.late_from
        chats = late if is_late else early
        batch = (texts if rng.random() < recipe.text_shares[is_late] else chats).next()
        if step >= first:
            yield batch


def optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    data: Path,
    out: Path,
    shape: Shape,
    recipe: Recipe,
    *,
    save_every: int = 250,
    device: str = "cpu",
    compiled: bool = False,
) -> list[float]:
    """Runs the recipe from where a checkpoint in `out` stopped; returns the losses of this run's steps."""
    torch.manual_seed(recipe.seed)
    model = Llama(shape).to(device)
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=True)  # type: ignore[method-assign]
    optims = optimizers(model, recipe)
    state_file, first = out / "state.pt", 0
    out.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(saved)
        first = state["step"]
        print(f"resumed at step {first}", flush=True)
    peaks = (recipe.matrix_rate, recipe.other_rate)
    losses: list[float] = []
    began, tokens = time.perf_counter(), 0
    for step, (ids, marks) in enumerate(batches(data, recipe, first), first):
        for optim, peak in zip(optims, peaks, strict=True):
            for group in optim.param_groups:
                group["lr"] = peak * recipe.rate(step)
        with torch.autocast(device, torch.bfloat16):
            loss = model.loss(ids.to(device), marks.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        losses.append(loss.item())
        tokens += ids.numel()
        if step % 25 == 24:
            rate = tokens / (time.perf_counter() - began)
            print(f"step {step + 1} loss {np.mean(losses[-25:]):.4f} {rate:.0f} tokens/s", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            _save_state(state_file, model, optims, step + 1)
    write_checkpoint(model, data, out / "checkpoint")
    return losses


def _save_state(file: Path, model: Llama, optims: list[torch.optim.Optimizer], step: int) -> None:
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optims], "step": step}
    torch.save(state, part := file.with_suffix(".part"))
    os.replace(part, file)


def write_checkpoint(model: Llama, data: Path, out: Path) -> None:
    """config.json, model.safetensors in bfloat16 and the tokenizer's files."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in model.named_weights().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        shutil.copy(data / name, out / name)
    generation: dict[str, Any] = json.loads((data / "generation_config.json").read_text("utf-8"))
    ends = {
        "eos_token_id": generation["eos_token_id"],
        "pad_token_id": generation["pad_token_id"],
        "bos_token_id": None,
    }
    (out / "config.json").write_text(json.dumps(model.shape.config() | ends, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--out", type=Path, default=Path("build/demo/run"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which is slower")
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps)
    model = Llama(Shape())
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {recipe}", flush=True)
    train(arguments.data, arguments.out, Shape(), recipe, device=arguments.device, compiled=not arguments.eager)


if __name__ == "__main__":
    main()
