"""The rocm plugin against a fake libamdhip64: what it asks HIP for, in which order, with which bytes.

No AMD card has run it. That the declarations are HIP's is checked against HIP's own header where that is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmserve import backends
from llmserve.backends import build

HERE = Path(__file__).parent
HEADERS = Path(backends.__file__).parent
Run = Callable[[str], tuple[Any, list[list[str]]]]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, build.COMPILERS)),
    reason="the plugin for HIP: it takes Linux and a C++ compiler (apt install g++)",
)


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Name of a function in hip_scripts → what it returned, and HIP's log as words."""
    folder = tmp_path_factory.mktemp("hip")
    build.compile_plugin(HERE / "fake_hip.cc", (HEADERS,), folder / "libamdhip64.so.7")
    build.obtain("rocm", build.BACKENDS["rocm"].needs())

    def start(name: str) -> tuple[Any, list[list[str]]]:
        log = folder / f"{name}.log"
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_HIP_LOG": str(log)}
        command = [sys.executable, "-m", "tests.backends.hip_scripts", name]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1], check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(done.stdout.splitlines()[-1]), [line.split() for line in lines]

    return start


def calls(log: list[list[str]], *names: str) -> list[list[str]]:
    return [words for words in log if words[0] in names]


def test_the_declarations_are_hips(tmp_path: Path) -> None:
    """Functions that were declared otherwise would not compile; numbers are compared."""
    if not Path("/usr/include/hip/hip_runtime_api.h").exists() and not Path("/opt/rocm/include/hip").exists():
        pytest.skip("HIP's declarations: its header is not installed (apt install libamdhip64-dev)")
    pairs = {
        "kOutOfMemory": "hipErrorOutOfMemory",
        "kDeinitialized": "hipErrorDeinitialized",
        **{f"k{name}": f"hipMemcpy{name}" for name in ("HostToDevice", "DeviceToHost", "DeviceToDevice")},
        "kCaptureGlobal": "hipStreamCaptureModeGlobal",
        **{
            f"k{name}": f"hipDeviceAttribute{name}"
            for name in (
                *("ClockRate", "L2CacheSize", "ComputeCapabilityMajor", "MaxBlockDimX", "MaxBlockDimY", "MaxBlockDimZ"),
                *("MaxThreadsPerBlock", "ComputeCapabilityMinor", "MultiprocessorCount", "MaxRegistersPerBlock"),
                *("MaxSharedMemoryPerBlock", "WarpSize"),
            )
        },
    }
    source = tmp_path / "check.cc"
    source.write_text(
        "#define __HIP_PLATFORM_AMD__ 1\n#include <hip/hip_runtime_api.h>\n"
        '#define LLMSERVE_HIP_OWN_HEADER_CAME_FIRST 1\n#include "hip_declarations.h"\n'
        + "".join(f"static_assert(llmserve::hip::{ours} == {theirs});\n" for ours, theirs in pairs.items())
        + "int main() { using namespace llmserve::hip;"
        " return kLaunchBufferPointer != HIP_LAUNCH_PARAM_BUFFER_POINTER ||"
        " kLaunchBufferSize != HIP_LAUNCH_PARAM_BUFFER_SIZE || kLaunchEnd != HIP_LAUNCH_PARAM_END; }\n"
    )
    declared = (HEADERS / "hip_declarations.h").read_text()
    assert all(f"constexpr int {name} " in declared for name in pairs)
    assert declared.count("constexpr int ") == len(pairs)
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    include = [f"-I{HEADERS}", "-I/opt/rocm/include"]
    subprocess.run([compiler, "-std=c++17", *include, str(source), "-o", str(tmp_path / "check")], check=True)
    subprocess.run([str(tmp_path / "check")], check=True)


