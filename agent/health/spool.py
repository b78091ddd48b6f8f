"""What waits on the device for the fleet manager's acknowledgement: a bounded spool of reports.

Rules kept here:
- A report leaves the spool only when the fleet manager acknowledged it (after its commit).
- Bounded by count and by bytes. When full, the two oldest windows that add up and were never sent become one; windows
  that were sent are left alone, because the fleet manager may have committed them and would count them twice.
- Only when nothing adds up is the oldest window dropped, and counted in ``dropped``: never silently.
- Deployment events are never dropped nor merged; the updater's own limits bound how many there can be.
- Of inventories only the newest matters.

A report may go out twice, under the same name: (boot id, sequence number).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from agent.health.telemetry import merge_windows
from protos import report_pb2

__all__ = [
    "Drop",
    "MemoryRows",
    "MemorySpool",
    "Merge",
    "ReportId",
    "ReportKind",
    "RowSpool",
    "Rows",
    "Spool",
    "SpoolEntry",
    "SpoolLimits",
    "SpoolStats",
    "entry_of",
    "make_room",
    "merge_reports",
]

ReportId = tuple[str, int]
"""Boot id and sequence number."""


class ReportKind(Enum):
    INVENTORY = "inventory"
    WINDOW = "window"
    DEPLOYMENT = "deployment"


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much may wait. The defaults hold two weeks of one model at one window a minute, coarser with age."""

    max_reports: int = 2000
    max_bytes: int = 4 * 1024 * 1024
    batch_reports: int = 100
    batch_bytes: int = 48 * 1024


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """``merged`` and ``dropped`` count windows since the spool was opened."""

    reports: int
    size_bytes: int
    merged: int
    dropped: int


class Spool(Protocol):
    """Durable on a device, plain memory in the simulator. Owned by one task."""

    def put(self, report: report_pb2.Report) -> None:
        """Keep a report until it is acknowledged. Raises DeviceError when the disk refuses it."""
        ...

    def batch(self) -> Sequence[report_pb2.Report]:
        """The oldest reports that fit one message, marked as sent; the same ones again until acknowledged."""
        ...

    def ack(self, ids: Iterable[ReportId]) -> int:
        """Forget these reports; unknown names are no error. Returns how many were forgotten."""
        ...

    def stats(self) -> SpoolStats: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """What the policy must know about a spooled report. ``key``: windows with the same key add up."""

    place: int
    name: ReportId
    kind: ReportKind
    key: str
    size_bytes: int
    sent: bool


@dataclass(frozen=True, slots=True)
class Merge:
    older: int
    newer: int


@dataclass(frozen=True, slots=True)
class Drop:
    place: int


def entry_of(place: int, report: report_pb2.Report) -> SpoolEntry:
    """The entry of a report that has not been sent yet.

    Raises:
        ValueError: the report has no body.
    """
    body = report.WhichOneof("body")
    if body is None:
        raise ValueError(f"report {report.boot_id}/{report.seq} has no body")
    kind = ReportKind(body)
    key = ""
    if kind is ReportKind.WINDOW:
        window = report.window
        role = (window.role,) if window.role else ()
        key = "\n".join((window.model, window.manifest_sha256, window.rollout_id, *role))
    name = (report.boot_id, report.seq)
    return SpoolEntry(place, name, kind, key, report.ByteSize(), sent=False)


def make_room(entries: Mapping[int, SpoolEntry], limits: SpoolLimits) -> Merge | Drop | None:
    """The next step of bringing the spool under its limits; None when it is under them or nothing can go.

    ``entries`` by place, oldest first.
    """
    size = sum(entry.size_bytes for entry in entries.values())
    if len(entries) <= limits.max_reports and size <= limits.max_bytes:
        return None
    oldest: dict[str, int] = {}
    droppable: int | None = None
    for place, entry in entries.items():
        if entry.kind is not ReportKind.WINDOW:
            continue
        if droppable is None:
            droppable = place
        if entry.sent:
            continue
        if entry.key in oldest:
            return Merge(oldest[entry.key], place)
        oldest[entry.key] = place
    return None if droppable is None else Drop(droppable)


def merge_reports(older: report_pb2.Report, newer: report_pb2.Report) -> report_pb2.Report:
    """The report of both windows, under the name of the newer."""
    merged = report_pb2.Report(
        device_id=newer.device_id,
        boot_id=newer.boot_id,
        seq=newer.seq,
        created_unix_ms=newer.created_unix_ms,
    )
    merged.window.CopyFrom(merge_windows(older.window, newer.window))
    return merged


