"""A kernel compiled for each kind of GPU on a machine that needs none, and looked at by other programs than TVM.

That it computes what it should is for machines with such a device; here: that it is compiled with the model and not at
the start of the server, for the family that was asked for, and that other tools take it for what it is.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm.support import tar

from llmserve.compile import tools
from llmserve.compile.environment import environment
from llmserve.compile.host import kernel_set
from llmserve.compile.linking import cross_compiler, export, is_native
from llmserve.compile.pipeline import build_context
from llmserve.errors import ArtifactError, LLMServeError, UnsupportedError
from llmserve.kernels.gpu.threads import barrier, grid, reduce, shared
from llmserve.kernels.tir import T, build, put, sized
from llmserve.platforms import PLATFORMS

from . import binaries

THREADS = 64
DTYPES = ("float32", "float16")


def softened(dtype: str) -> tvm.tirx.PrimFunc:
    """y = tanh(sqrt(Σ exp(x))) · exp(x) by rows: shared memory, barriers, and the functions that need a library."""
    name = f"softened_{dtype}"

    def body() -> None:
        rows = T.int64()
        x, y = sized("x", (rows, THREADS), dtype), sized("y", (rows, THREADS), dtype)
        with grid(THREADS, rows) as (row, thread):
            sums = shared(THREADS)
            put(sums, T.exp(T.Cast("float32", x[row, thread])), thread)
            reduce(sums, THREADS, thread, lambda a, b: a + b)
            barrier()
            put(y, T.Cast(dtype, T.tanh(T.sqrt(sums[0]))) * T.exp(x[row, thread]), row, thread)

    return build(name, body).with_attr("global_symbol", name)


def compiled(platform_name: str, arch: str, host: dict[str, str] | None = None) -> tuple[Any, dict[str, Any]]:
    """(executable, target) of both kernels. Skips where the tools are missing, which is `require`'s to say."""
    try:
        environment(platform_name, arch)
    except LLMServeError as error:
        pytest.skip(f"compiling for {platform_name}: {error}")
    target = {**kernel_set(PLATFORMS[platform_name], arch, "float16")[1], **({"host": host} if host else {})}
    functions = [softened(dtype) for dtype in DTYPES]
    module = tvm.IRModule({str(f.attrs["global_symbol"]): f for f in functions})
    with build_context():
        return tvm.compile(module, target=tvm.target.Target(target)), target


def exported(executable: Any, tmp_path: Path) -> dict[str, bytes]:
    archive = tmp_path / "kernels.tar"
    executable.export_library(str(archive), fcompile=tar.tar)
    return binaries.objects(archive)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_cuda(arch: str, tmp_path: Path) -> None:
    cubin = binaries.embedded_elf(exported(compiled("cuda", arch)[0], tmp_path)["devc.o"], binaries.CUDA)
    # Byte 1 of the flags is the family since CUDA 13, byte 0 before.
    assert int(tools.family(arch)) in (binaries.elf_flags(cubin) >> 8 & 0xFF, binaries.elf_flags(cubin) & 0xFF)
    symbols = binaries.llvm("llvm-readelf", "--symbols", "--wide", data=cubin, tmp_path=tmp_path)
    assert all(f"softened_{dtype}_kernel" in symbols for dtype in DTYPES)


@pytest.mark.parametrize(
    # The numbers are EF_AMDGPU_MACH_AMDGCN_…, of LLVM's "User Guide for AMDGPU Backend".
    ("arch", "machine", "wave"),
    [("gfx90a", 0x3F, 64), ("gfx942", 0x4C, 64), ("gfx1030", 0x36, 32), ("gfx1100", 0x41, 32), ("gfx1201", 0x4E, 32)],
)
def test_rocm(arch: str, machine: int, wave: int, tmp_path: Path) -> None:
    code = binaries.embedded_elf(exported(compiled("rocm", arch)[0], tmp_path)["devc.o"], binaries.AMDGPU)
    assert binaries.elf_flags(code) & 0xFF == machine
    assert binaries.abi_version(code) == 2  # ELFABIVERSION_AMDGPU_HSA_V4
    notes = binaries.llvm("llvm-readelf", "--notes", data=code, tmp_path=tmp_path)
    assert notes.count(f".wavefront_size: {wave}") == len(DTYPES) == notes.count(".wavefront_size:")
    assert f"-{arch}\n" in notes
    # No kernel of ours has more threads: what TVM tells LLVM without a device to ask.
    assert notes.count(".max_flat_workgroup_size: 256") == len(DTYPES)
    assert PLATFORMS["rocm"].gpu(arch).threads == 256
    # Nothing is left to be found when it is loaded: no device library is linked in, and none is missed.
    symbols = binaries.llvm("llvm-readelf", "--symbols", "--wide", data=code, tmp_path=tmp_path)
    undefined = [line for line in symbols.splitlines() if " UND " in line and line.split()[-1] != "UND"]
    assert not undefined


