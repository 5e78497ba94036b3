"""Compilation for every platform: the shape of Llama-3-8B on a machine without a GPU, inspected by other tools.

    python -m benchmarks.platforms [--only cuda:sm_90:q4 …] [--table]

Each compilation is a process with a cache of its own, so that its time is a first start's; what it found is kept
in build/platforms until the table is written (by `--table`, or at the end of a run of all). That a library compiles and
that its machine code is well-formed says nothing about its results: those are the business of `make gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmserve import platforms, toolchain
from llmserve.errors import LLMServeError

from .gpu.prepare import LLAMA_8B

REPOSITORY = Path(__file__).parents[1]
KEPT = REPOSITORY / "build" / "platforms"
# Platform, family; of CPUs the best instruction set that this machine has.
TARGETS = (
    *(("cuda", "sm_80"), ("cuda", "sm_90")),
    *(("rocm", arch) for arch in ("gfx90a", "gfx942", "gfx1100", "gfx1201")),
    *(("metal", "apple"), ("webgpu", "f16"), ("cpu", "")),
)
QUANTS = ("q4", "q3")
Found = dict[str, Any]


def keys() -> list[str]:
    return [f"{platform}:{arch}:{quant}" for platform, arch in TARGETS for quant in QUANTS]


def compile_one(key: str) -> Found:
    """Compiles one library, and has it looked at. Whatever goes wrong is in "problem"."""
    platform, arch, quant = key.split(":")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["LLMSERVE_CACHE"] = directory
        found: Found = {"platform": platform, "arch": arch, "quant": quant, "problem": ""}
        try:
            return {**found, **_compiled(platform, arch, quant, Path(directory))}
        except LLMServeError as error:
            return {**found, "problem": str(error)}
        except Exception as error:
            # What a compiler throws is a finding too, and one platform's must not hide the others'.
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            return {**found, "problem": f"{type(error).__name__}: {lines[-1].strip()}"[:300]}


def _compiled(platform: str, arch: str, quant: str, directory: Path) -> Found:
    from llmserve.compile import build as building
    from llmserve.config import EngineConfig

    model = directory / "llama-3-8b-shape"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA_8B), encoding="utf-8")
    executables: list[Any] = []
    compile_module = building.compile_module

    def keeping(*arguments: Any) -> Any:
        executables.append(compile_module(*arguments))
        return executables[-1]

    building.compile_module = keeping  # for the kernels' source, which the library hides
    engine = EngineConfig(max_num_batched_tokens=2048, max_num_seqs=64)
    build = building.Build(str(model), quant=quant, device=platform, arch=arch or None, engine=engine)
    began = os.times()
    library = build.library()
    # Of processors, those of compilers that are called among them: it is the same on a machine that is busy otherwise.
    seconds = sum(after - before for after, before in zip(os.times()[:4], began[:4], strict=True))
    files = [file for file in library.iterdir() if file.name.startswith("model.")]
    look: dict[str, Callable[[Path, Any, Path], Found]] = {"cuda": cuda, "rocm": rocm, "metal": metal, "webgpu": webgpu}
    seen = look.get(platform, host)(files[0], executables[0], directory)
    return {
        "arch": arch or build.kernels.name.removeprefix("cpu-"),
        "seconds": round(seconds, 1),
        "bytes": sum(file.stat().st_size for file in files),
        "file": files[0].name,
        **seen,
    }


def cuda(library: Path, executable: Any, scratch: Path) -> Found:
    from tests.compile import binaries

    cubin = scratch / "kernels.cubin"
    cubin.write_bytes(binaries.embedded_elf(library.read_bytes(), binaries.CUDA))
    usage = _output(_nvidia("cuobjdump"), "-res-usage", str(cubin))
    found = re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assembly = _output(_nvidia("nvdisasm"), "-c", str(cubin))
    kernels = {
        name: {"registers": int(registers), "stack": int(stack), "shared": int(shared)}
        for name, registers, stack, shared, _ in found
    }
    # A register that is spilled is stored to local memory, and loaded from there again.
    spills = {name: len(re.findall(r"\b(?:STL|LDL)\b", body)) for name, body in _functions(assembly).items()}
    for name, facts in kernels.items():
        facts["spills"] = spills.get(name, 0)
    units = len(re.findall(r"\bHMMA|\bHGMMA", assembly))
    return {
        "kernels": len(kernels),
        "checked": f"cuobjdump and nvdisasm: {len(kernels)} kernels, {units} matrix instructions",
        "usage": kernels,
    }


def _functions(assembly: str) -> dict[str, str]:
    """nvdisasm's output, by function."""
    parts = re.split(r"\.section\s+\.text\.(\w+)", assembly)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rocm(library: Path, executable: Any, scratch: Path) -> Found:
    from tests.compile import binaries

    code = binaries.embedded_elf(library.read_bytes(), binaries.AMDGPU)
    notes = binaries.llvm("llvm-readelf", "--notes", data=code, tmp_path=scratch)
    [target] = set(re.findall(r"amdhsa\.target:\s+(\S+)", notes))
    waves = sorted(set(re.findall(r"\.wavefront_size:\s+(\d+)", notes)))
    kernels: dict[str, dict[str, int]] = {}
    names = ("vgpr_count", "sgpr_count", "vgpr_spill_count", "private_segment_fixed_size", "group_segment_fixed_size")
    # Keys are sorted by name within a kernel; the first of each is below.
    for part in re.split(r"^\s*-\s+\.(?:agpr_count|args):", notes, flags=re.MULTILINE)[1:]:
        if name := re.search(r"\.name:\s+(\w+_kernel\w*)\s*$", part, re.MULTILINE):
            values = {key: re.search(rf"\.{key}:\s+(\d+)", part) for key in names}
            facts = {key: int(value[1]) for key, value in values.items() if value}
            kernels[name[1]] = {
                "registers": facts.get("vgpr_count", 0),
                "stack": facts.get("private_segment_fixed_size", 0),
                "shared": facts.get("group_segment_fixed_size", 0),
                "spills": facts.get("vgpr_spill_count", 0),
            }
    return {
        "kernels": len(kernels),
        "checked": f"llvm-readelf: {target}, wavefronts of {' and '.join(waves)}",
        "usage": kernels,
    }


