"""The line about what was not tested: from reasons to counts, in one process and in several."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from .skips import not_tested

TESTS = Path(__file__).parent
SAMPLE = """
import pytest
@pytest.mark.parametrize("i", range(3))
def test_page(i):
    pytest.skip("the page: Chromium is not installed (apt install chromium chromium-driver)")
@pytest.mark.skipif(True, reason="no such thing here")
def test_other(): ...
def test_passes(): ...
"""
FILE = """
from tests.skips import package
package("no_such_package", "clients", "make clients")
"""
LINE = (
    "Not tested: 3 tests of the page (apt install chromium chromium-driver); 1 file of clients (make clients); "
    "1 test of other things (no package would change that)."
)


@pytest.mark.parametrize("processes", [0, 2])
def test_the_line_of_a_run(tmp_path: Path, processes: int) -> None:
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    (tmp_path / "test_file.py").write_text(FILE)
    command = [sys.executable, "-m", "pytest", str(tmp_path), "-q", "-p", "tests.skips", "-p", "xdist.plugin"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the others take seconds to load
    done = subprocess.run(
        [*command, "-n", str(processes)], capture_output=True, text=True, cwd=TESTS.parent, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert LINE in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("reason", "command"),
    [
        ("compiling: it needs LLVM's linker (ld.lld); run: apt install lld", "apt install lld"),
        ("WebGPU: it needs the package; run: pip install 'llmserve[webgpu]'", "pip install 'llmserve[webgpu]'"),
        ("WebGPU: no driver (a software one: apt install mesa-vulkan-drivers).", "apt install mesa-vulkan-drivers"),
        ("cuda: needs A; run: pip install 'x[cuda]' It needs B; run: pip install 'x[cuda]'", "pip install 'x[cuda]'"),
        ("it: Arch has it (pacman -S lld)", "pacman -S lld"),
    ],
)
def test_commands_are_found_in_reasons(reason: str, command: str) -> None:
    report = SimpleNamespace(longrepr=("file.py", 1, f"Skipped: {reason}"))
    assert not_tested([report]) == f"Not tested: 1 test of {reason.partition(':')[0]} ({command})."


def test_nothing_is_said_of_nothing() -> None:
    assert not_tested([]) == ""


def test_missing_packages_are_named() -> None:
    """A bare `importorskip` would say neither what is not tested nor how to get the package."""
    for file in TESTS.rglob("*.py"):
        if file.name != "skips.py":
            calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
            bare = [call.lineno for call in calls if ast.unparse(call.func).endswith("importorskip")]
            assert not bare, f"{file}:{bare[0]} should call tests.skips.package"
