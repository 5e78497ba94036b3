"""Checks of a server's settings before anything else is done: keys, certificates, an extra that is missing.

Imports no web framework, which takes most of a second: this comes first at every start.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from ..config import ServerConfig
from ..errors import ConfigError
from .edge import tracing

KEYS_VARIABLE = "LLMSERVE_API_KEYS"


def api_keys(config: ServerConfig, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of the settings, of `api_keys_file` and of LLMSERVE_API_KEYS together. Raises ConfigError.

    The file has one key a line, and comments after `#` at a line's beginning; the variable's are separated by commas.
    """
    keys = [*config.api_keys, *environment.get(KEYS_VARIABLE, "").split(",")]
    if config.api_keys_file is not None:
        try:
            lines = config.api_keys_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file {config.api_keys_file} cannot be read: {error}.") from error
        found = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
        if not found:  # naming a file without keys is not meant to open the server to all
            raise ConfigError(f"api_keys_file {config.api_keys_file} holds no key; write one a line.")
        keys += found
    return tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))


def check(config: ServerConfig) -> None:
    """Raise ConfigError for what cannot be used (keys, certificates, an extra), before anything expensive is done."""
    api_keys(config)
    if config.otlp_endpoint is not None:
        tracing.require()
    if config.ssl_keyfile is not None and config.ssl_certfile is None:
        raise ConfigError("ssl_keyfile needs ssl_certfile beside it.")
    if config.ssl_certfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                config.ssl_certfile, config.ssl_keyfile, _no_password
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"ssl_certfile {config.ssl_certfile} and its key cannot be used: {error}.") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; write it without a password, readable to the server's user alone")
