"""A wrong TVM is named before any of it is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from llmserve.toolchain import TVM_NEEDED, tvm_version

PRETEND = """
import importlib.metadata, sys
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.99.0" if name == "apache-tvm-ffi" else real(name)
sys.argv = ["llmserve", "compile"]
from llmserve.cli import main
try:
    main()
finally:
    assert "tvm" not in sys.modules and "tvm_ffi" not in sys.modules
"""


def test_a_wrong_tvm_is_one_sentence_with_the_remedy():
    run = subprocess.run([sys.executable, "-c", PRETEND], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.strip() == (
        "llmserve: llmserve needs apache-tvm-ffi 0.1.14.post1 and found 0.99.0; "
        "run: pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1"
    )


def test_the_versions_are_those_of_the_package():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert dict(re.findall(r'"(apache-tvm(?:-ffi)?)==([^"]+)"', text)) == TVM_NEEDED
    assert tvm_version() == "apache-tvm 0.27.0.post1 apache-tvm-ffi 0.1.14.post1"
