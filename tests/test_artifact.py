"""The artifact cache: keys, landing, broken and half-made artifacts, and processes that want the same one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from llmserve import artifact
from llmserve.artifact import (
    MANIFEST,
    artifact_path,
    cache_key,
    cache_root,
    checkpoint_fingerprint,
    landed,
    landing,
    list_artifacts,
    obtain,
    source_hash,
)
from llmserve.errors import ArtifactError

CAUSES: dict[str, Any] = {"model": "org/Name-1B", "scheme": "q4f16_1", "platform": "cpu", "limits": {"context": 4096}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(path: Path) -> None:
    (path / "library").mkdir()
    (path / "library" / "lib.so").write_bytes(b"machine code")
    (path / "params").write_bytes(bytes(1000))


def visible(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if not entry.name.endswith(".lock")]


def test_the_root(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_root() == cache
    monkeypatch.delenv("LLMSERVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root() == Path("/xdg/llmserve")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "llmserve"


def test_keys_follow_the_causes() -> None:
    assert cache_key({"a": 1, "b": [1, 2]}) == cache_key({"b": (1, 2), "a": 1})
    assert len({cache_key(c) for c in ({}, {"a": 1}, {"a": "1"}, {"a": None}, {"a": {"b": 1}}, {"a": True})}) == 6
    with pytest.raises(ValueError):
        cache_key({"a": float("nan")})
    with pytest.raises(TypeError):
        cache_key({"a": object()})


def test_obtain_makes_once_and_names_the_causes(cache: Path) -> None:
    calls: list[Path] = []

    def counted(path: Path) -> None:
        calls.append(path)
        make(path)

    assert landed("compiled", CAUSES) is None
    path = obtain("compiled", CAUSES, counted)
    assert obtain("compiled", dict(reversed(CAUSES.items())), counted) == path == landed("compiled", CAUSES)
    assert len(calls) == 1 and visible(cache / "compiled") == [path]
    assert path.name.startswith("org-Name-1B-q4f16_1-cpu-")
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["causes"] == CAUSES and manifest["kind"] == "compiled"
    assert manifest["files"] == {"library/lib.so": 12, "params": 1000}
    assert abs(manifest["created"] - time.time()) < 60 and manifest["results"] == {}
    assert obtain("compiled", CAUSES | {"platform": "cuda"}, counted) != path and len(calls) == 2


@pytest.mark.parametrize("damage", ["truncated", "gone", "no manifest", "half a manifest", "other causes", "a file"])
def test_what_is_damaged_is_made_again(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = obtain("compiled", CAUSES, make)
    if damage == "truncated":
        (path / "params").write_bytes(bytes(999))
    elif damage == "gone":
        (path / "library" / "lib.so").unlink()
    elif damage == "no manifest":
        (path / MANIFEST).unlink()
    elif damage == "half a manifest":
        (path / MANIFEST).write_text((path / MANIFEST).read_text()[:50])
    elif damage == "other causes":
        (path / MANIFEST).write_text((path / MANIFEST).read_text().replace("4096", "8192"))
    else:
        path.rename(path.with_name("elsewhere"))
        path.touch()
    assert landed("compiled", CAUSES) is None
    assert "is not trusted and will be made again" in caplog.text
    assert obtain("compiled", CAUSES, make) == path == landed("compiled", CAUSES)
    assert (path / "params").stat().st_size == 1000


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bug")])
def test_a_failure_passes_through_and_leaves_nothing(cache: Path, error: BaseException) -> None:
    def fail(path: Path) -> None:
        make(path)
        raise error

    with pytest.raises(type(error)):
        obtain("compiled", CAUSES, fail)
    assert not visible(cache / "compiled") and not list_artifacts()


def test_a_full_disk_is_one_sentence(cache: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=r"could not be written \(No space left on device\); free some space"):
        obtain("compiled", CAUSES, full)
    assert not visible(cache / "compiled")


def test_a_cache_that_is_no_directory(cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(ArtifactError, match="could not be written"):
        obtain("compiled", CAUSES, make)


def test_the_dead_are_swept_and_the_living_are_not(cache: Path) -> None:
    dead = cache / "compiled" / f".other-123{artifact._TEMPORARY}abc"
    own = cache / "compiled" / f".{artifact_path('compiled', CAUSES).name}{artifact._TEMPORARY}abc"
    living = cache / "compiled" / f".busy-456{artifact._TEMPORARY}abc"
    for path in (dead, own, living):
        path.mkdir(parents=True)
        (path / "half").touch()
    with artifact._locked(cache / "compiled" / "busy-456"):
        obtain("compiled", CAUSES, make)
    assert not dead.exists() and not own.exists() and (living / "half").exists()


def test_landing_where_the_user_says(tmp_path: Path) -> None:
    place = tmp_path / "models" / "mine"
    for size in (5, 6):
        with landing(place, "compiled", CAUSES) as directory:
            assert not list(directory.iterdir())
            (directory / "params").write_bytes(bytes(size))
    assert (place / "params").stat().st_size == 6 and visible(place.parent) == [place]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for foreign in ("photos", "photos/cat.jpg"):
        with pytest.raises(ArtifactError, match="is no artifact of llmserve"), landing(tmp_path / foreign, "x", {}):
            pytest.fail("must not begin")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def _maker(log: Path) -> None:
    def slow(path: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        make(path)

    assert (obtain("compiled", CAUSES, slow) / "params").exists()


def test_what_was_found_out_is_kept_beside_the_causes(tmp_path: Path) -> None:
    def make_and_tell(path: Path) -> dict[str, Any]:
        make(path)
        return {"bits": 4.5}

    path = obtain("compiled", CAUSES, make_and_tell)
    found: dict[str, Any] = {}
    with landing(tmp_path / "place", "compiled", CAUSES, found) as directory:
        make(directory)
        found["bits"] = 3.5
    assert artifact.results_of(path) == {"bits": 4.5} and artifact.results_of(tmp_path / "place") == {"bits": 3.5}
    assert artifact.landed("compiled", CAUSES) == path
    assert [row.results for row in list_artifacts()] == [{"bits": 4.5}]
    assert artifact.results_of(tmp_path / "gone") == {}


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_maker, args=(tmp_path / "log",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len((tmp_path / "log").read_text().split()) == 1


def test_the_list() -> None:
    first = obtain("compiled", CAUSES, make)
    second = obtain("params", {"model": "m"}, make)
    (second / "params").unlink()
    rows = list_artifacts()
    assert [(row.kind, row.path, row.intact) for row in rows] == [("params", second, False), ("compiled", first, True)]
    assert (rows[1].model, rows[1].scheme, rows[1].platform) == ("org/Name-1B", "q4f16_1", "cpu")
    assert rows[0].scheme == "" and rows[1].size == 1012 + (first / MANIFEST).stat().st_size


def test_a_fingerprint_sees_every_change_but_no_tensor_data(tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}'
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    config.write_text("{}")

    def timeless() -> str:
        for path in tmp_path.iterdir():
            os.utime(path, ns=(0, 0))
        return checkpoint_fingerprint(tmp_path)

    seen = [timeless()]
    assert timeless() == seen[0]
    os.utime(file, ns=(0, 1))
    seen.append(checkpoint_fingerprint(tmp_path))
    config.write_text("[]")
    seen.append(timeless())
    file.write_bytes(file.read_bytes().replace(b'"a"', b'"b"'))
    seen.append(timeless())
    file.write_bytes(file.read_bytes() + b"d")
    seen.append(timeless())
    file.rename(tmp_path / "other.safetensors")
    seen.append(timeless())
    assert len(set(seen)) == len(seen)
    (tmp_path / "README.md").touch()
    assert timeless() == seen[-1]


def test_a_fingerprint_sees_all_parts_of_a_model_whichever_is_named(tmp_path: Path) -> None:
    parts = [tmp_path / f"m[1]-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    (tmp_path / "m[1]-00001-of-00003.gguf").write_bytes(b"of another model")
    before = checkpoint_fingerprint(parts[0])
    assert before == checkpoint_fingerprint(parts[1])
    parts[1].write_bytes(b"GGUF, changed")
    assert checkpoint_fingerprint(parts[0]) == checkpoint_fingerprint(parts[1]) != before


def test_the_source_hash() -> None:
    assert source_hash("errors.py") == source_hash("errors.py") != source_hash("errors.py", "quant/group.py")
    assert source_hash("quant", "weights") == source_hash("weights", "quant")
    with pytest.raises(ValueError, match="no part of"):
        source_hash("nonsense")
