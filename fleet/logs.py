"""How the fleet manager's log looks: text for people, one JSON object a line for machines; always
on stderr.

Rules kept here: what a message is about (device, rollout, model, bundle) is a field of its own, so
that logs can be searched by it; a value from outside never breaks a line.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

__all__ = ["configure_logging"]

FIELDS: Final = ("device", "rollout", "model", "bundle")
_QUIET: Final = (
    "alembic",
    "uvicorn",
    "asyncio",
    "tuf",
    "httpx",
    "httpcore",
)  # only what is a warning or worse


def configure_logging(level: str, log_format: str) -> None:
    """Set up the process's logging; ``log_format`` is ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _when(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None))}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().replace("\n", "\n    ")
        text = f"{_when(record)} {record.levelname:<7} {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text
