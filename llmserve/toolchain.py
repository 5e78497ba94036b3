"""The TVM that llmserve is written for, and whether it is the one installed. Imports no TVM."""

from __future__ import annotations

import importlib.metadata
import sys
from functools import cache

from .errors import ConfigError

TVM_NEEDED = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}


@cache
def tvm_version() -> str:
    """Versions that a compiled library depends on.

    Raises ConfigError, naming what was found and what is needed, unless TVM is exactly the one we are written for:
    every minor release of it breaks its users.
    """
    for name, needed in TVM_NEEDED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "no installation"
        if found != needed:
            raise ConfigError(
                f"llmserve needs {name} {needed} and found {found}; run: pip install "
                + " ".join(f"{package}=={version}" for package, version in TVM_NEEDED.items())
            )
    return " ".join(f"{name} {version}" for name, version in TVM_NEEDED.items())


def without_torch() -> None:
    """Hides PyTorch from this process, unless it is loaded already.

    Nothing here uses it, but TVM imports it where it is installed: 2.5 s of every start and 200 MB, and a broken one
    would break TVM. For processes that are ours alone; the package itself hides nothing from a program that uses it.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # what the import system takes for "not there"
