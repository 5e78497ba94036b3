"""One runtime in a process of its own, so that its memory and its threads are its own; processes.py is the other end.

A line in, a line of JSON out; ends when its input does. Questions, numbers after a word:
  decode BATCH [CONTEXT [STEPS]], prefill TOKENS    tokens per second                     (llmserve, llama.cpp)
  logits TOKEN...                           after the last of them                (llmserve, llama.cpp)
  flash 0|1                                 flash attention from now on           (llama.cpp)
  weights                                   bytes that a decode step reads      (llmserve, llama.cpp)
  system                                    what it was compiled for              (llmserve, llama.cpp)
  kernels BATCH CONTEXT                     milliseconds of a step, by kernels    (llmserve)
  host BATCH TEMPERATURE                    see llmserve/bench/host_work.py       (host)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llmserve.toolchain import without_torch


class Ours:
    """llmserve's engine core, stepped by EngineBench."""

    def __init__(self, args: argparse.Namespace) -> None:
        from llmserve.bench.engine import EngineBench

        self._bench = EngineBench(args.model, quant=args.quant, threads=args.threads, long=args.long)
        self.ready_seconds = self._bench.ready_seconds

    def decode(self, *numbers: int) -> float:
        return self._bench.decode(*numbers).rate

    def prefill(self, tokens: int) -> float:
        return self._bench.prefill(tokens).rate

    def logits(self, *tokens: int) -> list[float]:
        return _rounded(self._bench.llm.logits(tokens)[-1])

    def weights(self) -> int:
        """All, but for a table of embeddings that is not the head as well."""
        from llmserve.weights.load import load_params

        sizes = {name: array.nbytes for name, array in load_params(self._bench.llm.compiled.params).items()}
        tied = not any(name.startswith("lm_head.") for name in sizes)
        return sum(size for name, size in sizes.items() if tied or ".embed_tokens." not in name)

    def system(self) -> str:
        compiled = self._bench.llm.compiled
        return f"{compiled.scheme} on {compiled.platform}"

    def kernels(self, batch: int, context: int) -> dict[str, float]:
        from cost import Trace

        kernels, step = Trace.of_decode(self._bench, batch, context).seconds()
        return {"step_ms": step * 1e3, "kernels_ms": sum(kernels) * 1e3}


class Theirs:
    """llama.cpp by its library."""

    def __init__(self, args: argparse.Namespace) -> None:
        from peer_llama import LlamaBench

        self._file = Path(args.model)
        self._bench = LlamaBench(self._file, args.threads)
        self.ready_seconds = self._bench.ready_seconds

    def decode(self, *numbers: int) -> float:
        return self._bench.decode(*numbers).rate

    def prefill(self, tokens: int) -> float:
        return self._bench.prefill(tokens).rate

    def logits(self, *tokens: int) -> list[float]:
        return _rounded(self._bench.logits(list(tokens)))

    def flash(self, on: int) -> bool:
        return self._bench.set_flash(on)

    def weights(self) -> int:
        from checkpoints import gguf_weight_bytes

        return gguf_weight_bytes(self._file)

    def system(self) -> str:
        return self._bench.system()


class Host:
    """llmserve's async engine; loads at each question, since the engine's thread is the model's."""

    ready_seconds = 0.0

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def host(self, batch: int, temperature: float) -> dict[str, float]:
        from llmserve.bench.host_work import measure

        args = self._args
        found = measure(args.model, batch, temperature=temperature, quant=args.quant, threads=args.threads)
        return {
            "host_percent": found.share * 100,
            "loop_percent": found.loop / found.step * 100,
            "step_ms": found.step * 1e3,
        }


def _rounded(row: Any) -> list[float]:
    return [round(float(x), 4) for x in row]


def main() -> None:
    without_torch()  # as `serve` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=["llmserve", "llama.cpp", "host"])
    parser.add_argument("--model", default=None, help="a checkpoint or GGUF file; without one, the package's own model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quant", default=None)
    parser.add_argument("--long", action="store_true", help="room for the long context")
    args = parser.parse_args()
    runtime: Any = {"llmserve": Ours, "llama.cpp": Theirs, "host": Host}[args.runtime](args)
    print(json.dumps(runtime.ready_seconds), flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        print(json.dumps(getattr(runtime, verb)(*map(json.loads, numbers))), flush=True)


if __name__ == "__main__":
    main()
