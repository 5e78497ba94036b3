"""The resolution of a model's name to a directory or GGUF file: a path is itself, `org/name[@revision]` is the Hub's.

Only what llmserve reads is downloaded: JSON, safetensors, MLC's shards, tokenizer files and chat templates. Without a
network the Hub's cache answers. read.py reads the files.
"""

from __future__ import annotations

import errno
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

# MLC's shards are plain arrays; other *.bin files are pickled.
ALLOWED = ["*.json", "*.safetensors", "params_shard_*.bin", "tokenizer.*", "*.jinja"]
# Not the copies in other formats that some repositories keep in subdirectories, where only templates are looked for.
IGNORED = ["*/*.json", "*/*.safetensors", "*/*.bin", "*/tokenizer.*", "consolidated*.safetensors"]
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def resolve(model: str, *, token: str | None = None, progress: bool = True) -> Path:
    """The checkpoint directory or GGUF file of `model`, downloaded where needed.

    Raises CheckpointError when there is no such directory or repository, when the repository is closed to this token,
    and when it is neither cached nor reachable.
    """
    path = Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise CheckpointError(
            f"{path} is a file, and a model is a checkpoint's directory, a *.gguf file or a Hub id like org/name."
        )
    match = _match(model)
    return _download(match["repo"], match["revision"], token, progress)


def config_only(model: str, *, token: str | None = None) -> tuple[dict[str, Any], int | None]:
    """(config.json of `org/name[@revision]`, bytes that `resolve` would download; None where the Hub does not say).

    Raises CheckpointError as `resolve` does, and when the repository has no config.json.
    """
    from huggingface_hub import hf_hub_download

    match = _match(model)
    repo, revision = match["repo"], match["revision"]
    try:
        file = Path(hf_hub_download(repo, "config.json", revision=revision, token=token))
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        if (answer := _final_error(error, repo, revision)) is None:
            answer = f"config.json of {repo} cannot be read as JSON: {error}."
        raise CheckpointError(answer) from error
    except Exception as error:
        answer = _final_error(error, repo, revision)
        if answer is None and not _is_network(error):
            raise
        raise CheckpointError(
            answer or f"config.json of {repo} is not in the Hub's cache, and cannot be had ({_first_line(error)})."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"config.json of {repo} must hold a JSON object, not {type(config).__name__}.")
    return config, _download_size(repo, revision, token)


def _download_size(repo: str, revision: str | None, token: str | None) -> int | None:
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(repo, revision=revision, files_metadata=True, token=token, timeout=10).siblings or []
    except Exception:  # a figure that nothing depends on
        return None
    wanted = [f.size for f in files if _is_wanted(f.rfilename)]
    return sum(size for size in wanted if size is not None) if wanted else None


def _is_wanted(file: str) -> bool:
    return any(fnmatch(file, p) for p in ALLOWED) and not any(fnmatch(file, p) for p in IGNORED)


def _match(model: str) -> re.Match[str]:
    match = _HUB_ID.fullmatch(model)
    if not match or model.startswith("."):
        raise CheckpointError(f"There is no such directory: {Path(model)}, and it is not a Hub id like org/name.")
    return match


def _download(repo: str, revision: str | None, token: str | None, progress: bool) -> Path:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "token": token}
    options |= {"allow_patterns": ALLOWED, "ignore_patterns": IGNORED}
    if not progress:
        options["tqdm_class"] = _silent()
    try:
        return Path(snapshot_download(repo, **options))
    except Exception as error:
        if (answer := _final_error(error, repo, revision)) is not None:
            raise CheckpointError(answer) from error
        if not _is_network(error):
            raise
        try:  # the network broke half-way: what is cached may be all that is needed
            return Path(snapshot_download(repo, **options, local_files_only=True))
        except Exception:
            raise CheckpointError(
                f"{repo} is not in the Hub's cache, and the Hub cannot be reached ({_first_line(error)})."
            ) from error


def _final_error(error: Exception, repo: str, revision: str | None) -> str | None:
    """The sentence for an error that no second attempt changes, else None."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms on huggingface.co, then set HF_TOKEN to a token of that account."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The Hub has no public model {repo}; if it is private, set HF_TOKEN to a token that may read it."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision}."
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repo} has no config.json: it is not a Hugging Face checkpoint."
    if isinstance(error, errors.HFValidationError):
        return f"There is no such directory: {repo}, and it is not a Hub id like org/name ({_first_line(error)})."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk of the Hub's cache is full; free some space, or set HF_HOME to a larger disk to download {repo}."
        )
    return None


def _is_network(error: Exception) -> bool:
    """Hub versions differ in their HTTP client; what they share is that its errors are OSErrors or carry its name."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore")


def _silent() -> type:
    from tqdm.auto import tqdm

    class Silent(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

    return Silent


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
