"""llmserve and llama.cpp side by side: same checkpoint, same bits, same threads, same measurements, in turns.

Each runs in a process of its own that is stopped outright while the other is measured. The checkpoint has random
weights of a real model's shape: speed and memory depend on the shape alone. Prints a table, and writes it with all
samples to results/<date>-<machine>.json. Without llama-cpp-python it measures llmserve alone.
A sample counts only if nobody else used the machine meanwhile: a figure without such a sample is not given.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from llmserve.bench.host import Bystanders, cores, load_average, prepare, provenance
from llmserve.bench.plan import BATCHES, CONTEXT, PREFILL, STEPS
from llmserve.compile.artifact import checkpoint_fingerprint, obtain
from llmserve.weights.random_checkpoint import TINY_LLAMA, write_random_checkpoint

HERE = Path(__file__).parent
LLAMA_1B: dict[str, Any] = {
    **TINY_LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SHAPES = {"llama-1b": LLAMA_1B, "tiny": TINY_LLAMA}
RATES = [*(f"decode {batch}" for batch in BATCHES), *(f"prefill {tokens}" for tokens in PREFILL)]
LABELS = {
    **{f"decode {b}": f"decode tok/s, batch {b}, context {CONTEXT}" for b in BATCHES},
    **{f"prefill {t}": f"prefill tok/s, {t} tokens" for t in PREFILL},
    "peak_rss_mib": "peak resident memory, MiB",
    "rss_mib": "resident memory, MiB",
    "ready_seconds": "load, seconds",
}
QUIET = 0.04  # share of the machine's cores that others may use; the kernel's own housekeeping is below it
GRAIN = 0.02  # seconds that the system's accounting may be off by


@dataclass
class Sample:
    """A rate in tokens per second, and the cores that others used while it was taken (None: not told, and believed)."""

    rate: float
    others: float | None
    seconds: float

    @property
    def undisturbed(self) -> bool:
        return self.others is None or self.others <= QUIET * cores() + GRAIN / self.seconds


class Patience:
    """Waits for a quiet machine, for so many seconds in all; then measures as it is, and says so."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def wait(self) -> None:
        while True:
            others, began = Bystanders(None), time.perf_counter()
            time.sleep(0.3)
            if (found := others.cores()) is None or found <= QUIET * cores() + GRAIN / 0.3 or self._left <= 0:
                return
            self._left -= time.perf_counter() - began

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def sample(self, worker: Worker, question: str) -> list[Sample]:
        """Samples until one is undisturbed or patience ends; all of them, for the record."""
        taken: list[Sample] = []
        while not taken or not (taken[-1].undisturbed or self.exhausted):
            self.wait()
            taken.append(worker.measure(question))
            self._left -= 0 if taken[-1].undisturbed else taken[-1].seconds
        return taken


