"""From what a device sent to rows that are safe to store: the edge where reports are parsed.

Rules kept here: pure; a report is either wholly acceptable or refused with a reason; nothing that a
device sends is unbounded or out of a column's range, and no number is NaN or infinite.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from protos import report_pb2

__all__ = ["DEVICE_ID", "Kind", "ParsedReport", "ReportRefusedError", "parse_report"]

DEVICE_ID: Final = re.compile(r"[a-z0-9-]{1,40}")
_BOOT_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|")
_MAX_INT: Final = 2**63 - 1
_MAX_SMALL_INT: Final = 2**31 - 1
_MAX_NAME: Final = 64
_MAX_PATH: Final = 256
_MAX_REASON: Final = 2000
_MAX_ENTRIES: Final = 64  # of one map or list
_MAX_NOTICES: Final = 8  # of one window
_MAX_NOTICE: Final = 256
_MAX_TRUST_TEXT: Final = 500
_MAX_BUCKETS: Final = 1024  # of one histogram
_MAX_LABEL_CHARS: Final = 256
_MAX_UTC_OFFSET_MINUTES: Final = 18 * 60
ROLES: Final = ("", "arm", "shadow")  # of a version: how it serves
_PARTS: Final = (  # counts of a window that cannot be larger than another
    ("failures", "requests"),
    ("feedback_correct", "feedback_count"),
    ("shadow_disagreed", "shadow_compared"),
    ("low_confidence", "confidence_count"),
)


class ReportRefusedError(ValueError):
    """A report says something that cannot be true or does not fit. ``code`` is for counters."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Kind(Enum):
    INVENTORY = "inventory"
    WINDOW = "window"
    EVENT = "deployment"


@dataclass(frozen=True, slots=True)
class ParsedReport:
    """One report, checked. ``row`` holds the columns of its table, without the received time."""

    kind: Kind
    device_id: str
    boot_id: str
    seq: int
    created_ms: int
    row: Mapping[str, Any]
    active: tuple[Mapping[str, Any], ...] = ()  # rows of device_models, with an inventory


def parse_report(report: report_pb2.Report, device_id: str) -> ParsedReport:
    """Check ``report``, which arrived from ``device_id``.

    Raises:
        ReportRefusedError: it cannot be stored; says why.
    """
    if not DEVICE_ID.fullmatch(device_id):
        raise ReportRefusedError("device_id", f"{device_id[:80]!r} is no device id")
    if report.device_id != device_id:
        raise ReportRefusedError(
            "device_id", f"it came from {device_id} but says {report.device_id[:80]!r}"
        )
    if not _BOOT_ID.fullmatch(report.boot_id):
        raise ReportRefusedError("boot_id", f"{report.boot_id[:80]!r} is no boot id")
    seq = _whole(report.seq, "seq")
    created_ms = _whole(report.created_unix_ms, "created_unix_ms")
    key = {"device_id": device_id, "boot_id": report.boot_id, "seq": seq}
    body = report.WhichOneof("body")
    if body == "window":
        row = key | _window(report.window)
        return ParsedReport(Kind.WINDOW, device_id, report.boot_id, seq, created_ms, row)
    if body == "deployment":
        row = key | _event(report.deployment) | {"at_ms": created_ms}
        return ParsedReport(Kind.EVENT, device_id, report.boot_id, seq, created_ms, row)
    if body == "inventory":
        row = _inventory(report.inventory) | {"boot_id": report.boot_id, "inventory_ms": created_ms}
        active = tuple(_active(one) for one in report.inventory.active[:_MAX_ENTRIES])
        return ParsedReport(Kind.INVENTORY, device_id, report.boot_id, seq, created_ms, row, active)
    raise ReportRefusedError("empty", "it has no body this version knows")


