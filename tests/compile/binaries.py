"""Kernels as other programs see them: what was compiled for a GPU, looked at by LLVM's tools, wgpu-native and g++."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ..skips import package

SHIM = Path(__file__).with_name("msl")
# e_machine of an ELF header.
CUDA, AMDGPU, AARCH64 = 190, 224, 183


def objects(archive: Path) -> dict[str, bytes]:
    """The members of a tar file of objects: host code, and a blob with the kernels."""
    with tarfile.open(archive) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}  # type: ignore[union-attr]


def embedded_elf(blob: bytes, machine: int) -> bytes:
    """The ELF file for a machine that lies inside of another file, to the end of that."""
    for match in re.finditer(b"\x7fELF\x02", blob):
        if struct.unpack_from("<H", blob, match.start() + 18)[0] == machine:
            return blob[match.start() :]
    raise AssertionError(f"no ELF file for machine {machine} in {len(blob)} bytes")


def elf_flags(elf: bytes) -> int:
    """e_flags, where GPUs' compilers put the family."""
    return int(struct.unpack_from("<I", elf, 48)[0])


def abi_version(elf: bytes) -> int:
    return elf[8]


def llvm(tool: str, *arguments: str, data: bytes, tmp_path: Path) -> str:
    """What a tool of LLVM says of a file."""
    program = next(
        filter(None, (shutil.which(name) for name in (tool, *(f"{tool}-{n}" for n in range(22, 13, -1))))), None
    )
    if program is None:
        pytest.skip(f"machine code for GPUs: {tool} is not installed (apt install llvm)")
    file = tmp_path / "looked-at"
    file.write_bytes(data)
    return subprocess.run([program, *arguments, str(file)], capture_output=True, check=True, text=True).stdout


def metal_sources(blob: bytes) -> list[str]:
    """The source of each kernel, which the driver compiles by itself."""
    parts = re.split(rb"(?=#include <metal_stdlib>)", blob)[1:]
    return [part[: part.rindex(b"}\n") + 2].decode() for part in parts]


def complaints_about_metal(sources: list[str], tmp_path: Path) -> str:
    """What a C++ compiler says of Metal source, with the language's own names from the shim. Empty if all is well."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("Metal's source: no C++ compiler is installed (apt install g++)")
    include = "#include <metal_stdlib>\n"
    file = tmp_path / "kernels.cc"
    file.write_text(
        "".join(f"{include}namespace kernel{i} {{\n{s.removeprefix(include)}}}\n" for i, s in enumerate(sources)),
        encoding="utf-8",
    )
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wno-attributes", f"-I{SHIM}", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def wgsl_kernels(source: str) -> Iterator[tuple[str, str]]:
    """(entry point, source) of each kernel in the text of a webgpu module."""
    for part in source.split("// Function: ")[1:]:
        if match := re.search(r"^fn (\w+)\(", part, re.MULTILINE):
            yield match[1], part.partition("\n")[2]


def make_pipelines(kernels: Mapping[str, str]) -> None:
    """Has wgpu-native check kernels of WGSL, by entry point, and make a pipeline of each, on any adapter that has what
    they need."""
    wgpu: Any = package("wgpu", "WGSL")
    try:
        adapters = wgpu.gpu.enumerate_adapters_sync()
    except Exception as error:  # whatever a driver says: there is none that could be asked
        pytest.skip(f"WGSL: no WebGPU adapter, {error} (apt install mesa-vulkan-drivers)")
    needed = ["shader-f16"] if any("enable f16;" in text for text in kernels.values()) else []
    adapter = next((adapter for adapter in adapters if adapter.features.issuperset(needed)), None)
    if adapter is None:
        there = ", ".join(f"{a.info['device']} by {a.info['backend_type']}" for a in adapters) or "no adapter at all"
        feature = f" has {needed[0]}" if needed else ""
        pytest.skip(f"WGSL: no WebGPU adapter{feature}; there is {there} (apt install mesa-vulkan-drivers)")
    device = adapter.request_device_sync(required_features=needed)
    for name, text in kernels.items():
        module = device.create_shader_module(code=text)
        device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": name})