class Worker:
    """A runtime's process. It runs while it is asked something, and is stopped in between."""

    def __init__(self, runtime: str, model: Path, threads: int, *options: str) -> None:
        command = [sys.executable, str(HERE / "worker.py"), runtime, str(model), "--threads", str(threads), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.runtime = runtime
        self.ready_seconds: float = self._reply("load")

    def ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._reply(question)

    def measure(self, question: str) -> Sample:
        others, began = Bystanders(self._process.pid), time.perf_counter()
        rate = self.ask(question)
        return Sample(rate, others.cores(), time.perf_counter() - began)

    def _reply(self, question: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.runtime} ended with status {self._process.wait()} at {question!r}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def random_checkpoint(shape: str) -> Path:
    """Made once and kept in llmserve's cache, as the demo model is."""
    config = SHAPES[shape]
    causes = {"model": f"random-{shape}", "config": config, "seed": 0}

    def make(directory: Path) -> None:
        write_random_checkpoint(directory, config)

    return obtain("checkpoints", causes, make)


def gguf_file(checkpoint: Path) -> Path:
    from gguf_q4 import write

    writer = hashlib.sha256((HERE / "gguf_q4.py").read_bytes()).hexdigest()[:16]
    causes = {"model": checkpoint.name, "checkpoint": checkpoint_fingerprint(checkpoint), "writer": writer}

    def make(directory: Path) -> None:
        write(checkpoint, directory / "model.gguf")

    return obtain("gguf", causes, make) / "model.gguf"


Samples = dict[str, list[Sample]]
# Runtime → (variant, what to tell its worker before each sample).
VARIANTS: dict[str, list[tuple[str, str | None]]] = {
    "llmserve": [("llmserve", None)],
    "llama.cpp": [("llama.cpp", "flash 0"), ("llama.cpp, flash", "flash 1")],
}


def interleaved(workers: list[Worker], repetitions: int, patience: Patience) -> dict[str, Samples]:
    """Every rate of every variant in turns, A B then B A, so that whatever drifts meets all; variant → samples."""
    turns = [(worker, name, setting) for worker in workers for name, setting in VARIANTS[worker.runtime]]
    samples: dict[str, Samples] = {name: {rate: [] for rate in RATES} for _, name, _ in turns}
    for repetition in range(repetitions):
        for rate in RATES:
            for worker, name, setting in turns if repetition % 2 == 0 else turns[::-1]:
                if setting:
                    worker.ask(setting)
                samples[name][rate] += patience.sample(worker, rate)
    return samples


def medians(samples: dict[str, Samples], runtime: str) -> dict[str, float]:
    """Rate by rate, the median of the samples that count, of whichever variant is faster; none where none counts."""
    found: dict[str, float] = {}
    for name, _ in VARIANTS[runtime]:
        for rate, its in samples[name].items():
            good = [sample.rate for sample in its if sample.undisturbed]
            if good:
                found[rate] = max(found.get(rate, 0.0), median(good))
    return found


def agreement(workers: list[Worker], vocab: int) -> float:
    """Correlation of the logits after one prompt: far from 1, the two would not be running the same model."""
    question = "logits " + " ".join(map(str, random.Random(0).choices(range(vocab), k=32)))
    ours, theirs = (np.array(worker.ask(question)) for worker in workers)
    return float(np.corrcoef(ours, theirs)[0, 1])


def table(figures: dict[str, dict[str, float]]) -> str:
    names = list(figures)
    rows = [f"{'':<40}" + "".join(f"{name:>12}" for name in names) + ("       ratio" if len(names) > 1 else "")]
    for key, label in LABELS.items():
        values = [figures[name].get(key) for name in names]
        row = f"{label:<40}" + "".join(f"{'disturbed':>12}" if v is None else f"{v:>12.4g}" for v in values)
        given = [v for v in values if v is not None]
        rows.append(row + (f"{_ratio(key, *given):>12.2f}" if len(given) == 2 else ""))
    return "\n".join(rows)


def _ratio(key: str, ours: float, theirs: float) -> float:
    """Above 1: llmserve is ahead."""
    return ours / theirs if key in RATES else theirs / ours


def peer_version() -> str | None:
    """None where the peer is not installed, with a word on how to get it."""
    if all(importlib.util.find_spec(module) for module in ("llama_cpp", "gguf")):
        return importlib.metadata.version("llama-cpp-python")
    print('llama-cpp-python or gguf is missing (pip install "llmserve[bench]"); measuring llmserve alone.')
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a llama-family checkpoint instead of a random one")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-1b")
    parser.add_argument("--quant", default="q4", help="llmserve's scheme; llama.cpp always runs Q4_0")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="for both; all cores if not given")
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait in all for a quiet machine")
    parser.add_argument("--output", type=Path, help="file to write instead of results/<date>-<machine>.json")
    args = parser.parse_args()

    found = provenance(args.threads)
    checkpoint = args.checkpoint or random_checkpoint(args.shape)
    label = checkpoint.name if args.checkpoint else f"random {args.shape}"
    version, threads = peer_version(), found["threads"]
    found["prepare_notes"] = prepare(str(checkpoint), quant=args.quant)[1]
    patience = Patience(args.patience)
    workers = [Worker("llmserve", checkpoint, threads, "--quant", args.quant)]
    try:
        if version:
            workers.append(Worker("llama.cpp", gguf_file(checkpoint), threads))
        samples = interleaved(workers, args.repetitions, patience)
        figures = {worker.runtime: medians(samples, worker.runtime) for worker in workers}
        for worker in workers:
            figures[worker.runtime] |= {**worker.ask("memory"), "ready_seconds": worker.ready_seconds}
        if version:
            vocab = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
            found["logits_correlation"] = agreement(workers, vocab)
            found["peer"] = {"llama-cpp-python": version, "weights": "Q4_0, embedding and head too"}
            both = figures["llmserve"], figures["llama.cpp"]
            found["ratios"] = {
                key: _ratio(key, *(its[key] for its in both)) for key in LABELS if all(key in its for its in both)
            }
    finally:
        for worker in workers:
            worker.close()
    found |= {"model": label, "quant": args.quant, "decode_steps": STEPS, "repetitions": args.repetitions}
    found |= {"load_average_after": load_average(), "medians": figures}
    found["samples"] = {
        name: {key: [asdict(s) for s in its] for key, its in all_.items()} for name, all_ in samples.items()
    }
    slug = re.sub(r"[^a-z0-9]+", "-", found["machine"].split(",")[0].lower()).strip("-")
    suffix = "" if label == "random llama-1b" else "-" + re.sub(r"\W+", "-", label)
    output = args.output or HERE / "results" / f"{time.strftime('%Y-%m-%d')}-{slug}{suffix}.json"
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{label}, {threads} threads, {found['machine']}, load average {found['load_average_before']:.2f} before")
    print(table(figures))
    every = [s for its in samples.values() for taken in its.values() for s in taken]
    print(f"{sum(s.undisturbed for s in every)} of {len(every)} samples were undisturbed; the others do not count.")
    print(f"Written to {output}. Ratios above 1: llmserve is ahead.")


if __name__ == "__main__":
    main()
