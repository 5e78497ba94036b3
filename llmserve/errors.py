"""The exceptions that llmserve raises on purpose.

Each message is one sentence that names the thing and says what to do; the CLI prints it without a traceback and the
HTTP server turns it into an OpenAI error body. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class LLMServeError(Exception):
    """Base of every error that a user can cause or mend."""


class ConfigError(LLMServeError):
    """A setting, a TOML file or a checkpoint's config.json holds something unusable."""


class UnsupportedError(LLMServeError):
    """The thing exists, but llmserve cannot do it; the message lists what it can."""


class CheckpointError(LLMServeError):
    """A checkpoint's files are missing, truncated, corrupt or contradict its config."""


class ArtifactError(LLMServeError):
    """A converted or compiled artifact is unusable, or could not be written (disk full, say)."""


class EngineError(LLMServeError):
    """The engine is not running: it has not started, has been stopped, or its thread has died."""


class RequestError(LLMServeError):
    """A request that cannot be served, said in the client's words.

    `param` names the request's field at fault, `code` is OpenAI's machine-readable word for it.
    """

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NotReadyError(RequestError):
    """What the request needs was not ready in time; the same request may be served a little later."""

    status = 503
    type = "service_unavailable"


class ContextLengthError(RequestError):
    """The prompt (with the tokens asked for) does not fit the context or the KV cache."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class ModelNotFoundError(RequestError):
    """The request names a model that this server does not serve."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")


class ResponseNotFoundError(RequestError):
    """The request names a stored response that is not, or no longer, there."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, code="not_found")


class QueueFullError(RequestError):
    """More requests wait than the server was told to hold; the client should come back later."""

    status = 429
    type = "rate_limit_error"


def is_exit(error: BaseException) -> bool:
    """Whether this is to end the program, and no fault. Panics of extensions in Rust are outside of `Exception` too."""
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
