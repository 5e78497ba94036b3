"""Compiling plugins: what is missing is said in a sentence, what was made is kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llmserve import artifact, backends
from llmserve.backends import build
from llmserve.errors import ArtifactError, UnsupportedError

NOTHING = build.Needs("nothing 1")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plugin of C that compiles at once: the threads of the CPU's."""
    monkeypatch.setitem(build.BACKENDS, "tiny", build.Backend(("cpu_threads.c",), lambda: NOTHING))
    monkeypatch.setattr(build, "_FLAGS", ("-shared", "-fPIC", "-x", "c"))
    return "tiny"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"needs the package wgpu; run: pip install 'llmserve\[webgpu\]'"):
        build.wgpu_needs()


def test_without_a_compiler(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match=r"needs a C\+\+ compiler.*install g\+\+"):
        build.obtain("webgpu", NOTHING)
    assert not artifact.list_artifacts()


def test_what_the_compiler_says(tiny: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_FLAGS", ("-shared", "-no-such-flag"))
    with pytest.raises(ArtifactError, match=r"could not compile cpu_threads.c.*no-such-flag"):
        build.obtain(tiny, NOTHING)
    assert not artifact.list_artifacts()


def test_it_is_compiled_once_for_each_cause(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build.obtain(tiny, NOTHING)
    assert artifact.causes_of(library.parent, build.KIND)["needs"] == "nothing 1"
    other = build.obtain(tiny, build.Needs("nothing 2"))
    assert library.exists() and other.exists() and other != library
    monkeypatch.setattr(build, "compile_plugin", lambda *_: pytest.fail("it was compiled again"))
    assert build.obtain(tiny, NOTHING) == library


def test_devices_that_tvm_brings_need_nothing(own_cache: Path) -> None:
    backends.load("cpu")
    backends.load("metal")
    assert not artifact.list_artifacts()
