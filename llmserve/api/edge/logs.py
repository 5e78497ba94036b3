"""Log lines: text or JSON, each with the id of the request that it belongs to, and one line per request.

Prompts and answers are in none of them.
"""

from __future__ import annotations

import json
import logging
import logging.config
from typing import Any

from .record import Record, current

access = logging.getLogger("llmserve.access")


class _WithId(logging.Filter):
    """Gives each line the id of the request in whose context it was written."""

    def filter(self, line: logging.LogRecord) -> bool:
        record = current.get()
        line.request_id = record.id if record is not None else "-"
        return True


class TextFormatter(logging.Formatter):
    """`2025-11-25 13:00:00,000 INFO [request id] message`, on one line but for tracebacks."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(request_id)s] %(message)s")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, line: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": self.formatTime(line, "%Y-%m-%dT%H:%M:%S") + f".{int(line.msecs):03d}",
            "level": line.levelname.lower(),
            "logger": line.name,
            "request_id": getattr(line, "request_id", "-"),
        }
        fields = getattr(line, "fields", None)
        content |= fields if fields is not None else {"message": line.getMessage()}
        if line.exc_info:
            content["traceback"] = self.formatException(line.exc_info)
        return json.dumps(content, default=str)


def settings(level: str, style: str, access_log: bool) -> dict[str, Any]:
    """For `logging.config.dictConfig`: everything goes to standard error."""
    formatter = f"{__name__}.{'Json' if style == 'json' else 'Text'}Formatter"
    chosen = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"id": {"()": f"{__name__}._WithId"}},
        "formatters": {"chosen": {"()": formatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "chosen",
                "filters": ["id"],
            }
        },
        "loggers": {
            "llmserve": chosen,
            "uvicorn": chosen,
            # Whoever asks for warnings only and for an access log gets both.
            "llmserve.access": {**chosen, "level": "INFO" if access_log else "CRITICAL"},
        },
    }


def log_access(record: Record) -> None:
    """The one line of a request."""
    fields = record.as_dict()
    shown = dict(fields)
    head = f"{shown.pop('client') or '-'} {shown.pop('method')} {shown.pop('path')} {shown.pop('status')}"
    shown.pop("id")  # every line has it
    if "reason" in shown:
        shown["reason"] = json.dumps(shown["reason"])  # on one line, and told from what follows
    access.info("%s %s", head, " ".join(f"{k}={v}" for k, v in shown.items()), extra={"fields": fields})
