"""Quality against bits per weight: llmserve's formats and llama.cpp's, on one text in the same windows.

    python -m benchmarks.quality --data build/demo --json benchmarks/results/<date>-quality.json

Each model is asked for the logits of every token as it is served, int8 activations and all; llmserve in float32 is
what they are compared with. Bits are those of all tensors, over all parameters. With --data (of demo.data), llmserve's
models also sit the examination of the package's model: the share of answers that are right to the letter. The answers
to it, and the text, are neither trained on nor calibrated with.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type

from demo.evaluate import MAX_TOKENS, exact_match, parsed
from llmserve import LLM, SamplingParams
from llmserve.compile import judging
from llmserve.compile.build import Build
from llmserve.compile.quality import UnquantizedWeights, embed, positions, through, windows
from llmserve.compile.subject import Subject
from llmserve.compile.texts import EvaluationText
from llmserve.quant.report import Comparison
from llmserve.quant.scheme import SCHEMES
from llmserve.weights.container import read_header
from llmserve.weights.embedded import embedded_model
from llmserve.weights.load import PARAMS_FILE
from llmserve.weights.read import Checkpoint

from . import gguf_q4, llama_quality

WINDOW = 512
# Budgets of 4.36 and 5.18 bits are about the sizes of Q3_K_M and Q4_K_M of the package's model, and no larger.
OURS: Mapping[str, dict[str, Any]] = {
    "q8": {"quant": "q8"},
    "q4": {"quant": "q4"},
    "q4, calibrated": {"quant": "q4", "calibrate": "default"},
    "q3": {"quant": "q3"},
    "q3, calibrated": {"quant": "q3", "calibrate": "default"},
    "3.6 bits, calibrated": {"bits": 3.6, "calibrate": "default"},
    "4.36 bits": {"bits": 4.36},
    "4.36 bits, calibrated": {"bits": 4.36, "calibrate": "default"},
    "5.18 bits, calibrated": {"bits": 5.18, "calibrate": "default"},
}


def tensor_bytes(directory: Path) -> int:
    """Of a converted directory, without the file's header."""
    return sum(info.nbytes for info in read_header(directory / PARAMS_FILE).values())


def importance(subject: Subject, sequences: np.ndarray) -> dict[str, np.ndarray]:
    """Mean squares of the inputs of every matrix but embedding and head, by llama.cpp's names of its tensors."""
    plan = subject.plan(SCHEMES["f32"])
    weights = UnquantizedWeights(subject.source, plan)
    sources = {param.name: param.sources for param in plan.params}
    length, found = sequences.shape[1], {}
    with judging.layerwise_model(subject, length) as layerwise:
        x = embed(weights, sequences.astype(np.int64))
        for i, program in layerwise.layers():
            layerwise.set_layer(i, weights)
            squares: list[Any] = [0.0] * len(program.matrices())
            for at in range(0, len(x), length):
                tapes = program.inputs(x[at : at + length], length)
                squares = [old + np.square(tape).sum(0) for old, tape in zip(squares, tapes, strict=True)]
            for name, total in zip(program.matrices(), squares, strict=True):
                for source in sources[f"model.layers.{i}.{name}.weight"]:
                    found[gguf_q4.renamed(source)] = total / len(x)
            x = through(program, x, length, program.output)
    return found


def examination(llm: LLM, rows: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """(right, all) by family, greedy, all at once."""
    prompts = [
        llm.tokenizer.encode(
            llm.chat_template.render(
                [dict(m) for m in row["messages"][:-1]], tools=row.get("tools"), add_generation_prompt=True
            ),
            add_special_tokens=False,
        )
        for row in rows
    ]
    results = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS))
    answers = {id(row): parsed(result.outputs[0].text) for row, result in zip(rows, results, strict=True)}
    return exact_match(rows, lambda row: answers[id(row)])


