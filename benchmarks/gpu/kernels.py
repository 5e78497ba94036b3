"""Compiles the cases of cases.py into libraries. The side with a compiler; needs no GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm
from tvm.tirx import PrimFunc

from llmserve.artifact import obtain, source_hash
from llmserve.compile.environment import environment
from llmserve.compile.host import kernel_set, link_host_code
from llmserve.compile.pipeline import build_context
from llmserve.kernels.base import AttentionShape, NormKind
from llmserve.kernels.gpu import attention, elementwise, linear, sampling
from llmserve.kernels.gpu.layout import WeightLayout
from llmserve.kernels.gpu.threads import grid, local, reduce, shared
from llmserve.kernels.tir import T, build, f32, put, sized, vec
from llmserve.platforms import Gpu, Platform
from llmserve.toolchain import tvm_version

from .cases import STREAM_WIDTH
from .oracles import SAMPLED, storage_of

Case = dict[str, Any]
TOGETHER = 16  # cases in a library
LIBRARY, CASES = "kernels.so", "cases.json"
_THREADS = 256


def _layout(case: Case) -> WeightLayout:
    return WeightLayout(case["n"], case["k"], storage_of(case["storage"]) or case["dtype"], case["dtype"])


def _linear(case: Case, gpu: Gpu) -> PrimFunc:
    """Writes the parameters into the case."""
    case["params"] = list(_layout(case).params.values())
    return linear.linear(case["name"], _layout(case), gpu, case["bias"], case["out"])


def _rows_of(case: Case, gpu: Gpu) -> PrimFunc:
    return linear.rows_of(case["name"], _layout(case), gpu, "float32")


def _norm(case: Case, gpu: Gpu) -> PrimFunc:
    kind = NormKind(1e-5, centred=case["centred"], bias=case["centred"])
    return elementwise.norm(case["name"], case["width"], kind, gpu, case["dtype"], case["x_dtype"], case["add"])


def _gated(case: Case, gpu: Gpu) -> PrimFunc:
    return elementwise.gated(case["name"], case["width"], case["activation"], case["dtype"])


def _cap_logits(case: Case, gpu: Gpu) -> PrimFunc:
    return elementwise.cap_logits(case["name"], case["width"], 0.25, 30.0)


def _take_rows(case: Case, gpu: Gpu) -> PrimFunc:
    return elementwise.take_rows(case["name"], (case["x_width"], case["width"]), case["dtype"])


def _sample(case: Case, gpu: Gpu) -> PrimFunc:
    """Writes the scratch of SAMPLED rows into the case."""
    case["scratch"] = sampling.scratch_shapes(SAMPLED, case["width"])
    return sampling.sample(case["name"], case["width"], gpu)


def _rope_append(case: Case, gpu: Gpu) -> PrimFunc:
    shape = AttentionShape(**case["shape"], page_dtype=case["dtype"])
    return attention.rope_append(case["name"], shape, gpu, case["dtype"], 1e-6 if case["norm"] else None)


def _paged_attention(case: Case, gpu: Gpu) -> PrimFunc:
    """Writes into the case what its arguments depend on."""
    shape = AttentionShape(**case["shape"], page_dtype=case["dtype"])
    case.update(tile=attention.query_tile(shape, gpu), parts=attention.PARTS)
    return attention.paged_attention(case["name"], shape, gpu, case["dtype"], 0.17)


def _stream_copy(case: Case, gpu: Gpu) -> PrimFunc:
    """x, y float32 [N, STREAM_WIDTH]: y = x, a row for each block, four values at a time for each thread."""

    def body() -> None:
        n = T.int64()
        x, y = (sized(name, (n, STREAM_WIDTH), "float32") for name in "xy")
        with grid(_THREADS, n) as (row, thread):
            for first in range(0, STREAM_WIDTH, 4 * _THREADS):
                at = first + thread * 4
                put(y, vec(x, row, at, lanes=4), row, at, lanes=4)

    return build(case["name"], body)


def _stream_read(case: Case, gpu: Gpu) -> PrimFunc:
    """x float32 [N, STREAM_WIDTH], sums float32 [N, 1]: of each row."""

    def body() -> None:
        n = T.int64()
        x, sums = sized("x", (n, STREAM_WIDTH), "float32"), sized("sums", (n, 1), "float32")
        with grid(_THREADS, n) as (row, thread):
            four, total, parts = local(4), local(1), shared(_THREADS)
            put(total, f32(0), 0)
            for first in range(0, STREAM_WIDTH, 4 * _THREADS):
                put(four, vec(x, row, first + thread * 4, lanes=4), 0, lanes=4)
                for i in range(4):
                    put(total, total[0] + four[i], 0)
            put(parts, total[0], thread)
            reduce(parts, _THREADS, thread, lambda a, b: a + b)
            with T.If(thread == 0), T.Then():
                put(sums, parts[0], row, 0)

    return build(case["name"], body)


BUILDERS: dict[str, Callable[[Case, Gpu], PrimFunc]] = {
    "linear": _linear,
    "rows_of": _rows_of,
    "norm": _norm,
    "gated": _gated,
    "cap_logits": _cap_logits,
    "take_rows": _take_rows,
    "sample": _sample,
    "rope_append": _rope_append,
    "paged_attention": _paged_attention,
    "stream_copy": _stream_copy,
    "stream_read": _stream_read,
}


def compiled_cases(cases: list[Case], platform: Platform, arch: str, directory: Path) -> list[Case]:
    """Libraries with a function for each case, in `directory`; returns the cases, with their library's name and what
    their check has to know. Libraries are kept in llmserve's cache, so that what was interrupted goes on."""
    _, target = kernel_set(platform, arch, "float16")
    done: list[Case] = []
    for index in range(0, len(cases), TOGETHER):
        some = cases[index : index + TOGETHER]
        causes = {
            "platform": platform.name,
            "target": dict(target),
            "cases": some,
            "tvm": tvm_version(),
            "sources": f"{source_hash('kernels', 'compile')} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}",
        }

        def make(made: Path, some: list[Case] = some) -> None:
            listed = [dict(case) for case in some]
            _compile(listed, platform, arch, made / LIBRARY)
            (made / CASES).write_text(json.dumps(listed), encoding="utf-8")

        made = obtain("gpu-cases", causes, make)
        name = f"kernels-{index // TOGETHER}.so"
        shutil.copyfile(made / LIBRARY, directory / name)
        done += [{**case, "library": name} for case in json.loads((made / CASES).read_text(encoding="utf-8"))]
    return done


def _compile(cases: list[Case], platform: Platform, arch: str, output: Path) -> None:
    environment(platform.name, arch)
    kernels, target = kernel_set(platform, arch, "float16")
    gpu: Gpu = kernels.gpu  # type: ignore[attr-defined]  # a GPU platform's set has it
    functions = {case["name"]: BUILDERS[case["kernel"]](case, gpu) for case in cases}
    with build_context():
        executable = tvm.compile(tvm.IRModule(functions), target=tvm.target.Target(dict(target)))
    executable.export_library(str(output), fcompile=link_host_code)
