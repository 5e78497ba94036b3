"""Linking of compiled objects to a library: on this machine, for another kind of Linux, or left as objects for a Mac.

Host code is compiled by TVM for any machine, but linking takes that machine's linker and C library. Without them the
objects are kept in a tar file, which `complete` links on the machine that they are for.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .compiled import LIBRARY_FILE
from .host import link_host_code

OBJECTS_FILE = "model.tar"
_MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "macosx": "darwin", "macos": "darwin"}


def export(executable: Any, directory: Path, link: Callable[..., None], target: Mapping[str, Any]) -> str | None:
    """Write the library of a compiled model into a directory, or its objects where this machine cannot link them.

    `link` is what links for this machine (`host.linker`), `target` is TVM's. Returns a sentence about objects that have
    yet to be linked, else None. Raises ArtifactError without a C++ compiler.
    """
    triple = _triple(target)
    if triple is None or is_native(triple):
        executable.export_library(str(directory / LIBRARY_FILE), fcompile=link)
        return None
    if (compiler := cross_compiler(triple)) is not None:
        executable.export_library(str(directory / LIBRARY_FILE), cc=compiler)
        return None
    from tvm.support import tar

    executable.export_library(str(directory / OBJECTS_FILE), fcompile=tar.tar)
    return f"The library is left as objects, to be linked when it is first used on a machine of the kind {triple}."


def complete(directory: Path, target: Mapping[str, Any]) -> None:
    """Link the objects of a library that was compiled on another machine for this one, in place. Nothing happens to a
    linked library, nor on a machine of another kind.

    Raises ArtifactError where linking fails.
    """
    library, objects, triple = directory / LIBRARY_FILE, directory / OBJECTS_FILE, _triple(target)
    if library.exists() or not objects.exists() or not (triple is None or is_native(triple)):
        return
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        names = []
        with tarfile.open(objects) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix == ".o":  # flat, whatever the names say
                    names.append(str(Path(scratch) / Path(member.name).name))
                    Path(names[-1]).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
        made = Path(scratch) / LIBRARY_FILE
        try:
            link_host_code(str(made), names)
        except RuntimeError as error:
            raise ArtifactError(
                f"{objects} could not be linked on this machine; remove it, and the model is compiled anew "
                f"({' '.join(str(error).split())[:200]})."
            ) from error
        made.rename(library)


def _triple(target: Mapping[str, Any]) -> str | None:
    """The LLVM triple of host code; None where TVM is not told, which is this machine's."""
    host = target.get("host", target)
    return host.get("mtriple") if isinstance(host, Mapping) else None


def is_native(triple: str) -> bool:
    """Whether code for an LLVM triple such as "arm64-apple-macosx" runs on this machine."""
    return _kind(triple) == (_machine(platform.machine()), sys.platform)


def cross_compiler(triple: str) -> str | None:
    """The C++ compiler of another kind of Linux, called as Debian calls it (`aarch64-linux-gnu-g++`)."""
    machine, system = _kind(triple)
    return shutil.which(f"{machine}-linux-gnu-g++") if system == "linux" else None


def _kind(triple: str) -> tuple[str, str]:
    machine, *rest = triple.lower().split("-")
    words = "-".join(rest)
    return _machine(machine), next((kind for word, kind in _SYSTEMS.items() if word in words), words)


def _machine(name: str) -> str:
    return _MACHINES.get(name.lower(), name.lower())
