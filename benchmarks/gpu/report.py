"""The results of run.py as a table for people, and as JSON. Standard library only."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]
_KERNELS_SHOWN = 8


def peaks(record: Record) -> tuple[float, float]:
    """The bandwidth in GB/s and the matmul rate in TFLOP/s that others are compared with: the best that was measured,
    by kernels of ours or PyTorch's. 0 where nothing was."""
    figures = {name: result["figures"] for name, result in record["results"].items() if result["ok"]}
    bandwidth = max(figures.get("speed bandwidth", {}).values(), default=0.0)
    rates = [
        row["tflops"]
        for name, found in figures.items()
        if name.startswith("speed timed_linear")
        for row in found.values()
        if isinstance(row, dict)
    ]
    return bandwidth, max([*rates, record["torch"].get("tflops", 0.0)], default=0.0)


def table(record: Record) -> str:
    return "\n".join(["", *_checks(record), "", *_capabilities(record), "", *_models(record)])


def _checks(record: Record) -> Iterator[str]:
    yield "| checked | right | wrong | left out | furthest off |"
    yield "|---|---|---|---|---|"
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, result in record["results"].items():
        kind, rest = name.split(" ", 1)
        if kind == "kernel":
            label = "kernel " + re.sub(r"_(float16|float32|int\d).*", "", rest)
        elif kind == "model":
            label = "models in " + rest.split()[-1]
        else:
            continue
        groups.setdefault(label, []).append((rest, result))
    for label, found in groups.items():
        counts = [sum(result["ok"] is word for _, result in found) for word in (True, False, None)]
        worst = max((_worst(result), name) for name, result in found)
        yield f"| {label} | {' | '.join(map(str, counts))} | {worst[0]:.2g} of what is allowed: {worst[1]} |"


def _worst(result: dict[str, Any]) -> float:
    figures = result["figures"]
    if "tolerance" in figures:
        return max(figures[way] for way in ("prefill", "decode", "chunks")) / figures["tolerance"]
    return float(figures.get("worst", 0.0))


def _capabilities(record: Record) -> Iterator[str]:
    bandwidth, rate = peaks(record)
    figures = {name: r["figures"] for name, r in record["results"].items() if r["ok"] and name.startswith("speed")}
    found = figures.pop("speed bandwidth", {})
    yield f"Memory: {', '.join(f'{name[:-4]} {_number(value)} GB/s' for name, value in found.items())}."
    torch = record["torch"]
    if torch:
        words = f"{_number(torch['tflops'])} TFLOP/s in float16" if "tflops" in torch else torch["missing"]
        yield f"PyTorch's matmul: {words}."
    yield ""
    yield "| matmul | rows | time, µs | weights, GB/s | of bandwidth | TFLOP/s | of the best |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in figures.items():
        label = name.removeprefix("speed timed_linear_").removesuffix("_plain").replace("_float16_", " ")
        for rows, row in ((k, v) for k, v in found.items() if isinstance(v, dict)):
            shares = f"{_share(row['gbs'], bandwidth)} | {_number(row['tflops'])} | {_share(row['tflops'], rate)}"
            yield f"| {label} | {rows} | {_number(row['us'])} | {_number(row['gbs'])} | {shares} |"


def _models(record: Record) -> Iterator[str]:
    bandwidth, rate = peaks(record)
    shapes = {name: r for name, r in record["results"].items() if name.startswith("shape") and r["ok"]}
    yield "| step | time, ms | tokens/s | GB/s | of bandwidth | TFLOP/s | of the best | kernels alone, ms |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, result in shapes.items():
        f = result["figures"]
        yield (
            f"| {name[6:]} | {_number(f['ms'])} | {_number(f['tokens_per_s'])} | {_number(f['gbs'])} "
            f"| {_share(f['gbs'], bandwidth)} | {_number(f['tflops'])} | {_share(f['tflops'], rate)} "
            f"| {_number(f['kernels_ms'])} |"
        )
    for name, result in shapes.items():
        yield ""
        yield f"| kernels of {name[6:]} | calls | ms | share | GB/s | TFLOP/s |"
        yield "|---|---|---|---|---|---|"
        for k in result["figures"]["kernels"][:_KERNELS_SHOWN]:
            shape = "x".join(map(str, k["shape"])) if "shape" in k else ""
            rates = " | ".join(_number(k[unit]) if unit in k else "" for unit in ("gbs", "tflops"))
            yield f"| {k['name']} {shape} | {k['calls']} | {_number(k['ms'])} | {k['share']:.0%} | {rates} |"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float, whole: float) -> str:
    return f"{value / whole:.0%}" if whole else ""


def write(record: Record, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    manifest, device = record["manifest"], record["device"]
    name = str(device.get("device_name") or device.get("name") or manifest["arch"])
    words = re.sub(r"[^a-z0-9]+", "-", f"{manifest['device']} {name}".lower()).strip("-")[:60]
    path = directory / f"{time.strftime('%Y-%m-%d')}-gpu-{words}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
