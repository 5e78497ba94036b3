"""llmserve and llama.cpp side by side: same checkpoint, same bits, same threads, same measurements, in turns.

Each runs in a process of its own, which is stopped (SIGSTOP) while another is measured. The checkpoint has random
weights of a real model's shape: speed and memory depend on the shape alone. Prints one table, and writes it with
versions, commands and the machine's other load to results/<date>-<machine>.md, and with all samples beside it as JSON.
Without llama-cpp-python it measures llmserve alone.
A sample counts only if nobody else used the machine meanwhile: a figure without such a sample is not given.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import checkpoints
from samples import QuietWait, Record, Sample
from sections import SECTIONS, Session
from table import Row, render

from llmserve.bench.host import load_average, provenance
from llmserve.bench.plan import STEPS

HERE = Path(__file__).parent


def peer_installed() -> bool:
    """With a word on how to get it where it is not."""
    if all(importlib.util.find_spec(module) for module in ("llama_cpp", "gguf")):
        return True
    print('llama-cpp-python or gguf is missing (pip install "llmserve[bench]"); measuring llmserve alone.')
    return False


def versions() -> dict[str, str]:
    """Of what takes part; what is not there is left out."""
    found = {"python": platform.python_version()}
    for package in ("apache-tvm", "numpy", "llama-cpp-python"):
        if any(d.metadata["Name"].lower().replace("_", "-") == package for d in importlib.metadata.distributions()):
            found[package] = importlib.metadata.version(package)
    for name, command in {
        "llmserve commit": ["git", "-C", str(HERE), "describe", "--always", "--dirty"],
        "c++": ["c++", "--version"],
    }.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        found[name] = done.stdout.splitlines()[0]
    return found


def disturbance(records: Sequence[Record]) -> dict[str, Any]:
    """The other load on the machine, as the samples saw it."""
    every = [sample for record in records for samples in record.values() for sample in samples]
    others = [sample.others for sample in every if sample.others is not None]
    return {
        "samples": len(every),
        "undisturbed": sum(sample.undisturbed for sample in every),
        "cores_used_by_others_mean": sum(others) / len(others) if others else None,
        "cores_used_by_others_max": max(others, default=None),
    }


def document(found: dict[str, Any], rows: Sequence[Row]) -> str:
    """The result for people: Markdown."""
    load = found["other load"]
    lines = [
        f"# {found['model']}: llmserve {found['quant']} beside llama.cpp Q4_0",
        "",
        f"{found['date']}, {found['machine']}, {found['threads']} threads each, "
        f"medians of {found['repetitions']} in turns.",
        "",
        render(rows),
        "",
        "Ratios above 1: llmserve is ahead.",
        "",
        f"Other load: load average {found['load_average_before']:.2f} before and {found['load_average_after']:.2f} "
        f"after; {load['undisturbed']} of {load['samples']} samples were undisturbed, and only those count; over all "
        f"of them others used {load['cores_used_by_others_mean'] or 0.0:.2f} cores on average.",
        "",
        "Versions and settings:",
        "",
        *(f"- {name}: {value}" for name, value in {**found["versions"], **found["notes"]}.items() if name != "servers"),
        "",
        "Commands:",
        "",
        f"    {found['command']}",
        *(f"    {command}" for command in found["commands"]),
        "",
    ]
    return "\n".join(lines)


def plain(sample: Sample) -> dict[str, Any]:
    return asdict(sample)


def stem(found: dict[str, Any], label: str, only: Sequence[str]) -> str:
    """<date>-<machine>, and what distinguishes this run from that of everything on the usual model."""
    machine = re.sub(r"[^a-z0-9]+", "-", found["machine"].split(",")[0].lower()).strip("-")
    parts = [time.strftime("%Y-%m-%d"), machine]
    if label != "random llama-1b":
        parts.append(re.sub(r"\W+", "-", label))
    return "-".join([*parts, *only])


def tell(line: str) -> None:
    """Progress, which is not the result."""
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a llama-family checkpoint instead of a random one")
    parser.add_argument("--shape", choices=list(checkpoints.SHAPES), default="llama-1b")
    parser.add_argument("--quant", default="q4", help="llmserve's scheme; llama.cpp always runs Q4_0")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=[], help="parts of the table to measure")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="for both; all cores if not given")
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait in all for a quiet machine")
    parser.add_argument("--output", type=Path, help="JSON file instead of results/<date>-<machine>.json, .md beside it")
    return parser.parse_args()


def _portable(command: str) -> str:
    """A command as it can be repeated elsewhere: below whoever's home."""
    return command.replace(f"{Path.home()}/", "~/")


def main() -> None:
    args = arguments()
    found, peer = provenance(args.threads), peer_installed()
    checkpoint = args.checkpoint or checkpoints.random_checkpoint(args.shape)
    label = checkpoint.name if args.checkpoint else f"random {args.shape}"
    rows: list[Row] = []
    began = time.perf_counter()
    with ExitStack() as stack:
        session = Session(
            checkpoint, args.quant, found["threads"], peer, args.repetitions, QuietWait(args.patience, tell), stack
        )
        for name in args.only or SECTIONS:
            rows += SECTIONS[name](session)
            tell(f"--- {name} after {time.perf_counter() - began:.0f} s")
    found |= {"model": label, "quant": args.quant, "decode_steps": STEPS, "repetitions": args.repetitions}
    found |= {"versions": versions(), "notes": session.notes, "commands": [_portable(c) for c in session.commands]}
    found |= {"command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]])}
    found |= {"load_average_after": load_average(), "seconds": time.perf_counter() - began}
    found["other load"] = disturbance(list(session.record.values()))
    text = document(found, rows)
    found["rows"] = [row.as_json() for row in rows]
    found["samples"] = {
        part: {name: [plain(sample) for sample in its] for name, its in record.items()}
        for part, record in session.record.items()
    }
    output = args.output or HERE / "results" / f"{stem(found, label, args.only)}.json"
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(f"Written to {output} and {output.with_suffix('.md').name}.")


if __name__ == "__main__":
    main()