def test_the_device_is_described(run: Run) -> None:
    got, _ = run("describe")
    assert got["exist"] == [True, True, False]
    assert (got["max_threads_per_block"], got["warp_size"], got["max_shared_memory_per_block"]) == (1056, 1087, 1074)
    assert (got["compute_version"], got["max_clock_rate"], got["multi_processor_count"]) == ("1023.1061", 1005, 1063)
    assert (got["device_name"], got["max_thread_dimensions"]) == ("Fake Radeon 1", [1026, 1027, 1028])
    assert (got["total_global_memory"], got["available_global_memory"], got["l2_cache_size_bytes"]) == (8, 7, 1019)
    info = got["info"]
    assert (info["name"], info["arch"], info["driver"], info["devices"]) == ("Fake Radeon 0", "gfx90a", "HIP 6.3", 2)


def test_a_compiled_library_runs_on_each_device(run: Run) -> None:
    results, log = run("compiled")
    assert results == [True, True, True]
    assert [words[1] for words in calls(log, "load")] == ["0", "1"]  # the code goes to each device once
    launches = calls(log, "launch")
    assert [words[1:3] for words in launches] == [[device, "scale_kernel"] for device in "010"]
    assert launches[0][3:11] == ["2", "1", "1", "64", "1", "1", "0", "0"]
    assert len(bytes.fromhex(launches[0][11])) == 24
    assert len(calls(log, "free")) == len(calls(log, "malloc"))


def test_arguments_and_launch(run: Run) -> None:
    _, log = run("packed")
    (launch,) = calls(log, "launch")
    assert launch[3:11] == ["2", "3", "4", "16", "8", "1", "4096", "0"]
    # C's own layout of these types: each at a multiple of its size, nothing behind the last.
    expected = struct.pack("@bPhfBd?iq", -2, 0, -3, 1.5, 200, -2.25, True, -4, 1 << 40)
    assert bytes.fromhex(launch[11]) == expected


def test_errors_name_what_was_done(run: Run) -> None:
    got, _ = run("errors")
    assert got == [
        "RuntimeError: Launching kernel some_kernel with 1 1 1 blocks of 2048 1 1 threads: "
        "HIP says invalid argument (1).",
        "TypeError: Kernel some_kernel takes 3 arguments and was given 2.",
        "TypeError: Argument 0 of kernel some_kernel must be a tensor.",
        "TypeError: Argument 0 of kernel half_kernel is a scalar of code 2 and 16 bits, which is not passed by value.",
        "RuntimeError: Looking for kernel absent_kernel: HIP says some error (500).",
        "RuntimeError: Loading kernels to Fake Radeon 0 (gfx90a): HIP says some error (200).",
        "ValueError: Kernel k wants to be launched with clusterIdx.x, which this device does not know.",
        "MemoryError: Allocating 2147483648 bytes: the GPU is out of memory.",
        "RuntimeError: Using rocm:5: HIP says some error (101).",
    ]


def test_streams_copies_and_timers(run: Run) -> None:
    (equal, seconds), log = run("streams")
    assert equal and seconds == pytest.approx(0.0015)
    kinds = [words[1:] for words in calls(log, "copy")]
    # In, within, and out: the first two in the stream that was set.
    assert kinds == [["1", "400", "1"], ["3", "400", "1"], ["2", "400", "0"]]
    assert calls(log, "peer") == [["peer", "0", "1", "400"]]
    (record,) = [words for words in calls(log, "record") if words[2] == "1"]
    assert calls(log, "wait") == [["wait", "0", record[1]]]


def test_a_graph_is_captured_once_and_launched(run: Run) -> None:
    results, log = run("graph")
    assert results == [True, True, True]
    assert len(calls(log, "capture")) == 1
    graphs = calls(log, "graph")
    assert len(graphs) == 2 and graphs[0] == graphs[1] and int(graphs[0][1]) >= 3


def test_without_rocm(cache: Path) -> None:
    code = """
from llmserve import backends, toolchain
toolchain.without_torch()
backends.load("rocm")
import tvm
print(tvm.device("rocm").exist)
print(backends.device_info("rocm"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False"
    assert "UnsupportedError: There is no libamdhip64.so; install ROCm" in done.stderr or "no AMD GPU" in done.stderr
