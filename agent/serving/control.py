"""What supervisor and model server say to each other: one JSON object a line, both ways, over a
socket pair.

Down: ``{"id": 1, "op": "load", ...}``. Up: the answer ``{"id": 1, "ok": true, ...}`` or
``{"id": 1, "ok": false, "fault": "bundle", "error": "..."}``, and once at the start an event
``ready`` with the address or ``failed`` with the reason. Answers may come in another order than the
requests: a load takes long.
"""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, cast

from agent.errors import DeviceError
from agent.ports import ServedWindow
from protos import report_pb2

__all__ = ["MAX_LINE_BYTES", "Event", "Fault", "Message", "Op", "decode", "encode", "windows_from"]

MAX_LINE_BYTES: Final = 1 << 20

Message = dict[str, Any]


class Op(StrEnum):
    """What the supervisor asks."""

    LOAD = "load"
    ACTIVATE = "activate"
    SHARE = "share"
    UNLOAD = "unload"
    DRAIN = "drain"
    PING = "ping"
    SHUTDOWN = "shutdown"


class Event(StrEnum):
    """What the server says unasked."""

    READY = "ready"
    FAILED = "failed"


class Fault(StrEnum):
    """Whose fault a refused request is."""

    BUNDLE = "bundle"
    DEVICE = "device"


def encode(message: Mapping[str, Any]) -> bytes:
    """``message`` as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in ``line``.

    Raises:
        DeviceError: it is not a JSON object; one of the two processes is broken.
    """
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise DeviceError(
            f"the model server's control channel carried something unreadable: {line[:80]!r}"
        )
    return message


def windows_from(answer: Message) -> Sequence[ServedWindow]:
    """The windows in the answer to a drain."""
    return [_window(cast(Message, entry)) for entry in answer.get("windows", ())]


def _window(entry: Message) -> ServedWindow:
    histogram = entry.get("latency")
    return ServedWindow(
        model=entry["model"],
        version=entry["version"],
        manifest_sha256=entry["manifest_sha256"],
        requests=entry["requests"],
        failures=entry["failures"],
        over_objective=entry["over_objective"],
        input_violations=entry["input_violations"],
        output_violations=entry["output_violations"],
        non_finite=entry["non_finite"],
        error_kinds=dict(entry["error_kinds"]),
        feedback_count=entry.get("feedback_count", 0),
        feedback_correct=entry.get("feedback_correct", 0),
        feedback_abs_error_sum=entry.get("feedback_abs_error_sum", 0.0),
        feedback_unknown=entry.get("feedback_unknown", 0),
        latency=None if histogram is None else report_pb2.Histogram(**histogram),
    )