def _window(window: report_pb2.Window) -> dict[str, Any]:
    start_ms = _whole(window.start_unix_ms, "start_unix_ms")
    end_ms = _whole(window.end_unix_ms, "end_unix_ms")
    if end_ms < start_ms:
        raise ReportRefusedError("time", f"the window ends at {end_ms} before its start {start_ms}")
    for part, whole in _PARTS:
        some, all_ = getattr(window, part), getattr(window, whole)
        if some > all_:
            raise ReportRefusedError("counts", f"{part} = {some} of {whole} = {all_}")
    counts = {
        name: _whole(getattr(window, name), name)
        for name in (
            "requests", "failures", "over_objective", "input_violations", "output_violations",
            "non_finite", "feedback_count", "feedback_correct", "feedback_unknown",
            "shadow_compared", "shadow_disagreed", "shadow_dropped", "confidence_count",
            "low_confidence",
        )
    }  # fmt: skip
    resources = window.resources
    temperature = resources.temperature_c if resources.HasField("temperature_c") else None
    return {
        "model": _name(window.model, "model"),
        "version": _name(window.version, "version"),
        "manifest_sha256": _digest(window.manifest_sha256),
        "rollout_id": _text(window.rollout_id, "rollout_id", _MAX_NAME),
        "start_ms": start_ms,
        "end_ms": end_ms,
        **counts,
        "feedback_abs_error_sum": _finite(window.feedback_abs_error_sum, "feedback_abs_error_sum"),
        "notices": [text[:_MAX_NOTICE] for text in window.notices[:_MAX_NOTICES]],
        "error_kinds": _counts(window.error_kinds, "kinds of error"),
        "role": _role(window.role),
        "output_counts": _counts(window.output_counts, "outputs"),
        "counters": _counts(window.counters, "counters"),
        "latency": _histogram(window.latency_s) if window.HasField("latency_s") else b"",
        "rss_bytes": _whole(resources.rss_bytes, "rss_bytes"),
        "cpu_percent": _finite(resources.cpu_percent, "cpu_percent"),
        "disk_free_bytes": _whole(resources.disk_free_bytes, "disk_free_bytes"),
        "temperature_c": None if temperature is None else _finite(temperature, "temperature_c"),
        "merged": max(1, _whole(window.merged, "merged", _MAX_SMALL_INT)),
    }


def _event(event: report_pb2.DeploymentEvent) -> dict[str, Any]:
    return {
        "deployment_id": _name(event.deployment_id, "deployment_id"),
        "rollout_id": _name(event.rollout_id, "rollout_id"),
        "model": _name(event.model, "model"),
        "bundle": _text(event.bundle, "bundle", _MAX_PATH),
        "manifest_sha256": _digest(event.manifest_sha256),
        "phase": _enum_text(report_pb2.Phase, event.phase, "PHASE_"),
        "outcome": _enum_text(report_pb2.Outcome, event.outcome, "OUTCOME_"),
        "reason_code": _text(event.reason_code, "reason_code", _MAX_NAME),
        # A reason is for people: better cut than lost.
        "reason": event.reason[:_MAX_REASON],
        "attempt": _whole(event.attempt, "attempt", _MAX_SMALL_INT),
        "bytes_fetched": _whole(event.bytes_fetched, "bytes_fetched"),
        "measures": _measures(event.measures),
    }


def _inventory(inventory: report_pb2.Inventory) -> dict[str, Any]:
    if len(inventory.labels) > _MAX_ENTRIES:
        raise ReportRefusedError("labels", f"{len(inventory.labels)} labels")
    labels = {
        _name(key, "label"): _text(value, f"label {key}", _MAX_LABEL_CHARS)
        for key, value in sorted(inventory.labels.items())
    }
    return {
        "device_class": _text(inventory.device_class, "device_class", _MAX_NAME),
        "hardware": _text(inventory.hardware, "hardware", _MAX_NAME),
        "labels": labels,
        "agent_version": _text(inventory.agent_version, "agent_version", _MAX_NAME),
        "onnxruntime_version": _text(
            inventory.onnxruntime_version, "onnxruntime_version", _MAX_NAME
        ),
        "memory_bytes": _whole(inventory.memory_bytes, "memory_bytes"),
        "disk_free_bytes": _whole(inventory.disk_free_bytes, "disk_free_bytes"),
        "cpu_count": _whole(inventory.cpu_count, "cpu_count", _MAX_SMALL_INT),
        "operating_system": inventory.operating_system[:128],
        "execution_provider": _text(inventory.execution_provider, "execution_provider", 40),
        "utc_offset_minutes": _utc_offset(inventory),
        "battery_percent": _battery(inventory),
        "on_battery": inventory.on_battery,
        "trust": _trust(inventory.trust) if inventory.HasField("trust") else {},
    }


