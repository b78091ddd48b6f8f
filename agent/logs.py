"""How the agent logs: one line an event on stderr, for people or as one JSON object, always with the ids it is about.

Rules kept here:
- The ids in ``FIELDS`` travel as ``extra=`` of the log call, never only in the text.
- A log line never fails and never spreads over several lines in JSON.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

__all__ = ["FIELDS", "JsonFormatter", "TextFormatter", "set_up_logging"]

FIELDS: Final = ("model", "bundle", "rollout", "reason_code")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, device_id: str) -> None:
        super().__init__()
        self._device_id = device_id

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "device": self._device_id,
            "message": record.getMessage(),
        }
        line |= _ids(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """For people: time, level, message, and the ids at the end."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, tz=UTC).strftime("%H:%M:%S")
        ids = " ".join(f"{name}={value}" for name, value in _ids(record).items())
        line = f"{when} {record.levelname.lower():7} {record.getMessage()}"
        if ids:
            line = f"{line}  [{ids}]"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def _ids(record: logging.LogRecord) -> dict[str, object]:
    found = {name: getattr(record, name, "") for name in FIELDS}
    return {name: value for name, value in found.items() if value}


def set_up_logging(level: str, form: str, device_id: str, stream: TextIO | None = None) -> None:
    """Send everything of this process to ``stream`` (stderr). ``level`` and ``form`` as in [log]."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(device_id) if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
