"""The checks and measurements of this machine's GPU, by a folder of prepare.py: every kernel, whole models, speed.

    python3 benchmarks/gpu/run.py [--folder build/gpu/cuda-sm_90]

Standard library only; the work is done by worker.py in processes of its own, so that nothing that happens there ends
this one. Prints a table, writes JSON into $OUT or benchmarks/results, and ends with 1 if a check failed. Without a GPU
there is nothing to run, and that is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ITEM_SECONDS = 180.0  # after which an item is taken to hang


def folders(root: Path) -> list[Path]:
    """Prepared folders, the newest first."""
    found = root.glob("*/manifest.json")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def items(manifest: dict[str, Any]) -> dict[str, list[str]]:
    """The items to run, by the process that runs them, in order."""
    names: list[str] = [case["name"] for case in manifest["cases"]]
    timed = [name for name in names if name.startswith("timed_linear")]
    streams = [name for name in names if name.startswith("timed_stream")]
    return {
        "kernels": [f"kernel {name}" for name in names if name not in timed],
        "models": [f"model {model} {dtype}" for model in manifest["models"] for dtype in manifest["dtypes"]],
        "speed": [*(["speed bandwidth"] if streams else []), *(f"speed {name}" for name in timed)],
        **{
            f"shape {quant}": [f"shape {quant} {item}" for item in shape["items"]]
            for quant, shape in manifest["shapes"].items()
        },
    }


class Worker:
    """A process of worker.py and the lines it says."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        program = folder / "lib" / "benchmarks" / "gpu" / "worker.py"
        # What the environment says about Python's packages is meant for others.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.process = subprocess.Popen(
            [sys.executable, "-B", str(program), str(folder), json.dumps(names)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment,
            text=True,
            errors="replace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._words: list[str] = []
        self._readers = [
            threading.Thread(target=target, daemon=True) for target in (self._read_lines, self._read_words)
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)

    def _read_words(self) -> None:
        for line in self.process.stderr or ():
            self._words = [*self._words[-20:], line.strip()]

    def events(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Its events, until it ends, hangs or `deadline` (of time.monotonic) has passed; then it has ended."""
        reason = ""
        try:
            while True:
                left = min(ITEM_SECONDS, deadline - time.monotonic())
                try:
                    line = self._lines.get(timeout=max(left, 0.0))
                except queue.Empty:
                    reason = "time was up" if time.monotonic() >= deadline else f"no answer in {ITEM_SECONDS:.0f} s"
                    break
                if line is None:
                    break
                try:
                    yield json.loads(line)
                except ValueError:  # words of a driver's
                    continue
        finally:
            if reason:
                self.process.kill()
            code = self.process.wait()
            for reader in self._readers:
                reader.join(timeout=5)
        if reason or code not in (0, 1):
            words = next((word for word in reversed(self._words) if word), "")
            yield {"died": reason or f"the process ended with {code} ({words[:300]})"}
        elif code == 1 and self._words:
            yield {"words": self._words[-1][:300]}


def work(folder: Path, names: list[str], deadline: float) -> dict[str, dict[str, Any]]:
    """Each item's result; a process that dies takes one item with it, and another goes on with the rest."""
    results: dict[str, dict[str, Any]] = {}
    rest = list(names)
    while rest and time.monotonic() < deadline:
        began, before = None, len(results)
        for event in Worker(folder, rest).events(deadline):
            if "begin" in event:
                began = event["begin"]
            elif "end" in event:
                results[event["end"]] = {key: event[key] for key in ("ok", "detail", "figures")}
                say(event["end"], results[event["end"]])
                began = None
            elif "died" in event or "words" in event:
                reason = event.get("died") or event["words"]
                if began is None and len(results) == before:
                    began = rest[0]  # it did not get as far as to say what it does
                if began is not None and began not in results:
                    kept = None if reason == "time was up" else False
                    results[began] = {"ok": kept, "detail": reason, "figures": {}}
                    say(began, results[began])
            elif "missing" in event:
                return {name: {"ok": False, "detail": event["missing"], "figures": {}} for name in rest}
        rest = [name for name in rest if name not in results]
        if len(results) == before:
            break
    for name in rest:
        results[name] = {"ok": None, "detail": "not run: time was up", "figures": {}}
    return results


def say(name: str, result: dict[str, Any]) -> None:
    word = {True: "ok", False: "FAILED", None: "left out"}[result["ok"]]
    print(f"{word:8} {name}{': ' if result['detail'] else ''}{result['detail']}", flush=True)


def probe(folder: Path) -> dict[str, Any]:
    """The device in words ("device"), why there is none ("missing"), or why nobody knows ("problem")."""
    event: dict[str, Any] = {}
    for event in Worker(folder, []).events(time.monotonic() + 120):
        if "device" in event or "missing" in event:
            return event
    return {"problem": event.get("died") or event.get("words") or "the process that looked for it said nothing"}


def torch_rate(folder: Path, sizes: tuple[int, int, int]) -> dict[str, Any]:
    program = folder / "lib" / "benchmarks" / "gpu" / "torch_rate.py"
    command = [sys.executable, str(program), *map(str, sizes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ITEM_SECONDS, check=False)
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return {"missing": "PyTorch is not installed, or does not work"}
    return answer


def misfit(manifest: dict[str, Any], device: dict[str, Any]) -> str | None:
    """Why this GPU cannot run what the folder holds; None if it can."""
    found = device.get("compute_version")
    if manifest["device"] != "cuda" or not found:
        return None
    wanted = int(manifest["arch"].removeprefix("sm_"))
    major, minor = map(int, str(found).split(".")[:2])
    if major == wanted // 10 and minor >= wanted % 10:
        return None  # machine code runs on what is newer within a generation
    family = f"sm_{major}{minor}"
    return f"it is of the family {family}; prepare a folder for it: make gpu-prepare ARCH={family}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="what prepare.py made; the newest one otherwise")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which what is left is left out")
    parser.add_argument("--only", nargs="+", help="groups: kernels, models, speed, shape")
    options = parser.parse_args()
    root = HERE.parents[1] / "build" / "gpu"
    folder = options.folder or next(iter(folders(root)), None)
    if folder is None or not (folder / "manifest.json").exists():
        where = folder or root
        print(
            f"Nothing to run here: there is no prepared folder in {where}; make one with: make gpu-prepare ARCH=sm_90"
        )
        return 0
    folder = folder.resolve()
    sys.path.insert(0, str(folder / "lib"))
    from benchmarks.gpu import report

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 60 * options.minutes
    if (python := ".".join(map(str, sys.version_info[:2]))) not in manifest["pythons"]:
        print(f"This is Python {python}, and the folder is for {', '.join(manifest['pythons'])}; use one of those.")
        return 1
    found = probe(folder)
    if "missing" in found:
        print(f"Nothing to run here: {found['missing']}; the prepared folder is {folder}.")
        return 0
    if (reason := found.get("problem") or misfit(manifest, found["device"])) is not None:
        print(f"The GPU cannot be tried: {reason}")
        return 1
    print(f"{manifest['device']} {manifest['arch']}: {', '.join(f'{k} {v}' for k, v in found['device'].items())}")
    results: dict[str, dict[str, Any]] = {}
    for group, names in items(manifest).items():
        if options.only is None or group.split()[0] in options.only:
            results |= work(folder, names, deadline)
    shape = next((c for c in manifest["cases"] if c["name"].startswith("timed_linear_float")), None)
    wanted = shape is not None and manifest["device"] == "cuda" and (options.only is None or "speed" in options.only)
    torch = torch_rate(folder, (2048, shape["n"], shape["k"])) if shape and wanted else {}
    record = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "device": found["device"],
        "torch": torch,
        "results": results,
        "manifest": {key: manifest[key] for key in ("device", "arch", "small", "version", "made", "shapes")},
    }
    print(report.table(record))
    where = report.write(record, Path(os.environ.get("OUT") or HERE.parents[1] / "benchmarks" / "results"))
    print(f"Written to {where}.")
    failed = [name for name, result in results.items() if result["ok"] is False]
    print(f"{len(failed)} of {len(results)} checks and measurements failed{': ' if failed else '.'}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
