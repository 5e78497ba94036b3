"""The artifact cache: directories named by their causes, that land whole or not at all. Standard library only.

An artifact is <root>/<kind>/<label>-<key>/, with a manifest.json that says in words what it was made from, and what its
maker found out about it ("results"). It is made in a hidden sibling directory under a file lock and lands by one
rename, manifest last; so what a killed process leaves has a name nobody looks up, and the next maker removes it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import disk_errors
from .errors import ArtifactError

logger = logging.getLogger(__name__)

Causes = Mapping[str, Any]
"""JSON values by name. "model", "scheme" and "platform", where given, also label the directory and `llmserve list`."""
Results = Mapping[str, Any]
"""JSON values by name. They are no part of what an artifact is looked up by."""

MANIFEST = "manifest.json"
_LABELS = ("model", "scheme", "platform")
_TEMPORARY = ".llmserve-tmp-"


def cache_root() -> Path:
    """$LLMSERVE_CACHE, else $XDG_CACHE_HOME/llmserve, else ~/.cache/llmserve."""
    if own := os.environ.get("LLMSERVE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llmserve"


def cache_key(causes: Causes) -> str:
    """16 hex digits that change with any cause, whatever the order of the keys."""
    return hashlib.sha256(_canonical(causes).encode()).hexdigest()[:16]


def source_hash(*parts: str) -> str:
    """A hash over our own sources: parts of the package like "kernels" or "models/llama.py", all files below each."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for part in sorted(parts):
        path = package / part
        if not path.exists():
            raise ValueError(f"{part} is no part of {package}")
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
                digest.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def checkpoint_fingerprint(checkpoint: str | Path) -> str:
    """A hash of a checkpoint that does not read its weights: its settings, tensor headers, file sizes and times.

    A checkpoint is a directory, or a file, with the other parts of a GGUF model that lies in several.
    """
    digest, path = hashlib.sha256(), Path(checkpoint)
    settings = ("config.json", "quant*_config.json", "mlc-chat-config.json", "*-cache.json")
    patterns = ("*.safetensors", "params_shard_*.bin", *settings)
    if path.is_dir():
        files = {file for pattern in patterns for file in path.glob(pattern)}
    else:
        part = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
        others = path.parent.glob(f"{glob.escape(part[1])}-[0-9]*-of-{part[2]}.gguf") if part else ()
        files = {path, *others}
    for file in sorted(files):
        stat = file.stat()
        with file.open("rb") as opened:
            if file.suffix == ".safetensors":
                length = int.from_bytes(opened.read(8), "little")
            else:  # of files whose header has no length, its beginning
                length = stat.st_size if file.suffix == ".json" else 1 << 20
            head = opened.read(min(length, stat.st_size, 100_000_000))
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns} {len(head)}\n".encode() + head)
    return digest.hexdigest()[:16]


def artifact_path(kind: str, causes: Causes) -> Path:
    """The place of the artifact of these causes, whether it is there or not."""
    words = [re.sub(r"[^\w.]+", "-", str(causes[name])).strip("-.")[-60:] for name in _LABELS if causes.get(name)]
    return cache_root() / kind / "-".join([*words, cache_key(causes)])


def landed(kind: str, causes: Causes) -> Path | None:
    """The artifact's directory when it is there and intact; one that is not intact is told of and not trusted."""
    path = artifact_path(kind, causes)
    if not path.exists():
        return None
    if (doubt := _doubt(path, kind, causes)) is None:
        return path
    logger.warning("%s is not trusted and will be made again: %s", path, doubt)
    return None


def obtain(kind: str, causes: Causes, make: Callable[[Path], Results | None]) -> Path:
    """The artifact's directory, filled by `make(empty directory)` unless it has landed already.

    What `make` returns goes into the manifest.
    Of several processes that want the same artifact one makes it and the others wait for it. Whatever `make` raises
    passes through and leaves nothing behind; a full disk is an ArtifactError.
    """
    path = artifact_path(kind, causes)
    if _doubt(path, kind, causes) is None:
        return path
    with disk_errors(path), _locked(path):
        if not landed(kind, causes):
            results: dict[str, Any] = {}
            with _landing(path, kind, causes, results) as directory:
                results |= make(directory) or {}
    return path


@contextmanager
def landing(path: Path, kind: str, causes: Causes, results: Results | None = None) -> Iterator[Path]:
    """For a place of the user's choice: yields an empty directory that becomes `path` when the block ends well. What
    `results` holds by then goes into the manifest.

    An older artifact at `path` is replaced. Raises ArtifactError when anything else is there, or the disk refuses.
    """
    with disk_errors(path), _locked(path):
        if path.exists() and not (path / MANIFEST).exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ArtifactError(f"{path} exists and is no artifact of llmserve; name a new or an empty directory.")
        with _landing(path, kind, causes, {} if results is None else results) as directory:
            yield directory