class Rows(Protocol):
    """Where a spool keeps its bytes: rows by place, oldest first."""

    def read(self, place: int) -> bytes:
        """The report at ``place``. Raises DeviceError when it cannot be read."""
        ...

    def write(self, changes: Mapping[int, bytes | None]) -> None:
        """All of the changes or none; None removes a row. Raises DeviceError."""
        ...

    def mark_sent(self, places: Sequence[int]) -> None:
        """Remember over a restart that these went out. Raises DeviceError."""
        ...

    def close(self) -> None: ...


class RowSpool:
    """The spool over any rows. Holds one entry a report in memory, the reports themselves in the rows."""

    __slots__ = ("_dropped", "_entries", "_limits", "_merged", "_next", "_places", "_rows")

    def __init__(
        self,
        rows: Rows,
        limits: SpoolLimits | None = None,
        entries: Iterable[SpoolEntry] = (),
    ) -> None:
        """``entries``: what the rows hold already, oldest first."""
        self._rows = rows
        self._limits = limits or SpoolLimits()
        self._entries = {entry.place: entry for entry in entries}
        self._places = {entry.name: entry.place for entry in self._entries.values()}
        self._next = max(self._entries, default=0) + 1
        self._merged = 0
        self._dropped = 0

    def put(self, report: report_pb2.Report) -> None:
        entry = entry_of(self._next, report)
        self._next += 1
        changes: dict[int, bytes | None] = {entry.place: report.SerializeToString()}
        entries = dict(self._entries)
        if entry.kind is ReportKind.INVENTORY:
            for place, other in self._entries.items():
                if other.kind is ReportKind.INVENTORY:
                    changes[place] = None
                    del entries[place]
        entries[entry.place] = entry
        merged = dropped = 0
        while (step := make_room(entries, self._limits)) is not None:
            if isinstance(step, Drop):
                changes[step.place] = None
                del entries[step.place]
                dropped += 1
                continue
            both = merge_reports(self._read(step.older, changes), self._read(step.newer, changes))
            changes[step.older] = None
            changes[step.newer] = both.SerializeToString()
            del entries[step.older]
            entries[step.newer] = entry_of(step.newer, both)
            merged += 1
        self._rows.write(changes)
        self._entries = entries
        self._places = {other.name: other.place for other in entries.values()}
        self._merged += merged
        self._dropped += dropped

    def _read(self, place: int, changes: Mapping[int, bytes | None]) -> report_pb2.Report:
        report = report_pb2.Report()
        report.ParseFromString(changes.get(place) or self._rows.read(place))
        return report

    def batch(self) -> Sequence[report_pb2.Report]:
        taken: list[report_pb2.Report] = []
        fresh: list[int] = []
        size = 0
        for place, entry in self._entries.items():
            size += entry.size_bytes + 8  # 8: tag and length of the report within the batch
            if taken and size > self._limits.batch_bytes:
                break
            taken.append(report_pb2.Report.FromString(self._rows.read(place)))
            if not entry.sent:
                fresh.append(place)
            if len(taken) >= self._limits.batch_reports:
                break
        if fresh:
            self._rows.mark_sent(fresh)
            for place in fresh:
                self._entries[place] = replace(self._entries[place], sent=True)
        return taken

    def ack(self, ids: Iterable[ReportId]) -> int:
        places = {self._places[name] for name in ids if name in self._places}
        if places:
            self._rows.write(dict.fromkeys(places))
            for place in places:
                del self._places[self._entries.pop(place).name]
        return len(places)

    def stats(self) -> SpoolStats:
        size = sum(entry.size_bytes for entry in self._entries.values())
        return SpoolStats(len(self._entries), size, self._merged, self._dropped)

    def close(self) -> None:
        self._rows.close()


class MemoryRows:
    """Rows that do not outlive their process."""

    __slots__ = ("_raw",)

    def __init__(self) -> None:
        self._raw: dict[int, bytes] = {}

    def read(self, place: int) -> bytes:
        return self._raw[place]

    def write(self, changes: Mapping[int, bytes | None]) -> None:
        for place, raw in changes.items():
            if raw is None:
                self._raw.pop(place, None)
            else:
                self._raw[place] = raw

    def mark_sent(self, places: Sequence[int]) -> None:
        """Nothing survives a restart, so nothing must be remembered for one."""

    def close(self) -> None:
        """Nothing to close."""


class MemorySpool(RowSpool):
    """The spool of a device that does not outlive its process: simulator and tests."""

    __slots__ = ()

    def __init__(self, limits: SpoolLimits | None = None) -> None:
        super().__init__(MemoryRows(), limits)
