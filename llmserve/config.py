"""The settings of a deployment: the model, the engine's limits, the server. From TOML, from flags, or both.

Unknown keys and unusable values are errors that name the key (and the nearest known one): a limit that was misspelt
must not silently be a default. Nothing here imports the rest of llmserve but its errors.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def parse_size(value: object) -> object:
    """Bytes from a number, or from a string such as "2GiB", "500 MB" or "64k" (binary units have an i)."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f'{value!r} is not a size; write bytes, or a number with a unit such as "2GiB" or "500MB"')
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def parse_memory(value: str | None) -> int | None:
    """Bytes from what a flag says. Raises ConfigError for what is no size, and for none at all."""
    try:
        count = parse_size(value)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    if count is not None and not (isinstance(count, int) and count > 0):
        raise ConfigError(f"{value!r} is no memory to count with; write a size such as 24GiB.")
    return count


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The model, its form and its device.

    Attributes:
        path: a checkpoint's directory or its name on the Hugging Face hub.
        quant: the scheme for its weights, such as "q4f16_1"; None is 4-bit, or what a converted directory holds.
        calibrate: methods that round the weights by a text, such as "gptq"; "default" is what is best, None does not.
        calibration_data: a file with that text, plain or JSON lines; None is the text that comes with llmserve.
        device: a platform's name; None takes the best that is there.
        arch: its instruction set or GPU family, where a platform has several; None takes the best.
        bits: instead of `quant`: bits per weight, spent matrix by matrix where they help most.
        report: judge weights that are converted; None does where that takes half a minute at most.
    """

    path: str | None = None
    quant: str | None = None
    calibrate: str | None = None
    calibration_data: Path | None = None
    device: str | None = None
    arch: str | None = None
    bits: float | None = None
    report: bool | None = None


class EngineConfig(_Section):
    """The limits of the engine: what runs at once, in how much memory.

    Attributes:
        max_model_len: tokens that a prompt and its completion may have together; None is the model's own limit.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens computed in one step, over all sequences; None is what the device needs to be
            busy. More would not be faster, and a prompt that waits would wait for its neighbours' as well.
        page_size: tokens per page of KV cache.
        kv_cache_memory: bytes for the KV cache; None leaves the choice to the engine.
        num_pages: pages of KV cache, which wins over `kv_cache_memory`.
        prefix_caching: keep the pages of finished requests for prompts that begin alike.
        max_waiting: requests that may queue before further ones are turned away.
        num_threads: for CPU kernels; None is one per core.
    """

    max_model_len: int | None = Field(default=None, gt=0)
    max_num_seqs: int = Field(default=64, gt=0)
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    page_size: int = Field(default=16, gt=0)
    kv_cache_memory: Size | None = None
    num_pages: int | None = Field(default=None, gt=0)
    prefix_caching: bool = True
    max_waiting: int = Field(default=1024, ge=0)
    num_threads: int | None = Field(default=None, gt=0)


class ServerConfig(_Section):
    """The settings of the HTTP server.

    Attributes:
        served_model_name: the model's name to clients, or several, of which the first is told; None is the last part of
            its path.
        any_model_name: serve requests whatever model they name.
        api_keys: of which one must come with every request; none, here, in the file and in the environment, means open
            to all.
        api_keys_file: a file with further keys, one a line.
        open_paths: what needs no key.
        ssl_certfile, ssl_keyfile: PEM files for TLS; None is plain HTTP. The key may be in the certificate's file.
        cors_origins: origins whose pages may call the server from a browser.
        page: serve the chat page at /.
        chat_template: a Jinja file to use instead of the checkpoint's template.
        tool_call_format: how the model writes tool calls; None finds it from the chat template.
        log_level, log_format: of all lines.
        access_log: write a line for each request, with its token counts and times, and nothing of what it says.
        otlp_endpoint: where spans go, as in "http://localhost:4318/v1/traces"; None makes none. Needs the extra `otel`.
        max_body_bytes: larger request bodies are refused.
        max_json_depth: lists and objects in each other in a request's body.
        max_json_values: values in it, of lists and objects and these themselves.
        max_output_tokens: tokens that a request may ask for; None is what the context holds.
        max_n: choices per prompt.
        max_prompts: prompts per request.
        max_stop_strings, max_stop_chars: stop strings per request, and how long each may be.
        idle_seconds: how long a connection is kept open for its first or next request; longer than clients and proxies
            keep theirs, or they send to one that is being closed.
        header_seconds, body_seconds: how long a request's headers may take to arrive, and its body.
        write_seconds: how long a client may read nothing of its answer before it is dropped.
        keep_alive_seconds: how long a stream may be silent before an empty chunk shows that it lives.
        tokenizer_threads: prompts rendered and tokenized at the same time.
        stored_responses, stored_responses_memory: responses that `previous_response_id` may name, and bytes of them.
        drain_seconds: how long a stopping server waits for running requests.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    served_model_name: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...] | None, BeforeValidator(_one_or_several)
    ] = None
    any_model_name: bool = False
    api_keys: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    api_keys_file: Path | None = None
    open_paths: tuple[Annotated[str, Field(pattern="^/")], ...] = ("/health", "/version")
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    cors_origins: tuple[str, ...] = ()
    page: bool = True
    chat_template: Path | None = None
    tool_call_format: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = True
    otlp_endpoint: str | None = None
    max_body_bytes: Size = 16 * 2**20
    max_json_depth: int = Field(default=128, gt=0, le=256)
    max_json_values: int = Field(default=2**19, gt=0)
    max_output_tokens: int | None = Field(default=None, ge=16)  # what /v1/completions gives who does not ask
    max_n: int = Field(default=128, gt=0, le=128)
    max_prompts: int = Field(default=1024, gt=0)
    max_stop_strings: int = Field(default=16, ge=0, le=16)
    max_stop_chars: int = Field(default=1024, gt=0)
    idle_seconds: float = Field(default=75.0, gt=0)
    header_seconds: float = Field(default=20.0, gt=0)
    body_seconds: float = Field(default=60.0, gt=0)
    write_seconds: float = Field(default=60.0, gt=0)
    keep_alive_seconds: float = Field(default=10.0, gt=0)
    tokenizer_threads: int = Field(default=2, gt=0)
    stored_responses: int = Field(default=1024, ge=0)
    stored_responses_memory: Size = 64 * 2**20
    drain_seconds: float = Field(default=30.0, ge=0)


