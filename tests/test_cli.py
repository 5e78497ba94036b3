"""The command line from outside: what each verb says, and that a user's mistake is one sentence and exit code 1."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from llmserve import __version__, cli
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint
from llmserve.config import Config, load_toml
from llmserve.models.base import families

TINY = TINY_LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
CONFIGS = Path(__file__).parents[1] / "configs"
MODULE = [sys.executable, "-m", "llmserve"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cli_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cli_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_CACHE", str(cli_cache))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", TINY)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`llmserve` in this process: exit code, standard output, standard error."""

    def call(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmserve", *map(str, args)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return call


def refusal(result: tuple[int, str, str]) -> str:
    """The sentence of a refused command; what stands before it on standard error is progress, and short."""
    code, out, err = result
    assert code == 1 and not out, result
    assert "Traceback" not in err
    *progress, sentence = err.strip().splitlines()
    assert all("%" in line for line in progress), err
    assert sentence.startswith("llmserve: ") and sentence.endswith((".", "?")), sentence
    return sentence


def damaged(model: Path, tmp_path: Path, file: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the checkpoint, under the same name, with one file changed."""
    path = shutil.copytree(model, tmp_path / "model")
    (path / file).write_bytes(change((path / file).read_bytes()))
    return path


def with_keys(**keys: Any) -> Callable[[bytes], bytes]:
    return lambda old: json.dumps(json.loads(old) | keys).encode()


# --- what it says of itself


def verbs() -> list[list[str]]:
    group = typer.main.get_command(cli.app)
    found: list[list[str]] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        found += [[name], *([name, sub] for sub in getattr(command, "commands", {}))]
    return found


@pytest.mark.parametrize("verb", [[], *verbs()], ids=lambda verb: " ".join(verb) or "none")
def test_every_verb_explains_itself(verb: list[str]) -> None:
    for option in ("--help", "-h"):
        result = CliRunner().invoke(cli.app, [*verb, option], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert result.exit_code == 0 and "Usage:" in result.output
        assert not verb or len(result.output.splitlines()) > 4


def test_the_verbs() -> None:
    assert {"serve", "chat", "convert", "compile", "list", "bench"} <= {verb[0] for verb in verbs()}


def test_the_version() -> None:
    done = subprocess.run([*MODULE, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"llmserve {__version__}\n"


@pytest.mark.parametrize("args", [["bogus"], ["compile", "--bogus"], ["convert", "x"], ["serve", "--port", "eighty"]])
def test_unknown_words_get_the_usage(run: Run, args: list[str]) -> None:
    code, out, err = run(*args)
    assert code == 2 and not out and "Usage:" in err and "Traceback" not in err


# --- mistakes


def test_in_a_process_of_its_own_too(tmp_path: Path) -> None:
    done = subprocess.run([*MODULE, "compile", str(tmp_path / "gone")], capture_output=True, text=True)
    assert "There is no such directory" in refusal((done.returncode, done.stdout, done.stderr))


@pytest.mark.parametrize("verb", ["serve", "chat", "compile"])
@pytest.mark.parametrize("name", ["gone", "./gone", "a/b/c", "org/na..me", "gone/"])
def test_no_such_model(run: Run, verb: str, name: str) -> None:
    assert "There is no such directory" in refusal(run(verb, name))


def test_a_file_is_no_model(run: Run, model: Path) -> None:
    assert "is a file" in refusal(run("compile", model / "config.json"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_type": "lama"}, [repr("lama"), "did you mean 'llama'?", ", ".join(families())]),
        ({"model_type": None}, ["has no 'model_type'"]),
        ({"hidden_act": "relu"}, ["'hidden_act' is 'relu'", "'silu'"]),
        ({"rope_scaling": {"type": "ntk"}}, ["rope type 'ntk'", "yarn"]),
        ({"num_attention_heads": 0}, ["'num_attention_heads' must be an integer from 1 to"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["quantized by 'fp8' are not read", "awq", "gptq"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["no tensor whose name ends in .qweight"]),
        ({"quantization_config": "awq"}, ["'quantization_config' must be an object"]),
    ],
)
def test_configs_that_cannot_be_served(
    run: Run, model: Path, tmp_path: Path, keys: dict[str, Any], words: list[str]
) -> None:
    sentence = refusal(run("compile", damaged(model, tmp_path, "config.json", with_keys(**keys))))
    assert all(word in sentence for word in words), sentence


def test_a_config_that_is_not_json(run: Run, model: Path, tmp_path: Path) -> None:
    path = damaged(model, tmp_path, "config.json", lambda old: old[: len(old) // 2])
    assert "config.json cannot be read as JSON" in refusal(run("compile", path))


def test_a_directory_without_config(run: Run, tmp_path: Path) -> None:
    assert "has no config.json" in refusal(run("compile", tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old: old[:-100], "a download cut short?"),
        (lambda old: old[:8] + bytes(32) + old[40:], "its header is not JSON"),
        (lambda old: b"", "is no intact safetensors file"),
    ],
    ids=["truncated", "corrupt", "empty"],
)
def test_broken_weights(run: Run, model: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
    path = damaged(model, tmp_path, "model.safetensors", change)
    sentence = refusal(run("convert", path, "-o", tmp_path / "out"))
    assert "model.safetensors" in sentence and words in sentence
    assert not (tmp_path / "out").exists()


def test_weights_that_contradict_the_config(run: Run, model: Path, tmp_path: Path) -> None:
    path = damaged(model, tmp_path, "config.json", with_keys(intermediate_size=128))
    sentence = refusal(run("convert", path, "-o", tmp_path / "out"))
    assert "contradicts config.json" in sentence and "[96, 64]" in sentence and "[256, 64]" in sentence


def test_pickles_are_not_read(run: Run, model: Path, tmp_path: Path) -> None:
    path = shutil.copytree(model, tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert "never read because loading them runs code" in refusal(run("convert", path, "-o", tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quant", "q4f16"], ["no quantization 'q4f16'", "did you mean 'q4f16_1'?", "q3f32_1"]),
        (["--quant", "int4"], ["no quantization 'int4'", "q4, q3, q8, none"]),
        (["--device", "cpux"], ["no device 'cpux'", "did you mean 'cpu'?"]),
        (["--device", "cudo"], ["no device 'cudo'", "did you mean 'cuda'?", "cpu, cuda, rocm, metal, webgpu"]),
        (["--device=cuda", "--arch", "sm_9"], ["no family 'sm_9'", "did you mean 'sm_90'?", "known are sm_75"]),
        (["--arch", "sse9"], ["no instruction set 'sse9'", "portable"]),
        (["--max-model-len", "65"], ["positions for 64 tokens", "65 is more"]),
    ],
    ids=lambda value: value[1] if value[0].startswith("--") else "",
)
def test_options_that_name_nothing(run: Run, model: Path, options: list[str], words: list[str]) -> None:
    sentence = refusal(run("compile", model, *options))
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engine]\nmax_num_seq = 3\n", "'engine.max_num_seq'; did you mean 'max_num_seqs'?"),
        ("[servr]\nport = 1\n", "'servr'; did you mean 'server'?"),
        ("[server\n", "is not TOML"),
        ("[server]\nport = 'eighty'\n", "server.port"),
    ],
)
def test_settings_that_name_nothing(run: Run, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "llmserve.toml").write_text(text)
    sentence = refusal(run("serve", "--config", tmp_path / "llmserve.toml"))
    assert "llmserve.toml" in sentence and words in sentence


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "99999"), ("--threads", "0"), ("--max-num-seqs", "0"), ("--kv-cache-memory", "x")]
)
def test_settings_out_of_bounds(run: Run, model: Path, option: str, value: str) -> None:
    refusal(run("serve", model, option, value))


# --- the settings that come with the source


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.name)
def test_shipped_settings_load(file: Path) -> None:
    load_toml(file)


def test_the_default_settings_are_all_there_and_are_the_defaults() -> None:
    assert load_toml(CONFIGS / "default.toml") == Config()
    text = (CONFIGS / "default.toml").read_text()
    for section, field in Config.model_fields.items():
        body = text.partition(f"[{section}]")[2].partition("\n[")[0]
        named = re.findall(r"^(?:# )?(\w+) = ", body, re.MULTILINE)
        assert named == list(field.annotation.model_fields), section  # type: ignore[union-attr]


def test_the_examples_in_the_default_settings_are_settings(tmp_path: Path) -> None:
    text = (CONFIGS / "default.toml").read_text()
    (tmp_path / "all.toml").write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    config = load_toml(tmp_path / "all.toml")
    assert all(value is not None for section in config for value in dict(section[1]).values())


# --- from checkpoint to directory to server


@pytest.fixture(scope="module")
def converted(model: Path, cli_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "tiny-q3"
    env = os.environ | {"LLMSERVE_CACHE": str(cli_cache)}
    command = [*MODULE, "convert", str(model), "--output", str(path), "--quant", "q3"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "Converted to q3f32_g32" in done.stdout and f"llmserve serve {path}" in done.stdout
    for words in ("Quality of the stored weights on", "KL divergence", "perplexity, unquantized", "(int3)"):
        assert words in done.stdout
    assert {"config.json", "manifest.json", "params.safetensors", "tokenizer.json"} <= {f.name for f in path.iterdir()}
    return path


def test_a_converted_directory_serves(converted: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([*MODULE, "serve", str(converted), "--port", str(port)], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while True:
            assert server.poll() is None and time.monotonic() < until, "the server did not start"
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "seed": 1}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
        assert answer["model"] == "tiny-q3" and 1 <= answer["usage"]["completion_tokens"] <= 4
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode in (0, 130) and b"Traceback" not in err, err.decode()


def test_what_it_compiled_is_listed(run: Run, converted: Path, cli_cache: Path) -> None:
    code, out, _ = run("compile", converted)
    library, params = (Path(line.partition(": ")[2]) for line in out.splitlines()[-2:])
    assert code == 0 and library.is_relative_to(cli_cache) and params.is_relative_to(cli_cache)

    code, out, _ = run("list", "--json")
    rows = json.loads(out)
    assert code == 0 and {str(library), str(params)} <= {row["path"] for row in rows}
    assert all(row["intact"] and row["size"] > 0 for row in rows)
    assert {row["kind"] for row in rows if row["model"] == "tiny-q3"} == {"params"}
    assert next(row["model"] for row in rows if row["path"] == str(library)) == "llama-1x64"  # of any such model

    (library / "model.so").unlink()
    code, out, _ = run("list")
    assert code == 0 and f"in {cli_cache}" in out
    assert [line for line in out.splitlines() if "broken" in line] == [
        line for line in out.splitlines() if library.name in line
    ]
    code, out, _ = run("compile", converted)
    assert code == 0 and "Compiled for" in out and (library / "model.so").exists()
    assert "Everything was in the cache already." in run("compile", converted)[1]


@pytest.mark.slow
def test_a_budget_of_bits_is_judged_drawn_and_listed(run: Run, model: Path, tmp_path: Path) -> None:
    text, picture = tmp_path / "my.txt", tmp_path / "errors.svg"
    text.write_text("Some words, and some more of them, to judge a model that knows none. " * 40, "utf-8")
    options = ("--bits", "4.2", "--evaluation-data", text, "--picture", picture)
    code, out, _ = run("convert", model, "-o", tmp_path / "out", *options)
    assert code == 0 and "tokens of my.txt:" in out and "Converted to mix4.2" in out
    assert "model.embed_tokens" in picture.read_text("utf-8")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    report = manifest["results"]["report"]
    assert manifest["causes"]["scheme"] == "mix4.2" and report["text"] == "my.txt" and len(report["matrices"]) == 6

    code, out, _ = run("compile", model, "--bits", "4.2")
    assert code == 0 and re.search(r"Quality: \d\.\d\d bits, perplexity [+-]", out)
    lines = [line for line in run("list")[1].splitlines() if " mix4.2 " in line]
    assert len(lines) == 3 and [line for line in lines if "KL" in line] == [
        line for line in lines if "weights " in line
    ]
    code, out, _ = run("compile", model, "--bits", "4.3", "--no-report")
    assert code == 0 and "Quality" not in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "2"], "2 bits per weight are too few"),
        (["--bits", "20"], "20 bits per weight are more than"),
        (["--bits", "4", "--quant", "q4"], "give --bits or --quant, not both"),
        (["--evaluation-data", "gone.txt"], "gone.txt cannot be read"),
        (["--quant", "none", "--picture", "x.svg"], "nothing to draw into x.svg"),
    ],
)
def test_conversions_that_cannot_be(run: Run, model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    code, _, err = run("convert", model, "-o", tmp_path / "out", *options)
    assert code == 1 and words in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--calibrate", "MODEL"], "default"),
        (["MODEL", "--calibrate"], "default"),
        (["--calibrate", "--quant", "q3", "MODEL"], "default"),
        (["--calibrate", "awq,gptq", "MODEL"], "awq,gptq"),
        (["MODEL", "--calibrate=search"], "search"),
        (["MODEL"], None),
    ],
)
def test_calibrate_may_stand_alone(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str | None
) -> None:
    """`--calibrate` without methods is the default, and does not take the model for one."""
    asked: list[Any] = []

    class Recorded(Exception):
        pass

    def record(name: str | None, **options: Any) -> None:
        asked.append((name, options["calibrate"]))
        raise Recorded

    monkeypatch.setattr("llmserve.compile.build.Build", record)
    with pytest.raises(Recorded):
        run("compile", *(str(model) if word == "MODEL" else word for word in words))
    assert asked == [(str(model), expected)]


def test_methods_that_do_not_exist(run: Run, model: Path) -> None:
    assert "no calibration 'gpqt'; there are search, awq, gptq" in refusal(run("compile", model, "--calibrate", "gpqt"))


def test_its_weights_keep_their_scheme(run: Run, converted: Path) -> None:
    assert "holds int3 weights, which cannot become int4" in refusal(run("compile", converted, "--quant", "q4"))


@pytest.mark.parametrize("verb", ["serve", "compile", "chat"])
def test_a_truncated_directory_is_refused(run: Run, converted: Path, tmp_path: Path, verb: str) -> None:
    path = shutil.copytree(converted, tmp_path / "tiny-q3")
    with (path / "params.safetensors").open("r+b") as file:
        file.truncate((path / "params.safetensors").stat().st_size - 50)
    sentence = refusal(run(verb, path))
    assert "is not an intact weights directory" in sentence and "params.safetensors has" in sentence


def test_convert_does_not_write_over_other_things(run: Run, model: Path) -> None:
    assert "is no artifact of llmserve" in refusal(run("convert", model, "-o", model))
    assert (model / "model.safetensors").exists()


def test_an_empty_cache_is_listed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSERVE_CACHE", str(tmp_path / "none"))
    assert run("list", "--json")[:2] == (0, "[]\n")
    assert run("list")[1] == f"0 in {tmp_path / 'none'}\n"