def metal(library: Path, executable: Any, scratch: Path) -> Found:
    from tests.compile import binaries

    blob = library.read_bytes() if library.suffix == ".so" else binaries.objects(library)["devc.o"]
    sources = binaries.metal_sources(blob)
    complaints = binaries.complaints_about_metal(sources, scratch).splitlines()
    if complaints:
        first = next((line for line in complaints if "error:" in line), complaints[0])
        raise LLMServeError(f"The Metal source is not right: {first.partition('error: ')[2] or first}")
    return {"kernels": len(sources), "checked": "a C++ compiler, with Metal's names from a shim: syntax and types"}


def webgpu(library: Path, executable: Any, scratch: Path) -> Found:
    from tests.compile import binaries

    kernels = dict(binaries.wgsl_kernels(_source(executable.mod)))
    if not kernels:
        raise LLMServeError("No shader was found in what was compiled.")
    binaries.make_pipelines(kernels)
    return {"kernels": len(kernels), "checked": "wgpu-native (naga): every shader validated, and a pipeline made of it"}


def _source(module: Any) -> str:
    """That of a module's kernels, wherever they are among what it imports."""
    own = str(module.inspect_source()) if module.kind == "webgpu" else ""
    return "\n".join([own, *map(_source, module.imports)])


def host(library: Path, executable: Any, scratch: Path) -> Found:
    """Of a CPU's library there is nothing to tell apart: kernels are functions beside others."""
    return {"kernels": None, "checked": "nothing: kernels for CPUs are run by the tests"}