def test_metal(tmp_path: Path) -> None:
    executable, target = compiled("metal", "apple")
    note = export(executable, tmp_path, lambda *args: pytest.fail("linked for this machine"), target)
    if is_native(target["host"]["mtriple"]):
        pytest.skip("on a Mac the library is linked")
    assert note is not None and "arm64-apple-macosx" in note
    files = binaries.objects(tmp_path / "model.tar")
    assert all(
        data[:4] == b"\xcf\xfa\xed\xfe" and data[4:8] == b"\x0c\0\0\1" for data in files.values()
    )  # arm64 Mach-O
    sources = binaries.metal_sources(files["devc.o"])
    assert len(sources) == len(DTYPES)
    assert binaries.complaints_about_metal(sources, tmp_path) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        ("threadgroup_barrier(mem_flags::", "threadgroup_barrier(flags::", "flags"),
        ("device half*", "device halve*", "halve"),
        ("exp(", "expm(", "expm"),
        ("[64];", "[64]", "expected"),
    ],
)
def test_metal_that_is_wrong_is_noticed(right: str, wrong: str, complaint: str, tmp_path: Path) -> None:
    files = exported(compiled("metal", "apple")[0], tmp_path)
    sources = binaries.metal_sources(files["devc.o"])
    assert any(right in source for source in sources)
    assert complaint in binaries.complaints_about_metal([s.replace(right, wrong) for s in sources], tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_webgpu(dtype: str) -> None:
    """Each by itself, as float16 takes a driver that has it."""
    executable, _ = compiled("webgpu", "f16")
    kernels = dict(binaries.wgsl_kernels(executable.mod.imports[0].inspect_source()))
    assert set(kernels) == {f"softened_{dtype}_kernel" for dtype in DTYPES}
    name = f"softened_{dtype}_kernel"
    assert ("enable f16;" in kernels[name]) == (dtype == "float16")
    binaries.make_pipelines({name: kernels[name]})


def test_another_kind_of_linux(tmp_path: Path) -> None:
    """Linked where there is a cross compiler, else left as objects for that machine."""
    other, machine = ("aarch64", binaries.AARCH64) if platform.machine() == "x86_64" else ("x86_64", 62)
    triple = f"{other}-unknown-linux-gnu"
    executable, target = compiled("webgpu", "f16", {"kind": "llvm", "mtriple": triple})
    note = export(executable, tmp_path, lambda *args: pytest.fail("linked for this machine"), target)
    if cross_compiler(triple):
        assert note is None and (tmp_path / "model.so").exists()
        return
    assert note is not None and triple in note
    code = binaries.objects(tmp_path / "model.tar")["lib0.o"]
    assert binaries.embedded_elf(code, machine) == code


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is another sentence")
@pytest.mark.parametrize(
    ("platform_name", "hidden", "sentence"),
    [
        ("rocm", "llvm_linker", r"Compiling for rocm needs LLVM's linker \(ld\.lld\); run: \w+ .*lld"),
        (
            "cuda",
            "cuda_compiler",
            r"Compiling for cuda needs nvcc or NVRTC .* \(for sm_90\); run: pip install 'llmserve\[cuda\]'",
        ),
    ],
)
def test_a_missing_tool_is_a_sentence(
    platform_name: str, hidden: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, hidden, lambda *args: None)
    with pytest.raises(ArtifactError, match=sentence):
        environment(platform_name, "sm_90" if platform_name == "cuda" else "gfx1100")


def test_nvcc_that_does_not_know_a_family_is_passed_over() -> None:
    if tools.cuda_compiler(None) is None:
        pytest.skip("compiling for cuda: no compiler for it is installed (pip install 'llmserve[cuda]')")
    compiler = tools.cuda_compiler("sm_30")
    assert compiler is None or compiler.mode == "nvrtc"


def test_gpus_of_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="needs Linux, and this is Darwin"):
        tools.require("cuda", "sm_90", tools.Machine(system="Darwin"))
