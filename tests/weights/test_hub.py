"""Resolving a model's name, with the Hub's client replaced: no test needs a network."""

from __future__ import annotations

import errno
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from llmserve.errors import CheckpointError
from llmserve.weights import hub


class Hub:
    """Stands in for `snapshot_download`: each call takes the next answer, a path or an exception."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self)

    def __call__(self, repo: str, **options: Any) -> str:
        self.calls.append((repo, options))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)


def http_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.args = ("401 Client Error.\n\nLong story.",)
    return error


class ConnectError(Exception):
    """Named and placed like the HTTP client's own, which is no OSError."""

    __module__ = "httpx"


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    called = Hub(monkeypatch)
    assert hub.resolve("org/name") == Path("org/name")
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert not called.calls


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Hub(monkeypatch, tmp_path, tmp_path)
    assert hub.resolve("org/name", token="t") == tmp_path
    assert hub.resolve("org/Na-me_1.5@refs/pr/3", progress=False) == tmp_path
    (repo, options), (_, pinned) = called.calls
    assert (repo, options["revision"], options["token"]) == ("org/name", None, "t")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(fnmatch(file, x) for x in options["allow_patterns"] for file in ("pytorch_model.bin", "model.pt"))
    wanted = ("config.json", "tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja")
    unwanted = ("original/params.json", "onnx/tokenizer.json", "consolidated.safetensors", "gguf/model.safetensors")
    for file in (*wanted, *unwanted):
        allowed, ignored = (any(fnmatch(file, x) for x in options[f"{k}_patterns"]) for k in ("allow", "ignore"))
        assert (allowed and not ignored) == (file in wanted), file
    assert pinned["revision"] == "refs/pr/3"
    assert list(pinned["tqdm_class"](range(3))) == [0, 1, 2]


@pytest.mark.parametrize("model", ["nowhere", "./org/name", "/no/such/place", "a/b/c", "org/name@", "~/none/x/y"])
def test_neither_a_directory_nor_a_hub_id(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no such directory.*not a Hub id"):
        hub.resolve(model)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        hub.resolve(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.gguf").touch()
    assert hub.resolve(str(tmp_path / "model.gguf")) == tmp_path / "model.gguf"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(errors.GatedRepoError), "org/name is gated.*HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError), "no public model org/name.*HF_TOKEN"),
        (http_error(errors.RevisionNotFoundError), "org/name has no revision v9"),
        (errors.HFValidationError("Repo id must not end so"), "not a Hub id"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk of the Hub's cache is full"),
    ],
)
def test_answers_that_are_final(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    called = Hub(monkeypatch, error)
    with pytest.raises(CheckpointError, match=words) as caught:
        hub.resolve("org/name@v9")
    assert "\n" not in str(caught.value) and len(called.calls) == 1


@pytest.mark.parametrize("error", [ConnectError("refused"), errors.OfflineModeIsEnabled("offline"), TimeoutError()])
def test_without_a_network_the_cache_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    called = Hub(monkeypatch, error, tmp_path)
    assert hub.resolve("org/name") == tmp_path
    assert called.calls[1][1]["local_files_only"] is True

    Hub(monkeypatch, error, errors.LocalEntryNotFoundError("nothing cached"))
    with pytest.raises(CheckpointError, match=r"org/name is not in the Hub's cache, and the Hub cannot be reached \("):
        hub.resolve("org/name")


class Answers(Hub):
    """Stands in for `hf_hub_download`, and says nothing of sizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        super().__init__(monkeypatch, *answers)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **options: self(repo, **options))
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.info)
        self.files: list[Any] = []

    def info(self, repo: str, **options: Any) -> Any:
        if not self.files:
            raise ConnectError("unreachable")
        return SimpleNamespace(siblings=self.files)


def test_only_the_config_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama"}', encoding="utf-8")
    answers = Answers(monkeypatch, file, file)
    assert hub.config_only("org/name@v1") == ({"model_type": "llama"}, None)
    assert answers.calls == [("org/name", {"revision": "v1", "token": None})]
    sizes = {"model.safetensors": 100, "config.json": 7, "pytorch_model.bin": 90, "onnx/model.json": 5}
    answers.files = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    assert hub.config_only("org/name")[1] == 107


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http_error(errors.RepositoryNotFoundError), "no public model org/name"),
        (http_error(errors.GatedRepoError), "org/name is gated"),
        (http_error(errors.RemoteEntryNotFoundError), "org/name has no config.json"),
        (errors.LocalEntryNotFoundError("nothing cached"), "not in the Hub's cache, and cannot be had"),
        (ConnectError("no route"), r"cannot be had \(no route\)"),
    ],
)
def test_a_config_that_cannot_be_had(answer: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch, answer)
    with pytest.raises(CheckpointError, match=words):
        hub.config_only("org/name")


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read as JSON"), ("[]", "must hold a JSON object")])
def test_a_config_that_is_none(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    Answers(monkeypatch, tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=words):
        hub.config_only("org/name")


def test_a_bug_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, AssertionError("ours"))
    with pytest.raises(AssertionError):
        hub.resolve("org/name")


def test_the_real_client_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not in the Hub's cache"):
        hub.resolve("org/name", progress=False)
