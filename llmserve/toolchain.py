"""Which TVM llmserve is written for, and whether it is the one that is installed. Imports no TVM, so it can say so."""

from __future__ import annotations

import importlib.metadata
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
