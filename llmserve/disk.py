"""The disk's refusals (full, read-only, not ours) as one sentence each. Standard library only."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ArtifactError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


def require_space(path: Path, nbytes: int) -> None:
    """Raises ArtifactError when the file system of the existing directory `path` has no room for `nbytes` more."""
    free = shutil.disk_usage(path).free
    if free < nbytes:
        raise ArtifactError(
            f"{path} needs {nbytes / 1e6:,.0f} MB and its disk has {free / 1e6:,.0f} MB; free some space there, "
            "or point LLMSERVE_CACHE at a larger disk."
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write into an ArtifactError about `path`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ArtifactError(
                f"{path} could not be written ({error.strerror}); free some space there, "
                "or point LLMSERVE_CACHE at a larger disk."
            ) from error
        if error.errno in _REFUSED:
            raise ArtifactError(
                f"{error.filename or path} could not be written ({error.strerror}); "
                "point LLMSERVE_CACHE at a directory that is yours."
            ) from error
        raise
