"""One runtime in a process of its own, so that its memory and its threads are its own; `peers.py` holds the other end.

A line in ("decode 4", "prefill 512", "logits 3 1 4", "memory", for llama.cpp "flash 1"), a line of JSON out. Ends when
its input does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llmserve.bench.host import memory_mib


def load(args: argparse.Namespace) -> Any:
    if args.runtime == "llmserve":
        from llmserve.bench.engine import EngineBench

        return EngineBench(args.model, quant=args.quant, threads=args.threads)
    from peer_llama import LlamaBench

    return LlamaBench(Path(args.model), args.threads)


def answer(bench: Any, verb: str, numbers: list[int]) -> Any:
    if verb in ("prefill", "decode"):
        return getattr(bench, verb)(*numbers).rate
    if verb == "flash":
        return bench.set_flash(*numbers)
    if verb == "logits":
        row = bench.logits(numbers) if hasattr(bench, "logits") else bench.llm.logits(numbers)[-1]
        return [round(float(x), 4) for x in row]
    return memory_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtime", choices=["llmserve", "llama.cpp"])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quant", default="q4")
    bench = load(parser.parse_args())
    print(json.dumps(bench.ready_seconds), flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        print(json.dumps(answer(bench, verb, [int(n) for n in numbers])), flush=True)


if __name__ == "__main__":
    main()