class QualityBench:
    """One checkpoint, one text, and what the models that come by say about it."""

    def __init__(self, checkpoint: Path, tokens: int, data: Path | None) -> None:
        self.checkpoint, self.threads = checkpoint, len(os.sched_getaffinity(0))
        ids, prefix = EvaluationText.packaged().encode(checkpoint)
        self.ids, self.prefix = windows(ids, prefix, WINDOW, tokens), len(prefix)
        self.rows: list[dict[str, Any]] = []
        if data is not None:
            self.rows = [json.loads(line) for line in (data / "held_out.jsonl").read_text("utf-8").splitlines()]
        header = Checkpoint.open(checkpoint).tensors.values()
        self.parameters = sum(int(np.prod(info.shape)) for info in header)
        with self._llm(checkpoint, "f32") as llm:
            self.reference = [llm.logits(row.tolist()) for row in self.ids]
            self.unquantized = self.measure(lambda ids: llm.logits(ids), 0) | self._examined(llm)

    def measure(self, logits: Callable[[list[int]], np.ndarray], nbytes: int) -> dict[str, Any]:
        comparison = Comparison()
        for row, expected in zip(self.ids, self.reference, strict=True):
            rows, targets = positions(row[None], self.prefix)
            comparison.add(expected[rows], logits(row.tolist())[rows], targets)
        bits = {"bits_per_weight": 8 * nbytes / self.parameters} if nbytes else {}
        return {"tokens": comparison.tokens, **bits, **comparison.figures()}

    def ours(self, options: Mapping[str, Any]) -> dict[str, Any]:
        build = Build(str(self.checkpoint), **options)
        directory = build.weights()
        with self._llm(directory, None) as llm:
            return self.measure(llm.logits, tensor_bytes(directory)) | self._examined(llm)

    def theirs(self, file: Path) -> dict[str, Any]:
        with llama_quality.loaded(file, WINDOW, self.threads) as model:
            return self.measure(model.logits, llama_quality.tensor_bytes(file)) | {
                "types": llama_quality.kinds_of(file)
            }

    def _examined(self, llm: LLM) -> dict[str, Any]:
        if not self.rows:
            return {}
        counts = examination(llm, self.rows)
        right = sum(pair[0] for pair in counts.values())
        return {"right": right, "exact_match": right / len(self.rows), "families": counts}

    @contextmanager
    def _llm(self, model: Path, quant: str | None) -> Iterator[LLM]:
        yield LLM(model, quant=quant, kv_cache_memory="512MiB")
        gc.collect()


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| | bits per weight | perplexity | over unquantized | KL, nats | same top token | exact match |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in figures.items():
        bits = f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else ""
        match = f"{row['exact_match']:.1%} ({row['right']})" if "exact_match" in row else ""
        ratio = row["perplexity"] / row["perplexity_unquantized"]
        cells = [
            name,
            bits,
            f"{row['perplexity']:.2f}",
            f"{ratio:.3f}",
            f"{row['kl']:.4f}",
            f"{row['top1']:.1%}",
            match,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=embedded_model(), help="a llama-family checkpoint")
    parser.add_argument("--data", type=Path, help="of demo.data, for the examination")
    parser.add_argument("--tokens", type=int, default=20_000, help="of the evaluation text, at most")
    parser.add_argument("--only", nargs="*", help="these rows only")
    parser.add_argument("--json", type=Path, help="file to write, or to add rows to")
    arguments = parser.parse_args()
    bench = QualityBench(arguments.checkpoint, arguments.tokens, arguments.data)
    figures: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        figures = json.loads(arguments.json.read_text("utf-8"))["models"]

    def note(name: str, make: Callable[[], dict[str, Any]]) -> None:
        if arguments.only and name not in arguments.only:
            return
        figures[name] = make()
        print(name, json.dumps(figures[name]), flush=True)
        if arguments.json:
            whole = {
                "checkpoint": arguments.checkpoint.name,
                "text": EvaluationText.packaged().name,
                "window": WINDOW,
                "machine": platform.machine(),
                "models": figures,
            }
            arguments.json.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")

    def theirs(source: Path, out: Path, kind: str, matrix: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
        llama_quality.quantize(source, out, kind, bench.threads, matrix)
        return bench.theirs(out)

    note("unquantized", lambda: bench.unquantized)
    for name, options in OURS.items():
        note(name, partial(bench.ours, options))
    with TemporaryDirectory() as scratch:
        plain = Path(scratch) / "f16.gguf"
        gguf_q4.write(arguments.checkpoint, plain, Type.F16)
        subject = Build(str(arguments.checkpoint), quant="q4").subject
        weights = importance(subject, judging.chosen_sequences(subject))
        note("llama.cpp F16", lambda: bench.theirs(plain))
        for kind in llama_quality.FILE_TYPES:
            for suffix, matrix in (("", None), (", imatrix", weights)):
                file = Path(scratch) / f"{kind}{suffix}.gguf"
                note(f"llama.cpp {kind}{suffix}", partial(theirs, plain, file, kind, matrix))
    print(table(figures))


if __name__ == "__main__":
    main()
