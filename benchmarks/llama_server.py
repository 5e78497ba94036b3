"""llama.cpp's own server, which is in no package: built from the source distribution of the llama-cpp-python that is
installed, so that the server and the library of one comparison are the same llama.cpp.

`python benchmarks/llama_server.py` (or `make llama-server`) builds, some minutes the first time, and prints where the
binary is. Needs cmake and a C++ compiler. An interrupted build goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from llmserve.artifact import cache_root
from llmserve.errors import LLMServeError

PACKAGE = "llama-cpp-python"
# As fast as it can be on this machine, and nothing that the benchmark does not use: no web page, no TLS, no downloads.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def version() -> str:
    """Of the installed llama-cpp-python. Raises LLMServeError where there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise LLMServeError(f'{PACKAGE} is not installed; run: pip install "llmserve[bench]"') from None


def directory() -> Path:
    """The build's directory, existing or not: one for each version and kind of CPU that it is compiled for."""
    return cache_root() / "llama-server" / f"{version()}-{_cpu()}"


def binary() -> Path | None:
    """The server, if it has been built."""
    found = directory() / "llama-server"
    return found if found.exists() else None


def build(jobs: int) -> Path:
    """The server's path; builds it if need be. Raises LLMServeError that says what is missing."""
    if (found := binary()) is not None:
        return found
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise LLMServeError(f"There is no {tool}, which llama-server is built with; install cmake and g++.")
    home = directory()
    home.mkdir(parents=True, exist_ok=True)
    source, made = _source(home), home / "build"
    if not (made / "CMakeCache.txt").exists():
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        _run("cmake", "-S", str(source), "-B", str(made), *generator, *(f"-D{k}={v}" for k, v in OPTIONS.items()))
    _run("cmake", "--build", str(made), "--target", "llama-server", "--parallel", str(jobs))
    landing = home / ".llama-server"
    shutil.copy2(made / "bin" / "llama-server", landing)
    return landing.rename(home / "llama-server")


def described() -> str:
    """The server's description of itself."""
    found = binary()
    assert found is not None, "build() comes first"
    done = subprocess.run([found, "--version"], capture_output=True, text=True)
    return " ".join((done.stdout + done.stderr).split())


def _source(home: Path) -> Path:
    """The llama.cpp in the source distribution, unpacked beside the build."""
    source = home / "llama.cpp"
    if source.exists():
        return source
    wanted = [f"{PACKAGE}=={version()}", "--no-deps", "--no-binary", PACKAGE, "--dest", str(home)]
    _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", *wanted)
    archive = next(home.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(home, filter="data")
    unpacked = archive.with_name(archive.name.removesuffix(".tar.gz"))
    (unpacked / "vendor" / "llama.cpp").rename(source)
    shutil.rmtree(unpacked)
    archive.unlink()
    return source


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=sys.stderr)
    if done.returncode:
        raise LLMServeError(f"{command[0]} failed with status {done.returncode}: {' '.join(command)}")


def _cpu() -> str:
    """Eight digits for what the compiler sees of this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    return hashlib.sha256(f"{os.uname().machine} {flags}".encode()).hexdigest()[:8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    try:
        print(build(parser.parse_args().jobs))
    except LLMServeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
