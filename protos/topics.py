"""Names of the MQTT topics, in one place for both sides.

Payloads are protobuf (the pack: gzip over protobuf), at most ``MAX_PAYLOAD_BYTES``.
"""

from typing import Final

MAX_PAYLOAD_BYTES: Final = 64 * 1024
MANAGER: Final = "fleet-manager"
"""The fleet manager's name at a broker that knows clients by their certificates; no device may have it."""


def pack(fleet: str) -> str:
    """Retained: the newest metadata pack of the fleet."""
    return f"muster/{fleet}/pack"


def report(fleet: str, device_id: str) -> str:
    """Up: a ReportBatch, or SignedReports of an enrolled device."""
    return f"muster/{fleet}/devices/{device_id}/report"


def status(fleet: str, device_id: str) -> str:
    """Retained, up: a Presence; also the topic of the will."""
    return f"muster/{fleet}/devices/{device_id}/status"


def request(fleet: str, device_id: str) -> str:
    """Down: a Downlink to one device."""
    return f"muster/{fleet}/devices/{device_id}/request"


def response(fleet: str, device_id: str) -> str:
    """Up: an answer to a request."""
    return f"muster/{fleet}/devices/{device_id}/response"


def all_reports(fleet: str) -> str:
    """Subscription of the fleet manager to every device's reports."""
    return f"muster/{fleet}/devices/+/report"


def all_statuses(fleet: str) -> str:
    """Subscription of the fleet manager to every device's presence."""
    return f"muster/{fleet}/devices/+/status"


def device_of(topic: str) -> str | None:
    """The device id in a per-device topic, or None when the topic is not one."""
    parts = topic.split("/")
    if len(parts) == 5 and parts[0] == "muster" and parts[2] == "devices":
        return parts[3]
    return None
