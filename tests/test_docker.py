"""Containers, as far as tests need no Docker: the files name each other, and the image keeps its promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TARGETS = ("cpu", "cuda", "rocm")


def stage(name: str) -> str:
    found = re.search(rf"^FROM (\S+) AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[0]


@pytest.mark.parametrize("target", TARGETS)
def test_each_target(target: str) -> None:
    assert stage(target).startswith(f"FROM base AS {target}\n")
    assert stage(target).rstrip().endswith("USER 10001")  # not root, whatever came before
    assert "HEALTHCHECK" in stage("base") and "VOLUME /cache" in stage("base") and "--uid 10001" in stage("base")


@pytest.mark.parametrize("target", TARGETS)
def test_each_compose_file(target: str) -> None:
    text = (ROOT / "configs" / f"compose.{target}.yaml").read_text(encoding="utf-8")
    assert f"target: {target}\n" in text and f"image: llmserve:{target}\n" in text
    assert '"127.0.0.1:8000:8000"' in text and "cap_drop: [ALL]" in text and "- cache:/cache" in text


def test_the_extra_that_the_image_installs_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\[(\w+)\]\"", DOCKERFILE):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_the_health_check_is_a_program() -> None:
    """It asks the port and says no with an exit code where nobody listens."""
    command = re.search(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE)
    assert command
    # A port that nothing listens on, in place of the image's.
    done = subprocess.run([sys.executable, "-c", command[1].replace("8000", "9")], capture_output=True, text=True)
    assert done.returncode == 1 and "ConnectionRefusedError" in done.stderr