@dataclass(frozen=True)
class ArtifactInfo:
    """A row of `llmserve list`. `created` is in seconds since 1970, `size` in bytes; `intact` as `landed` sees it."""

    kind: str
    model: str
    scheme: str
    platform: str
    size: int
    path: Path
    created: float
    intact: bool
    results: Results


def list_artifacts() -> list[ArtifactInfo]:
    """Everything in the cache, the broken too, newest first."""
    found = []
    for path in filter(Path.is_dir, cache_root().glob("*/[!.]*")):
        manifest = _manifest(path)
        causes = manifest.get("causes", {})
        labels = {name: str(causes.get(name) or "") for name in _LABELS}
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        created = manifest.get("created", path.stat().st_mtime)
        intact = _doubt(path, path.parent.name, causes) is None
        results = manifest.get("results", {})
        found.append(
            ArtifactInfo(
                path.parent.name, size=size, path=path, created=created, intact=intact, results=results, **labels
            )
        )
    return sorted(found, key=lambda info: -info.created)


@contextmanager
def _landing(path: Path, kind: str, causes: Causes, results: Results) -> Iterator[Path]:
    """The landing itself, under the lock of `path`, whatever is there now."""
    _sweep(path)
    directory = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{_TEMPORARY}"))
    old = directory.with_name(directory.name + "-old")
    try:
        directory.chmod(0o755)
        yield directory
        _write_manifest(directory, kind, causes, results)
        if path.exists():  # rename does not replace what is not empty; readers who have it open keep it
            path.rename(old)
        directory.rename(path)
        _sync(path.parent)
    finally:
        for left in (directory, old):
            shutil.rmtree(left, ignore_errors=True)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, or {} when it is not what `_write_manifest` writes."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        _canonical(manifest)
        types = {"causes": dict, "results": dict, "files": dict, "created": float}
        return dict(manifest) if all(isinstance(manifest[name], type_) for name, type_ in types.items()) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _doubt(path: Path, kind: str, causes: Causes) -> str | None:
    """Why the artifact is not to be trusted, if so."""
    manifest = _manifest(path)
    if not manifest:
        return f"it has no readable {MANIFEST}"
    if (manifest.get("kind"), _canonical(manifest["causes"])) != (kind, _canonical(causes)):
        return "its manifest names other causes"
    for name, size in manifest["files"].items():
        try:
            actual = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if actual != size:
            return f"{name} has {actual:,} bytes instead of {size:,}"
    return None


def _write_manifest(directory: Path, kind: str, causes: Causes, results: Results) -> None:
    """Puts every file on the disk, then the manifest that vouches for them."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    for file in files:
        _sync(file)
    sizes = {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}
    made = {"created": time.time(), "files": sizes}
    manifest = {"kind": kind, "causes": dict(causes), "results": dict(results), **made}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _sync(directory / MANIFEST)
    _sync(directory)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no directories
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Removes what the dead left beside `path`: the living hold the lock of their name, and we that of `path`."""
    for directory in path.parent.glob(f".*{_TEMPORARY}*"):
        owner = path.with_name(directory.name[1:].rsplit(_TEMPORARY, 1)[0])
        with _locked(owner, wait=False) as alone:
            if alone or owner == path:
                logger.info("removing %s, which an interrupted run left", directory)
                shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds the lock that belongs to `path`; without `wait`, yields False when another process holds it.

    The operating system drops the lock with its process. The empty lock files stay: removing one that another process
    has just opened would let two in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("a+b") as file:
        held = _try_lock(file.fileno())
        if wait and not held:
            logger.info("waiting for another process that is making %s", path)
            while not (held := _try_lock(file.fileno())):
                time.sleep(0.1)
        yield held


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise ArtifactError(
            f"The cache's file system has no file locks ({error.strerror}); point LLMSERVE_CACHE at a local disk."
        ) from error
    return True


def causes_of(path: Path, kind: str) -> dict[str, Any]:
    """The causes of an artifact at a place of the user's choice. Raises ArtifactError when it is not an intact one."""
    causes: dict[str, Any] = _manifest(path).get("causes", {})
    if (doubt := _doubt(path, kind, causes)) is not None:
        raise ArtifactError(f"{path} is not an intact {kind} directory of llmserve: {doubt}.")
    return causes


def results_of(path: Path) -> dict[str, Any]:
    """The results that the maker of the artifact at `path` noted."""
    return dict(_manifest(path).get("results", {}))


def identity(path: Path) -> str:
    """A hash of an artifact's manifest, which stands for its content where another artifact is made from it."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()[:16]
