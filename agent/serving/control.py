"""What supervisor and model server say to each other: one JSON object a line, both ways, over a
socket pair.

Down: ``{"id": 1, "op": "load", ...}``. Up: the answer ``{"id": 1, "ok": true, ...}`` or
``{"id": 1, "ok": false, "fault": "bundle", "error": "..."}``, and once at the start an event
``ready`` with the address or ``failed`` with the reason. Answers may come in another order than the
requests: a load takes long.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Any, Final, cast

from agent.errors import DeviceError
from agent.ports import ServedWindow
from agent.runtime.routing import SLOTS, Role, Share
from protos import report_pb2

__all__ = [
    "MAX_LINE_BYTES",
    "Event",
    "Fault",
    "Message",
    "Op",
    "decode",
    "encode",
    "share_from",
    "windows_from",
]

MAX_LINE_BYTES: Final = 1 << 20

Message = dict[str, Any]


class Op(StrEnum):
    """What the supervisor asks."""

    LOAD = "load"
    ACTIVATE = "activate"
    UNLOAD = "unload"
    SHARE = "share"
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


def share_from(entry: object) -> Share | None:
    """What the request to share says: ``{"manifest_sha256", "role", "traffic_bp", "routing_key", "salt"}``, or None
    for nothing beside.

    Raises:
        DeviceError: it is something else.
    """
    if entry is None:
        return None
    if not isinstance(entry, dict) or not entry.keys() <= {it.name for it in fields(Share)}:
        raise DeviceError(
            f"'sharing' must be null or say how a version takes part, got {entry!r:.200}"
        )
    texts = [entry.get(key, "") for key in ("manifest_sha256", "routing_key", "salt", "role")]
    traffic_bp, role = entry.get("traffic_bp", 0), texts[3]
    if not all(isinstance(text, str) for text in texts) or role not in set(Role):
        raise DeviceError(f"'sharing' names no version or no role, got {entry!r:.200}")
    if isinstance(traffic_bp, bool) or not isinstance(traffic_bp, int):
        raise DeviceError(f"'sharing' must give traffic_bp as a whole number, got {traffic_bp!r}")
    if not 0 <= traffic_bp <= SLOTS:
        raise DeviceError(f"'sharing' must give traffic_bp from 0 to {SLOTS}, got {traffic_bp}")
    return Share(texts[0], Role(role), traffic_bp, texts[1], texts[2])


def windows_from(answer: Message) -> Sequence[ServedWindow]:
    """The windows in the answer to a drain."""
    return [_window(cast(Message, entry)) for entry in answer.get("windows", ())]


def _window(entry: Message) -> ServedWindow:
    histogram = entry.get("latency")
    known = {name: entry[name] for name in _WINDOW_FIELDS if name in entry}
    latency = None if histogram is None else report_pb2.Histogram(**histogram)
    return ServedWindow(**{**known, "latency": latency})


_WINDOW_FIELDS: Final = tuple(field.name for field in fields(ServedWindow))