class Config(_Section):
    """A whole deployment: one TOML file, a section each."""

    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()

    def override(self, **sections: Mapping[str, Any]) -> Config:
        """This config with settings replaced, section by section; None values (flags not given) change nothing."""
        merged = self.model_dump(exclude_unset=True)
        for name, settings in sections.items():
            given = {key: value for key, value in settings.items() if value is not None}
            merged[name] = {**merged.get(name, {}), **given}
        return validated(Config, merged, "the settings")


_Model = TypeVar("_Model", bound=BaseModel)


def validated(kind: type[_Model], values: Mapping[str, Any], source: str) -> _Model:
    """Validate settings. Raises ConfigError that names `source`, the setting and, if unknown, the nearest one."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] != "extra_forbidden":
            raise ConfigError(f"{source}: {where}: {first['msg'].removeprefix('Value error, ')}.") from error
        known = _fields_at(kind, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise ConfigError(f"{source}: there is no setting {where!r}; {hint}") from error


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for name in path:
        section = kind.model_fields[str(name)].annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            kind = section
    return list(kind.model_fields)


def load_toml(path: str | Path) -> Config:
    """A deployment's TOML file, with sections [model], [engine] and [server]. Raises ConfigError."""
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    return validated(Config, values, str(path))


def sampling_defaults(checkpoint: str | Path) -> dict[str, Any]:
    """The sampling parameters that a checkpoint's generation_config.json recommends, as they stand there.

    Raises ConfigError if it is no JSON object.
    """
    file = Path(checkpoint) / "generation_config.json"
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a JSON object, not {type(values).__name__}.")
    return {name: values[name] for name in _SAMPLING_DEFAULTS if values.get(name) is not None}