def _nvidia(tool: str) -> str:
    """A tool of CUDA's: from the PATH, or from pip's package of it."""
    named = shutil.which(tool)
    found = [Path(named)] if named else list(Path(sys.prefix).rglob(f"site-packages/nvidia/*/bin/{tool}"))
    if not found:
        raise LLMServeError(f"Looking at machine code for CUDA needs {tool}; run: pip install nvidia-cuda-{tool}")
    return str(found[0])


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LLMServeError(f"{Path(command[0]).name} refused what was compiled: {done.stderr.strip()[:300]}")
    return done.stdout


def table(results: list[Found], machine: str) -> str:
    """Markdown."""
    lines = [
        "# What compiles",
        "",
        f"The shape of Llama-3-8B, 2048 tokens and 64 sequences a step, compiled on {machine};",
        "times are of processors.",
        "None of these libraries was run. Registers, stack (bytes) and spills (CUDA: instructions that move a",
        "register to memory or back; ROCm: vector registers): those of the worst kernel.",
        "",
        "| platform | family | weights | kernels | compile, s | size, MB | registers | stack | spills | checked by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for found in results:
        name = f"| {found['platform']} | {found['arch']} | {found['quant']} "
        if found["problem"]:
            lines.append(f"{name}| | | | | | | failed: {found['problem'].replace('|', '/')} |")
            continue
        usage = found.get("usage", {}).values()
        most = [str(max(u[key] for u in usage)) if usage else "" for key in ("registers", "stack", "spills")]
        kernels = "" if found["kernels"] is None else found["kernels"]
        sizes = f"{found['seconds']:.0f} | {found['bytes'] / 1e6:.2f}"
        lines.append(f"{name}| {kernels} | {sizes} | {' | '.join(most)} | {found['checked']} |")
    lines += [*_spilling(results), ""]
    return "\n".join(lines)


def _spilling(results: list[Found]) -> list[str]:
    """The kernels that do not get along with their registers."""
    rows = [
        f"| {' '.join(found[key] for key in ('platform', 'arch', 'quant'))} | {name} "
        f"| {u['registers']} | {u['stack']} | {u['spills']} |"
        for found in results
        for name, u in found.get("usage", {}).items()
        if u["stack"] or u["spills"]
    ]
    return (
        ["", "| library | kernel | registers | stack, bytes | spills |", "|---|---|---|---|---|", *rows] if rows else []
    )


def write(results: list[Found]) -> Path:
    directory, day = REPOSITORY / "benchmarks" / "results", time.strftime("%Y-%m-%d")
    machine = platforms.describe_host()
    path = directory / f"{day}-platforms.md"
    path.write_text(table(results, machine), encoding="utf-8")
    record = {"machine": machine, "tvm": toolchain.TVM_NEEDED, "results": results}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="PLATFORM:FAMILY:QUANT", choices=keys(), help="some of them")
    parser.add_argument("--table", action="store_true", help="write the table of what was compiled, and nothing else")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args()
    toolchain.without_torch()
    if options.here:
        print(json.dumps(compile_one(options.here)))
        return 0
    KEPT.mkdir(parents=True, exist_ok=True)
    for key in [] if options.table else options.only or keys():
        command = [sys.executable, "-m", "benchmarks.platforms", "--here", key]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            platform, arch, quant = key.split(":")
            words = (done.stderr.strip().splitlines() or ["no words"])[-1]
            problem = f"The process ended with {done.returncode}: {words}"
            found = {"platform": platform, "arch": arch, "quant": quant, "problem": problem}
        else:
            found = json.loads(lines[-1])
        (KEPT / f"{key.replace(':', '_')}.json").write_text(json.dumps(found), encoding="utf-8")
        words = found["problem"] or f"{found['seconds']} s, {found['bytes'] / 1e6:.2f} MB, {found['checked']}"
        print(f"{key}: {words}", flush=True)
    paths = [KEPT / f"{key.replace(':', '_')}.json" for key in keys()]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if options.table or not options.only:
        print(f"Written to {write(results)}.")
    return 1 if any(found["problem"] for found in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