def _trust(trust: report_pb2.TrustStatus) -> dict[str, Any]:
    return {
        "refusal_code": _text(trust.refusal_code, "refusal_code", _MAX_NAME),
        "refusal": _readable(trust.refusal),
        "refused_s": _whole(trust.refused_unix_ms, "refused_unix_ms") / 1000,
        "refused": _whole(trust.refused, "refused"),
        "refusing": trust.refusing,
        "notices": [_readable(text) for text in trust.notices[:_MAX_NOTICES]],
    }


def _readable(text: str) -> str:
    """A text for people: better cut than lost."""
    return text[:_MAX_TRUST_TEXT].replace("\0", "")


def _utc_offset(inventory: report_pb2.Inventory) -> int | None:
    if not inventory.HasField("utc_offset_minutes"):
        return None
    minutes: int = inventory.utc_offset_minutes
    return minutes if abs(minutes) <= _MAX_UTC_OFFSET_MINUTES else None


def _battery(inventory: report_pb2.Inventory) -> float | None:
    if not inventory.HasField("battery_percent"):
        return None
    percent = _finite(inventory.battery_percent, "battery_percent")
    return min(max(percent, 0.0), 100.0)


def _active(active: report_pb2.ActiveModel) -> dict[str, Any]:
    return {
        "model": _name(active.model, "model"),
        "version": _name(active.version, "version"),
        "manifest_sha256": _digest(active.manifest_sha256),
        "rollout_id": _text(active.rollout_id, "rollout_id", _MAX_NAME),
    }


def _histogram(histogram: report_pb2.Histogram) -> bytes:
    if len(histogram.counts) > _MAX_BUCKETS:
        raise ReportRefusedError("latency", f"a histogram of {len(histogram.counts)} buckets")
    _finite(histogram.sum, "latency sum")
    _finite(histogram.max, "latency max")
    serialised: bytes = histogram.SerializeToString()
    return serialised


def _measures(measures: Mapping[str, float]) -> dict[str, float]:
    kept = {name[:_MAX_NAME]: value for name, value in measures.items() if math.isfinite(value)}
    return dict(sorted(kept.items())[:_MAX_ENTRIES])


def _counts(counts: Mapping[str, int], what: str) -> dict[str, int]:
    if len(counts) > _MAX_ENTRIES:
        raise ReportRefusedError("counts", f"{len(counts)} {what}")
    return {
        _text(name, what, _MAX_NAME): _whole(count, f"{what}: {name}")
        for name, count in sorted(counts.items())
    }


def _role(role: str) -> str:
    if role not in ROLES:
        raise ReportRefusedError("role", f"{role[:40]!r} is no role of a version")
    return role


def _enum_text(enum: Any, value: int, prefix: str) -> str:
    try:
        name: str = enum.Name(value)
    except ValueError as error:
        raise ReportRefusedError(prefix.lower().rstrip("_"), f"{value} is unknown here") from error
    text = name.removeprefix(prefix).lower()
    if text != "unspecified":
        return text
    if prefix == "OUTCOME_":
        return ""
    raise ReportRefusedError("phase", "it names no phase")


def _whole(value: int, what: str, most: int = _MAX_INT) -> int:
    if not 0 <= value <= most:
        raise ReportRefusedError("range", f"{what} = {value} is not between 0 and {most}")
    return int(value)


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise ReportRefusedError("range", f"{what} = {value} is not a number")
    return float(value)


def _name(text: str, what: str) -> str:
    if not text:
        raise ReportRefusedError("missing", f"it has no {what}")
    return _text(text, what, _MAX_NAME)


def _text(text: str, what: str, most: int) -> str:
    # A NUL is a character in a protobuf string and an error in PostgreSQL's text.
    if len(text) > most or "\0" in text:
        raise ReportRefusedError("text", f"{what} {text[:40]!r} is longer than {most} characters")
    return text


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ReportRefusedError("digest", f"{text[:80]!r} is no sha256 digest")
    return text
